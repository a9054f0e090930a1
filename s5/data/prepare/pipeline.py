"""Run a plan: skip finished source files, cut the others in parallel, write the split files."""

import errno
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from s5.command import Progress
from s5.data.datasets.archives import Archives
from s5.data.datasets.prepared import JOURNAL_NAME
from s5.data.datasets.shipped import Source
from s5.data.image_io import init_worker
from s5.data.prepare.journal import Entry, Journal, Patch
from s5.data.splits import format_line, write_split
from s5.errors import DataError, PrepareError, printable

logger = logging.getLogger(__name__)

UNUSABLE_NAME = "unusable.txt"
_SHOWN = 5  # messages in a summary
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Cut(NamedTuple):
    """Result of one source file.

    Attributes:
        patches: The written patches.
        note: Remark on the source file, for the user; may be empty.
        without_data: Number of patches skipped because they have no data.
    """

    patches: tuple[Patch, ...]
    note: str = ""
    without_data: int = 0


@dataclass(frozen=True)
class Plan:
    """The plan of a preparation.

    Attributes:
        command: Name of the command.
        out: Data root; everything is written below it.
        folder: Folder of the patches and the journal, relative to `out`.
        parameters: Arguments that the patches depend on; a journal with other parameters is refused.
        facts: Other facts that the patches depend on; a journal with other facts is refused.
        sources: The files to cut.
        cut: Writes the patches of a source file; runs in worker processes. A `DataError` is reported without
            ending the run.
        lists: Split files, relative to `out`, each with the groups of sources whose patches it lists.
        optional: Split files that are not written if they would be empty.
        keep_lost: Whether to keep listing the patches of source files that no longer exist.
        beside: Files written for a source besides its patches, relative to `out`.
        archives: Reader of source files in archives.
        usage: Instructions for training on the result, besides the split files; called at the end.
    """

    command: str
    out: Path
    folder: str
    parameters: Mapping[str, Any]
    sources: Sequence[Source]
    cut: Callable[[Source], Cut]
    lists: Mapping[str, Sequence[str]]
    optional: Sequence[str] = ()
    keep_lost: bool = False
    beside: Callable[[Source], Sequence[str]] = lambda source: ()
    archives: Archives | None = None
    usage: Callable[[], str] = lambda: ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def files(self, source: Source) -> tuple[str, ...]:
        """Image and labels of a source, relative to the source folder; only the name of a file elsewhere."""
        src = Path(self.parameters.get("src", ""))
        paths = [path.absolute() for path in (source.image, source.mask) if path is not None]
        return tuple(str(p.relative_to(src)) if p.is_relative_to(src) else p.name for p in paths)

    def size(self, source: Source) -> int:
        """Size of a source's files in bytes; 0 for unreadable ones, for which `cut` raises the error."""
        return sum(self._size(path) for path in (source.image, source.mask) if path is not None)

    def _size(self, path: Path) -> int:
        try:
            return self.archives.size(path) if self.archives else path.stat().st_size
        except OSError:
            return 0


