"""Open every file of a split and report errors before training.

    python -m s5.data.check splits/labeled/labeled.txt --root DATA_ROOT --labels isaid
    python -m s5.data.check splits/unlabeled/RS4P-1M.txt --root DATA_ROOT
    python -m s5.data.check roofs/images --masks roofs/masks --root DATA_ROOT --labels '{classes: [roof]}'

Without `--labels` only the images are checked. The exit code is 1 if there are errors.
"""

import argparse
import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from s5.command import Progress, escape_console, usable_cpus
from s5.data.check_report import Problem, Report
from s5.data.datasets import DATASETS, TABLES
from s5.data.datasets.prepared import prepared_folder, read_header, require_same_table
from s5.data.files import write_bytes
from s5.data.folders import pair_folders
from s5.data.image_io import init_worker, open_stored_mask, read_image_with_valid
from s5.data.label_table import LabelTable
from s5.data.labels import HELP, parse_table
from s5.data.mask_survey import MaskSurvey
from s5.data.masks import open_mask, require_same_size
from s5.data.references import exists, file_of
from s5.data.splits import Sample, Split
from s5.errors import DataError, ImageError, SplitError, shorten

logger = logging.getLogger(__name__)

_CHUNK = 32  # samples per task of a thread
_CHECK_VERSION = 6  # bump to invalidate cached results when the check changes
_Result = TypeVar("_Result")


def check_split(split: Split, table: LabelTable | None = None, workers: int | None = None) -> Report:
    """Open every file of a split.

    Args:
        split: The split.
        table: Label table of the masks; None checks only the images, and the sizes of any masks.
        workers: Threads; the decoders release the GIL. Default: one per CPU, 16 at most.

    Returns:
        The findings. Errors in the data are reported, not raised.
    """
    report = Report(str(split.path), table)
    with Progress(len(split), f"checking {split.path.name}", "samples", logger) as progress:
        for part in _in_chunks(split, lambda indices: _check_part(split, indices, table), workers):
            report.add(part)
            progress.update(part.samples)
    report.judge_together()
    return report


def require_clean(
    split: Split, table: LabelTable, cache_dir: str | Path, workers: int | None = None
) -> MaskSurvey:
    """Refuse a labeled split that has errors; log warnings.

    A clean result is cached in `cache_dir` under a fingerprint of the table and of path, size and
    modification time of every file, so that the next start only has to stat the files. In a distributed run,
    call it on one rank.

    Returns:
        How the masks are coded, to be compared with the other splits of the dataset.

    Raises:
        DataError: The split has errors (the message lists the first ones and the command that lists all),
            or the masks were prepared with a different version of the label table.
    """
    require_current(split, table)
    mark = Path(cache_dir) / f"{split.path.stem}-{_fingerprint(split, table, workers)}.json"
    if mark.is_file():
        logger.info("%s: %d samples, found clean before (%s)", split.path, len(split), mark)
        found = json.loads(mark.read_text(encoding="utf-8"))
        for message in found["warnings"]:
            logger.warning("%s", message)
        return MaskSurvey.of_dict(found["masks"])
    report = check_split(split, table, workers)
    if not report.ok:
        shown = "\n".join(f"  {message}" for message in report.errors[:5])
        raise DataError(
            f"{split.path}: {len(report.problems)} errors in {len(split)} samples, the first:\n{shown}\n"
            f"See all with: {check_command(split, table)}"
        )
    logger.log(logging.WARNING if report.warnings else logging.INFO, "%s", report.summary())
    # Compare again: a file modified during the check must not be cached as clean.
    if mark.name == f"{split.path.stem}-{_fingerprint(split, table, workers)}.json":
        write_bytes(mark, json.dumps(report.as_dict(), indent=1).encode())
    return report.masks


def require_current(split: Split, table: LabelTable) -> None:
    """Refuse a split of a known dataset that was prepared before its label table was edited.

    Raises:
        DataError: See `s5.data.datasets.prepared.require_same_table`.
    """
    folder = prepared_folder(split)
    command = "" if folder is None else read_header(folder).get("parameters", {}).get("command")
    tables = DATASETS[command].tables if command in DATASETS else ()
    if folder is not None and table in tables:
        require_same_table(folder, tables[0])


