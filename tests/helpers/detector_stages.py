"""Compare a detector on two devices stage by stage.

Rounding decides which of several nearly equal boxes a detector with random weights keeps, so its final boxes
differ between devices. Here every stage of the second run continues from the first run's results, and is
compared on its own: numbers within a tolerance, choices of boxes exactly.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from s5.detection.network import DetectionModel, Settings, build_detector
from s5.ops.rotated_iou import rotated_iou

NUMBERS = ("rpn", "rois")  # RPN maps of every level; class scores, box deltas and pooled features of the RoIs
CHOICES = ("proposals", "found")
SIZE = 128
TOLERANCE = 0.02  # of the standard deviation; convolutions in TF32 make errors of up to 0.005
SEED = 1  # of weights with which no score and no overlap is close to deciding otherwise


def build_model() -> DetectionModel:
    """A detector whose boxes, scores and classes differ from place to place."""
    torch.manual_seed(SEED)
    settings = Settings(proposals=30, max_per_img=200, score_thr=0.0)
    detector = build_detector("vit_t", {"one": 3, "other": 2}, SIZE, expert_channels=48, settings=settings)
    for head in detector.heads.values():
        head.rpn_head.rpn_reg.weight.data *= 0.3
        head.roi_head.bbox_head.fc_cls.weight.data *= 3
    return DetectionModel(detector).to(memory_format=torch.channels_last).eval()


def build_images() -> Tensor:
    """Two images (2, 3, SIZE, SIZE) uint8."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


class Results(NamedTuple):
    """Results of each stage, by ``<task> <stage>``.

    Attributes:
        tensors: on the CPU, in a flat list.
        returned: as the stage returned them.
    """

    tensors: dict[str, list]
    returned: dict[str, Any]


@torch.no_grad()
def run_stages(model: DetectionModel, images: Tensor, given: Results | None = None) -> Results:
    """Predict all tasks; with ``given``, every stage continues from those results instead of its own."""
    results = Results({}, {})
    side = tuple(images.shape[-2:])
    with _recording(model, results, given):
        found = model.predict_all(images, [side] * len(images), [1.0] * len(images))
    for task, of_images in found.items():
        results.tensors[f"{task} found"] = [
            InstanceData(**{name: value.cpu() for name, value in one.items()}) for one in of_images
        ]
    return results


def compare(ours: Results, theirs: Results, tolerance: float = TOLERANCE) -> None:
    """Check that all stages agree.

    Args:
        ours: Results of a run that was given ``theirs``.
        theirs: Results of the first run.
        tolerance: Of the numbers, as a share of their standard deviation.

    Raises:
        AssertionError: A stage differs; the message names it.
    """
    assert ours.tensors.keys() == theirs.tensors.keys()
    for stage, expected in theirs.tensors.items():
        if stage.endswith(CHOICES):
            for one, other in zip(ours.tensors[stage], expected, strict=True):
                _same_choice(stage, one, other)
            continue
        for one, other in zip(ours.tensors[stage], expected, strict=True):
            error = (one - other).abs().max() / other.std()
            assert error <= tolerance, f"{stage}: {tuple(other.shape)} differ by {error:.3g} of their spread"


def _same_choice(stage: str, ours: InstanceData, theirs: InstanceData) -> None:
    """The same boxes with the same labels and scores, each once, in any order."""
    assert len(ours) == len(theirs), f"{stage}: {len(ours)} boxes, not {len(theirs)}"
    same = rotated_iou(get_box_tensor(theirs.bboxes), get_box_tensor(ours.bboxes)) > 0.99
    same &= theirs.labels[:, None] == ours.labels
    same &= (theirs.scores[:, None] - ours.scores).abs() < 1e-4
    alone = (same.sum(0) == 1) & (same.sum(1) == 1)
    assert alone.all(), f"{stage}: {int((~alone).sum())} of {len(theirs)} boxes have no twin of their own"


@contextmanager
def _recording(model: DetectionModel, results: Results, given: Results | None) -> Iterator[None]:
    with ExitStack() as stack:
        for task, head in model.detector.heads.items():
            for stage, part, method in (
                ("rpn", head.rpn_head, "forward"),
                ("proposals", head.rpn_head, "predict_by_feat"),
                ("rois", head.roi_head, "_bbox_forward"),
            ):
                name = f"{task} {stage}"
                replacement = _recorded(name, getattr(part, method), results, given, model.device)
                stack.enter_context(mock.patch.object(part, method, replacement))
        yield


def _recorded(
    name: str, method: Callable, results: Results, given: Results | None, device: torch.device
) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        value = method(*args, **kwargs)
        results.returned[name] = value
        results.tensors[name] = _tensors(_moved(value, "cpu"))
        return value if given is None else _moved(given.returned[name], device)

    return call


def _moved(value: Any, device: torch.device | str) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(part, device) for part in value)
    return value.to(device)


def _tensors(value: Any) -> list:  # noqa: ANN401
    """Tensors of nested results, instances as they are."""
    if isinstance(value, (Tensor, InstanceData)):
        return [value]
    return [
        part for each in (value.values() if isinstance(value, dict) else value) for part in _tensors(each)
    ]
