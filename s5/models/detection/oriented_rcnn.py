"""The part of the detector that each task has for itself: FPN, oriented RPN and RoI head."""

from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from s5.models.detection import assigner, coder, heads  # noqa: F401 - registers the parts
from s5.models.detection.settings import Settings, oriented_rcnn


class OrientedRCNN(nn.Module):
    """Neck, RPN and RoI head of one task.

    Args:
        width: channels of the backbone's feature maps.
        num_classes: classes of the task, background not counted.
        settings: what may be chosen of Oriented R-CNN.
    """

    def __init__(self, width: int, num_classes: int, settings: Settings) -> None:
        super().__init__()
        parts = oriented_rcnn(width, num_classes, settings)
        self.neck = MODELS.build(parts["neck"])
        self.rpn_head = MODELS.build(parts["rpn_head"])
        self.roi_head = MODELS.build(parts["roi_head"])
        self.proposals = parts["proposals"]

    def loss(self, features: tuple[Tensor, ...], samples: SampleList) -> dict[str, Tensor]:
        """Losses ``rpn_cls``, ``rpn_box``, ``cls`` and ``box`` of the images of this task.

        Args:
            features: the neck's maps.
            samples: ground truth of the images.
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

    def predict(
        self, features: tuple[Tensor, ...], samples: SampleList, rescale: bool = True
    ) -> list[InstanceData]:
        """Detections of every image, with ``rescale`` in pixels of the image file."""
        proposals = self.rpn_head.predict(features, samples, rescale=False)
        return self.roi_head.predict(features, proposals, samples, rescale=rescale)


def _one_class(sample: Any) -> Any:  # noqa: ANN401 - a DetDataSample
    """The same ground truth, objects without classes, as the RPN learns it."""
    changed = sample.new()
    changed.gt_instances = sample.gt_instances.clone()
    changed.gt_instances.labels = torch.zeros_like(sample.gt_instances.labels)
    if "ignored_instances" in sample:
        changed.ignored_instances = sample.ignored_instances
    return changed


def _total(parts: Tensor | list[Tensor]) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.stack(list(parts)).sum()
