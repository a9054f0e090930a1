"""Plan and run batch prediction: pending images, outdated results, work split between processes."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import yaml

from s5.checkpoints.reading import find_checkpoint
from s5.data.files import write_bytes
from s5.data.folders import find_files
from s5.errors import ConfigError, ImageError, is_utf8
from s5.launch import Launch, host_group, main_process_first
from s5.prediction.sources import SETTINGS_FILE, Source, find_sources

logger = logging.getLogger(__name__)

T = TypeVar("T")
Settings = Mapping[str, Mapping[str, Any]]
"""Settings that the results of each task depend on, including the meaning of their values."""
Work = Callable[[Sequence[Source]], list[ImageError]]
"""Predicts images to files; returns the errors of those that could not be read."""

_NAME_BYTES = 255 - len("..tmp")  # maximum length of a file name; temporary names are this much longer


@dataclass(frozen=True)
class Target:
    """Output folder, tasks and formats of a prediction.

    Attributes:
        folder: Results are `<folder>/<task>/<format>/<name>` with the extension of the format.
        tasks: Names of the tasks to predict.
        formats: Formats to write, from `known`.
        known: All formats, with the extensions for other images and for TIFF input.
    """

    folder: Path
    tasks: tuple[str, ...]
    formats: tuple[str, ...]
    known: Mapping[str, tuple[str, str]]

    def all_of(self, tasks: Sequence[str]) -> "Target":
        """Return a copy with some of the tasks and all formats."""
        return replace(self, tasks=tuple(tasks), formats=tuple(self.known))

    def path(self, task: str, kind: str, source: Source) -> Path:
        """Path of one result of an image."""
        return self.folder / task / kind / f"{source.name}{self.known[kind][source.is_tiff]}"

    def paths(self, source: Source) -> list[Path]:
        """Paths of all results of an image."""
        return [self.path(task, kind, source) for task in self.tasks for kind in self.formats]


@dataclass(frozen=True)
class Request:
    """A requested prediction to files.

    Attributes:
        given: Folders, files or patterns.
        target: Output folder, tasks and formats.
        settings: Settings that the results depend on.
        resume: Skip images whose results exist.
        renew: With `resume`, overwrite results of other settings instead of raising an error.
    """

    given: Sequence[str]
    target: Target
    settings: Settings
    resume: bool
    renew: bool = False


@dataclass(frozen=True)
class _Plan:
    """The work of all processes together.

    Attributes:
        sources: Images to predict.
        outdated: Tasks whose existing results were made with other settings.
        problems: Errors of images that are skipped.
    """

    sources: list[Source]
    outdated: list[str]
    problems: list[ImageError]


def carry_out(request: Request, build: Callable[[], Work], launch: Launch) -> list[ImageError]:
    """Predict images to files, distributed over processes.

    Results of other settings (checkpoint, windows ...) are removed before the first new one is written, so
    that they cannot be mistaken for new results after an interruption.

    Args:
        request: The requested prediction.
        build: Returns the function that predicts images; not called if nothing is left to do.
        launch: Device and processes.

    Returns:
        Errors of images that could not be read; in the main process, those of all processes.

    Raises:
        ConfigError: Existing results were made with other settings, or results cannot be written.
        DataError: There are no images.
    """
    plan = from_main(lambda: _plan(request), launch)
    if not plan.sources:
        return plan.problems if launch.is_main else []
    work = build()
    from_main(lambda: _prepare(request, plan), launch)
    begin = time.monotonic()
    problems = predict_share(work, plan.sources, request.target.folder, launch)
    seconds = time.monotonic() - begin
    done, tasks = len(plan.sources) - len(problems), len(request.target.tasks)
    logger.info("%d images, %d tasks, %.1f s, %.2f images/s", done, tasks, seconds, done / seconds)
    return plan.problems + problems if launch.is_main else problems


def _plan(request: Request) -> _Plan:
    target = request.target
    sources, problems = _nameable(find_sources(request.given, target.folder), target)
    changed = changes(target.folder, request.settings)
    if changed and request.resume and not request.renew:
        what = next(iter(changed.values()))
        raise ConfigError(f"{what}; choose another folder, or omit --resume to overwrite them")
    for task, what in changed.items():
        _require_no_others(target.all_of([task]), sources, what)
        logger.warning("%s; they are predicted again", what)
    if changed or not request.resume:
        return _Plan(sources, list(changed), problems)
    left = [source for source in sources if not all(path.exists() for path in target.paths(source))]
    logger.info("%d of %d images are already finished", len(sources) - len(left), len(sources))
    return _Plan(left, [], problems)


def _nameable(sources: Sequence[Source], target: Target) -> tuple[list[Source], list[ImageError]]:
    """Return the images whose results have valid file names, and errors of the others.

    Raises:
        ConfigError: There are TIFFs, whose results cannot be written to a folder of this name.
    """
    if not is_utf8(target.folder) and any(source.is_tiff for source in sources):
        raise ConfigError(
            f"--out {target.folder}: GDAL cannot write TIFFs to a path that is not UTF-8; choose another"
        )
    named, problems = [], []
    for source in sources:
        length = max(len(os.fsencode(path.name)) for path in target.paths(source))
        if length > _NAME_BYTES:
            reason = f"file names of its results would have {length} bytes, more than {_NAME_BYTES}"
            problems.append(ImageError(source.path, reason, "Rename it"))
        else:
            named.append(source)
    return named, problems


def _require_no_others(target: Target, sources: Sequence[Source], what: str) -> None:
    """Reject a folder in which results of other images would no longer match `prediction.yaml`."""
    expected = {path for source in sources for path in target.paths(source)}
    folders = (target.folder / task / kind for task in target.tasks for kind in target.formats)
    others = [path for folder in folders for path in find_files(folder) if path not in expected]
    if others:
        raise ConfigError(
            f"{what}, and {len(others)} are of other images ({others[0]}); choose another folder, or remove "
            f"{target.folder}"
        )


def _prepare(request: Request, plan: _Plan) -> None:
    """Remove outdated results and write the settings of the new ones."""
    target = request.target
    try:
        for source in plan.sources:
            for path in target.all_of(plan.outdated).paths(source):
                path.unlink(missing_ok=True)
        write_settings(target.folder, request.settings)
    except OSError as error:
        raise cannot_write(target.folder, error) from None


def from_main(make: Callable[[], T], launch: Launch) -> T:
    """Call a function in the main process and return its result in all processes.

    Raises:
        LaunchError: The main process raised an exception (raised in the other processes).
    """
    result: list = [None]
    with main_process_first(launch) as is_main:
        if is_main:
            result = [make()]
    if launch.world_size > 1:
        dist.broadcast_object_list(result, src=0, device=launch.device)
    return result[0]


def predict_share(work: Work, sources: Sequence[Source], folder: Path, launch: Launch) -> list[ImageError]:
    """Predict the images of this process; the main process waits for the others.

    Args:
        work: Predicts images and writes the results.
        sources: The images of all processes.
        folder: Folder of the results, for messages.
        launch: Device and processes.

    Returns:
        Errors of images that could not be read: in the main process, those of all processes; in others, none.

    Raises:
        ConfigError: A result cannot be written (raised in the main process).
    """
    group: Any = host_group() if launch.world_size > 1 else None
    problems: list[ImageError] = []
    failure: ConfigError | None = None
    try:
        problems = work(sources[launch.rank :: launch.world_size])
    except OSError as error:
        failure = cannot_write(folder, error)
    shares = [(problems, failure)]
    if launch.world_size > 1:
        # All processes wait for each other, because torchrun kills the others when one exits with an error.
        shares = [([], None)] * launch.world_size if launch.is_main else []
        dist.gather_object((problems, failure), shares if launch.is_main else None, group=group)
    for _, failure in shares:
        if failure is not None:
            raise failure
    return [problem for problems, _ in shares for problem in problems]


def cannot_write(folder: Path, error: OSError) -> ConfigError:
    """Create the error for a folder of results that cannot be written."""
    return ConfigError(
        f"{folder}: cannot be written ({error.strerror or error}); finished results are kept, continue with "
        f"--resume"
    )


def identify(checkpoint: Path) -> dict[str, str | int]:
    """Path, size and time of a checkpoint, by which another or a newer file is recognised."""
    file = find_checkpoint(checkpoint).resolve()
    stat = file.stat()
    return {
        "checkpoint": str(file),
        "checkpoint_bytes": stat.st_size,
        "checkpoint_modified_ns": stat.st_mtime_ns,
    }


def changes(folder: Path, settings: Settings) -> dict[str, str]:
    """Describe by task what has changed since the results in a folder were made; empty if nothing has."""
    messages = {}
    for task, values in settings.items():
        path = folder / task / SETTINGS_FILE
        if path.exists():
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
            changed = [key for key, value in values.items() if stored.get(key) != value]
            if changed:
                difference = _difference(changed[0], stored, values)
                messages[task] = f"{path}: the existing results were made {difference}"
    return messages


def write_settings(folder: Path, settings: Settings) -> None:
    """Write `prediction.yaml` of each task.

    Raises:
        OSError: A file cannot be written.
    """
    for task, values in settings.items():
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)
        write_bytes(folder / task / SETTINGS_FILE, text.encode())


def _difference(key: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key in ("checkpoint_bytes", "checkpoint_modified_ns"):
        return f"before {now['checkpoint']} was overwritten"
    return f"with {key} {stored.get(key)}, now it is {now[key]}"
