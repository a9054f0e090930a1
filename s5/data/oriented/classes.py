"""Class names of the detection datasets by name. Names are compared without regard to case."""

from collections.abc import Sequence

from s5.data.datasets import CLASS_LISTS as CLASSES
from s5.data.datasets.dior_r import CLASSES as DIOR_R
from s5.data.datasets.dota import DOTA_V1, DOTA_V1_5, DOTA_V2, DOTA_V2_AS_STORED, DOTA_V2_PUBLISHED
from s5.data.oriented.annotations import class_ids
from s5.errors import DataError

__all__ = [
    "CLASSES",
    "DIOR_R",
    "DOTA_V1",
    "DOTA_V1_5",
    "DOTA_V2",
    "DOTA_V2_AS_STORED",
    "DOTA_V2_PUBLISHED",
    "class_ids",
    "get_classes",
]


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
