"""LoRA: peft as the oracle, rows of windows, compiled blocks, and settings that do not fit."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from s5.backbones import Backbone, Lora, adapter_names, create_backbone, lora_of, merge_adapters
from s5.backbones.lora import LoraLinear, TaskRouting
from s5.backbones.vit import Variant
from s5.errors import CheckpointError

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))
TASKS = ("a", "b")
LORA = Lora(3, 10.0)


def adapted(lora: Lora = LORA, **options) -> Backbone:
    torch.manual_seed(0)
    backbone = create_backbone(TINY, 64, drop_path=0.0, experts=TASKS, lora=lora, **options)
    for name, parameter in backbone.named_parameters():
        if adapter_names([name]):
            nn.init.normal_(parameter, std=0.1)
    return backbone


class OnlyBlocks(nn.Module):
    """The blocks of a ViT of timm as peft or our layers adapt them, for the hooks of a backbone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
        )

    def forward(self, images: torch.Tensor, counts: object = None) -> tuple[torch.Tensor, ...]:
        return (self.vit.forward_features(images),)


def test_peft_computes_the_same_outputs_gradients_and_merged_weights() -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    ours, routing = OnlyBlocks().requires_grad_(False), TaskRouting(("a",))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    )
    theirs = peft.get_peft_model(copy.deepcopy(ours), config)
    factors = {}
    for name, layer in list(ours.named_modules()):
        if type(layer) is nn.Linear:
            ours.set_submodule(name, LoraLinear(layer, Lora(4, 6.0), routing))
            factors[name] = ours.get_submodule(f"{name}.lora.a")
    assert len(factors) == 8
    assert {f.a.shape[0] for f in factors.values()} == {4} and not any(f.b.any() for f in factors.values())
    routing.attach(ours)  # type: ignore[arg-type]  # only its hooks are used
    counterparts = {}
    for name, factor in factors.items():
        layer = theirs.base_model.model.get_submodule(name)
        counterparts[name] = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for own, other in zip((factor.a, factor.b), counterparts[name], strict=True):
            nn.init.normal_(own, std=0.2)
            other.data.copy_(own.data)
    images = torch.randn(2, 3, 32, 32)
    (mine,), (expected,) = ours(images), theirs(images)
    torch.testing.assert_close(mine, expected)
    mine.square().mean().backward()
    expected.square().mean().backward()
    for name, factor in factors.items():
        for own, other in zip((factor.a, factor.b), counterparts[name], strict=True):
            torch.testing.assert_close(own.grad, other.grad)
    merged = merge_adapters(ours.state_dict() | {"lora_scale": torch.tensor([1.5])}, "a")
    for name, weight in theirs.merge_and_unload().state_dict().items():
        torch.testing.assert_close(merged[name], weight, msg=name)


def test_rows_of_windows_go_to_the_task_of_their_image() -> None:
    layer = LoraLinear(nn.Linear(6, 4), Lora(2, 2.0), routing := TaskRouting(TASKS))
    for task in TASKS:
        nn.init.normal_(layer.lora[task].b)
    windows = torch.randn(3 * 4, 5, 6)  # four of each image
    routing.counts = {"b": 1, "a": 2}
    own = [layer.lora["b"](windows[:4]), layer.lora["a"](windows[4:])]
    plain = nn.functional.linear(windows, layer.weight, layer.bias)
    torch.testing.assert_close(layer(windows), plain + torch.cat(own))
    with pytest.raises(ValueError, match="7 rows for 3 images.*model.lora.targets"):
        layer(torch.zeros(7, 6))
    routing.counts = {}
    with pytest.raises(RuntimeError, match="call the backbone"):
        layer(windows)


@pytest.mark.parametrize("counts", [None, {"a": 1}, {"a": 2, "c": 1}])
def test_counts_must_match_the_adapters_of_a_dense_backbone(counts: dict | None) -> None:
    with pytest.raises(ValueError, match="images of a, b by name.*batch of 3"):
        adapted()(torch.zeros(3, 3, 64, 64), counts)


