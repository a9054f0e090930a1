"""Rebuild a trained segmentor from its checkpoint's metadata, a configuration or arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from s5.backbones import Lora
from s5.checkpoints.layouts import Weights
from s5.checkpoints.reading import read_checkpoint
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.errors import CheckpointError, ConfigError
from s5.prediction.spec import ModelSpec, TaskClasses, meta_of, options_of, sizes_of
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.model import SegmentationModel
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import Segmentor, build_segmentor
from s5.segmentation.tta import Tta
from s5.segmentation.windows import Inference
from s5.training.command import expert_channels, known_tasks
from s5.training.config import config_beside, load_config

NEEDED = ("backbone", "decoder_channels", "img_size", "labels", "inference")
OVERLAP = 4  # by default, windows overlap by a quarter of their side


@dataclass(frozen=True)
class SegmentationSpec(ModelSpec[SegmentationModel]):
    """Description of a segmentor, sufficient to rebuild it and to predict with it.

    Attributes:
        decoder_channels: Channels inside the decoders.
        tables: Label table of each task.
        inference: Inference settings of each task.
        tta: Test-time augmentation, if any.
    """

    decoder_channels: int
    tables: Mapping[str, LabelTable]
    inference: Mapping[str, Inference]
    tta: Tta | None = field(default=None, kw_only=True)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "SegmentationSpec | None":
        """Build from the metadata of a weight file; None if it is insufficient."""
        if not all(key in meta for key in NEEDED) or not isinstance(meta["labels"], Mapping):
            return None
        known = {entry.name for entry in fields(Inference)}  # other versions may have written more
        return cls(
            meta["backbone"],
            meta["img_size"],
            meta.get("expert_channels", 0),
            meta["decoder_channels"],
            {task: get_table(table) for task, table in meta["labels"].items()},
            {
                task: Inference(**{key: value for key, value in settings.items() if key in known})
                for task, settings in meta["inference"].items()
            },
            **options_of(meta),
        )

    def meta(self) -> dict[str, Any]:
        """What a weights file says of its model, for :meth:`from_meta`."""
        return {
            **self.backbone_meta(),
            "decoder_channels": self.decoder_channels,
            "tasks": {task: list(table.classes) for task, table in self.tables.items()},
            "labels": {task: table.as_mapping() for task, table in self.tables.items()},
            "inference": {task: asdict(how) for task, how in self.inference.items()},
        }

    @classmethod
    def from_mdf_config(cls, cfg: MDFConfig, backbone: str) -> "SegmentationSpec":
        """Build from a configuration of multi-dataset fine-tuning.

        Raises:
            ConfigError: The experts are too wide for the backbone.
        """
        return cls(
            backbone,
            cfg.crop,
            expert_channels(backbone, cfg.model.expert_channels),
            cfg.model.decoder_channels,
            {name: get_table(task.labels, default_name=name) for name, task in cfg.tasks.items()},
            {name: task.evaluation.inference() for name, task in cfg.tasks.items()},
            norm_eps=cfg.model.norm_eps,
            normalization=cfg.model.normalization,
            configured=True,
        )

    @classmethod
    def from_s4p_config(cls, cfg: S4PConfig, backbone: str, task: str) -> "SegmentationSpec":
        """Build from a pre-training configuration, whose only task is named `task`."""
        table, inference = get_table(cfg.data.labels), cfg.data.val.inference()
        channels = cfg.model.decoder_channels
        return cls(
            backbone,
            cfg.data.crop,
            0,
            channels,
            {task: table},
            {task: inference},
            norm_eps=cfg.model.norm_eps,
            normalization=cfg.model.normalization,
            configured=True,
        )

    @classmethod
    def from_weights(
        cls, weights: Weights, backbone: str, tables: Mapping[str, LabelTable]
    ) -> "SegmentationSpec":
        """Build from weights without metadata and the facts that the weights do not contain.

        Images are predicted in windows of the training size that overlap by a quarter.

        Raises:
            CheckpointError: There is no segmentation head for a task.
        """
        size, experts = sizes_of(weights, backbone)
        single = len(weights.heads) == len(tables) == 1  # then the names need not match
        heads = dict(zip(tables, weights.heads.values(), strict=True)) if single else weights.heads
        for task in tables:
            if "classifier.weight" not in heads.get(task, {}):
                raise CheckpointError(
                    f"no segmentation head {task!r}; the file has {', '.join(heads) or 'none'}"
                )
        decoder = heads[next(iter(tables))]["classifier.weight"].shape[1]
        windows = Inference("slide_window", size, size - size // OVERLAP)
        return cls(
            backbone, size, experts, decoder, dict(tables), dict.fromkeys(tables, windows), configured=True
        )

    @property
    def tasks(self) -> Mapping[str, TaskClasses]:
        """Classes of each task."""
        return {task: TaskClasses(table.classes, table.palette) for task, table in self.tables.items()}

    def only(self, tasks: Sequence[str]) -> "SegmentationSpec":
        """See :meth:`ModelSpec.only`."""
        kept = known_tasks(self.tables, tasks)
        return replace(
            self,
            tables={task: self.tables[task] for task in kept},
            inference={task: self.inference[task] for task in kept},
        )

    def build_network(self, lora: Lora | None = None) -> Segmentor:
        """Build the segmentor, randomly initialised; see the base class."""
        return build_segmentor(
            self.backbone,
            {task: table.num_classes for task, table in self.tables.items()},
            self.img_size,
            channels=self.decoder_channels,
            expert_channels=self.expert_channels,
            norm_eps=self.norm_eps,
            normalization=self.normalization,
            lora=lora,
        )

    def wrap(self, network: nn.Module, dtype: torch.dtype | None) -> SegmentationModel:
        """Wrap a segmentor in its model."""
        return SegmentationModel(cast(Segmentor, network), self.inference, dtype, self.tta)


def find_config(config: str | None, checkpoint: Path, default: Path) -> Path:
    """Return the given configuration, or else `config.yaml` beside the checkpoint, or else the default."""
    return Path(config) if config is not None else config_beside(checkpoint) or default


def spec_of_checkpoint(checkpoint: Path, backbone: str | None) -> SegmentationSpec | None:
    """Build the spec from a checkpoint's metadata; None if it is insufficient.

    Args:
        checkpoint: Weights of a full model.
        backbone: Backbone given on the command line, if any; must match the checkpoint.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: The checkpoint has another backbone.
    """
    spec = SegmentationSpec.from_meta(meta_of(read_checkpoint(checkpoint, lazy=True)))
    if spec is not None and backbone not in (None, spec.backbone):
        raise ConfigError(f"--backbone {backbone}: {checkpoint} holds a {spec.backbone}; omit the option")
    return spec


def find_spec(
    checkpoint: Path, backbone: str | None, config: Path, overrides: Sequence[str] = ()
) -> SegmentationSpec:
    """Build the spec from a checkpoint's metadata, or else from an MDF configuration and a backbone name.

    Args:
        checkpoint: Weights of a full model.
        backbone: Name of the backbone; required for a checkpoint without metadata.
        config: Configuration for a checkpoint without metadata.
        overrides: Overrides of the configuration, `section.key=value`.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: The backbone is missing or does not match the checkpoint, or the configuration is
            invalid.
    """
    spec = spec_of_checkpoint(checkpoint, backbone)
    if spec is not None:
        return spec
    if backbone is None:
        raise ConfigError(
            f"{checkpoint} has no metadata about its network: give its --backbone (vit_b_moe, vit_b ...) "
            f"and the --config with its tasks (currently {config})"
        )
    return SegmentationSpec.from_mdf_config(load_config(MDFConfig, config, [*overrides]), backbone)