def check_command(split: Split, table: LabelTable | None) -> str:
    """The command line that checks this split."""
    words = ["python", "-m", "s5.data.check", str(split.path), "--root", str(split.root)]
    if split.path.is_dir():  # pairs of two folders
        image, mask, _ = split.sample(0)
        words += ["--masks", str((mask or image).parents[len(image.relative_to(split.path).parts) - 1])]
    if table is not None:
        known = TABLES.get(table.name) == table
        words += ["--labels", table.name if known else json.dumps(table.as_mapping())]
    return shlex.join(words)


def _in_chunks(
    split: Split, work: Callable[[Sequence[int]], _Result], workers: int | None
) -> Iterator[_Result]:
    """Run `work` on ranges of sample indices in threads; yield the results in order."""
    if workers is None:
        workers = min(16, usable_cpus())
    ranges = [range(i, min(i + _CHUNK, len(split))) for i in range(0, len(split), _CHUNK)]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            yield from pool.map(work, ranges)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_part(split: Split, indices: Sequence[int], table: LabelTable | None) -> Report:
    report = Report(str(split.path), table, samples=len(indices))
    for index in indices:
        try:
            sample = split.sample(index)
        except SplitError as error:
            report.problems.append(Problem("line", str(split.path), str(error)))
            continue
        if problem := split.misread(index):
            report.problems.append(Problem("line", str(split.path), problem))
            continue
        _check_sample(sample, report)
    return report


def _check_sample(sample: Sample, report: Report) -> None:
    read = _read(read_image_with_valid, sample.image, report)
    image, valid = (None, None) if read is None else read
    if image is not None:
        report.sizes[image.shape[0], image.shape[1]] += 1
    if sample.mask is None:
        if report.table is not None:
            message = f"{sample.image}: its line has no mask; a labeled line is 'image mask'"
            report.problems.append(Problem("no mask", str(sample.image), message))
        return
    mask = _read(lambda path: _read_mask(path, report, valid), sample.mask, report)
    if mask is None:
        return
    if image is not None:
        try:
            require_same_size(sample.mask, mask.shape, sample.image, image.shape[:2])
        except DataError as error:
            report.problems.append(Problem("size", str(sample.mask), str(error)))


def _read_mask(path: Path, report: Report, valid: np.ndarray | None) -> np.ndarray:
    """Read and count the raw values (H, W) of a mask; without a table, the stored pixels of any type.

    Labels are ignored where the image has no data (`valid` is false).
    """
    if report.table is None:
        with open_stored_mask(path) as stored:
            return stored.read(0, 0, stored.header.height, stored.header.width).pixels[0]
    with open_mask(path, report.table) as mask:
        report.masks.add(path, mask.header, report.table)
        values = mask.all_values()
    histogram = _histogram(values)
    report.borders += _borders(values)
    if valid is None or valid.shape != values.shape:
        report.raw_histogram += histogram
    else:
        report.raw_histogram += np.bincount(values[valid], minlength=256)
        report.without_data += int(np.count_nonzero(~valid))
    if mask.header.coding == "values":
        report.masks.add_values(path, histogram, report.table)
    if report.table.unknown_values(histogram):
        message = report.table.unknown_message(histogram, path)
        report.problems.append(Problem("values", str(path), message))
    return values


def _read(read: Callable[[Path], _Result], path: Path, report: Report) -> _Result | None:
    try:
        return read(path)
    except DataError as error:
        report.problems.append(Problem(_kind(error, path), str(path), str(error)))
        return None


def _kind(error: DataError, path: Path) -> str:
    """Kind of the problem with a file that could not be read."""
    if not isinstance(error, ImageError):
        return "values"
    return "missing" if not exists(path) else "colours" if "colour-coded" in error.reason else "corrupt"


