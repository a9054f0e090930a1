"""Backbones from timm with `features_only`, whose maps have several strides, or one as in a ViT."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import timm
import torch
from torch import nn

from s5.backbones.contract import STRIDES, Architecture, Backbone, Counts, StateDict
from s5.backbones.embeddings import RELATIVE_POSITIONS, fit_patches, fit_positions_of
from s5.backbones.lora import LORA_SCALE
from s5.backbones.moe import EXPERT_KEY, add_experts, fit_experts, recompute_always, routing
from s5.backbones.normalization import IMAGENET, Normalization, parse_normalization
from s5.backbones.pyramid import Pyramid

BODY = "body."  # prefix of timm's names in a `TimmBackbone`
BANDS = 3
PATCH = 16  # side in pixels of the patches of ViTs, to which others are resampled
STEM_OPTIONS = ("patch_size", "embed_proj_type")  # of timm, with which the first layer has another shape
WRAPPED = "model."  # prefix of names in those of timm's feature networks that are a wrapper around the model
# Share of a model's tensors that must be among some weights, without others, for the weights to fit it. The
# smallest difference is that between swin_t and swin_s, half of whose tensors are those of swin_t.
SAME = 0.75


def has_own_names(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether all names are those of a :class:`TimmBackbone`, which no other project uses."""
    return all(name.startswith((BODY, Backbone.own, LORA_SCALE)) for name in tensors)


def normalization_of(timm_name: str) -> Normalization:
    """Normalisation that the weights of a model of timm were trained with; ImageNet's if it has none."""
    cfg = timm.get_pretrained_cfg(timm_name)
    return IMAGENET if cfg is None else parse_normalization((cfg.mean, cfg.std))


