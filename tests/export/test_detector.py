"""Exported detectors: boxes and scores of the model before its final NMS, in the layout of oriented YOLO."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample

import s5
from s5.detection.network import DetectionModel
from s5.export.detector import DetectorGraph, pool
from tests.detection.predict.det_models import picture
from tests.export.deepness import Deepness

SIDE = 64


class Found(NamedTuple):
    boxes: torch.Tensor  # (N, 5)
    scores: torch.Tensor  # (N, classes)


def model_of(checkpoint: Path) -> DetectionModel:
    """One task of the detector."""
    return s5.load(checkpoint, "cpu", "fp32", tasks=["harbour"]).model


def image_of(seed: int) -> torch.Tensor:
    return torch.from_numpy(picture(SIDE, SIDE, seed)).permute(2, 0, 1)[None] / 255


def eager(model: DetectionModel, image: torch.Tensor) -> Found:
    """What the model computes before its final NMS."""
    network = model.detector
    head = network.heads["harbour"]
    size = {"img_shape": (SIDE, SIDE), "pad_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo=size | {"batch_input_shape": (SIDE, SIDE)})
    with torch.no_grad():
        maps = head.neck(network.encode(model._prepare(image), {"harbour": 1}))
        proposals = head.rpn_head.predict(maps, [sample], rescale=False)
        (result,) = head.roi_head.predict_bbox(maps, [sample.metainfo], proposals, None, rescale=False)
    boxes = getattr(result.bboxes, "tensor", result.bboxes)
    return Found(boxes, result.scores[:, :-1])


def read(columns: torch.Tensor) -> Found:
    """Boxes and scores of an output (1, 4 + K + 1, N)."""
    rows = columns[0].T
    return Found(torch.cat([rows[:, :4], rows[:, -1:]], 1), rows[:, 4:-1])


@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_scores_are_those_of_the_model(detector: Path, seed: int) -> None:
    model, image = model_of(detector), image_of(seed)
    expected = eager(model, image)
    with torch.no_grad():
        found = read(DetectorGraph(model)(image)[0])
    assert len(expected.boxes) > 5
    assert torch.allclose(found.boxes[: len(expected.boxes)], expected.boxes, atol=1e-3)
    assert torch.allclose(found.scores[: len(expected.boxes)], expected.scores, atol=1e-4)
    assert not found.scores[len(expected.boxes) :].any()


def test_proposals_that_nms_removes_have_no_score(detector: Path) -> None:
    model, image = model_of(detector), image_of(0)
    rpn = model.detector.heads["harbour"].rpn_head
    rpn.test_cfg.nms.iou_threshold = 0.3
    rpn.test_cfg.max_per_img = 100  # more places than boxes that are kept
    expected = eager(model, image)
    with torch.no_grad():
        found = read(DetectorGraph(model)(image)[0])
    count = len(expected.boxes)
    assert 0 < count < len(found.boxes)
    assert torch.allclose(found.boxes[:count], expected.boxes, atol=1e-3)
    assert not found.scores[count:].any()


def test_pooling_of_boxes_on_all_levels_and_outside(detector: Path) -> None:
    extractor = model_of(detector).detector.heads["harbour"].roi_head.bbox_roi_extractor
    maps = tuple(torch.randn(1, 32, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32, 64))
    place, size = torch.rand(60, 2) * 320 - 32, torch.exp(torch.rand(60, 2) * 5 + 2)
    boxes = torch.cat([place, size, torch.rand(60, 1) * 3 - 1.5], 1)
    rois = torch.cat([torch.zeros(60, 1), boxes], 1)
    levels = extractor.map_roi_levels(rois, 4)
    assert set(levels.tolist()) == {0, 1, 2, 3}
    assert torch.allclose(pool(extractor, maps, boxes), extractor(maps[:4], rois), atol=1e-5)


@pytest.mark.slow
class TestOnnx:
    """The file that Deepness opens."""

    def test_no_field_is_left_to_the_user(self, ships: Path) -> None:
        file = Deepness(ships)
        assert (file.tile, file.batch) == (SIDE, 1)  # the plugin reads one image of a batch
        assert file.read("model_type").capitalize() == "Detector"
        assert file.read("det_type") == "YOLO_Ultralytics_obb"
        assert file.class_names() == [["ship", "crane"]]
        assert (file.read("tile_size"), file.read("tiles_overlap")) == (SIDE, 20)
        assert (file.read("det_conf"), file.read("det_iou_thresh")) == (0.3, 0.1)
        assert file.outputs[0].shape == [1, 4 + 2 + 1, 20]

    def test_boxes_that_the_plugin_reads(self, detector: Path, ships: Path) -> None:
        model, image = model_of(detector), picture(SIDE, SIDE)
        expected = eager(model, torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
        found = Deepness(ships).boxes(image)
        best = expected.scores.amax(1)
        sure = (best >= 0.3).nonzero().flatten()
        assert len(found) == len(sure) > 5
        for (label, score, x, y, long, short, angle), i in zip(found, sure, strict=True):
            cx, cy, w, h, theta = expected.boxes[i].tolist()
            assert (label, score) == (
                int(expected.scores[i].argmax()),
                pytest.approx(float(best[i]), abs=1e-4),
            )
            assert (x, y) == (pytest.approx(cx, abs=1e-3), pytest.approx(cy, abs=1e-3))
            assert (long, short) == (pytest.approx(max(w, h), abs=1e-3), pytest.approx(min(w, h), abs=1e-3))
            axis = theta if w > h else theta + np.pi / 2
            assert abs(np.sin(angle - axis)) < 1e-3  # the same line

    def test_torch_export_has_the_same_boxes(self, detector: Path, ships: Path) -> None:
        image = image_of(1)
        found = read(torch.export.load(ships.with_suffix(".pt2")).module()(image)[0])
        expected = eager(model_of(detector), image)
        assert torch.allclose(found.boxes[: len(expected.boxes)], expected.boxes, atol=1e-3)
        assert torch.allclose(found.scores[: len(expected.boxes)], expected.scores, atol=1e-4)
