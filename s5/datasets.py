"""Indexable datasets: `from s5.datasets import LoveDA; LoveDA(root, "val")[0]["mask"]`.

`help(LoveDA)` shows format, classes, splits, licence and citation; `dir(s5.datasets)` lists all datasets.
"""

from typing import TYPE_CHECKING, Any

from s5.data.datasets import DATASETS, Dataset, register

if TYPE_CHECKING:
    from s5.data.datasets import *  # noqa: F403

__all__ = ["DATASETS", "Dataset", "register"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Return a registered dataset by its class name."""
    for dataset in DATASETS.values():
        if dataset.__name__ == name:
            return dataset
    raise AttributeError(f"module 's5.datasets' has no attribute {name!r}; available: {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return [*__all__, *(dataset.__name__ for dataset in DATASETS.values())]