@dataclass(frozen=True)
class TimmModel(Architecture):
    """A model of timm.

    Attributes:
        name: Name on the command line and in configurations.
        timm: Name in timm.
        stem: Name of the weight of the first convolution in timm's feature network.
        undecayed: Suffixes of the names of parameters without weight decay, apart from norms.
        options: Further arguments of `timm.create_model`.
        divisor: The sides of an image must be multiples of this number, so that all strides divide them.
        min_size: Minimum side of an image in pixels.
        max_expert_channels: Width of the widest FFN, see `add_experts`; 0 if experts are not supported.
        drops_paths: Whether timm's model has stochastic depth.
        own_eps: Whether the norms keep the epsilon that timm gives them.
        out_indices: Maps that timm's feature network gives; None for its own choice.
        per_size: Whether every network is built for one size of square images (timm's `img_size`).
        side: See the base class.
        inert: Names in timm's feature network of parameters that do not change the maps.
    """

    name: str
    timm: str
    stem: str
    undecayed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    divisor: int = STRIDES[-1]
    min_size: int = STRIDES[-1]
    max_expert_channels: int = 0
    drops_paths: bool = True
    own_eps: bool = False
    out_indices: tuple[int, ...] | None = None
    per_size: bool = False
    side: int | None = None
    inert: tuple[str, ...] = ()

    @property
    def normalization(self) -> Normalization:  # type: ignore[override]
        """That of timm's weights."""
        return normalization_of(self.timm)

    @property
    def form(self) -> str:  # type: ignore[override]
        """The name in timm."""
        return f"timm's {self.timm}"

    def build(self, img_size: int | tuple[int, int], **options: Any) -> "TimmBackbone":
        """See the base class."""
        return TimmBackbone(self, img_size, **options)

    def for_size(self, side: int) -> "TimmModel":
        """See the base class."""
        return replace(self, side=side) if self.per_size else self

    def img_size_of(self, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """The only size of images, if the model has one."""
        return self.side

    def create(self, **options: Any) -> Any:  # noqa: ANN401 - timm has no types
        """Create timm's feature network on the default device, for images of `side` pixels if it is set."""
        if self.out_indices is not None:
            options["out_indices"] = self.out_indices
        if self.per_size and self.side is not None:
            options["img_size"] = self.side
        device = torch.get_default_device()
        # On a CPU, so that random weights do not depend on the device.
        with torch.device("meta" if device.type == "meta" else "cpu"):
            network = timm.create_model(self.timm, features_only=True, **self.options, **options)
        return network.to(device)

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether most of the model's tensors are present with the right shape, and hardly any other."""
        given = {k: v.shape for k, v in tensors.items() if k.startswith(BODY) and not EXPERT_KEY.match(k)}
        if not given:
            return False
        shapes = _shapes(self)
        matching = sum(given.get(name) == shape for name, shape in shapes.items())
        return matching > SAME * len(given.keys() | shapes)

    def pretrained(self) -> StateDict:
        """See the base class."""
        published = {name: value for name, value in self.options.items() if name not in STEM_OPTIONS}
        # Of their own size of images; `fit_weights` resamples them.
        network = replace(self, options=published, per_size=False).create(pretrained=True)
        return {BODY + name: tensor for name, tensor in network.state_dict().items()}


def _swin(size: str, width: int) -> TimmModel:
    """Row of Swin, whose last stage has `width` channels."""
    return TimmModel(
        f"swin_{size[0]}",
        f"swin_{size}_patch4_window7_224",
        stem="patch_embed.proj.weight",
        undecayed=(RELATIVE_POSITIONS,),
        # Use full and shifted windows in every stage for any image size. Windows and shapes of weights then
        # do not depend on the size that the model is built for.
        options={"strict_img_size": False, "always_partition": True},
        max_expert_channels=width,
    )


TIMM_MODELS: dict[str, TimmModel] = {
    model.name: model
    for model in (_swin("tiny", 768), _swin("small", 768), _swin("base", 1024), _swin("large", 1536))
}


class TimmBackbone(Backbone):
    """A feature network of timm, with a pyramid where it lacks one of the four strides.

    The blocks of its stages are the layers for layer decay. Parameters before the blocks of a stage belong to
    its first block, and parameters before the first stage to the stem.
    """

    def __init__(
        self,
        model: TimmModel,
        img_size: int | tuple[int, int] = 512,
        drop_path: float = 0.1,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
        experts: Sequence[str] = (),
        expert_channels: int = 0,
    ) -> None:
        """Build the backbone with randomly initialised weights.

        Args:
            model: The timm model.
            img_size: Image size in pixels; without effect on the weights, unless the model is `per_size`.
            drop_path: Stochastic depth rate of the last block.
            norm_eps: Epsilon of the layer norms; without effect on a model with `own_eps`.
            activation_checkpointing: Recompute the blocks in the backward pass.
            experts: Task names of a backbone with experts.
            expert_channels: Output channels of an expert in the widest FFN, see `add_experts`; 0 gives a
                dense backbone.

        Raises:
            ValueError: The image size or such experts are not supported.
        """
        if experts and expert_channels and not model.max_expert_channels:
            raise ValueError(f"{model.name} cannot have experts: omit them, or choose another backbone")
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        model = model.for_size(min(sides))
        model.check_size(*sides)
        body = model.create(**({"drop_path_rate": drop_path} if model.drops_paths else {}))
        if experts and expert_channels:
            add_experts(body, experts, expert_channels)
        info = body.feature_info
        channels, strides, levels = four_levels(info.channels(), info.reduction())
        layers, last = _layers(body, model.stem)
        super().__init__(model, channels, last + 1, activation_checkpointing, experts, expert_channels)
        self.model = model
        self.levels = levels
        if activation_checkpointing:
            for _, block in _blocks(body, model.stem):
                recompute_always(block)
        self.body = body
        self.pyramid = Pyramid(channels, strides)
        self.stem = BODY + model.stem
        self.undecayed = tuple(BODY + name for name in layers if name.endswith(model.undecayed))
        self.inert = tuple(BODY + name for name in model.inert)
        for name in self.inert:
            self.get_parameter(name).requires_grad_(False)  # processes would wait for its gradient
        self._layers = {BODY + name: layer for name, layer in layers.items()}
        for module in body.modules():
            if isinstance(module, nn.LayerNorm) and not model.own_eps:
                module.eps = norm_eps

    def forward(self, images: torch.Tensor, counts: Counts | None = None) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        self.architecture.check_size(*images.shape[-2:])
        with routing(self.resolve_counts(counts, images.shape[0])):
            maps = self.body(images)
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            maps = [level.permute(0, 3, 1, 2) for level in maps]
        return self.pyramid([maps[level] for level in self.levels])

    def layer_of(self, parameter: str) -> int:
        """See the base class."""
        return self._layers.get(parameter, self.num_layers)

    def from_library(self, tensors: StateDict) -> StateDict | None:
        """See the base class; accepts the names of timm's whole model and of its feature network."""
        given = {plain_name(name): tensor for name, tensor in tensors.items()}
        names = {name: plain_name(name.removeprefix(BODY)) for name in _shapes(self.model)}
        if not set(names.values()) <= given.keys() <= {*names.values(), *_whole_names(self.model)}:
            return None
        return {name: given[plain] for name, plain in names.items()}

    def fit_weights(
        self, tensors: StateDict, bands: Sequence[int] | None = None
    ) -> tuple[StateDict, list[str]]:
        """See the base class; splits dense FFNs among the experts and resamples patches and positions."""
        tensors, notes = super().fit_weights(_with_convolution(tensors, self.stem), bands)
        if "patch_size" in self.model.options:
            tensors, resampled = fit_patches(tensors, self.stem, PATCH)
            notes = [*notes, *resampled]
        tensors, split = fit_experts(tensors, self.experts, self.expert_channels)
        tensors, resampled = self._fit_positions(tensors)
        return tensors, [*notes, *split, *resampled]

    def _fit_positions(self, tensors: StateDict) -> tuple[StateDict, list[str]]:
        """Resample positions, absolute and relative, for other windows and images, as timm does."""
        fitted, notes = dict(tensors), set()
        for name, wanted in self.named_parameters():
            table = tensors.get(name)
            if table is None or table.shape == wanted.shape:
                continue
            module = self.get_submodule(name.rpartition(".")[0])
            resampled = fit_positions_of(name, table, wanted.shape, getattr(module, "window_size", None))
            if resampled is not None:
                fitted[name], note = resampled
                notes.add(note)
        return fitted, sorted(notes)


def four_levels(channels: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Channels, strides and indices of the maps of a feature network that are closest to the four strides."""
    # For each target, the coarsest map that is not coarser, or else the finest map. As in a plain ViT, four
    # maps of one stride are one for each target.
    one_stride = len(strides) == len(STRIDES) and len(set(strides)) == 1
    chosen = [
        i if one_stride else max((k for k, stride in enumerate(strides) if stride <= wanted), default=0)
        for i, wanted in enumerate(STRIDES)
    ]
    return [channels[i] for i in chosen], [strides[i] for i in chosen], chosen


def _blocks(body: Any, stem: str) -> list[tuple[str, nn.Module]]:  # noqa: ANN401 - timm has no types
    """Names and blocks of all stages, in order; a stage without a list of blocks is one block."""
    prefix = _wrapper(stem)
    root = body.get_submodule(prefix.removesuffix("."))
    stages = [name.replace(".", "_") for name in body.feature_info.module_name()]
    named: list[tuple[str, nn.Module]] = []
    for name, stage in root.named_children():
        blocks = getattr(stage, "blocks", stage)
        if stem.startswith(f"{prefix}{name}."):
            continue
        if isinstance(blocks, nn.Sequential | nn.ModuleList):
            named += _flat(f"{prefix}{name}" if blocks is stage else f"{prefix}{name}.blocks", blocks)
        elif name in stages:
            named.append((f"{prefix}{name}", stage))
    return [(name, block) for name, block in named if any(True for _ in block.parameters())]


def _flat(name: str, blocks: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Blocks of a list, or of a list of lists, with their names."""
    for index, block in blocks.named_children():
        if isinstance(block, nn.ModuleList):
            yield from _flat(f"{name}.{index}", block)
        else:
            yield f"{name}.{index}", block


def _layers(body: nn.Module, stem: str) -> tuple[dict[str, int], int]:
    """Layer of every parameter by name, and the number of the last layer."""
    starts = {name: i for i, (name, _) in enumerate(_blocks(body, stem), 1)}
    first: dict[str, int] = {}
    for name, layer in starts.items():
        first.setdefault(_child(name, stem), layer)
    layers: dict[str, int] = {}
    before = 0  # layer of the parameter before
    for parameter, _ in body.named_parameters():
        block = next((layer for name, layer in starts.items() if parameter.startswith(f"{name}.")), None)
        before = max(before, first.get(_child(parameter, stem), 0)) if block is None else block
        layers[parameter] = before
    return layers, len(starts)


def plain_name(name: str) -> str:
    """A name as in a model and in its features, where `stages.0` is `stages_0` or `model.stages.0`."""
    return name.removeprefix(WRAPPED).replace("_", ".")


def _with_convolution(tensors: StateDict, stem: str) -> StateDict:
    """Weights whose patch embedding is a convolution, if it is a linear layer of square patches of RGB."""
    weight = tensors.get(stem)
    if weight is None or weight.ndim != 2:
        return tensors
    side = math.isqrt(weight.shape[1] // BANDS)
    return tensors | {stem: weight.unflatten(1, (side, side, BANDS)).permute(0, 3, 1, 2).contiguous()}


def _wrapper(stem: str) -> str:
    """Prefix of the names of stages in a feature network with this first convolution."""
    return next((prefix for prefix in (f"{WRAPPED}encoder.", WRAPPED) if stem.startswith(prefix)), "")


def _child(name: str, stem: str) -> str:
    """The part of timm's model that a module or parameter belongs to."""
    return name.removeprefix(_wrapper(stem)).partition(".")[0]


@cache
def _shapes(model: TimmModel) -> dict[str, torch.Size]:
    """Shapes of the weights of a model by name."""
    with torch.device("meta"):
        network = model.create()
    return {BODY + name: tensor.shape for name, tensor in network.state_dict().items()}


@cache
def _whole_names(model: TimmModel) -> frozenset[str]:
    """Plain names of the weights of timm's model with its head."""
    with torch.device("meta"):
        network = timm.create_model(model.timm, **model.options)
    return frozenset(map(plain_name, network.state_dict()))
