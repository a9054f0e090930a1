"""Load weights into models and report what was loaded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from s5.backbones import (
    EXPERT_KEY,
    NORMALIZATIONS,
    Backbone,
    Normalization,
    StateDict,
    adapter_names,
    describe,
    expert_width,
    identify,
    list_backbones,
    parse_normalization,
    with_experts,
)
from s5.checkpoints.adapters import fit_adapters
from s5.checkpoints.bands import band_numbers
from s5.checkpoints.layouts import Weights, convert
from s5.checkpoints.reading import read_checkpoint
from s5.errors import CheckpointError, shorten

logger = logging.getLogger(__name__)

NAMES_SHOWN = 6
SENTINEL2_CHANNELS = {10: "3,2,1", 12: "4,3,2", 13: "4,3,2"}  # red, green and blue of the usual orders
UNUSED_CLASSIFIER = "decode_head.conv_seg"
SATELLITE_FILE = "sat493m"  # in the names of DINOv3's files; its keys do not tell what it was trained on
CLASSIFIERS = ("classifier.", "roi_head.bbox_head.fc_cls.")  # of segmentation and detection


@dataclass(frozen=True)
class LoadReport:
    """Result of loading a checkpoint into a model.

    Attributes:
        source: File name or other origin of the weights.
        layout: Layout of the checkpoint (`s5.checkpoints.layouts`).
        loaded: Names of the model's tensors that were loaded.
        missing: Names of the model's tensors that are not in the checkpoint.
        unexpected: Names in the checkpoint that are not in the model.
        misshaped: Name, shape in the checkpoint and shape in the model.
        notes: Changes that made the weights fit.
        backbone_share: Loaded share of the backbone's parameters, 0 to 1. Parameters that the layout never
            has, such as the pyramid, are not counted.
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
        """Check that the heads and the pyramid were loaded too, as needed for evaluation.

        Raises:
            CheckpointError: Some of their tensors are missing or have another shape.
        """
        names = (*self.missing, *(name for name, *_ in self.misshaped))
        needed = ("heads.", "backbone.pyramid.")
        absent = [name for name in names if name.startswith(needed) and UNUSED_CLASSIFIER not in name]
        if absent:
            raise CheckpointError(
                f"{self.source} has no matching decoder or classifier ({len(absent)} tensors, the first is "
                f"{absent[0]}): give the weights of the full model, and the configuration of its training"
            )

    def table(self) -> str:
        """Format the report as a table with shortened lists of names."""
        shapes = [f"{name} ({stored}, in the model {needed})" for name, stored, needed in self.misshaped]
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
    bands: Sequence[int] | Sequence[str] | None = None,
    normalization: Normalization | None = None,
    name: str | None = None,
) -> LoadReport:
    """Initialise a model from a checkpoint of any known layout and log what was loaded.

    The checkpoint must contain fitting tensors of the patch embedding, the positional embedding and all
    blocks. Positional embeddings of other sizes are resampled, and dense FFNs are split among the experts of
    an MoE backbone. Without weights for the pyramid, that of the model is unchanged. Heads are matched by
    task name. If the checkpoint has a single head, it is loaded into the model's only head regardless of its
    name, or its decoder into all heads. A classifier for another number of classes is not loaded, but
    reported.

    Args:
        model: A backbone, or a model with the attributes `backbone` and optionally `heads`.
        source: Path of a checkpoint, or its content.
        bands: 1-based numbers of the red, green and blue channels of the images that the checkpoint was
            trained on, or their names (see `s5.checkpoints.bands`); by default, it must be trained on these
            three channels in this order.
        normalization: Normalisation that the weights were trained with; by default that in the metadata of
            the checkpoint. The backbone uses it from then on, unless the user has chosen one.
        name: Name of `source` in messages; by default its path.

    Raises:
        CheckpointError: The checkpoint cannot be read, has another architecture, or lacks a required tensor
            of the backbone.
    """
    name = name or ("memory" if isinstance(source, Mapping) else str(source))
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    try:
        weights = convert(content, backbone.experts, backbone)
        _check_architecture(weights, backbone)
        _check_experts(weights, backbone)
        tensors, converted = _as_float32(weights.backbone)
        tensors, adapted = fit_adapters(tensors, backbone)
        tensors, notes = backbone.fit_weights(tensors, _numbers(bands, tensors, backbone.stem))
        notes = [*weights.notes, *converted, *adapted, *notes]
        _require_decisive(tensors, backbone, weights.layout)
        trained_with = normalization or stored_normalization(content.get("meta")) or _of_file(name)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error

    if trained_with is not None:
        notes += backbone.adopt_normalization(trained_with)
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


