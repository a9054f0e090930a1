"""The comparison of detectors on two devices: it bears rounding, and it notices faults of every stage."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from s5.detection.network import DetectionModel
from s5.detection.network import parts as heads
from s5.ops.rotated_nms import rotated_nms
from tests.helpers.detector_stages import (
    CHOICES,
    NUMBERS,
    Results,
    build_images,
    build_model,
    compare,
    run_stages,
)


@pytest.fixture(scope="module")
def model() -> DetectionModel:
    return build_model()


@pytest.fixture(scope="module")
def expected(model: DetectionModel) -> Results:
    return run_stages(model, build_images())


class Tf32Convolutions(TorchFunctionMode):
    """Rounds what convolutions get to the 10 bits of TF32, as GPUs do by default."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        if func in (F.conv2d, torch.conv2d):
            args = (_to_tf32(args[0]), _to_tf32(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _to_tf32(x: Tensor) -> Tensor:
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def perturbed(value: Any, size: float, generator: torch.Generator) -> Any:
    """The same results with relative errors of ``size``."""
    if isinstance(value, dict):
        return {key: perturbed(part, size, generator) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(perturbed(part, size, generator) for part in value)
    return value * (1 + size * torch.randn(value.shape, generator=generator))


def test_the_stages_are_those_of_a_prediction(model: DetectionModel, expected: Results) -> None:
    images = build_images()
    found = model.predict_all(images, [images.shape[-2:]] * 2, [1.0] * 2)
    for task, of_images in found.items():
        for one, other in zip(of_images, expected.tensors[f"{task} found"], strict=True):
            assert len(other) > 4
            assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert {name.split()[1] for name in expected.tensors} == {*NUMBERS, *CHOICES}


def test_convolutions_in_tf32_pass(model: DetectionModel, expected: Results) -> None:
    """Though the final boxes of such a run alone are others."""
    with Tf32Convolutions():
        ours, alone = (run_stages(model, build_images(), given) for given in (expected, None))
    assert not torch.equal(ours.tensors["one rpn"][0], expected.tensors["one rpn"][0])
    compare(ours, expected)
    with pytest.raises(AssertionError, match="no twin|boxes, not"):
        compare(alone, expected, tolerance=torch.inf)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_decides_no_choice(model: DetectionModel, expected: Results, seed: int) -> None:
    """Errors a hundred times those of float32: the scores and overlaps of these weights have margins."""
    generator = torch.Generator().manual_seed(seed)
    given = {
        name: perturbed(value, 1e-5, generator) if name.endswith(NUMBERS) else value
        for name, value in expected.returned.items()
    }
    compare(run_stages(model, build_images(), Results(expected.tensors, given)), expected)


def shift_boxes(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = model.detector.heads["one"].roi_head.bbox_head.bbox_coder
    right = coder.decode

    def decode(rois: Tensor, *args: Any, **kwargs: Any) -> Any:
        return right(rois + rois.new_tensor([1.0, 0, 0, 0, 0]), *args, **kwargs)  # by a pixel

    monkeypatch.setattr(coder, "decode", decode)


def shift_proposals(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = model.detector.heads["other"].rpn_head.prior_generator
    monkeypatch.setattr(generator, "base_anchors", [anchors + 2 for anchors in generator.base_anchors])


def suppress_other_classes(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_one_class(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor) -> Tensor:
        return rotated_nms(boxes, scores, threshold, torch.zeros_like(labels))

    monkeypatch.setattr(heads, "rotated_nms", of_one_class)


def swap_the_enlargement(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = model.detector.heads["one"].roi_head.bbox_roi_extractor
    monkeypatch.setattr(extractor, "enlarge", extractor.enlarge[::-1])


def scale_a_level(model: DetectionModel, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = model.detector.heads["one"].neck.fpn_convs[2].conv.weight
    monkeypatch.setattr(weight, "data", weight.data * 1.05)


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        (shift_boxes, "one found"),
        (shift_proposals, "other proposals"),
        (suppress_other_classes, "one found"),
        (swap_the_enlargement, "one rois"),
        (scale_a_level, "one rpn"),
    ],
)
def test_a_fault_is_found_in_its_stage(
    model: DetectionModel, expected: Results, fault: Callable, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(model, monkeypatch)
    with pytest.raises(AssertionError, match=stage):
        compare(run_stages(model, build_images(), expected), expected)
