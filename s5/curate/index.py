"""Step 1: find the images of every source and cut them into patches, as windows that nothing is copied for.

Images are listed in the order of their paths and their sizes are read from their headers, in chunks that an
interrupted run keeps. Folders, archives (read in place), single images and split files are sources; archives
inside folders are read, too. The pixels are first read by the step that scores the patches.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from s5.command import Progress
from s5.curate import require
from s5.curate.config import PatchConfig
from s5.curate.folder import Part, begin, complete, counts_of, index_folders, read_shard, write_shard
from s5.data.archive_members import ARCHIVE_EXTENSIONS, OTHER_ARCHIVES
from s5.data.folders import is_system_name
from s5.data.image_io import image_size
from s5.data.prepare.patches import windows
from s5.data.prepare.pipeline import run_parallel
from s5.data.references import Member, Reference, Window, members, parse
from s5.data.splits import IMAGE_EXTENSIONS, Split
from s5.errors import DataError, ImageError, PrepareError

logger = logging.getLogger(__name__)

CHUNK = 2048  # images whose headers are read and kept together
COUNTS = ("images", "unreadable", "too_small", "patches", "shards")
SHARDS = 256  # at least, where there are patches enough: so many processes can score
SMALLEST_SHARD, LARGEST_SHARD = 64, 4096  # patches


class Listed(NamedTuple):
    """An image before its header is read.

    Attributes:
        source: Name of its source.
        name: Its reference, relative to the data root or absolute.
        bytes: Size of the file or archive that contains it.
        modified: Its modification time in ns.
        error: Why it cannot be used; empty if it can.
    """

    source: str
    name: str
    bytes: int
    modified: int
    error: str = ""


def index(
    part: Part, sources: Mapping[str, Path], root: Path, patch: PatchConfig, workers: int
) -> dict[str, Any]:
    """Write the index of a part, or continue it; a complete index is kept.

    Args:
        part: Where to write.
        sources: Path of every source, relative to `root` unless absolute.
        root: Data root.
        patch: Geometry of the patches.
        workers: Number of processes.

    Returns:
        `COUNTS` by name, and `digest`, which changes with the images and the settings.

    Raises:
        DataError: A source does not exist, or there are no images.
        PrepareError: The folder has an index of other sources or patches.
    """
    settings: dict[str, Any] = {
        "sources": {name: str(path) for name, path in sources.items()},
        "patch": patch.model_dump(),
    }
    state = part.state("index")
    settings["data_root"] = str(root.absolute())
    counts = begin(state, settings, "patches")
    if counts is None:
        images, digest = _read_headers(part, _list_sources(sources, root), root, workers)
        if images == 0:
            where = ", ".join(str(root / path) for path in sources.values())
            raise DataError(
                f"no images in {where}; expected files that end in {', '.join(IMAGE_EXTENSIONS)}, or "
                f"archives of them ({', '.join(ARCHIVE_EXTENSIONS)})"
            )
        digest = _digest(json.dumps(settings), digest)
        counts = {"images": images, **_write_patches(part, patch), "digest": digest}
        complete(state, counts)
    logger.info("index: %s", ", ".join(f"{counts[name]} {name.replace('_', ' ')}" for name in COUNTS))
    if counts["patches"] == 0:
        raise DataError(
            f"{part.path}: none of {counts['images']} images can be used: {counts['too_small']} are smaller "
            f"than patch.min_size, {counts['unreadable']} unreadable{_first_error(part)}. Correct this, and "
            f"delete {index_folders(part.path)} to index again"
        )
    return counts


def _list_sources(sources: Mapping[str, Path], root: Path) -> Iterator[Listed]:
    for source, path in sources.items():
        full = root / path
        if full.is_dir():
            found = _walk(full)
        elif full.is_file():
            found = iter([full])
        else:
            raise DataError(f"{full}: the source {source!r} does not exist; correct its path or data_root")
        for file in found:
            if file.name.lower().endswith((*ARCHIVE_EXTENSIONS, *OTHER_ARCHIVES)):
                yield from _list_archive(source, file, root)
            elif file.suffix.lower() == ".txt" and file == full:
                yield from _list_split(source, file, root)
            elif file.name.lower().endswith(IMAGE_EXTENSIONS):
                yield _listed(source, _relative(file, root), file)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder in the order of their paths, in memory proportional to the largest folder."""
    waiting, seen = [os.fspath(folder)], set()
    while waiting:
        path = waiting.pop()
        if not os.path.isdir(path):
            yield Path(path)
            continue
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder above
            continue
        seen.add(real)
        try:
            names = os.listdir(path)
        except OSError as error:
            logger.warning("%s: cannot be listed (%s); its files are left out", path, error.strerror)
            continue
        kept = (name for name in names if not (name.startswith(".") or is_system_name(name)))
        waiting += [os.path.join(path, name) for name in sorted(kept, reverse=True)]