def stored_normalization(meta: Any) -> Normalization | None:  # noqa: ANN401 - whatever the file holds
    """Return the normalisation in the metadata of a weight file; None if there is none.

    Raises:
        CheckpointError: The value is no normalisation.
    """
    stored = meta.get("normalization") if isinstance(meta, Mapping) else None
    try:
        return None if stored is None else parse_normalization(stored)
    except ValueError as error:
        raise CheckpointError(f"normalization {stored!r} in the metadata: {error}") from None


def _of_file(name: str) -> Normalization | None:
    """Normalisation that follows from the name of a published file or of its repository; None for others."""
    # In the hub's cache: models--OWNER--NAME/snapshots/REVISION/FILE.
    repositories = (part for part in Path(name).parts[:-1] if part.startswith("models--"))
    named = any(SATELLITE_FILE in part for part in (Path(name).name, *repositories))
    return NORMALIZATIONS["dinov3_sat"] if named else None


def _as_float32(tensors: StateDict) -> tuple[StateDict, list[str]]:
    """Convert floating-point weights of other types to float32; also returns a note on it."""
    others = {key: value for key, value in tensors.items() if value.is_floating_point()}
    others = {key: value for key, value in others.items() if value.dtype != torch.float32}
    types = sorted({str(value.dtype).removeprefix("torch.") for value in others.values()})
    notes = (
        [f"{len(others)} tensors of the backbone converted from {', '.join(types)} to float32"]
        if others
        else []
    )
    return tensors | {key: value.float() for key, value in others.items()}, notes


def _numbers(
    bands: Sequence[int] | Sequence[str] | None, tensors: StateDict, stem: str
) -> Sequence[int] | None:
    """Return the numbers of bands that may be given by name."""
    if bands is not None and stem not in tensors:
        raise CheckpointError(f"the checkpoint has no {stem}, whose bands init_bands selects")
    names = [band for band in bands or () if isinstance(band, str)]
    return band_numbers(names, tensors[stem].shape[1]) if names else cast(Sequence[int] | None, bands)


def _check_architecture(weights: Weights, backbone: Backbone) -> None:
    if backbone.architecture.fits(weights.backbone):
        return
    name = identify(weights.backbone)
    hint = f"No backbone of this package matches; available: {', '.join(list_backbones())}"
    if name is not None:
        hint = f"The checkpoint is a {name}: choose {name} as the backbone"
    raise CheckpointError(
        f"weights of another architecture: {describe(weights.backbone)} in the checkpoint, "
        f"{backbone.architecture.form} in {backbone.name}. {hint}"
    )


def _require_decisive(tensors: StateDict, backbone: Backbone, layout: str) -> None:
    """Reject weights with missing or additional tensors of the backbone.

    Tensors without effect, such as a class token, may be missing, and so may all that only this package has,
    such as the pyramid, and all adapters. Experts of tasks that the model does not have are ignored.
    """
    has_own = any(name.startswith(backbone.own) for name in tensors)
    optional = set(backbone.inert)
    if not adapter_names(tensors):
        optional |= {name for name, _ in backbone.named_parameters() if adapter_names([name])}
    problems = []
    for name, parameter in backbone.named_parameters():
        if name in optional or (name.startswith(backbone.own) and not has_own):
            continue
        tensor, shape = tensors.get(name), tuple(parameter.shape)
        if tensor is None:
            problems.append(f"{name}: missing, in the model {shape}")
        elif tensor.shape != parameter.shape:
            problems.append(f"{name}: {tuple(tensor.shape)}, in the model {shape}")
        elif not tensor.is_floating_point():
            problems.append(f"{name}: of type {tensor.dtype}, which is not a floating-point type")
    own = backbone.state_dict()
    unknown = [name for name in tensors if name not in own and not EXPERT_KEY.match(name)]
    problems += [f"{name}: not in the model" for name in unknown]
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
    raise CheckpointError(f"required weights do not fit:\n{listed}\n{hint}")