def _histogram(mask: np.ndarray) -> np.ndarray:
    """Histogram int64 (256,) of a uint8 mask; ten times as fast as np.bincount."""
    rows = max(1, (1 << 24) // max(1, mask.shape[1]))  # OpenCV counts in float32, exact up to 2**24
    total = np.zeros(256, np.int64)
    for top in range(0, mask.shape[0], rows):
        total += cv2.calcHist([mask[top : top + rows]], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return total


def _borders(mask: np.ndarray) -> np.ndarray:
    """Border counts int64 (5,), see `Report.borders`."""
    rows = mask[::4]
    differ, zero, high = rows[:, 1:] != rows[:, :-1], rows == 0, rows == 255
    over_zero = (differ & (zero[:, 1:] | zero[:, :-1])).sum()
    counts = [differ.sum(), over_zero, zero.sum(), _enclosed(high), _enclosed(zero)]
    return np.array(counts, np.int64)


def _enclosed(of_value: np.ndarray) -> int:
    """Number of runs along the rows that do not touch the left or right border."""
    begun = of_value[:, 1:] & ~of_value[:, :-1]  # inside; at most one run per row ends at the border
    return int(begun.sum() - (of_value[:, -1] & begun.any(1)).sum())


def _fingerprint(split: Split, table: LabelTable, workers: int | None) -> str:
    """Hash of the table and of path, size and modification time of every file of the split."""
    digest = hashlib.blake2b(repr((_CHECK_VERSION, table)).encode(), digest_size=16)
    for states in _in_chunks(split, lambda indices: [_file_states(split, i) for i in indices], workers):
        digest.update(repr(states).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _file_states(split: Split, index: int) -> list[tuple[str, int, int] | None]:
    try:
        sample = split.sample(index)
        paths = [path for path in (sample.image, sample.mask) if path is not None]
        states = [
            (str(path), state.st_size, state.st_mtime_ns)
            for path in paths
            for state in [file_of(path).stat()]
        ]
        return [*states, *(state for path in paths for state in _states_beside(file_of(path)))]
    except (OSError, SplitError):
        return [None]  # the check itself reports the error


def _states_beside(path: Path) -> Iterator[tuple[str, int, int]]:
    """State of the files beside a TIFF that can declare no-data."""
    if path.suffix.lower() in (".tif", ".tiff"):
        for ending in (".msk", ".aux.xml"):
            with suppress(OSError):
                state = Path(f"{path}{ending}").stat()
                yield ending, state.st_size, state.st_mtime_ns


def _open_split(split: str, masks: str | None, root: str) -> Split:
    """Open the split or folders given on the command line.

    Raises:
        SplitError: There is no such split; for a folder or a dataset name, the message suggests split files.
    """
    if masks:
        return pair_folders(split, masks, root)
    try:
        return Split(split, root)
    except SplitError as error:
        if hint := _lists_of(split, Path(root)):
            raise SplitError(f"{error}. {hint}") from None
        raise


def _lists_of(name: str, root: Path) -> str:
    """Split files of a dataset or folder that was given as a split, as text; empty if it is neither."""
    if name in DATASETS:
        dataset = DATASETS[name]
        lists = [dataset.split_file(split, dataset.folder or name) for split in dataset.splits]
        there = [path for path in lists if (root / path).is_file()]
        otherwise = f"a dataset; first prepare it: python -m s5.data.prepare {name} --src DIR --out {root}"
    elif (root / name).is_dir():
        there = sorted(path.relative_to(root).as_posix() for path in (root / name).glob("splits/**/*.txt"))
        otherwise = "a folder; for a folder of images, give that of their masks with --masks"
    else:
        return ""
    return f"{name} has the lists {shorten(there)}" if there else f"{name} is {otherwise}"


@contextmanager
def _errors_as_exit(parser: argparse.ArgumentParser) -> Iterator[None]:
    try:
        yield
    except (DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    escape_console()
    parser = argparse.ArgumentParser(
        prog="python -m s5.data.check", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "split",
        help="split file such as loveda/splits/val.txt, or with --masks a folder of images; relative paths "
        "are looked up under --root, a split file also in the working directory",
    )
    parser.add_argument("--masks", help="folder of the masks, if SPLIT is a folder of images")
    parser.add_argument(
        "--root", default=".", help="folder that the paths of the split are relative to (default: .)"
    )
    parser.add_argument("--labels", help=f"{HELP}; default: check images only")
    parser.add_argument("--workers", type=int, help="threads (default: one per CPU, 16 at most)")
    parser.add_argument("--show", type=int, default=20, help="errors to print (default: 20)")
    parser.add_argument("--json", action="store_true", help="print the full report as JSON")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    init_worker()
    with _errors_as_exit(parser):
        table = parse_table(args.labels, default_name="labels") if args.labels else None
        split = _open_split(args.split, args.masks, args.root)
        if table is not None:
            require_current(split, table)
    report = check_split(split, table, args.workers)
    print(json.dumps(report.as_dict(), indent=1) if args.json else report.summary(args.show))
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