def _list_archive(source: str, file: Path, root: Path) -> Iterator[Listed]:
    outer = _listed(source, _relative(file, root), file)
    for found in members(file):
        if isinstance(found, Member):
            yield outer._replace(name=str(Reference(outer.name, found.name, (found.at, found.size))))
        elif found.name == str(file):  # the archive as a whole
            yield outer._replace(error=f"{file}: {found.reason}")
        else:
            name = str(Reference(outer.name, found.name))
            yield outer._replace(name=name, error=f"{root / name}: {found.reason}")


def _list_split(source: str, file: Path, root: Path) -> Iterator[Listed]:
    for sample in Split(file, root):
        yield _listed(source, sample.name, root / parse(sample.name).file)


def _listed(source: str, name: str, file: Path) -> Listed:
    try:
        status = file.stat()
    except OSError as error:
        return Listed(source, name, 0, 0, f"{file}: {error.strerror}")
    return Listed(source, name, status.st_size, status.st_mtime_ns)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())


def _read_headers(part: Part, listed: Iterator[Listed], root: Path, workers: int) -> tuple[int, str]:
    """Write the sizes of all images in chunks; returns the number of images, and a digest of them."""
    total = chunks = 0
    every = blake2b(digest_size=16)

    def missing() -> Iterator[tuple[int, list[Listed], str]]:
        nonlocal total, chunks
        while chunk := list(islice(listed, CHUNK)):
            signature = _digest(repr(chunk))
            every.update(signature.encode())
            if not _has(part.shard("files", chunks), signature):
                yield chunks, chunk, signature
            total, chunks = total + len(chunk), chunks + 1
            if total % (50 * CHUNK) < CHUNK:
                logger.info("index: %d images listed", total)

    for _ in run_parallel(partial(_write_headers, part, root), missing(), workers):
        pass
    for path in part.shards("files")[chunks:]:  # of an interrupted run that found more images
        path.unlink()
    return total, every.hexdigest()


