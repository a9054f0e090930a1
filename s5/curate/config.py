"""Configuration of a curation, `S4_Pretrain/configs/curate.yaml`."""

from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from s5.curate.cut import WriteConfig
from s5.curate.select import SelectSettings
from s5.ranges import NonNegative, Positive, Share
from s5.training.config import Section


class PatchConfig(Section):
    """Patches: square windows of the images; smaller images are one patch.

    Attributes:
        size: Side in pixels.
        overlap: Pixels that neighbouring patches share.
        min_size: Images with a side below this many pixels are left out.
    """

    size: Positive = 512
    overlap: NonNegative = 0
    min_size: Positive = 32

    @model_validator(mode="after")
    def _check(self) -> "PatchConfig":
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be smaller than size {self.size}")
        return self


class ScoreConfig(Section):
    """Scores of the patches by a trained segmentor.

    Attributes:
        task: Task of the segmentor; optional if it has only one.
        batch_size: Patches per forward pass.
        workers: Processes that read patches, per process with a model.
        precision: `auto`, `bf16`, `fp16` or `fp32`; the softmax is float32 in all.
        pseudo_labels: Keep the pseudo-labels of all patches, to be written for the chosen ones.
        conf_thresh: Pixels whose highest probability is below it are ignored in the pseudo-labels.
        max_unreadable: Share of unreadable patches above which the step fails.
    """

    task: str | None = None
    batch_size: Positive = 16
    workers: NonNegative = 4
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    pseudo_labels: bool = False
    conf_thresh: Share = 0.0
    max_unreadable: Share = 0.01


class ClusterConfig(Section):
    """K-Means on the features of the labeled patches.

    Attributes:
        count: Number of clusters (M).
        iterations: Iterations of K-Means.
        seed: Seed of the initial centroids.
    """

    count: Positive = 16
    iterations: Positive = 25
    seed: NonNegative = 0


class CurateConfig(Section):
    """A curation; paths are relative to `data_root` unless absolute.

    Attributes:
        data_root: Folder that paths and the lines of the written split are relative to.
        out: Folder of the run, relative to the working directory.
        name: Name of the written split.
        checkpoint: Weights of the segmentor, relative to the working directory.
        labeled: Images whose features define the clusters: a split file, a folder, an archive or an image.
        sources: Unlabeled images by the name of their source, likewise.
    """

    data_root: Path
    out: Path
    name: str = "curated"
    checkpoint: Path
    labeled: Path
    sources: dict[str, Path]
    patch: PatchConfig = PatchConfig()
    score: ScoreConfig = ScoreConfig()
    cluster: ClusterConfig = ClusterConfig()
    select: SelectSettings
    write: WriteConfig = WriteConfig()

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, sources: dict[str, Path]) -> dict[str, Path]:
        if not sources:
            raise ValueError("name at least one source of unlabeled images")
        return sources

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name or any(c in name for c in "/\\\t\n") or name.startswith("."):
            raise ValueError(f"{name!r} cannot be the name of a file")
        return name
