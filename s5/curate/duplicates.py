"""Near-duplicates: patches whose 64-bit perceptual hashes differ in few bits.

All work is done by DuckDB, which moves to disk what does not fit in its memory limit.
"""

import logging
import time
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BITS = 64

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pairs:
    """Number of pairs of near-duplicates.

    Attributes:
        within: Both patches are from one source.
        across: They are from two sources.
    """

    within: int
    across: int


def band_masks(distance: int) -> list[int]:
    """Bit masks, so that two hashes within `distance` agree in all bits of at least one mask.

    The hash is cut into `distance + 2` bands. At most `distance` of them contain a difference, so at least
    two agree; every pair of bands is a mask. Pairs have 26 to 42 bits where one of `distance + 1` bands would
    have 16 to 32, so that few hashes agree by chance even among 10⁹.
    """
    count = distance + 2
    edges = [BITS * i // count for i in range(count + 1)]
    bands = [(1 << high) - (1 << low) for low, high in zip(edges, edges[1:], strict=False)]
    return [first | second for first, second in combinations(bands, 2)]


def find_duplicates(connection: "DuckDBPyConnection", distance: int) -> Pairs:
    """Create the table `duplicates(patch)`.

    A patch is a duplicate if another one, whose hash differs in at most `distance` bits, has a lower place in
    the order; even if that one is itself a duplicate. Equal hashes are collapsed before the comparison.

    Args:
        connection: Has the table `ordered(patch, place, source, phash)`; places are unique. Patches whose
            hash is null are not compared.
        distance: Largest number of bits in which duplicates differ; 0: only equal hashes.

    Returns:
        The number of pairs within `distance`.
    """
    run = connection.execute
    run("""
        CREATE TABLE hashes_by_source AS
        SELECT phash, source, min(place) AS place, count(*) AS n FROM ordered
        WHERE phash IS NOT NULL GROUP BY phash, source""")
    run("""
        CREATE TABLE hashes AS
        SELECT phash, min(place) AS place, sum(n)::BIGINT AS n FROM hashes_by_source GROUP BY phash""")
    _find_near(connection, distance)
    # A hash that has a better one nearby loses all its patches, any other hash all but the best.
    run("""
        CREATE TABLE duplicates AS
        SELECT patch FROM ordered
        ANTI JOIN (SELECT place FROM hashes ANTI JOIN near ON phash = worse) AS kept USING (place)
        WHERE phash IS NOT NULL""")
    pairs = _count_pairs(connection)
    for table in ("hashes_by_source", "hashes", "near"):
        run(f"DROP TABLE {table}")
    return pairs


def _find_near(connection: "DuckDBPyConnection", distance: int) -> None:
    """Create `near(better, worse)`: each pair of different hashes within `distance` once."""
    connection.execute("CREATE TABLE near (better UBIGINT, worse UBIGINT)")
    masks = band_masks(distance) if distance else []
    for i, mask in enumerate(masks):
        start = time.monotonic()
        # Pairs that agree in an earlier mask were found there.
        earlier = "".join(f" AND (xor(a.phash, b.phash) & {m}::UBIGINT) <> 0" for m in masks[:i])
        connection.execute(f"""
            INSERT INTO near
            SELECT a.phash, b.phash
            FROM hashes a JOIN hashes b ON (a.phash & {mask}::UBIGINT) = (b.phash & {mask}::UBIGINT)
            WHERE a.place < b.place AND bit_count(xor(a.phash, b.phash)) <= {distance}{earlier}""")
        seconds = time.monotonic() - start
        _logger.info("near-duplicates: comparison %d of %d, %.1f s", i + 1, len(masks), seconds)


def _count_pairs(connection: "DuckDBPyConnection") -> Pairs:
    def total(query: str) -> int:
        ((count,),) = connection.execute(query).fetchall()
        return count or 0

    every = total("SELECT sum(n::HUGEINT * (n - 1)) // 2 FROM hashes") + total("""
        SELECT sum(a.n::HUGEINT * b.n) FROM near
        JOIN hashes a ON a.phash = near.better JOIN hashes b ON b.phash = near.worse""")
    within = total("SELECT sum(n::HUGEINT * (n - 1)) // 2 FROM hashes_by_source") + total("""
        SELECT sum(a.n::HUGEINT * b.n) FROM near
        JOIN hashes_by_source a ON a.phash = near.better
        JOIN hashes_by_source b ON b.phash = near.worse AND b.source = a.source""")
    return Pairs(within, every - within)
