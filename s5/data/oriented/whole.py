"""The labels of the whole images that windows were cut from."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from s5.data.errors import SplitError
from s5.data.oriented.annotations import AnnotationReader, Objects
from s5.data.oriented.merge import place_of
from s5.data.oriented.samples import read_all

SHOWN = 5  # names in a message


def whole_names(names: Iterable[str]) -> list[str]:
    """Names of the images that windows are of, sorted; an image that is no window stays itself."""
    return sorted({place_of(name).image for name in names})


def read_whole(
    folder: Path, windows: Iterable[str], classes: Sequence[str], leave_out: Sequence[str] = ()
) -> dict[str, Objects]:
    """The objects of the whole images that windows are of, in pixels of the whole images.

    Args:
        folder: has ``<image>.txt`` (DOTA) of each image, empty of one without objects.
        windows: names of the windows.
        classes: names of the classes, in the order of the labels.
        leave_out: classes that the files may have, but of which no object is taken.

    Returns:
        By name of the image.

    Raises:
        SplitError: the folder or files are missing; names the first ones.
        AnnotationError: files cannot be read; names the first ones.
    """
    if not folder.is_dir():
        raise SplitError(f"no folder {folder}; give that of the whole images' labels")
    files = {name: folder / f"{name}.txt" for name in whole_names(windows)}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        shown = ", ".join(missing[:SHOWN]) + (" ..." if len(missing) > SHOWN else "")
        raise SplitError(
            f"labels of {len(missing)} of {len(files)} whole images are missing: {shown}. Add them (an image "
            f"without objects has an empty file), or leave whole out, to score windows as images of their own"
        )
    objects = read_all(AnnotationReader(classes, leave_out), files.values())
    return dict(zip(files, objects, strict=True))
