"""Oriented R-CNN as published, as mmdetection configurations: the parts of a task beside the backbone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

import s5.detection.network.parts  # noqa: F401 - registers the parts
from s5.backbones import STRIDES
from s5.ranges import Positive, PositiveFloat, Share

ANGLE = "le90"
NORM_GROUPS = 32


@dataclass(frozen=True)
class Settings:
    """Settings of Oriented R-CNN, by default the published values.

    Attributes:
        enlarge: Factors of height and width of the RoIs before pooling; (1, 1) is mmrotate's behaviour.
        proposals: Number of RPN proposals per image, before and after NMS.
        anchors: Number of anchors per image in the RPN's loss, at most half of them positive.
        rois: Number of RoIs per image in the RoI head's loss, at most a quarter of them positive. They take
            most of the time of a step with a small backbone.
        channels: Channels of FPN, RPN and pooled RoIs.
        fc_channels: Width of the RoI head's two linear layers.
        fpn_norm: Add GroupNorm after the convolutions of the FPN. It speeds up learning if the backbone's
            feature maps have large values, such as after a short S4P run. The published detector has none.
        score_thr: Minimum score of detections.
        nms: Rotated IoU above which the lower-scoring of two detections of a class is dropped.
        max_per_img: Maximum number of detections per image.
    """

    enlarge: tuple[PositiveFloat, PositiveFloat] = (1.4, 1.2)
    proposals: Positive = 2000
    anchors: Positive = 256
    rois: Positive = 512
    channels: Positive = 256
    fc_channels: Positive = 1024
    fpn_norm: bool = False
    score_thr: Share = 0.05
    nms: Share = 0.1
    max_per_img: Positive = 2000


def oriented_rcnn(in_channels: Sequence[int], num_classes: int, settings: Settings) -> dict[str, Any]:
    """Build the configurations of neck, RPN head and RoI head, and of the proposals in training.

    Args:
        in_channels: Channels of the backbone's four feature maps.
        num_classes: Number of classes without background.
        settings: Settings of Oriented R-CNN.
    """
    proposals = {
        "nms_pre": settings.proposals,
        "max_per_img": settings.proposals,
        "nms": {"iou_threshold": 0.8},
        "min_bbox_size": 0,
    }
    return {
        "neck": {
            "type": "mmdet.FPN",
            "in_channels": list(in_channels),
            "out_channels": settings.channels,
            "num_outs": 5,
            "norm_cfg": _group_norm(settings.channels) if settings.fpn_norm else None,
        },
        "rpn_head": _rpn_head(proposals, settings),
        "roi_head": _roi_head(num_classes, settings),
        "proposals": _config(proposals),
    }


def _group_norm(channels: int) -> dict[str, Any]:
    return {"type": "GN", "num_groups": math.gcd(NORM_GROUPS, channels)}


def _rpn_head(proposals: dict[str, Any], settings: Settings) -> dict[str, Any]:
    return {
        "type": "mmdet.Float32OrientedRPNHead",
        "in_channels": settings.channels,
        "feat_channels": settings.channels,
        "num_classes": 1,
        "anchor_generator": {
            "type": "mmdet.AnchorGenerator",
            "scales": [8],
            "ratios": [0.5, 1.0, 2.0],
            "strides": [*STRIDES, 64],
            "use_box_type": True,
        },
        "bbox_coder": {
            "type": "mmrotate.AnalyticMidpointCoder",
            "angle_version": ANGLE,
            "target_means": [0.0] * 6,
            "target_stds": [1.0, 1.0, 1.0, 1.0, 0.5, 0.5],
        },
        "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True},
        "loss_bbox": {"type": "mmdet.SmoothL1Loss", "beta": 1 / 9},
        "train_cfg": _config(
            {
                "assigner": _assigner(0.7, 0.3, "EnclosingOverlaps"),
                "sampler": _sampler(settings.anchors, 0.5, add_truth=False),
                "allowed_border": 0,
                "pos_weight": -1,
            }
        ),
        "test_cfg": _config(proposals),
    }


def _roi_head(num_classes: int, settings: Settings) -> dict[str, Any]:
    return {
        "type": "mmdet.StandardRoIHead",
        "bbox_roi_extractor": {
            "type": "mmdet.EnlargingRoIExtractor",
            "enlarge": settings.enlarge,
            "roi_layer": {
                "type": "RoIAlignRotated",
                "output_size": 7,
                "sampling_ratio": 2,
                "clockwise": True,
            },
            "out_channels": settings.channels,
            "featmap_strides": list(STRIDES),
        },
        "bbox_head": {
            "type": "mmdet.Float32BBoxHead",
            "predict_box_type": "rbox",
            "in_channels": settings.channels,
            "fc_out_channels": settings.fc_channels,
            "roi_feat_size": 7,
            "num_classes": num_classes,
            "reg_predictor_cfg": {"type": "mmdet.Linear"},
            "cls_predictor_cfg": {"type": "mmdet.Linear"},
            "bbox_coder": {
                "type": "mmrotate.UnclampedBoxCoder",
                "angle_version": ANGLE,
                "norm_factor": None,
                "edge_swap": True,
                "proj_xy": True,
                "target_means": (0.0,) * 5,
                "target_stds": (0.1, 0.1, 0.2, 0.2, 0.1),
            },
            "reg_class_agnostic": True,
            "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": False},
            "loss_bbox": {"type": "mmdet.SmoothL1Loss", "beta": 1.0},
        },
        "train_cfg": _config(
            {
                "assigner": _assigner(0.5, 0.5, "RBboxOverlaps2D"),
                "sampler": _sampler(settings.rois, 0.25, add_truth=True),
                "pos_weight": -1,
            }
        ),
        "test_cfg": _config(_final(settings)),
    }


def _final(settings: Settings) -> dict[str, Any]:
    return {
        "nms_pre": 2000,
        "min_bbox_size": 0,
        "score_thr": settings.score_thr,
        "nms": {"iou_threshold": settings.nms},
        "max_per_img": settings.max_per_img,
    }


def _assigner(positive: float, negative: float, overlaps: str) -> dict[str, Any]:
    return {
        "type": "mmdet.IgnoringAssigner",
        "pos_iou_thr": positive,
        "neg_iou_thr": negative,
        "min_pos_iou": negative,
        "match_low_quality": positive != negative,  # in the RPN only
        "iou_calculator": {"type": f"mmrotate.{overlaps}"},
    }


def _sampler(num: int, positive_share: float, add_truth: bool) -> dict[str, Any]:
    return {
        "type": "mmdet.RandomSampler",
        "num": num,
        "pos_fraction": positive_share,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": add_truth,
    }


def _config(values: dict[str, Any]) -> ConfigDict:
    return ConfigDict(values)


class OrientedRCNN(nn.Module):
    """Neck, RPN and RoI head of one task.

    Args:
        in_channels: Channels of the backbone's four feature maps.
        num_classes: Number of classes of the task without background.
        settings: Settings of Oriented R-CNN.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, settings: Settings) -> None:
        super().__init__()
        parts = oriented_rcnn(in_channels, num_classes, settings)
        self.neck = MODELS.build(parts["neck"])
        self.rpn_head = MODELS.build(parts["rpn_head"])
        self.roi_head = MODELS.build(parts["roi_head"])
        self.proposals = parts["proposals"]

    def loss(self, features: tuple[Tensor, ...], samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses `rpn_cls`, `rpn_box`, `cls` and `box` of this task's images.

        Args:
            features: Feature maps of the neck.
            samples: Ground truth of the images.
        """
        rpn_samples = [_one_class(sample) for sample in samples]
        rpn, proposals = self.rpn_head.loss_and_predict(features, rpn_samples, proposal_cfg=self.proposals)
        roi = self.roi_head.loss(features, proposals, samples)
        return {
            "rpn_cls": _total(rpn["loss_rpn_cls"]),
            "rpn_box": _total(rpn["loss_rpn_bbox"]),
            "cls": roi["loss_cls"],
            "box": roi["loss_bbox"],
        }

    def predict(self, features: tuple[Tensor, ...], samples: SampleList) -> list[InstanceData]:
        """Predict the detections of every image, in pixels of the image file."""
        proposals = self.rpn_head.predict(features, samples, rescale=False)
        return self.roi_head.predict(features, proposals, samples, rescale=True)


def _one_class(sample: Any) -> Any:  # noqa: ANN401 - a DetDataSample
    """Copy the ground truth with class 0 for all objects, as the RPN needs it."""
    changed = sample.new()
    changed.gt_instances = sample.gt_instances.clone()
    changed.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    if "ignored_instances" in sample:
        changed.ignored_instances = sample.ignored_instances
    return changed


def _total(parts: Tensor | list[Tensor]) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.stack(list(parts)).sum()
