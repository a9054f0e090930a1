"""How the results in a folder of predictions were made: the file that says so, and what has changed since."""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch.distributed as dist
import yaml

from s5 import launch
from s5.data.errors import ImageError, is_utf8
from s5.data.files import write_bytes
from s5.data.folders import find_files
from s5.launch import Launch, host_group
from s5.prediction.sources import Source, find_sources
from s5.segmentation.submission import SETTINGS_FILE
from s5.training.config import ConfigError

Settings = Mapping[str, Mapping[str, Any]]
"""What the results of each task depend on, and what their values mean."""


def identify(checkpoint: Path) -> dict[str, str | int]:
    """What distinguishes a readable checkpoint from others, and from itself before it was overwritten."""
    file = checkpoint.expanduser()
    file = (file if file.is_file() else file.with_name(f"{file.name}.pth")).resolve()
    stat = file.stat()
    return {
        "checkpoint": str(file),
        "checkpoint_bytes": stat.st_size,
        "checkpoint_modified_ns": stat.st_mtime_ns,
    }


def changes(folder: Path, settings: Settings) -> dict[str, str]:
    """In what the results in a folder differ from what would be made now, by task; not of equal ones."""
    found = {}
    for task, values in settings.items():
        path = folder / task / SETTINGS_FILE
        if path.exists():
            there = yaml.safe_load(path.read_text(encoding="utf-8"))
            changed = [key for key, value in values.items() if there.get(key) != value]
            if changed:
                found[task] = f"{path}: the results there were made {_difference(changed[0], there, values)}"
    return found


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the file of each task.

    Raises:
        OSError: it cannot be written.
    """
    for task, values in settings.items():
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)
        write_bytes(folder / task / SETTINGS_FILE, text.encode())


def _difference(key: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key in ("checkpoint_bytes", "checkpoint_modified_ns"):
        return f"before {now['checkpoint']} was overwritten"
    return f"with {key} {there.get(key)}, now it is {now[key]}"


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


logger = logging.getLogger(__name__)

_NAME_BYTES = 255 - len("..tmp")  # of a file name; what is being written has this beside its name


class Results(Protocol):
    """Where results go and which."""

    @property
    def folder(self) -> Path:
        """Results are ``<folder>/<task>/<kind>/<name>`` and an extension."""
        ...

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks to predict."""
        ...

    @property
    def kinds(self) -> Sequence[str]:
        """Kinds of results."""
        ...

    def paths(self, source: Source) -> list[Path]:
        """All results of an image."""
        ...

    def all_of(self, tasks: Sequence[str]) -> "Results":
        """All that may be in the folder for some of the tasks, also what is not asked for now."""
        ...


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        given: folders, files or patterns.
        results: where to.
        settings: what the results depend on.
        resume: leave images alone whose results exist.
        renew: with ``resume``, overwrite results that were made with other settings, instead of an error.
    """

    given: Sequence[str]
    results: Results
    settings: Settings
    resume: bool
    renew: bool = False


@dataclass(frozen=True)
class _Plan:
    """What is to be done, for all processes together.

    Attributes:
        sources: images to predict.
        outdated: tasks whose results in the folder were made in another way.
        problems: errors of images that are left out.
    """

    sources: list[Source]
    outdated: list[str]
    problems: list[ImageError]


def start(device: str) -> Launch:
    """Join the other processes, if any, and log to the console from the main one."""
    place = launch.start(device)
    level = logging.INFO if place.is_main else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    return place


def carry_out(request: Request, build: Callable[[], Work], place: Launch) -> list[ImageError]:
    """Predict images to files; several processes share them.

    Results that were made in another way (checkpoint, windows ...) are removed before the first is written:
    after an interruption none is left to be taken for a new one.

    Args:
        request: what is asked for.
        build: makes what predicts images; not called if nothing is left to do.
        place: this process.

    Returns:
        Errors of images that could not be read; of all processes, in the main one.

    Raises:
        ConfigError: the results that are there were made with other settings, or cannot be written.
        DataError: no images.
    """
    plan = from_main(lambda: _plan(request), place)
    if not plan.sources:
        return plan.problems if place.is_main else []
    work = build()
    from_main(lambda: _prepare(request, plan), place)
    begin = time.monotonic()
    problems = predict_share(work, plan.sources, request.results.folder, place)
    seconds = time.monotonic() - begin
    done, tasks = len(plan.sources) - len(problems), len(request.results.tasks)
    logger.info("%d images, %d tasks, %.1f s, %.2f images/s", done, tasks, seconds, done / seconds)
    return plan.problems + problems if place.is_main else problems


def report(problems: Sequence[ImageError]) -> int:
    """Name the images that could not be read; returns the exit code."""
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} images could not be read; all others are done", file=sys.stderr)
    return 1 if problems else 0


def _plan(request: Request) -> _Plan:
    results = request.results
    sources, problems = _nameable(find_sources(request.given, results.folder), results)
    changed = changes(results.folder, request.settings)
    if changed and request.resume and not request.renew:
        what = next(iter(changed.values()))
        raise ConfigError(f"{what}; choose another folder, or leave out --resume to overwrite them")
    for task, what in changed.items():
        _require_no_others(results.all_of([task]), sources, what)
        logger.warning("%s; they are predicted again", what)
    if changed or not request.resume:
        return _Plan(sources, list(changed), problems)
    left = [source for source in sources if not all(path.exists() for path in results.paths(source))]
    logger.info("%d of %d images are finished already", len(sources) - len(left), len(sources))
    return _Plan(left, [], problems)


def _nameable(sources: Sequence[Source], results: Results) -> tuple[list[Source], list[ImageError]]:
    """The images whose results can have their names, and errors of the others.

    Raises:
        ConfigError: there are TIFFs, whose results cannot be written to a folder of this name.
    """
    if not is_utf8(results.folder) and any(source.is_tiff for source in sources):
        raise ConfigError(f"--out {results.folder}: a path that is not UTF-8, where GDAL cannot write TIFFs")
    named, problems = [], []
    for source in sources:
        length = max(len(os.fsencode(path.name)) for path in results.paths(source))
        if length > _NAME_BYTES:
            reason = f"names of its results would have {length} bytes, more than {_NAME_BYTES}"
            problems.append(ImageError(source.path, reason, "Rename it"))
        else:
            named.append(source)
    return named, problems


def _require_no_others(results: Results, sources: Sequence[Source], what: str) -> None:
    """Refuse a folder where results would be left that were made in another way than it then says."""
    ours = {path for source in sources for path in results.paths(source)}
    folders = (results.folder / task / kind for task in results.tasks for kind in results.kinds)
    others = [path for folder in folders for path in find_files(folder) if path not in ours]
    if others:
        raise ConfigError(
            f"{what}, and {len(others)} are of other images ({others[0]}); choose another folder, or remove "
            f"{results.folder}"
        )


def _prepare(request: Request, plan: _Plan) -> None:
    """Remove results that would not be told from new ones, and say how the new ones are made."""
    results = request.results
    try:
        for source in plan.sources:
            for path in results.all_of(plan.outdated).paths(source):
                path.unlink(missing_ok=True)
        write_settings(results.folder, request.settings)
    except OSError as error:
        raise cannot_write(results.folder, error) from None
