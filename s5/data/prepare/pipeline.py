"""Prepare a dataset: find sources, skip finished ones, cut the others in parallel, write the split files."""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from s5.data.errors import DataError, printable
from s5.data.prepare.journal import Entry, Journal
from s5.data.prepare.parallel import run_parallel
from s5.data.prepare.recipe import Cut, Recipe, Source
from s5.data.progress import Progress
from s5.data.splits import format_line, write_split

logger = logging.getLogger(__name__)

JOURNAL_NAME = "prepare_journal.jsonl"
UNUSABLE_NAME = "unusable.txt"
_SHOWN = 5  # messages in a summary


@dataclass
class Outcome:
    """What a run did.

    Attributes:
        before: source files that an earlier run had finished.
        finished: source files that this run finished.
        patches: patches that this run wrote.
        empty: source files of this run that gave no patch.
        without_data: patches that this run left out, as the image has no data anywhere in them.
        unusable: message per source file that could not be used.
        notes: what the user should know of single source files.
        lists: number of samples of each split file, by its path.
    """

    before: int = 0
    finished: int = 0
    patches: int = 0
    empty: int = 0
    without_data: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lists: dict[Path, int] = field(default_factory=dict)

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
            lines += [f"  {message}" for message in list(self.unusable.values())[:_SHOWN]]
        if len(self.notes) > _SHOWN:
            lines.append(
                f"{len(self.notes)} source files have notes, all of them in {JOURNAL_NAME}; the first:"
            )
        lists = [f"{path}: {count} samples" for path, count in self.lists.items()]
        return "\n".join([*lines, *self.notes[:_SHOWN], *lists])


def prepare(recipe: Recipe, workers: int = 1) -> Outcome:
    """Cut what is not cut yet and write the split files.

    May be interrupted at any point, also by ``kill -9``: the next call with the same parameters continues.

    Raises:
        DataError: sources are missing, or the folder was begun with other parameters.
        OSError: the output cannot be written.
    """
    sources = recipe.sources()
    folder = recipe.out / recipe.folder
    outcome = Outcome()
    with Journal(folder / JOURNAL_NAME, recipe.parameters()) as journal:
        present = _files(folder) if journal.entries else set()
        todo = [s for s in sources if not _finished(journal.entries.get(s.key), s, recipe, present)]
        outcome.before = len(sources) - len(todo)
        with recipe.provide(todo), closing(_cut_all(recipe, todo, workers, outcome)) as cut:
            for source, result in cut:
                entry = Entry(source.key, source.group, _size(source, recipe), result.patches, result.note)
                journal.add(entry)
                outcome.finished += 1
                outcome.patches += len(result.patches)
                outcome.empty += not result.patches
                outcome.without_data += result.without_data
        entries = _listed(recipe, journal, sources)
        outcome.notes = [f"{entry.source}: {entry.note}" for entry in entries if entry.note]
        outcome.lists = _write_lists(recipe, entries)
        _write_unusable(folder / UNUSABLE_NAME, outcome.unusable)
    return outcome


def _cut_all(
    recipe: Recipe, todo: list[Source], workers: int, outcome: Outcome
) -> Generator[tuple[Source, Cut], None, None]:
    results = run_parallel(partial(_cut, recipe), todo, min(workers, len(todo)))
    with Progress(len(todo), f"cutting {recipe.command}", "files", logger) as progress, closing(results):
        for source, result in results:
            progress.update()
            if isinstance(result, str):
                outcome.unusable[source.key] = result
                logger.warning("%s", result)
            else:
                yield source, result


def _cut(recipe: Recipe, source: Source) -> Cut | str:
    """The patches, or the message why there are none."""
    if source.problem:
        return source.problem
    try:
        return recipe.cut(source)
    except DataError as error:
        return str(error)
    except MemoryError:
        return f"{source.image}: not enough memory; run again with fewer --workers"
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # a full disk concerns all
            raise
        return f"{source.image}: its name is too long to be part of the names of its patches; shorten it"


def _finished(entry: Entry | None, source: Source, recipe: Recipe, present: set[str]) -> bool:
    if entry is None or entry.size != _size(source, recipe):
        return False
    paths = [path for patch in entry.patches for path in (patch.image, patch.mask) if path]
    return all(str(recipe.out / path) in present for path in (*paths, *recipe.beside(source)))


def _files(folder: Path) -> set[str]:
    return {os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names}


def _size(source: Source, recipe: Recipe) -> int:
    """Bytes of the source's files."""
    return sum(recipe.size_of(path) for path in (source.image, source.mask) if path is not None)


def _listed(recipe: Recipe, journal: Journal, sources: Sequence[Source]) -> list[Entry]:
    """The finished source files that count, in the order of their keys."""
    keys = set(journal.entries)
    if not recipe.lists_lost_sources:
        keys &= {source.key for source in sources}
    return [journal.entries[key] for key in sorted(keys)]


def _write_lists(recipe: Recipe, entries: Sequence[Entry]) -> dict[Path, int]:
    lines: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        lines[entry.group] += [format_line(patch.image, patch.mask) for patch in entry.patches]
    written = {}
    for group, path in recipe.lists().items():
        if not lines[group] and group in recipe.optional_groups:
            _set_aside(recipe.out / path)
            continue
        _replace_list(recipe.out / path, lines[group])
        written[recipe.out / path] = len(lines[group])
    for path, groups in recipe.joint_lists().items():
        together = [line for group in groups for line in lines[group]]
        _replace_list(recipe.out / path, together)
        written[recipe.out / path] = len(together)
    return written


def _replace_list(path: Path, lines: list[str]) -> None:
    """Write a split file; one that names other samples, so is not an earlier state of it, is kept aside."""
    if path.exists():
        before = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if before == lines:
            return
        if not set(before) <= set(lines):
            _set_aside(path)
    write_split(path, lines)


def _set_aside(path: Path) -> None:
    """Give a split file, if there is one, another name."""
    if path.exists():
        kept = next(p for i in range(1, 1000) if not (p := path.with_name(f"{path.name}.old{i}")).exists())
        path.rename(kept)
        logger.warning("%s named other samples; it is now %s", path, kept)


def _write_unusable(path: Path, unusable: dict[str, str]) -> None:
    """List the source files that could not be used, one message a line; no file when there are none."""
    if unusable:
        write_split(path, [printable(unusable[key]).replace("\n", " ") for key in sorted(unusable)])
        logger.warning("source files that could not be used are listed in %s", path)
    else:
        path.unlink(missing_ok=True)
