"""What an evaluation of a detector takes of the configuration: tasks and images."""

import logging
from collections.abc import Sequence

from s5.data.oriented.dataset import OrientedValidation
from s5.data.oriented.merge import place_of
from s5.data.oriented.whole import whole_names
from s5.engine.config import ConfigError
from s5.engine.det_config import DetConfig

logger = logging.getLogger(__name__)

PARTS = ("val", "test")


def select_part(cfg: DetConfig, part: str, tasks: Sequence[str]) -> DetConfig:
    """The configuration with the named tasks alone; without names with those that have the part.

    Args:
        cfg: the configuration.
        part: of :data:`PARTS`.
        tasks: names; may be empty.

    Raises:
        ConfigError: a task is unknown, or has no test images.
    """
    for name in tasks:
        if name not in cfg.tasks:
            raise ConfigError(
                f"--tasks {name}: the configuration has no such task; it has {', '.join(cfg.tasks)}"
            )
    kept = {name: task for name, task in cfg.tasks.items() if name in tasks or not tasks}
    having = {name: task for name, task in kept.items() if getattr(task, part) is not None}
    lacking = [name for name in kept if name not in having]
    if (lacking and tasks) or not having:
        raise ConfigError(
            f"--split {part}: {', '.join(lacking)} without images to test; add for example "
            f"tasks.{lacking[0]}.test=dict(images='dota/test-dev/images', windows=True)"
        )
    return cfg.model_copy(update={"tasks": having})


def image_names(images: OrientedValidation, merged: bool) -> list[str]:
    """Names of the whole images of a task.

    Raises:
        ConfigError: some of them are windows, which are not put together.
    """
    if problem := _lone_windows(images, merged):
        raise ConfigError(problem)
    return whole_names(images.samples.names)


def warn_of_windows(images: OrientedValidation, merged: bool) -> None:
    """Say that images of a task are windows, whose detections are not put together, if so."""
    if problem := _lone_windows(images, merged):
        logger.warning("%s. Without it, the detections written are of single windows", problem)


def _lone_windows(images: OrientedValidation, merged: bool) -> str | None:
    """What is to be done about windows that are not put together; None without any."""
    names = images.samples.names
    windows = [name for name in names if place_of(name).image != name]
    if merged or not windows:
        return None
    return (
        f"{images.task}: {len(windows)} of {len(names)} images are windows of larger ones by their names "
        f"({windows[0]}): set test.windows=True for test images, whole for validation images"
    )
