"""The real tiles of the experiments: their paths, and which are held out, divided by location."""

from collections.abc import Iterator
from pathlib import Path

from s5.data.folders import find_images, pair_folders
from s5.errors import DataError

RSSCN7, EPFL_UNLABELED = "unlabeled/rsscn7", "seg/epfl_roads/unlabeled"
TASKS = ("dubai", "fair_buildings", "epfl_roads")
DUBAI_VALIDATION = "tile2"  # one of six scenes, whose tiles overlap
FAIR_VALIDATION = 309606  # map column, at zoom 19, of the smaller of two areas; three zooms of each
EPFL_TRAINING = 80  # the first ones; the locations of the tiles are not known


def tiles(data: Path, name: str) -> Iterator[tuple[str, str]]:
    """Image, relative to `data`, and line of a split file of every labeled tile of a dataset."""
    folder = Path("seg") / name
    pairs = pair_folders(folder / "images", folder / "masks", data)
    return ((pairs.name(i), pairs.line(i)) for i in range(len(pairs)))


def unlabeled(data: Path, folder: str) -> list[str]:
    """The images below a folder of `data`, relative to `data`."""
    images = [path.relative_to(data).as_posix() for path in find_images(data / folder)]
    if not images:
        raise DataError(f"{data / folder}: no images; docs/real_images.md says what DATA must contain")
    return images


def is_validation(name: str, image: str) -> bool:
    """Whether a tile is held out, so that no location is in both parts."""
    stem = Path(image).stem
    if name == "dubai":
        return stem.split("_")[0] == DUBAI_VALIDATION
    if name == "fair_buildings":
        _, column, _, zoom = stem.split("-")
        return int(column) >> (int(zoom) - 19) == FAIR_VALIDATION
    return int(stem.removeprefix("satImage_")) > EPFL_TRAINING
