"""Plan and run a prediction to files: pending images, outdated results, work shared by processes."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import yaml

from s5.data.files import write_bytes
from s5.data.folders import find_files
from s5.errors import ConfigError, ImageError, is_utf8
from s5.launch import Launch, host_group, main_process_first
from s5.prediction.sources import SETTINGS_FILE, Source, find_sources

logger = logging.getLogger(__name__)

T = TypeVar("T")
Settings = Mapping[str, Mapping[str, Any]]
"""What the results of each task depend on, and what their values mean."""
Work = Callable[[Sequence[Source]], list[ImageError]]
"""Predicts images to files; returns the errors of those that could not be read."""

_NAME_BYTES = 255 - len("..tmp")  # of a file name; a file being written has this beside its name


@dataclass(frozen=True)
class Target:
    """Where results go and which.

    Attributes:
        folder: Results are `<folder>/<task>/<format>/<name>` and the extension of the format.
        tasks: Names of the tasks to predict.
        formats: Of `known`.
        known: All formats of the product: the extension, and that for a TIFF.
    """

    folder: Path
    tasks: tuple[str, ...]
    formats: tuple[str, ...]
    known: Mapping[str, tuple[str, str]]

    def all_of(self, tasks: Sequence[str]) -> "Target":
        """The same with every format for some of the tasks."""
        return replace(self, tasks=tuple(tasks), formats=tuple(self.known))

    def path(self, task: str, kind: str, source: Source) -> Path:
        """One result of an image."""
        return self.folder / task / kind / f"{source.name}{self.known[kind][source.is_tiff]}"

    def paths(self, source: Source) -> list[Path]:
        """All results of an image."""
        return [self.path(task, kind, source) for task in self.tasks for kind in self.formats]


@dataclass(frozen=True)
class Request:
    """A prediction to files, as asked for.

    Attributes:
        given: Folders, files or patterns.
        target: Where results go.
        settings: What the results depend on.
        resume: Leave images alone whose results exist.
        renew: With `resume`, overwrite results that were made with other settings, instead of an error.
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
        outdated: Tasks whose results in the folder were made in another way.
        problems: Errors of images that are left out.
    """

    sources: list[Source]
    outdated: list[str]
    problems: list[ImageError]


def carry_out(request: Request, build: Callable[[], Work], launch: Launch) -> list[ImageError]:
    """Predict images to files; several processes share them.

    Results that were made in another way (checkpoint, windows ...) are removed before the first new one is
    written, so that after an interruption none of them can be mistaken for a new one.

    Args:
        request: What is asked for.
        build: Returns the function that predicts images; not called if nothing is left to do.
        launch: This process.

    Returns:
        Errors of images that could not be read; of all processes, in the main one.

    Raises:
        ConfigError: Existing results were made with other settings, or results cannot be written.
        DataError: No images.
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
        raise ConfigError(f"{what}; choose another folder, or leave out --resume to overwrite them")
    for task, what in changed.items():
        _require_no_others(target.all_of([task]), sources, what)
        logger.warning("%s; they are predicted again", what)
    if changed or not request.resume:
        return _Plan(sources, list(changed), problems)
    left = [source for source in sources if not all(path.exists() for path in target.paths(source))]
    logger.info("%d of %d images are finished already", len(sources) - len(left), len(sources))
    return _Plan(left, [], problems)


def _nameable(sources: Sequence[Source], target: Target) -> tuple[list[Source], list[ImageError]]:
    """The images whose results can have their names, and errors of the others.

    Raises:
        ConfigError: There are TIFFs, whose results cannot be written to a folder of this name.
    """
    if not is_utf8(target.folder) and any(source.is_tiff for source in sources):
        raise ConfigError(f"--out {target.folder}: a path that is not UTF-8, where GDAL cannot write TIFFs")
    named, problems = [], []
    for source in sources:
        length = max(len(os.fsencode(path.name)) for path in target.paths(source))
        if length > _NAME_BYTES:
            reason = f"names of its results would have {length} bytes, more than {_NAME_BYTES}"
            problems.append(ImageError(source.path, reason, "Rename it"))
        else:
            named.append(source)
    return named, problems


def _require_no_others(target: Target, sources: Sequence[Source], what: str) -> None:
    """Refuse a folder in which results of other images would no longer match `prediction.yaml`."""
    ours = {path for source in sources for path in target.paths(source)}
    folders = (target.folder / task / kind for task in target.tasks for kind in target.formats)
    others = [path for folder in folders for path in find_files(folder) if path not in ours]
    if others:
        raise ConfigError(
            f"{what}, and {len(others)} are of other images ({others[0]}); choose another folder, or remove "
            f"{target.folder}"
        )


def _prepare(request: Request, plan: _Plan) -> None:
    """Remove outdated results and write how the new ones are made."""
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
        LaunchError: In the other processes, when the main process raised.
    """
    made: list = [None]
    with main_process_first(launch) as is_main:
        if is_main:
            made = [make()]
    if launch.world_size > 1:
        dist.broadcast_object_list(made, src=0, device=launch.device)
    return made[0]


def predict_share(work: Work, sources: Sequence[Source], folder: Path, launch: Launch) -> list[ImageError]:
    """Predict the images of this process; the main process waits for the others.

    Args:
        work: Predicts images and writes the results.
        sources: The images of all processes.
        folder: Of the results, for messages.
        launch: This process.

    Returns:
        Errors of images that could not be read: in the main process those of all, in the others none.

    Raises:
        ConfigError: A result cannot be written; in the main process.
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
        # Nobody leaves before all are done: torchrun ends the others of a process that ended with an error.
        shares = [([], None)] * launch.world_size if launch.is_main else []
        dist.gather_object((problems, failure), shares if launch.is_main else None, group=group)
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


def identify(checkpoint: Path) -> dict[str, str | int]:
    """Path, size and time of a readable checkpoint, which tell when another one or a newer file is used."""
    file = checkpoint.expanduser()
    file = (file if file.is_file() else file.with_name(f"{file.name}.pth")).resolve()
    stat = file.stat()
    return {
        "checkpoint": str(file),
        "checkpoint_bytes": stat.st_size,
        "checkpoint_modified_ns": stat.st_mtime_ns,
    }


def changes(folder: Path, settings: Settings) -> dict[str, str]:
    """What has changed since the results in a folder were made, by task; empty if nothing."""
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
    """Write `prediction.yaml` of each task.

    Raises:
        OSError: It cannot be written.
    """
    for task, values in settings.items():
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)
        write_bytes(folder / task / SETTINGS_FILE, text.encode())


def _difference(key: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key in ("checkpoint_bytes", "checkpoint_modified_ns"):
        return f"before {now['checkpoint']} was overwritten"
    return f"with {key} {there.get(key)}, now it is {now[key]}"
