"""Loading of weights into models with a report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from s5.backbones import Backbone, StateDict, describe, identify, list_backbones, with_experts
from s5.backbones.moe import EXPERT_KEY
from s5.checkpoints.layouts import Weights, convert
from s5.checkpoints.reading import read_checkpoint
from s5.errors import CheckpointError, shorten

logger = logging.getLogger(__name__)

NAMES_SHOWN = 6
SENTINEL2_CHANNELS = (12, 13)
UNUSED_CLASSIFIER = "decode_head.conv_seg"
CLASSIFIERS = ("classifier.", "roi_head.bbox_head.fc_cls.")  # of segmentation and detection


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint and of a model.

    Attributes:
        source: File name, or what the weights came from.
        layout: Layout of the checkpoint (`s5.checkpoints.layouts`).
        loaded: Names of the model's tensors that were loaded.
        missing: Names of the model's tensors that the checkpoint lacks.
        unexpected: Names in the checkpoint without a place in the model.
        misshaped: Name, shape in the checkpoint and shape in the model.
        notes: What was changed to make the weights fit.
        backbone_share: Loaded share of the backbone's parameters, 0 to 1. What the layout never has,
            such as the pyramid, is not counted.
    """

    source: str
    layout: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    notes: tuple[str, ...]
    backbone_share: float

    def require_heads(self) -> None:
        """Insist that the heads and the pyramid were loaded too, as evaluation needs it.

        Raises:
            CheckpointError: Part of them is missing or of another shape.
        """
        names = (*self.missing, *(name for name, *_ in self.misshaped))
        needed = ("heads.", "backbone.pyramid.")
        lost = [name for name in names if name.startswith(needed) and UNUSED_CLASSIFIER not in name]
        if lost:
            raise CheckpointError(
                f"{self.source} has no fitting decoder or classifier ({len(lost)} tensors, the first "
                f"{lost[0]}): give the file of the whole model, and the configuration it was trained with"
            )

    def table(self) -> str:
        """Format the report as a table, long lists of names shortened."""
        shapes = [f"{name} ({theirs}, in the model {ours})" for name, theirs, ours in self.misshaped]
        lines = [
            f"weights from {self.source}, layout {self.layout}",
            f"  {'loaded':<11}{len(self.loaded):>6}  {self.backbone_share:.1%} of the backbone's parameters",
            *(
                f"  {title:<11}{len(names):>6}  {shorten(names, NAMES_SHOWN)}".rstrip()
                for title, names in (
                    ("missing", self.missing),
                    ("unexpected", self.unexpected),
                    ("misshaped", shapes),
                )
            ),
            *(f"  note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping,
    *,
    bands: Sequence[int] | None = None,
) -> LoadReport:
    """Initialise a model from a checkpoint of any known layout and log what was loaded.

    The patch embedding, the positional embedding and every tensor of the blocks must be there and fit.
    Positional embeddings of other sizes are resampled and dense FFNs split among the experts of an MoE
    backbone. The weights of a backbone without pyramid leave the model's pyramid as it is. Heads are matched
    by task name; a single head in the checkpoint goes to a single head of the model whatever its name, and
    its decoder to all heads of a model with several. A classifier for another number of classes is left as
    it is and reported.

    Args:
        model: A backbone, or a model with one as its `backbone` and possibly `heads`.
        source: Path of a checkpoint, or its content.
        bands: Channels of the checkpoint's images that are red, green and blue, counted from 1; by default
            it must have these three in this order.

    Raises:
        CheckpointError: The checkpoint cannot be read, is of another architecture, or lacks a tensor
            that the backbone cannot do without.
    """
    name = "memory" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    try:
        weights = convert(content, backbone.experts)
        _check_architecture(weights, backbone)
        _check_experts(weights, backbone)
        tensors, notes = backbone.fit_weights(weights.backbone, bands)
        notes = [*weights.notes, *notes]
        _require_decisive(tensors, backbone, weights.layout)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error

    if backbone is not model:
        tensors = {f"backbone.{key}": value for key, value in tensors.items()}
    if isinstance(heads := getattr(model, "heads", None), nn.ModuleDict):
        tensors |= _match_heads(weights.heads, tuple(heads))
        notes += _other_tasks(tuple(weights.heads), tuple(heads))
    else:
        tensors |= {f"heads.{task}.{k}": v for task, head in weights.heads.items() for k, v in head.items()}

    fitting, report = _compare(name, weights, tensors, notes, model, backbone)
    model.load_state_dict(fitting, strict=False)
    logger.info("%s", report.table())
    return report


def _check_architecture(weights: Weights, backbone: Backbone) -> None:
    if backbone.architecture.fits(weights.backbone):
        return
    name = identify(weights.backbone)
    hint = f"No backbone of this package has that form; there are {', '.join(list_backbones())}"
    if name is not None:
        hint = f"The checkpoint is {name}: choose {name} as the backbone"
    raise CheckpointError(
        f"weights of another architecture: {describe(weights.backbone)} in the checkpoint, "
        f"{backbone.architecture.form} in {backbone.name}. {hint}"
    )


def _require_decisive(tensors: StateDict, backbone: Backbone, layout: str) -> None:
    """Refuse weights that lack a tensor of the backbone, or have one that it does not have.

    Tensors without effect, such as a class token, may be missing, and so may the whole pyramid, which other
    projects do not have; experts of tasks that are not trained may be left over.
    """
    pyramid = any(name.startswith("pyramid.") for name in tensors)
    problems = []
    for name, parameter in backbone.named_parameters():
        if name in backbone.inert or (name.startswith("pyramid.") and not pyramid):
            continue
        found, ours = tensors.get(name), tuple(parameter.shape)
        if found is None:
            problems.append(f"{name}: missing, in the model {ours}")
        elif found.shape != parameter.shape:
            problems.append(f"{name}: {tuple(found.shape)}, in the model {ours}")
        elif not found.is_floating_point():
            problems.append(f"{name}: of type {found.dtype}, which is no floating-point type")
    own = backbone.state_dict()
    strange = [name for name in tensors if name not in own and not EXPERT_KEY.match(name)]
    problems += [f"{name}: not in the model" for name in strange]
    if not problems:
        return
    hint = (
        f"The file (layout {layout}) is incomplete or of another architecture: download it again, or choose "
        f"another checkpoint"
    )
    stem = tensors.get(backbone.stem)
    if stem is not None and stem.shape[1] != backbone.get_parameter(backbone.stem).shape[1]:
        hint = _band_hint(stem.shape[1])
    more = [f"... and {len(problems) - NAMES_SHOWN} more"] if len(problems) > NAMES_SHOWN else []
    listed = "\n".join(f"  {line}" for line in (*problems[:NAMES_SHOWN], *more))
    raise CheckpointError(f"decisive weights do not fit:\n{listed}\n{hint}")


def _band_hint(channels: int) -> str:
    if channels == 1:
        return "The checkpoint is of single-band images: --init-bands 1,1,1 takes its band for all three"
    examples = "3,2,1 where the first channels are blue, green and red"
    if channels in SENTINEL2_CHANNELS:
        examples = "4,3,2 for Sentinel-2 from band 1 on"
    return (
        f"The checkpoint is of images with {channels} channels. Say which of them are red, green and blue, "
        f"counted from 1, with --init-bands R,G,B (init_bands of the configuration): {examples}"
    )


def _check_experts(weights: Weights, backbone: Backbone) -> None:
    """Refuse experts that the model cannot take; a dense checkpoint fits any model."""
    theirs, ours = weights.experts, backbone.experts
    if not theirs:
        return
    width = next(len(tensor) for name, tensor in weights.backbone.items() if EXPERT_KEY.match(name))
    has = f"the checkpoint has experts for {', '.join(theirs)}"
    if not ours:
        raise CheckpointError(
            f"{has}, the model has none: choose a backbone with experts, {with_experts(backbone.name)}, "
            f"and model.expert_channels={width}"
        )
    if lacking := [task for task in ours if task not in theirs]:
        raise CheckpointError(
            f"{has}, but none for {', '.join(lacking)}, which the model has: start from a dense checkpoint "
            f"(such as of S4P), or train tasks of the checkpoint alone"
        )
    if width != backbone.expert_channels:
        raise CheckpointError(
            f"experts of {width} channels in the checkpoint, of {backbone.expert_channels} in the model: set "
            f"model.expert_channels={width}"
        )


def _match_heads(heads: Mapping[str, StateDict], tasks: tuple[str, ...]) -> StateDict:
    """Name the heads' tensors as in the model; the decoder of a lone head serves all tasks."""
    if len(heads) == 1:
        ((name, head),) = heads.items()
        decoder = {key: value for key, value in head.items() if not key.startswith(CLASSIFIERS)}
        own = {name, tasks[0]} if len(tasks) == 1 else {name}
        heads = {task: head if task in own else decoder for task in tasks}
    return {f"heads.{task}.{key}": value for task, head in heads.items() for key, value in head.items()}


def _other_tasks(theirs: tuple[str, ...], ours: tuple[str, ...]) -> list[str]:
    """What to say of the heads of several tasks that are not all those of the model."""
    strange, new = ([task for task in a if task not in b] for a, b in ((theirs, ours), (ours, theirs)))
    if len(theirs) < 2 or not strange:
        return []
    rest = f"; {', '.join(new)} start from random weights" if new else ""
    return [f"the model has no {', '.join(strange)}, whose heads are not loaded{rest}"]


def _compare(
    source: str, weights: Weights, tensors: StateDict, notes: list[str], model: nn.Module, backbone: Backbone
) -> tuple[StateDict, LoadReport]:
    """Sort the tensors; return those that fit, and the report."""
    own = model.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    misshaped = [k for k in tensors if k in own and k not in fitting]
    prefix = "" if backbone is model else "backbone."
    counted = {
        name: parameter.numel()
        for name, parameter in backbone.named_parameters(prefix.rstrip("."))
        if not name.startswith(tuple(prefix + lacking for lacking in weights.lacks))
    }
    report = LoadReport(
        source=source,
        layout=weights.layout,
        loaded=tuple(fitting),
        missing=tuple(k for k in own if k not in tensors),
        unexpected=(*(k for k in tensors if k not in own), *weights.unused),
        misshaped=tuple((k, tuple(tensors[k].shape), tuple(own[k].shape)) for k in misshaped),
        notes=tuple(notes),
        backbone_share=sum(n for name, n in counted.items() if name in fitting) / sum(counted.values()),
    )
    return fitting, report