def test_a_single_task_needs_no_counts() -> None:
    backbone = create_backbone(TINY, 64, experts=("s4p",), lora=LORA).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(backbone(images)[3], backbone(images, {"s4p": 2})[3])


def test_images_of_one_task_share_a_compiled_graph() -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    backbone = create_backbone(TINY, 64, experts=("s4p",), lora=LORA).eval()
    backbone.compile_blocks(backend)
    with torch.no_grad():
        for batch in range(2, 6):
            backbone(torch.randn(batch, 3, 64, 64))
    assert len(graphs) == 1


@pytest.mark.parametrize("channels", [0, 8])
def test_compiled_blocks_compute_the_same_for_any_tasks(channels: int) -> None:
    eager = adapted(expert_channels=channels).train()
    compiled = copy.deepcopy(eager)
    compiled.compile_blocks("eager")
    for counts in ({"a": 1, "b": 2}, {"b": 3}):
        images = torch.randn(3, 3, 64, 64)
        found = []
        for backbone in (eager, compiled):
            backbone.zero_grad()
            sum(level.square().mean() for level in backbone(images, counts)).backward()
            found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
        assert found[0].keys() == found[1].keys()
        for name, gradient in found[0].items():
            torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_autocast_leaves_the_factors_in_float32() -> None:
    backbone = adapted().train()
    outputs: list[torch.Tensor] = []
    backbone.blocks[0].attn.qkv.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.autocast("cpu", torch.bfloat16):
        level = backbone(torch.randn(2, 3, 64, 64), {"a": 1, "b": 1})[2]
    assert outputs[0].dtype == torch.bfloat16
    level.square().mean().backward()
    factor = backbone.get_parameter("blocks.0.attn.qkv.lora.a.b")
    assert factor.dtype == factor.grad.dtype == torch.float32 and factor.grad.any()


@pytest.mark.parametrize("lora", [Lora(3, 10.0), Lora(7, 5.0, ("mlp.fc2", "attn.proj"))])
def test_settings_are_read_from_weights(lora: Lora) -> None:
    backbone = adapted(lora)
    read = lora_of(backbone.state_dict())
    assert read is not None and (read.rank, read.scale) == (lora.rank, lora.scale)
    assert adapted(read).state_dict().keys() == backbone.state_dict().keys()
    assert lora_of(create_backbone(TINY, 64).state_dict()) is None
    incomplete = {name: value for name, value in backbone.state_dict().items() if name != "lora_scale"}
    with pytest.raises(CheckpointError, match="no lora_scale"):
        lora_of(incomplete)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(rank=0), r"rank 0: must be between 1 and 32, the width of blocks.0.attn"),
        (Lora(rank=33), r"rank 33: must be between 1 and 32, the width of blocks.0.attn"),
        (
            Lora(targets=("attn.qvk",)),
            r"targets 'attn.qvk': tiny has attn.qkv, attn.proj, mlp.fc1, mlp.fc2; did you mean 'attn.qkv'",
        ),
        (Lora(targets=("attn.qkv", "experts.a")), r"targets 'experts.a': .* has attn.qkv"),
        (Lora(targets=()), r"targets is empty; known linear layers of tiny: attn.qkv"),
        (Lora(targets=("mlp.fc2",)), r"tiny with experts does not call mlp.fc2 as a layer"),
    ],
)
def test_settings_that_do_not_fit(lora: Lora, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(lora, expert_channels=8)


def test_adapters_need_a_task() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        create_backbone(TINY, 64, lora=LORA)


def test_a_large_backbone_gets_adapters_without_memory() -> None:
    with torch.device("meta"):
        backbone = create_backbone("vit_h", 512, experts=TASKS, lora=LORA)
    factors = [p for name, p in backbone.named_parameters() if adapter_names([name])]
    assert sum(p.numel() for p in factors) == 2 * 32 * 3 * (1280 + 3 * 1280 + 1280 + 1280)