def plan_parameters(command: str, args: Namespace, names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Parameters of a plan: the arguments of these names, and further values."""
    values = {name: getattr(args, name) for name in names}
    for name, value in values.items():
        if isinstance(value, Path):
            values[name] = str(value.absolute())
        elif isinstance(value, tuple):  # JSON has no tuples
            values[name] = list(value)
    return {"command": command, **values, **more}


def require_sizes(args: Namespace, may_stay_whole: bool = False) -> None:
    """Check the size and overlap of patches.

    Raises:
        PrepareError: The size is too small, or the overlap is not below it.
    """
    if may_stay_whole and args.size == args.overlap == 0:
        return
    if args.size < 16 or not 0 <= args.overlap < args.size:
        whole = "0 (whole images) or " if may_stay_whole else ""
        raise PrepareError(
            f"--size must be {whole}at least 16 and --overlap from 0 to below --size, "
            f"got {args.size} and {args.overlap}"
        )


def require_name(name: str) -> None:
    """Refuse a name that cannot be a folder.

    Raises:
        PrepareError: The name has characters other than letters, digits, '_', '-' and '.'.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise PrepareError(f"--name must consist of letters, digits, '_', '-' and '.', got {name!r}")


@dataclass
class Outcome:
    """Counts and messages of a run.

    Attributes:
        before: Number of source files finished by earlier runs.
        finished: Number of source files finished by this run.
        patches: Number of patches written by this run.
        empty: Number of source files of this run without a patch.
        without_data: Number of patches that this run skipped because they have no data.
        unusable: Message for each source file that could not be used, by its key.
        notes: Remarks on single source files, for the user.
        lists: Number of samples of each split file, by its path.
    """

    before: int = 0
    finished: int = 0
    patches: int = 0
    empty: int = 0
    without_data: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lists: dict[Path, int] = field(default_factory=dict)

    def first_problems(self) -> list[str]:
        """The first messages about source files that could not be used, as lines."""
        return [f"  {message}" for message in list(self.unusable.values())[:_SHOWN]]

    def summary(self) -> str:
        """The counts as text."""
        if self.finished:
            lines = [
                f"{self.finished} source files cut into {self.patches} patches, {self.before} finished before"
            ]
        else:
            lines = [f"nothing to do: {self.before} source files were finished before"]
        if self.empty:
            lines.append(f"{self.empty} of them gave no patch (too small, or without data)")
        if self.without_data:
            lines.append(f"{self.without_data} patches without any data left out")
        if self.unusable:
            lines.append(f"{len(self.unusable)} source files could not be used, the first:")
            lines += self.first_problems()
        if len(self.notes) > _SHOWN:
            lines.append(
                f"{len(self.notes)} source files have notes, all of them in {JOURNAL_NAME}; the first:"
            )
        lists = [f"{path}: {count} samples" for path, count in self.lists.items()]
        return "\n".join([*lines, *self.notes[:_SHOWN], *lists])


def prepare(plan: Plan, workers: int = 1) -> Outcome:
    """Cut the source files that are not finished and write the split files.

    May be interrupted at any point, also by `kill -9`: the next call with the same parameters continues.

    Raises:
        DataError: The folder was started with other parameters or for a different version of the dataset, a
            worker process was killed, or no source file could be used.
        OSError: The output cannot be written.
    """
    folder = plan.out / plan.folder
    outcome = Outcome()
    with Journal(folder / JOURNAL_NAME, plan.parameters, plan.facts) as journal:
        present = _files(folder) if journal.entries else set()
        todo = [s for s in plan.sources if not _is_finished(journal.entries.get(s.key), s, plan, present)]
        outcome.before = len(plan.sources) - len(todo)
        if plan.archives:
            plan.archives.provide(path for s in todo for path in (s.image, s.mask) if path is not None)
        with closing(_cut_all(plan, todo, workers, outcome)) as cut:
            for source, result in cut:
                size, files = plan.size(source), plan.files(source)
                journal.add(Entry(source.key, source.group, size, result.patches, result.note, files))
                outcome.finished += 1
                outcome.patches += len(result.patches)
                outcome.empty += not result.patches
                outcome.without_data += result.without_data
        if plan.archives:
            plan.archives.clear()
        keys = set(journal.entries)
        if not plan.keep_lost:
            keys &= {source.key for source in plan.sources}
        entries = [journal.entries[key] for key in sorted(keys)]
        _write_unusable(folder / UNUSABLE_NAME, outcome.unusable)
        if outcome.unusable and not entries:
            count, shown = len(outcome.unusable), "\n".join(outcome.first_problems())
            raise PrepareError(f"no file could be used: all {count} source files failed, the first:\n{shown}")
        outcome.notes = [f"{entry.source}: {entry.note}" for entry in entries if entry.note]
        outcome.lists = _write_lists(plan, entries)
    return outcome


def _cut_all(
    plan: Plan, todo: list[Source], workers: int, outcome: Outcome
) -> Generator[tuple[Source, Cut], None, None]:
    results = run_parallel(partial(_cut, plan.cut), todo, min(workers, len(todo)))
    with Progress(len(todo), f"cutting {plan.command}", "files", logger) as progress, closing(results):
        for source, result in results:
            progress.update()
            if isinstance(result, str):
                outcome.unusable[source.key] = result
                logger.debug("%s", result)  # the summary lists the first ones, the file `UNUSABLE_NAME` all
            else:
                yield source, result


def _cut(cut: Callable[[Source], Cut], source: Source) -> Cut | str:
    """The patches of a source file, or the message of its error."""
    if source.problem:
        return source.problem
    try:
        return cut(source)
    except DataError as error:
        return str(error)
    except MemoryError:
        return f"{source.image}: not enough memory; run again with fewer --workers"
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk affects all files
            raise
        return f"{source.image}: its name is too long to be part of the names of its patches; shorten it"


def _is_finished(entry: Entry | None, source: Source, plan: Plan, present: set[str]) -> bool:
    if entry is None or entry.size != plan.size(source):
        return False
    if entry.files and (entry.files, entry.group) != (plan.files(source), source.group):
        return False
    paths = [path for patch in entry.patches for path in (patch.image, patch.mask) if path]
    return all(str(plan.out / path) in present for path in (*paths, *plan.beside(source)))


def _files(folder: Path) -> set[str]:
    return {os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names}


def _write_lists(plan: Plan, entries: Sequence[Entry]) -> dict[Path, int]:
    lines: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        lines[entry.group] += [format_line(patch.image, patch.mask) for patch in entry.patches]
    written = {}
    for path, groups in plan.lists.items():
        together = [line for group in groups for line in lines[group]]
        if not together and path in plan.optional:
            _set_aside(plan.out / path)
            continue
        _replace_list(plan.out / path, together)
        written[plan.out / path] = len(together)
    return written


def _replace_list(path: Path, lines: list[str]) -> None:
    """Write a split file; an existing one with samples not in `lines` is renamed, not overwritten."""
    if path.exists():
        before = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if before == lines:
            return
        if not set(before) <= set(lines):
            _set_aside(path)
    write_split(path, lines)


def _set_aside(path: Path) -> None:
    """Rename a split file, if it exists."""
    if path.exists():
        kept = next(p for i in range(1, 1000) if not (p := path.with_name(f"{path.name}.old{i}")).exists())
        path.rename(kept)
        logger.warning("%s named other samples; it is now %s", path, kept)


def _write_unusable(path: Path, unusable: dict[str, str]) -> None:
    """List the source files that could not be used, one message per line; without any, no file is kept."""
    if unusable:
        write_split(path, [printable(unusable[key]).replace("\n", " ") for key in sorted(unusable)])
        logger.warning("source files that could not be used are listed in %s", path)
    else:
        path.unlink(missing_ok=True)


def run_parallel(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int
) -> Generator[tuple[_Item, _Result], None, None]:
    """Yield `(item, work(item))` as they finish, in any order.

    Closing the iterator, also by Ctrl-C, starts no further item and waits for those in progress, whose
    results are then lost. With `workers` 1 everything runs in this process.

    Args:
        work: A picklable function; its exceptions are raised here.
        items: Picklable items.
        workers: Number of processes.

    Raises:
        PrepareError: A worker process was killed from outside.
    """
    if workers <= 1:
        for item in items:
            yield item, work(item)
        return
    # Forked workers start immediately; forking is safe only on Linux.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_init_process, initargs=(os.getpid(),))
    queue = iter(items)
    running: dict[Future[_Result], _Item] = {}
    try:
        while True:
            for item in islice(queue, 2 * workers - len(running)):
                running[pool.submit(work, item)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running[future], future.result()
                del running[future]
    except BrokenProcessPool as error:
        names = ", ".join(str(item) for item in running.values())
        raise PrepareError(
            f"a worker process was killed (out of memory?) at one of: {names}. What is finished is kept; run "
            "the same command again, with fewer --workers if memory is short"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _init_process(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process shuts the run down
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    init_worker()
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """End this process when the main process was killed; it would wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