def _digest(*texts: str) -> str:
    return blake2b("\0".join(texts).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _has(path: Path, signature: str) -> bool:
    """Whether a chunk has been written for these images, unchanged since."""
    if not path.exists():
        return False
    try:
        metadata = require("pyarrow.parquet").read_schema(path).metadata or {}
    except (require("pyarrow").ArrowException, OSError):
        return False
    return metadata.get(b"images") == signature.encode()


def _write_headers(part: Part, root: Path, chunk: tuple[int, list[Listed], str]) -> None:
    pa = require("pyarrow")
    number, listed, signature = chunk
    sizes = [_size(image, root) for image in listed]
    table = pa.table(
        {
            "source": [image.source for image in listed],
            "name": [_text(image.name) for image in listed],
            "bytes": pa.array([image.bytes for image in listed], pa.int64()),
            "modified": pa.array([image.modified for image in listed], pa.int64()),
            "height": pa.array([height for height, _, _ in sizes], pa.int32()),
            "width": pa.array([width for _, width, _ in sizes], pa.int32()),
            "error": pa.array([error or None for _, _, error in sizes], pa.string()),
        }
    )
    write_shard(part.shard("files", number), table.replace_schema_metadata({"images": signature}))


def _size(image: Listed, root: Path) -> tuple[int, int, str]:
    """Height, width and error of an image."""
    if image.error:
        return 0, 0, _text(image.error)
    if _text(image.name) != image.name:
        return 0, 0, f"{_text(image.name)}: its name is not UTF-8; rename the file (convmv -r -f gbk -t utf8)"
    try:
        return *image_size(root / image.name), ""
    except ImageError as error:
        return 0, 0, _text(str(error))


def _text(name: str) -> str:
    """A name as UTF-8; bytes that are not are escaped."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _write_patches(part: Part, patch: PatchConfig) -> dict[str, int]:
    """Write the shards of patches from the sizes of the images; returns the counts."""
    number = unreadable = too_small = 0
    for path in part.shards("files"):
        sizes = read_shard(path, ["height", "width", "error"])
        unreadable += len(sizes) - sizes["error"].null_count
        for height, width in zip(sizes["height"].to_pylist(), sizes["width"].to_pylist(), strict=True):
            number += _number(height, width, patch)
            too_small += 0 < min(height, width) < patch.min_size
    size = min(max(-(-number // SHARDS), SMALLEST_SHARD), LARGEST_SHARD)
    for stale in part.shards("index"):  # of an interrupted run, which may have found other images
        stale.unlink()
    rows = _patches(part, patch)
    shards = 0
    with Progress(number + unreadable, "index", "patches", logger) as progress:
        while shard := list(islice(rows, size)):
            write_shard(part.shard("index", shards), _table(shard, shards * size))
            shards += 1
            progress.update(len(shard))
    return {"unreadable": unreadable, "too_small": too_small, "patches": number, "shards": shards}


def _first_error(part: Part) -> str:
    errors = (read_shard(path, ["error"])["error"].drop_null() for path in part.shards("files"))
    return next((f" (the first: {found[0]})" for found in errors if len(found)), "")


def _number(height: int, width: int, patch: PatchConfig) -> int:
    if min(height, width) < patch.min_size:  # 0 for unreadable images
        return 0
    return len(windows(height, width, patch.size, patch.overlap))


def _patches(part: Part, patch: PatchConfig) -> Iterator[dict[str, Any]]:
    """All patches; an unreadable image is a row without a size."""
    for path in part.shards("files"):
        for image in read_shard(path).to_pylist():
            height, width = image.pop("height"), image.pop("width")
            if image["error"]:
                yield {**image, "file": image["name"], "left": 0, "top": 0, "height": 0, "width": 0}
            elif min(height, width) >= patch.min_size:
                yield from _windows(image, height, width, patch)


def _windows(image: dict[str, Any], height: int, width: int, patch: PatchConfig) -> Iterator[dict[str, Any]]:
    reference = parse(image["name"])
    file = str(reference._replace(window=None))
    top, left, *_ = reference.window or (0, 0)
    for window in windows(height, width, patch.size, patch.overlap):
        moved = Window(top + window.top, left + window.left, window.height, window.width)
        whole = (window.height, window.width) == (height, width)
        name = image["name"] if whole else str(reference._replace(window=moved))
        yield {**image, "name": name, "file": file, **moved._asdict()}


def _table(rows: list[dict[str, Any]], first: int) -> Any:  # noqa: ANN401 - a table of Arrow
    pa = require("pyarrow")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    small = {name: pa.array(columns[name], pa.int32()) for name in ("left", "top", "height", "width")}
    return pa.table(
        {
            "patch": pa.array(range(first, first + len(rows)), pa.int64()),
            "key": pa.array(map(key, columns["name"]), pa.uint64()),
            **{name: pa.array(columns[name], pa.string()) for name in ("source", "file")},
            "name": pa.array(columns["name"], pa.string()),
            **small,
            "bytes": pa.array(columns["bytes"], pa.int64()),
            "modified": pa.array(columns["modified"], pa.int64()),
            "error": pa.array(columns["error"], pa.string()),
        }
    )


def key(name: str) -> int:
    """Hash of a patch's name, without `at`: the order among patches of equal entropy."""
    plain = str(parse(name)._replace(at=None))
    return int.from_bytes(blake2b(plain.encode(), digest_size=8).digest(), "little")


def require_patches(part: Part) -> list[Path]:
    """The shards of a complete index.

    Raises:
        PrepareError: The step is not complete, or a shard is missing.
    """
    count = counts_of(part.state("index"), "index")["shards"]
    expected = [part.shard("index", number) for number in range(count)]
    if part.shards("index") != expected:
        raise PrepareError(
            f"{part.path / 'index'}: shards are missing. Delete {index_folders(part.path)}, and run all "
            "steps again"
        )
    return expected
