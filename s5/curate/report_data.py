"""Numbers and samples of the curation report, queried from the table of all patches without loading it."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from s5.curate import require
from s5.curate.folder import database, pattern
from s5.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

RANKED = ("chosen", "quota", "entropy")
"""Reasons of the patches that took part in the ranking."""

_RESEMBLES = 12  # bits of 64 in which the hashes of near-duplicates may differ
_COLUMNS = "patch, name, entropy, cluster, similarity, reason, error"
# Ends every order, so that the samples do not depend on the order of the rows.
_TIES = "key, patch"


class Patch(NamedTuple):
    """What a picture's caption says; `None` where it was not computed.

    Attributes:
        patch: Number of the patch.
        name: Reference of the image, relative to the data root.
        entropy: Nats.
        cluster: Number of its cluster.
        similarity: Cosine similarity to the cluster's prototype.
        reason: What became of it.
        error: Why it cannot be read.
    """

    patch: int
    name: str
    entropy: float | None
    cluster: int | None
    similarity: float | None
    reason: str
    error: str | None


class PatchTable:
    """`patches.parquet` of a run; open it with `open_table`.

    Memory does not grow with the number of patches: each query streams the columns that it needs, and one
    that needs more than 1 GB continues on disk.
    """

    def __init__(self, path: Path, connection: "DuckDBPyConnection") -> None:
        self._path, self._connection = path, connection

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query of the view `pool`.

        Raises:
            DataError: The table is damaged or has other columns.
        """
        try:
            return self._connection.execute(sql, list(values)).fetchall()
        except require("duckdb").Error as error:
            raise DataError(
                f"{self._path}: cannot be queried ({error}). Run the select step again to recreate it"
            ) from error

    def reasons(self) -> dict[str, dict[str, int]]:
        """Count the patches by source, the largest first, and reason."""
        counts: dict[str, dict[str, int]] = {}
        for source, reason, count in self.rows(
            "SELECT source, reason, count(*) FROM pool GROUP BY ALL ORDER BY source, reason"
        ):
            counts.setdefault(source, {})[reason] = count
        return dict(sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0])))

    def entropies(self, bins: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Histogram of the entropies.

        Returns:
            Bounds of the bins in nats, float64 (bins + 1,); chosen patches and the others in each bin, int64
            (bins,). None if no patch has an entropy.
        """
        known = "FROM pool WHERE isfinite(entropy)"
        ((low, high),) = self.rows(f"SELECT min(entropy), max(entropy) {known}")
        if low is None:
            return None
        width = (high - low) / bins or 1 / bins
        counts = np.zeros((2, bins), np.int64)
        for place, chosen, others in self.rows(
            "SELECT least(floor((entropy::DOUBLE - ?) / ?)::BIGINT, ?) AS bin, "
            f"count(*) FILTER (reason = 'chosen'), count(*) FILTER (reason <> 'chosen') {known} GROUP BY bin",
            (low, width, bins - 1),
        ):
            counts[:, place] = chosen, others
        return low + width * np.arange(bins + 1), counts[0], counts[1]

    def class_pixels(self, classes: int) -> np.ndarray:
        """Sum the pixels of each class in the pseudo-labels.

        Returns:
            float64 (2, classes): of the whole pool and of the chosen patches.

        Raises:
            DataError: A patch has counts of more classes.
        """
        sums = "sum(classes[{0}]), sum(classes[{0}]) FILTER (reason = 'chosen')"
        columns = ", ".join(sums.format(index + 1) for index in range(classes))
        ((most, *pixels),) = self.rows(f"SELECT max(len(classes)), {columns} FROM pool")
        if most is not None and most > classes:
            raise DataError(
                f"{self._path}: counts the pixels of {most} classes, but the run has {classes}. "
                "Score with one checkpoint, and write again"
            )
        return np.array([pixel or 0 for pixel in pixels], np.float64).reshape(classes, 2).T

    def pick(self, reasons: Collection[str], order: str, limit: int) -> list[int]:
        """Patches of some reasons, the first in an order; equal ones by key."""
        sql = f"SELECT patch FROM pool WHERE reason IN (SELECT unnest(?)) ORDER BY {order}, {_TIES} LIMIT ?"
        return [patch for (patch,) in self.rows(sql, (list(reasons), limit))]

    def quota_borders(self, limit: int) -> list[tuple[int, int]]:
        """Last chosen patch, and the first refused because of the quota, of each cluster.

        Args:
            limit: Number of clusters, those that refused most.
        """
        rows = self.rows(
            f"""SELECT arg_max(patch, (entropy, {_TIES})) FILTER (reason = 'chosen') AS last,
                arg_min(patch, (entropy, {_TIES})) FILTER (reason = 'quota') AS first
            FROM pool WHERE reason IN ('chosen', 'quota') GROUP BY cluster
            HAVING last IS NOT NULL AND first IS NOT NULL
            ORDER BY count(*) FILTER (reason = 'quota') DESC, cluster LIMIT ?""",
            (limit,),
        )
        return [(last, first) for last, first in rows]

    def duplicates(self, limit: int) -> list[tuple[int, int | None]]:
        """Dropped duplicates, drawn by key, and the remaining patch of the most similar hash, if any."""
        rows = self.rows(
            f"""WITH dropped AS (
                SELECT patch, key, phash FROM pool WHERE reason = 'duplicate' ORDER BY {_TIES} LIMIT ?
            ), remaining AS (
                SELECT patch, key, phash FROM pool WHERE reason IN (SELECT unnest(?))
            )
            SELECT d.patch, arg_min(r.patch, (bit_count(xor(r.phash, d.phash)), r.key, r.patch))
            FROM dropped d LEFT JOIN remaining r ON bit_count(xor(r.phash, d.phash)) <= ?
            GROUP BY d.patch, d.key ORDER BY d.key, d.patch""",
            (limit, list(RANKED), _RESEMBLES),
        )
        return [(patch, original) for patch, original in rows]

    def nearest(self, clusters: Sequence[int], limit: int) -> dict[int, list[int]]:
        """Ranked patches that are most similar to the prototypes of some clusters."""
        found: dict[int, list[int]] = {cluster: [] for cluster in clusters}
        order = f"similarity DESC, {_TIES}"
        for cluster, patch in self.rows(
            f"""SELECT cluster, patch FROM pool
            WHERE reason IN (SELECT unnest(?)) AND cluster IN (SELECT unnest(?))
            QUALIFY row_number() OVER (PARTITION BY cluster ORDER BY {order}) <= ?
            ORDER BY cluster, {order}""",
            (list(RANKED), list(clusters), limit),
        ):
            found[cluster].append(patch)
        return found

    def details(self, patches: Collection[int]) -> dict[int, Patch]:
        """Captions of patches."""
        rows = self.rows(
            f"SELECT {_COLUMNS} FROM pool WHERE patch IN (SELECT unnest(?))", (sorted(set(patches)),)
        )
        return {row[0]: Patch(*row) for row in rows}


@contextmanager
def open_table(path: Path) -> Iterator[PatchTable]:
    """Open the table of all patches; intermediate results too large for memory go to its folder.

    Raises:
        DataError: The table is missing or not a Parquet file.
    """
    if not path.is_file():
        raise DataError(f"{path}: the table of all patches is missing. Run the steps before the report first")
    with database(path.parent) as connection:
        try:
            connection.read_parquet([pattern(path)]).create_view("pool")
        except require("duckdb").Error as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Run the select step again to recreate it"
            ) from error
        yield PatchTable(path, connection)
