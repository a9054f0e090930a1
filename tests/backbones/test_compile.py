"""`model.compile`: all blocks share a graph in training and one in evaluation, with the results of eager."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor

from s5.backbones.vit import Variant, ViT
from s5.compat.cpu_linear import ConvolutionLinear
from s5.detection.network import DetectionModel, build_detector
from s5.segmentation.multi_dataset import MultiDataset, TaskLoss
from s5.segmentation.segmentor import build_network
from s5.segmentation.windows import Inference
from s5.training.config import ModelConfig
from tests.detection.test_detector import SETTINGS
from tests.detection.test_detector import SIZE as DETECTOR_SIZE
from tests.detection.test_detector import batch as detection_batch
from tests.segmentation.test_fixmatch import make_batch, make_model, step

BACKEND = "eager"  # counts graphs; needs no compiler
TRACED = "aot_eager"  # traces the backward pass, too
TASKS = ("a", "b", "c")
WIDE = Variant("wide", 64, 4, 2, (0, 1, 2, 3))  # with 64 tokens of 64 channels all sizes may be equal


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    """Reset the counter of graphs, and discard the graphs of earlier tests."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def graphs() -> int:
    assert not dynamo.utils.counters["graph_break"]
    return dynamo.utils.counters["stats"]["unique_graphs"]


def build(
    moe: bool, checkpointing: bool = False, drop_path: float = 0.5, backend: str | None = BACKEND
) -> ViT:
    torch.manual_seed(0)
    experts = {"experts": TASKS, "expert_channels": 16} if moe else {}
    vit = ViT(WIDE, 64, drop_path, activation_checkpointing=checkpointing, **experts)
    if backend is not None:
        vit.compile_blocks(backend)
    return vit


