"""The shards that the steps score and cluster wrote, checked before they are joined."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s5.curate import require
from s5.errors import DataError, is_utf8, shorten

# Columns that selecting needs, and their types. `feature` is never read.
_SCORES = {
    "patch": "int64",
    "key": "uint64",
    "source": "string",
    "name": "string",
    "valid": "float",
    "deviation": "float",
    "sharpness": "float",
    "phash": "uint64",
    "entropy": "float",
    "error": "string",
}
_CLUSTERS = {"patch": "int64", "cluster": "int32", "similarity": "float"}


@dataclass(frozen=True)
class Shards:
    """Whole and matching shards of one run.

    Attributes:
        scores: Files in order of their names.
        clusters: Their partners.
        rows: Patches in each score shard.
        columns: Columns of the score shards without `feature`.
    """

    scores: tuple[Path, ...]
    clusters: tuple[Path, ...]
    rows: tuple[int, ...]
    columns: tuple[str, ...]

    def groups(self, rows: int) -> list[tuple[Path, ...]]:
        """Score shards in order, in groups of at least `rows` patches; the last may have fewer.

        Empty shards are left out.
        """
        groups: list[tuple[Path, ...]] = []
        group: list[Path] = []
        filled = 0
        for path, count in zip(self.scores, self.rows, strict=True):
            if count:
                group.append(path)
                filled += count
            if filled >= rows:
                groups.append(tuple(group))
                group, filled = [], 0
        return [*groups, tuple(group)] if group else groups


def find_shards(run: Path) -> Shards:
    """List the shards of a run.

    Raises:
        DataError: There are none, a score shard has no cluster shard or the reverse, a file is truncated or
            not of this kind, or the path is not UTF-8.
    """
    if not is_utf8(run):
        raise DataError(f"{run}: the path is not UTF-8, as DuckDB requires; rename the folder")
    scores, clusters = (sorted((run / step).glob("[!.]*.parquet")) for step in ("scores", "clusters"))
    if not scores:
        raise DataError(f"{run / 'scores'}: no score shards (*.parquet); run the score step first")
    names, partners = {path.name for path in scores}, {path.name for path in clusters}
    if names != partners:
        raise DataError(
            f"{run}: the shards in scores and clusters differ, only one has "
            f"{shorten(sorted(names ^ partners))}; run the cluster step again"
        )
    files = [_inspect(path, _SCORES, "score") for path in scores]
    for path in clusters:
        _inspect(path, _CLUSTERS, "cluster")
    first = sorted(files[0].schema_arrow.names)
    for path, file in zip(scores, files, strict=True):
        if sorted(file.schema_arrow.names) != first:
            raise _unusable(path, f"its columns differ from those of {scores[0].name}", "score")
    columns = tuple(name for name in files[0].schema_arrow.names if name != "feature")
    return Shards(tuple(scores), tuple(clusters), tuple(file.metadata.num_rows for file in files), columns)


def find_damaged(shards: Shards) -> DataError | None:
    """The error that names the first shard whose data cannot be read, None if all can."""
    parquet = require("pyarrow.parquet")
    steps: Sequence[tuple[Sequence[Path], Sequence[str], str]] = (
        (shards.scores, shards.columns, "score"),
        (shards.clusters, tuple(_CLUSTERS), "cluster"),
    )
    for paths, columns, step in steps:
        for path in paths:
            try:
                for _ in parquet.ParquetFile(path).iter_batches(columns=list(columns)):
                    pass
            except (OSError, ValueError) as error:  # pyarrow's errors are one or the other
                return _unusable(path, str(error), step)
    return None


def _inspect(path: Path, columns: dict[str, str], step: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Open a shard and check its columns; returns the `pyarrow.parquet.ParquetFile`, closed."""
    parquet = require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
    except (OSError, ValueError) as error:
        raise _unusable(path, f"not a whole Parquet file ({error})", step) from error
    types = {field.name: str(field.type) for field in schema}
    wrong = [
        f"{name} is {types[name]} instead of {kind}" if name in types else f"{name} is missing"
        for name, kind in columns.items()
        if types.get(name) != kind
    ]
    if wrong:
        raise _unusable(path, f"not a shard of the {step} step: {shorten(wrong)}", step)
    return file


def _unusable(path: Path, reason: str, step: str) -> DataError:
    reason = " ".join(reason.split())  # pyarrow's have several lines
    return DataError(f"{path}: {reason}; delete it and run the {step} step again")
