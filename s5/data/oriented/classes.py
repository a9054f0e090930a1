"""Class names of the public datasets, in the field's order. Names are compared without regard to case."""

from collections.abc import Sequence

from s5.data.errors import DataError

DOTA_V2 = (
    "plane",
    "baseball-diamond",
    "bridge",
    "ground-track-field",
    "small-vehicle",
    "large-vehicle",
    "ship",
    "tennis-court",
    "basketball-court",
    "storage-tank",
    "soccer-ball-field",
    "roundabout",
    "harbor",
    "swimming-pool",
    "helicopter",
    "container-crane",
    "airport",
    "helipad",
)
"""In the order of the dataset's authors."""
DOTA_V1_5 = DOTA_V2[:16]  # without airport and helipad
DOTA_V1 = DOTA_V2[:15]  # without container-crane
DOTA_V2_PUBLISHED = (
    "large-vehicle",
    "swimming-pool",
    "helicopter",
    "bridge",
    "plane",
    "ship",
    "soccer-ball-field",
    "basketball-court",
    "ground-track-field",
    "small-vehicle",
    "baseball-diamond",
    "tennis-court",
    "roundabout",
    "storage-tank",
    "harbor",
    "container-crane",
    "airport",
    "helipad",
)
"""In the order of the released classifier, whose background comes last."""
DOTA_V2_AS_STORED = tuple(DOTA_V2[DOTA_V2_PUBLISHED.index(name)] for name in DOTA_V2)
"""Class of each row of a published classifier after loading, if the file had them in the order of `DOTA_V2`.

Loading takes the rows to be in the order of `DOTA_V2_PUBLISHED`, which came from a file of the tool that cut
the windows, and sorts them; this list undoes it.
"""
DIOR_R = (
    "airplane",
    "airport",
    "baseballfield",
    "basketballcourt",
    "bridge",
    "chimney",
    "expressway-service-area",
    "expressway-toll-station",
    "dam",
    "golffield",
    "groundtrackfield",
    "harbor",
    "overpass",
    "ship",
    "stadium",
    "storagetank",
    "tenniscourt",
    "trainstation",
    "vehicle",
    "windmill",
)
CLASSES = {
    "dota_v1": DOTA_V1,
    "dota_v1_5": DOTA_V1_5,
    "dota_v2": DOTA_V2,
    "dota_v2_as_stored": DOTA_V2_AS_STORED,
    "dior_r": DIOR_R,
}


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """Label of each class by its case-folded name.

    Raises:
        DataError: no classes, a name with white space (DOTA's text cannot hold it), or two equal ones.
    """
    ids = {name.casefold(): label for label, name in enumerate(classes)}
    if not ids:
        raise DataError("a detection task needs at least one class; list their names under `classes`")
    if bad := [name for name in classes if not name or any(c.isspace() for c in name)]:
        raise DataError(f"class {bad[0]!r}: names of classes have no white space; write '-' or '_' instead")
    if len(ids) < len(classes):
        twice = [name for label, name in enumerate(classes) if ids[name.casefold()] != label]
        raise DataError(f"class {twice[0]!r} stands twice in the list (capitals do not count)")
    return ids


def get_classes(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Class names by the name of a dataset, or those given.

    Raises:
        DataError: the dataset is unknown; or as :func:`class_ids`.
    """
    if isinstance(spec, str):
        if spec not in CLASSES:
            raise DataError(
                f"classes {spec!r}: must be {', '.join(CLASSES)}, or a list of names; a single class is "
                f"written [{spec!r}]"
            )
        return CLASSES[spec]
    class_ids(spec)
    return tuple(spec)