def run(vit: ViT, counts: tuple[int, ...], side: int = 64) -> list[Tensor]:
    """Feature maps, and in training the gradients of all weights."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(sum(counts), 3, side, side, generator=generator).to(vit.pos_embed.device)
    torch.manual_seed(2)  # of what is dropped
    vit.zero_grad()
    maps = vit(images, dict(zip(TASKS, counts, strict=True)) if vit.experts else None)
    if not torch.is_grad_enabled():
        return list(maps)
    sum(level.square().mean() for level in maps).backward()
    return [*maps, *(p.grad for p in vit.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("moe", [False, True])
def test_all_blocks_share_a_graph_for_training_and_one_for_evaluation(moe: bool, checkpointing: bool) -> None:
    """For any dropped paths, and any number, size and tasks of images."""
    vit = build(moe, checkpointing).train()
    run(vit, (16, 16, 32), 128)  # 64 images of 64 tokens of 64 channels
    run(vit, (2, 3, 1))
    run(vit, (1, 1, 1), 96)
    assert graphs() == 1
    vit.eval()
    with torch.no_grad():
        run(vit, (0, 4, 0))
        run(vit, (2, 0, 0), 96)
    with torch.inference_mode():
        run(vit, (0, 0, 64), 128)
    assert graphs() == 2
    run(vit.train(), (3, 1, 4))
    assert graphs() == 2


@pytest.mark.slow
def test_what_gets_a_graph_of_its_own() -> None:
    """A single image, another number of tasks, frozen weights: once each."""
    vit = build(moe=True).eval()
    with torch.no_grad():
        for expected, counts in (
            (1, (0, 2, 0)),
            (2, (0, 0, 1)),
            (2, (1, 0, 0)),
            (3, (2, 0, 3)),
            (3, (1, 1, 0)),
            (4, (1, 2, 3)),
        ):
            run(vit, counts)
            assert graphs() == expected, counts
        teacher = copy.deepcopy(vit).requires_grad_(False)
        run(teacher, (0, 5, 0))
        run(teacher, (5, 0, 0))
    assert graphs() == 5
    for counts in ((2, 0, 0), (0, 2, 1), (2, 2, 2), (1, 0, 0), (0, 5, 0)):
        run(vit.train(), counts)
    assert graphs() == 9, "or PyTorch's limit of 8 was not raised"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moe", "checkpointing", "training"), [(False, False, True), (True, True, True), (True, False, False)]
)
def test_results_are_those_of_eager(moe: bool, checkpointing: bool, training: bool) -> None:
    """The same paths are dropped as well."""
    counts = (2, 3, 2) if training else (0, 3, 0)
    with torch.set_grad_enabled(training):
        eager, ours = (
            run(build(moe, checkpointing, backend=backend).train(training), counts)
            for backend in (None, TRACED)
        )
    for one, other in zip(ours, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_ordinary_graph_of_operations_gives_equal_results_bit_for_bit() -> None:
    for drop_path in (0.0, 0.5):
        eager, ours = (
            run(build(True, drop_path=drop_path, backend=backend), (2, 3, 2)) for backend in (None, "eager")
        )
        assert all(torch.equal(one, other) for one, other in zip(ours, eager, strict=True))


def test_drops_the_same_as_timm() -> None:
    """And leaves the random numbers in the same state."""
    block = build(moe=False, backend=None).blocks[-1].train()
    tokens = torch.randn(64, 16, WIDE.width)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            torch.manual_seed(3)
            ours, after = block(tokens), torch.rand(1)
            torch.manual_seed(3)
            attended = tokens + block.attn(block.norm1(tokens))
            theirs = attended + block.drop_path(block.mlp(block.norm2(attended)))
        assert torch.equal(ours, theirs) and torch.equal(after, torch.rand(1))
        dropped = (ours == attended).flatten(1).all(1)
        assert 0 < dropped.sum() < 64


def test_copies_are_compiled() -> None:
    """Such as the EMA teacher."""
    vit = copy.deepcopy(build(moe=False).eval())
    with torch.no_grad():
        run(vit, (2,))
    assert graphs() == 1


@pytest.mark.slow
def test_the_mode_for_slow_cpus_breaks_no_graph() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ConvolutionLinear():
            run(build(moe=True, checkpointing=True, backend=TRACED), (2, 3, 2))
    finally:
        torch.set_num_threads(before)
    assert graphs() == 1


def test_a_step_of_fixmatch_and_a_prediction() -> None:
    model = make_model(conf_thresh=0.0, dtype=torch.bfloat16).train()
    model.segmentor.backbone.compile_blocks(BACKEND)
    for labeled, unlabeled in ((2, 3), (3, 2)):
        step(model, make_batch(labeled, unlabeled))["loss"].backward()
    assert graphs() == 2
    model.eval()
    with torch.no_grad():
        model.logits(torch.rand(3, 3, 64, 96))
    assert graphs() == 2


@pytest.mark.slow
def test_steps_of_multi_dataset_fine_tuning_and_predictions() -> None:
    cfg = ModelConfig(decoder_channels=8)
    network = build_network("vit_t", {"a": 3, "b": 2}, 32, cfg, expert_channels=48)
    network.backbone.compile_blocks(BACKEND)
    losses = {task: TaskLoss() for task in network.tasks}
    model = MultiDataset(network, {task: Inference() for task in network.tasks}, losses).train()
    for counts in ({"a": 2, "b": 3}, {"a": 4, "b": 2}):
        images = torch.randint(0, 256, (sum(counts.values()), 3, 32, 32), dtype=torch.uint8)
        model.loss(images, torch.zeros(len(images), 32, 32), counts)["loss"].backward()
    assert graphs() == 1
    model.eval()
    with torch.inference_mode():
        for task in network.tasks:
            model.probabilities(torch.rand(2, 3, 48, 32), [task])
    assert graphs() == 2


@pytest.mark.slow
def test_steps_of_the_detector_and_predictions() -> None:
    detector = build_detector(
        "vit_t", {"a": 20, "b": 18}, DETECTOR_SIZE, expert_channels=48, settings=SETTINGS
    )
    detector.backbone.compile_blocks(BACKEND)
    model = DetectionModel(detector).train()
    for counts in ({"a": 1, "b": 2}, {"a": 2, "b": 1}):
        model(counts=counts, mode="loss", **detection_batch())["loss"].backward()
    assert graphs() == 1
    model.eval()
    with torch.no_grad():
        for counts in ({"b": 3}, {"a": 3}):
            model(counts=counts, mode="predict", **detection_batch())
    assert graphs() == 2


def test_the_option_compiles_the_blocks() -> None:
    for compiled in (False, True):
        cfg = ModelConfig(decoder_channels=8, compile=compiled)
        blocks = build_network("vit_t", {"a": 3}, 32, cfg).backbone.blocks
        assert {block.backend for block in blocks} == {"inductor" if compiled else None}
