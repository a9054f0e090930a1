"""How to rebuild a trained segmentor: from its checkpoint's metadata, a configuration or arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from s5.checkpoints.layouts import Weights
from s5.checkpoints.loading import read_checkpoint
from s5.data.label_table import LabelTable
from s5.data.labels import get_table
from s5.errors import CheckpointError, ConfigError
from s5.prediction.spec import ModelSpec, TaskClasses, meta_of, sizes_of
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.model import SegmentationModel
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import Segmentor, build_segmentor
from s5.segmentation.tta import Tta
from s5.segmentation.windows import Inference
from s5.training.command import expert_channels, known_tasks
from s5.training.config import NORM_EPS, load_config

NEEDED = ("backbone", "decoder_channels", "img_size", "labels", "inference")
OVERLAP = 4  # windows share a quarter of their side where nothing says otherwise


@dataclass(frozen=True)
class SegmentationSpec(ModelSpec[SegmentationModel]):
    """What has to be known to rebuild a segmentor and to predict with it.

    Attributes:
        decoder_channels: Channels inside the decoders.
        tables: Classes of each task.
        inference: How images of each task are predicted.
        tta: Views that predictions are averaged over; None for the image as it is.
    """

    decoder_channels: int
    tables: Mapping[str, LabelTable]
    inference: Mapping[str, Inference]
    tta: Tta | None = field(default=None, kw_only=True)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "SegmentationSpec | None":
        """From the metadata of a weights file; None if they are not enough."""
        if not all(key in meta for key in NEEDED) or not isinstance(meta["labels"], Mapping):
            return None
        return cls(
            meta["backbone"],
            meta["img_size"],
            meta.get("expert_channels", 0),
            meta["decoder_channels"],
            {task: get_table(table) for task, table in meta["labels"].items()},
            {task: Inference(**how) for task, how in meta["inference"].items()},
            norm_eps=meta.get("norm_eps", NORM_EPS),
        )

    def meta(self) -> dict[str, Any]:
        """What a weights file says of its model, for :meth:`from_meta`."""
        return {
            "backbone": self.backbone,
            "decoder_channels": self.decoder_channels,
            "norm_eps": self.norm_eps,
            "expert_channels": self.expert_channels,
            "img_size": self.img_size,
            "tasks": {task: list(table.classes) for task, table in self.tables.items()},
            "labels": {task: table.as_mapping() for task, table in self.tables.items()},
            "inference": {task: asdict(how) for task, how in self.inference.items()},
        }

    @classmethod
    def from_mdf_config(cls, cfg: MDFConfig, backbone: str) -> "SegmentationSpec":
        """From a configuration of multi-dataset fine-tuning.

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
            configured=True,
        )

    @classmethod
    def from_s4p_config(cls, cfg: S4PConfig, backbone: str, task: str) -> "SegmentationSpec":
        """From a configuration of pre-training, whose only task gets the name `task`."""
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
            configured=True,
        )

    @classmethod
    def from_weights(
        cls, weights: Weights, backbone: str, tables: Mapping[str, LabelTable]
    ) -> "SegmentationSpec":
        """From the weights of a file without metadata, and what they do not tell.

        Images are predicted in windows of the training size that overlap by a quarter.

        Raises:
            CheckpointError: There is no segmentation head for a task.
        """
        size, experts = sizes_of(weights, backbone)
        lone = len(weights.heads) == len(tables) == 1  # its name does not matter
        heads = dict(zip(tables, weights.heads.values(), strict=True)) if lone else weights.heads
        for task in tables:
            if "classifier.weight" not in heads.get(task, {}):
                raise CheckpointError(
                    f"no segmentation head {task!r}; there are {', '.join(heads) or 'none'}"
                )
        decoder = heads[next(iter(tables))]["classifier.weight"].shape[1]
        how = Inference("slide_window", size, size - size // OVERLAP)
        return cls(
            backbone, size, experts, decoder, dict(tables), dict.fromkeys(tables, how), configured=True
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

    def build_network(self) -> Segmentor:
        """The segmentor, randomly initialised."""
        return build_segmentor(
            self.backbone,
            {task: table.num_classes for task, table in self.tables.items()},
            self.img_size,
            channels=self.decoder_channels,
            expert_channels=self.expert_channels,
            norm_eps=self.norm_eps,
        )

    def wrap(self, network: nn.Module, dtype: torch.dtype | None) -> SegmentationModel:
        """The model around a segmentor."""
        return SegmentationModel(cast(Segmentor, network), self.inference, dtype, self.tta)


def find_config(config: str | None, checkpoint: Path, default: Path) -> Path:
    """The configuration named, else the one beside the checkpoint, else the default."""
    if config is not None:
        return Path(config)
    beside = checkpoint.parent / "config.yaml"
    return beside if beside.is_file() else default


def spec_of_checkpoint(checkpoint: Path, backbone: str | None) -> SegmentationSpec | None:
    """From a checkpoint's metadata; None if they are not enough.

    Args:
        checkpoint: Weights of a whole model.
        backbone: Name given on the command line, which must be the checkpoint's.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: The backbone is another one.
    """
    spec = SegmentationSpec.from_meta(meta_of(read_checkpoint(checkpoint, lazy=True)))
    if spec is not None and backbone not in (None, spec.backbone):
        raise ConfigError(f"--backbone {backbone}: {checkpoint} holds a {spec.backbone}; leave it out")
    return spec


def find_spec(
    checkpoint: Path, backbone: str | None, config: Path, overrides: Sequence[str] = ()
) -> SegmentationSpec:
    """From a checkpoint's metadata, else from a multi-dataset configuration and the name of a backbone.

    Args:
        checkpoint: Weights of a whole model.
        backbone: Needed for a checkpoint without metadata.
        config: Read for a checkpoint without metadata.
        overrides: `section.key=value` for the configuration.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: The backbone is not known, or not the checkpoint's; or the configuration is wrong.
    """
    spec = spec_of_checkpoint(checkpoint, backbone)
    if spec is not None:
        return spec
    if backbone is None:
        raise ConfigError(
            f"{checkpoint} does not say what network it holds: name it with --backbone (vit_b_moe, vit_b "
            f"...), and the configuration of its tasks with --config (now {config})"
        )
    return SegmentationSpec.from_mdf_config(load_config(MDFConfig, config, [*overrides]), backbone)
