"""The metrics of a detector, built from the configuration."""

from collections.abc import Iterable, Mapping, Sequence

from torch.utils.data import DataLoader

from s5.data.oriented.dataset import OrientedValidation
from s5.data.oriented.whole import read_whole
from s5.engine.det_config import DetConfig
from s5.engine.detection.metric import DetectionMetric
from s5.engine.task_names import naming


def images_of(loader: DataLoader) -> dict[str, OrientedValidation]:
    """The images of each task that a loader of :func:`s5.engine.det.build_val_loader` has."""
    parts: Iterable[OrientedValidation] = loader.dataset.datasets  # type: ignore[attr-defined]
    return {part.task: part for part in parts}


def is_merged(cfg: DetConfig, task: str, part: str) -> bool:
    """Whether the images of a task are windows, whose detections are put together."""
    section = cfg.tasks[task]
    return section.whole is not None if section.test is None or part == "val" else section.test.windows


def build_metrics(
    cfg: DetConfig, classes: Mapping[str, Sequence[str]], loader: DataLoader, part: str = "val"
) -> list[DetectionMetric]:
    """Scores of the tasks whose images have annotations, named ``<task>/mAP50`` ...

    Labels of whole images are read here, so that what is wrong with them is said before anything runs.

    Args:
        cfg: the configuration.
        classes: names of the classes of each task.
        loader: of the images of ``part``.
        part: "val" or "test".

    Raises:
        DataError: the labels of whole images are missing or wrong; names the first files.
    """
    images = images_of(loader)
    metrics = []
    for task, names in classes.items():
        section = cfg.tasks[task]
        if getattr(section, part).annotations is None:
            continue
        whole = None
        if part == "val" and section.whole is not None:
            with naming(f"tasks.{task}.whole"):
                folder = cfg.data_root / section.whole
                whole = read_whole(folder, images[task].samples.names, names, section.leave_out)
        merge = is_merged(cfg, task, part)
        metrics.append(DetectionMetric(names, task, task, merge, whole, cfg.model.nms))
    return metrics