def _band_hint(channels: int) -> str:
    if channels == 1:
        return "The checkpoint was trained on single-band images: use --init-bands 1,1,1"
    examples = "3,2,1 if the first channels are blue, green and red"
    if channels in SENTINEL2_CHANNELS:
        examples = f"{SENTINEL2_CHANNELS[channels]} for Sentinel-2, or by name, B04,B03,B02"
    return (
        f"The checkpoint was trained on images with {channels} channels. Give the 1-based numbers of red, "
        f"green and blue with --init-bands R,G,B (init_bands in the configuration): {examples}"
    )


def _check_experts(weights: Weights, backbone: Backbone) -> None:
    """Reject experts that do not fit the model; a dense checkpoint fits any model."""
    if not weights.experts:
        return
    width = expert_width(weights.backbone)
    has = f"the checkpoint has experts for {', '.join(weights.experts)}"
    if not backbone.experts:
        raise CheckpointError(
            f"{has}, the model has none: choose a backbone with experts, {with_experts(backbone.name)}, "
            f"and model.expert_channels={width}"
        )
    if missing := [task for task in backbone.experts if task not in weights.experts]:
        raise CheckpointError(
            f"{has}, but none for {', '.join(missing)}, which the model has: start from a dense checkpoint "
            f"(such as from S4P), or train only tasks of the checkpoint"
        )
    if width != backbone.expert_channels:
        raise CheckpointError(
            f"experts of {width} channels in the checkpoint, of {backbone.expert_channels} in the model: set "
            f"model.expert_channels={width}"
        )


def _match_heads(heads: Mapping[str, StateDict], tasks: tuple[str, ...]) -> StateDict:
    """Name the heads' tensors as in the model; the decoder of a single head is used for all tasks."""
    if len(heads) == 1:
        ((name, head),) = heads.items()
        decoder = {key: value for key, value in head.items() if not key.startswith(CLASSIFIERS)}
        own = {name, tasks[0]} if len(tasks) == 1 else {name}
        heads = {task: head if task in own else decoder for task in tasks}
    return {f"heads.{task}.{key}": value for task, head in heads.items() for key, value in head.items()}


def _other_tasks(stored: tuple[str, ...], tasks: tuple[str, ...]) -> list[str]:
    """Note on heads of several tasks of which the model does not have all."""
    unknown = [task for task in stored if task not in tasks]
    new = [task for task in tasks if task not in stored]
    if len(stored) < 2 or not unknown:
        return []
    rest = f"; {', '.join(new)} start from random weights" if new else ""
    return [f"the model has no {', '.join(unknown)}, whose heads are not loaded{rest}"]


def _compare(
    source: str, weights: Weights, tensors: StateDict, notes: list[str], model: nn.Module, backbone: Backbone
) -> tuple[StateDict, LoadReport]:
    """Compare tensors with the model; return those that fit, and the report."""
    own = model.state_dict()
    fitting = {k: v for k, v in tensors.items() if k in own and v.shape == own[k].shape}
    misshaped = [k for k in tensors if k in own and k not in fitting]
    prefix = "" if backbone is model else "backbone."
    counted = {
        name: parameter.numel()
        for name, parameter in backbone.named_parameters(prefix.rstrip("."))
        if not name.startswith(tuple(prefix + lacking for lacking in weights.lacks))
        and (name in fitting or not adapter_names([name]))
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
