"""The folder of a curation: its files, Parquet shards that exist in full or not at all, and its lock.

Every step writes shards, which are renamed when they are complete. A step that is run again continues with
the missing ones, whatever the number of processes, because a shard's content depends on its number alone.
"""

import fcntl
import glob
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s5.command import usable_cpus
from s5.curate import require
from s5.data.datasets.prepared import differences
from s5.data.files import atomic_path, write_bytes
from s5.data.folders import is_system_name
from s5.errors import ConfigError, PrepareError

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
            PrepareError: Another run has it, or it holds other files, which could be replaced.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in self.path.iterdir())
        others = [name for name in names if not name.startswith(".") and not is_system_name(name)]
        if others and LOCK not in names:
            raise PrepareError(
                f"{self.path}: holds other files ({', '.join(others[:3])}), which a curation could replace; "
                "choose an empty folder as out"
            )
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

    def state(self, step: str) -> Path:
        """The file that records what the shards of a step depend on, and its counts once it is complete."""
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


def index_shard_size(part: Part) -> int:
    """Patches per shard of an index; the last one has fewer."""
    return int(require("pyarrow.parquet").read_metadata(part.shard("index", 0)).num_rows)


def _remedy(path: Path) -> str:
    step = {"scores": "score", "masks": "score", "clusters": "cluster"}.get(path.parent.name)
    if step is None:
        return f"Delete {index_folders(path.parent.parent)}, and run all steps again"
    return f"Delete it, and run the {step} step again to recreate it"


def index_folders(part: Path) -> str:
    """The folders to delete before a part is indexed again, for messages."""
    return f"{part / 'files'}, {part / 'index'} and {part / 'scores'}"


@contextmanager
def database(folder: Path, memory_limit: str = "1GB", threads: int = 0) -> Iterator["DuckDBPyConnection"]:
    """An empty DuckDB database in memory.

    Args:
        folder: Where a temporary folder takes what exceeds the memory limit; one at a time.
        memory_limit: Memory for data, such as 2GB.
        threads: CPU threads; 0: all that can be used.

    Raises:
        ConfigError: The memory limit is not an amount.
    """
    duckdb = require("duckdb")
    scratch = folder / ".duckdb"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    options = {
        "memory_limit": memory_limit,
        "threads": threads or usable_cpus(),
        "temp_directory": str(scratch),
        "preserve_insertion_order": False,
    }
    try:
        try:
            connection = duckdb.connect(config=options)
        except duckdb.ParserException as error:
            raise ConfigError(f"select.memory_limit: {memory_limit!r}: {error}") from error
        with connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def pattern(path: Path) -> str:
    """A path for DuckDB, which reads * and [ in paths as patterns."""
    return glob.escape(str(path))


def begin(state: Path, settings: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """Begin a step, or continue it if its shards were made with the same settings.

    Args:
        state: File of the step, see :meth:`Part.state`.
        settings: What the shards depend on; plain JSON values.
        what: The shards, for messages.

    Returns:
        The counts of the step if it is complete, otherwise None.

    Raises:
        PrepareError: There are shards that were made with other settings.
    """
    settings = json.loads(json.dumps(settings))
    if not state.exists():
        write_bytes(state, _json({"settings": settings}))
        return None
    kept = _read(state)
    if kept["settings"] != settings:
        raise PrepareError(
            f"{state.parent}: {what} here were made with other settings "
            f"({differences(kept['settings'], settings)}). Choose another out, or delete {state.parent} to "
            "make them again"
        )
    return kept.get("counts")


def _read(state: Path) -> dict[str, Any]:
    try:
        return json.loads(state.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PrepareError(
            f"{state}: damaged ({error}). Delete {state.parent} and run its step again"
        ) from error


def complete(state: Path, counts: Mapping[str, Any]) -> None:
    """Mark a step as complete."""
    write_bytes(state, _json({**_read(state), "counts": counts}))


def settings_of(state: Path) -> dict[str, Any]:
    """What the shards of a step that has begun depend on."""
    return _read(state)["settings"]


def is_complete(state: Path) -> bool:
    """Whether a step is complete."""
    return state.exists() and "counts" in _read(state)


def counts_of(state: Path, step: str) -> dict[str, Any]:
    """Counts of a complete step.

    Raises:
        PrepareError: It is not complete.
    """
    if not is_complete(state):
        raise PrepareError(
            f"{state.parent}: step {step} is not complete; run `python -m s5.curate {step}` first"
        )
    return _read(state)["counts"]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
