"""The folder of a curation: its files, Parquet shards that exist in full or not at all, and its lock.

Every step writes shards, which are renamed when they are complete. A step that is run again continues with
the missing ones, whatever the number of processes, because a shard's content depends on its number alone.
"""

import fcntl
import glob
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s5.command import usable_cpus
from s5.curate import require
from s5.data.datasets.prepared import differences
from s5.data.files import atomic_path, write_bytes
from s5.errors import PrepareError

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

POOL, LABELED = "", "labeled"
LOCK = ".lock"
LOCK_SECONDS = 10.0  # loader workers of a killed run, which inherit the lock, end within a few seconds


class Run:
    """Folder of a run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def part(self, name: str) -> "Part":
        """The pool (`POOL`) or the labeled images (`LABELED`)."""
        return Part(self.path / name if name else self.path)

    @property
    def prototypes(self) -> Path:
        """Centroids of the clusters."""
        return self.path / "prototypes.npz"

    @property
    def summary(self) -> Path:
        """Settings, versions and counts of the run."""
        return self.path / "curation.json"

    def split(self, name: str) -> Path:
        """The split file of the chosen patches."""
        return self.path / "splits" / f"{name}.txt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other runs, which would delete and replace each other's shards.

        Raises:
            PrepareError: Another run has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOCK).open("a") as file:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise PrepareError(
                            f"{self.path}: another curation is writing here; wait for it, stop it, or choose "
                            "another out"
                        ) from None
                    time.sleep(0.1)
            yield


class Part:
    """Shards of the pool or of the labeled images.

    Args:
        path: Folder that contains the folders of the steps.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def shard(self, step: str, number: int) -> Path:
        """Path of a shard of a step (`files`, `index`, `scores`, `masks`, `clusters`)."""
        return self.path / step / f"{number:06d}.parquet"

    def shards(self, step: str) -> list[Path]:
        """The complete shards of a step, in order."""
        return sorted((self.path / step).glob("[0-9]*.parquet"))

    def facts(self, step: str) -> Path:
        """What the shards of a step depend on, and its counts when it is complete."""
        return self.path / step / "step.json"


def write_shard(path: Path, table: "pa.Table") -> None:
    """Write a shard atomically; missing folders are created."""
    parquet = require("pyarrow.parquet")
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")


def read_shard(path: Path, columns: list[str] | None = None) -> "pa.Table":
    """Read a shard.

    Raises:
        PrepareError: The file is missing, truncated, or has other columns.
    """
    parquet, pyarrow = require("pyarrow.parquet"), require("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            missing = set(columns or ()) - set(file.schema_arrow.names)
            if missing:
                raise PrepareError(
                    f"{path}: is not a shard of this step (no column {', '.join(sorted(missing))})"
                )
            return file.read(columns)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise PrepareError(f"{path}: cannot be read ({reason}). {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    step = {"scores": "score", "masks": "score", "clusters": "cluster"}.get(path.parent.name)
    if step is None:
        return f"Delete {index_folders(path.parent.parent)}, and run all steps again"
    return f"Delete it and run the {step} step again, which writes it anew"


def index_folders(part: Path) -> str:
    """The folders to delete before a part is indexed again, for messages."""
    return f"{part / 'files'}, {part / 'index'} and {part / 'scores'}"


@contextmanager
def database(folder: Path, memory_limit: str = "1GB") -> Iterator["DuckDBPyConnection"]:
    """An empty DuckDB database; what exceeds the memory limit goes to a temporary folder below `folder`."""
    with tempfile.TemporaryDirectory(prefix=".duckdb-", dir=folder) as scratch:
        config = {"memory_limit": memory_limit, "temp_directory": scratch, "threads": usable_cpus()}
        with require("duckdb").connect(config=config) as connection:
            yield connection


def pattern(path: Path) -> str:
    """A path for DuckDB, which reads * and [ in paths as patterns."""
    return glob.escape(str(path))


def begin(facts: Path, settings: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """Begin a step, or continue it if its shards were made with the same settings.

    Args:
        facts: File that keeps the settings of the step.
        settings: What the shards depend on; plain JSON values.
        what: The shards, for messages.

    Returns:
        The counts of the step if it is complete, otherwise None.

    Raises:
        PrepareError: There are shards that were made with other settings.
    """
    settings = json.loads(json.dumps(settings))
    if not facts.exists():
        write_bytes(facts, _json({"settings": settings}))
        return None
    kept = _read(facts)
    if kept["settings"] != settings:
        raise PrepareError(
            f"{facts.parent}: {what} here were made with other settings "
            f"({differences(kept['settings'], settings)}). Choose another out, or delete {facts.parent} to "
            "make them again"
        )
    return kept.get("counts")


def _read(facts: Path) -> dict[str, Any]:
    try:
        return json.loads(facts.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PrepareError(
            f"{facts}: damaged ({error}). Delete {facts.parent} and run its step again"
        ) from error


def complete(facts: Path, counts: Mapping[str, Any]) -> None:
    """Mark a step as complete."""
    write_bytes(facts, _json({**_read(facts), "counts": counts}))


def settings_of(facts: Path) -> dict[str, Any]:
    """What the shards of a step that has begun depend on."""
    return _read(facts)["settings"]


def is_complete(facts: Path) -> bool:
    """Whether a step is complete."""
    return facts.exists() and "counts" in _read(facts)


def counts_of(facts: Path, step: str) -> dict[str, Any]:
    """Counts of a complete step.

    Raises:
        PrepareError: It is not complete.
    """
    if not is_complete(facts):
        raise PrepareError(
            f"{facts.parent}: step {step} is not complete; run `python -m s5.curate {step}` first"
        )
    return _read(facts)["counts"]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
