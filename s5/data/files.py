"""Write files: atomically, so that a file exists in full or not at all; zip files for a server."""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from s5.errors import DataError

_TIME = (1980, 1, 1, 0, 0, 0)  # of every file in a zip, so that equal contents give equal zips


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that is renamed to it at the end, or removed on any exception.

    Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically; missing folders are created."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def require_zip_name(path: Path) -> None:
    """Reject the name of a zip file that does not end in `.zip`.

    Raises:
        DataError: The name has another ending.
    """
    if path.suffix.lower() != ".zip":
        raise DataError(f"{path}: the server accepts zip files; choose a name that ends in .zip")


def write_zip(path: Path, files: Iterable[tuple[str, bytes]], compression: int) -> None:
    """Write names and contents as a zip file, with a compression of `zipfile`; not atomic."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, _TIME), data, compression)
