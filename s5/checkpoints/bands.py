"""Numbers of the bands of multi-spectral weights by name.

A checkpoint does not say which bands its patch embedding takes, only how many. The names below are those of
orders that public weights have; they are valid for a checkpoint with as many bands.
"""

import re
from collections.abc import Sequence

from s5.errors import CheckpointError

L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
# Orders of bands by sensor, as in the code of SSL4EO-S12 and SatMAE.
ORDERS = {
    "Sentinel-2 L1C (SSL4EO-S12, SatMAE)": L1C,
    "Sentinel-2 L2A (SSL4EO-S12)": tuple(band for band in L1C if band != "B10"),
    "Sentinel-2 without its 60 m bands (SatMAE, SatMAE++)": tuple(
        band for band in L1C if band not in ("B01", "B09", "B10")
    ),
    "Sentinel-2 at 10 m (first group of SatMAE and SatMAE++)": ("B02", "B03", "B04", "B08"),
    "aerial images with near infrared": ("red", "green", "blue", "nir"),
}
COLOURS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08"}  # of Sentinel-2


def is_band(name: str) -> bool:
    """Whether a known order has a band of this name."""
    return any(_standard(name, order) in order for order in ORDERS.values())


def band_numbers(names: Sequence[str], channels: int) -> tuple[int, ...]:
    """Return the 1-based numbers of bands by name, such as `B04` (or `B4`) or `red`, whatever their case.

    Args:
        names: Names of the bands.
        channels: Number of bands in the checkpoint.

    Raises:
        CheckpointError: No known order, or more than one that differ, has as many bands and these names.
    """
    found = {}
    for sensor, order in ORDERS.items():
        wanted = [_standard(name, order) for name in names]
        if len(order) == channels and set(wanted) <= set(order):
            found[sensor] = tuple(order.index(name) + 1 for name in wanted)
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    given = f"init_bands {','.join(names)}: the checkpoint has {channels} band{'s' if channels > 1 else ''}"
    if found:
        choices = "; ".join(f"{','.join(map(str, n))} for {sensor}" for sensor, n in found.items())
        raise CheckpointError(f"{given}, whose order is not known; give their numbers: {choices}")
    known = "".join(f"\n  {len(order)}: {','.join(order)} ({sensor})" for sensor, order in ORDERS.items())
    raise CheckpointError(
        f"{given}, for which no known order has these names; give the numbers of red, green and blue, "
        f"counted from 1, or names of a known order:{known}"
    )


def _standard(name: str, order: Sequence[str]) -> str:
    """Return the spelling of a name in an order: `B04` for `b4`, and for `red` where bands have numbers."""
    name = name.lower()
    if name in COLOURS:
        return name if name in order else COLOURS[name]
    number = re.fullmatch(r"b0?(\d+)", name)
    return f"B{int(number[1]):02}" if number else name.upper()
