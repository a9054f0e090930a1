"""Prediction by several processes, each of which takes its share of the images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from s5.data.errors import ImageError
from s5.engine import launch
from s5.engine.config import ConfigError
from s5.engine.launch import Launch, host_group
from s5.engine.predict.sources import Source

T = TypeVar("T")

Work = Callable[[Sequence[Source]], list[ImageError]]
"""Predicts images to files; returns the errors of those that could not be read."""


def from_main(make: Callable[[], T], place: Launch) -> T:
    """What the main process makes, in all processes.

    Raises:
        LaunchError: in the other processes, when the main process raised.
    """
    made: list = [None]
    with launch.main_process_first(place) as is_main:
        if is_main:
            made = [make()]
    if place.world_size > 1:
        dist.broadcast_object_list(made, src=0, device=place.device)
    return made[0]


def predict_share(work: Work, sources: Sequence[Source], folder: Path, place: Launch) -> list[ImageError]:
    """Predict the images of this process; the main process waits for the others.

    Args:
        work: predicts images and writes the results.
        sources: the images of all processes.
        folder: of the results, for messages.
        place: this process.

    Returns:
        Errors of images that could not be read: in the main process those of all, in the others none.

    Raises:
        ConfigError: a result cannot be written; in the main process.
    """
    group: Any = host_group() if place.world_size > 1 else None
    problems: list[ImageError] = []
    failure: ConfigError | None = None
    try:
        problems = work(sources[place.rank :: place.world_size])
    except OSError as error:
        failure = cannot_write(folder, error)
    shares = [(problems, failure)]
    if place.world_size > 1:
        # Nobody leaves before all are done: torchrun ends the others of a process that ended with an error.
        shares = [([], None)] * place.world_size if place.is_main else []
        dist.gather_object((problems, failure), shares if place.is_main else None, group=group)
    for _, failure in shares:
        if failure is not None:
            raise failure
    return [problem for problems, _ in shares for problem in problems]


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    """The error of a folder of results, with the way out."""
    return ConfigError(
        f"{folder}: cannot be written ({error.strerror or error}); what is finished is kept, go on with "
        f"--resume"
    )
