"""Known datasets, indexable and plottable: `from s5.datasets import LoveDA; LoveDA(root, "val")[0]["mask"]`.

`help(LoveDA)` has classes, splits, licence and citation. :func:`register` adds a dataset of one's own, see
`docs/add_dataset.md`.
"""

from s5.data.datasets import (
    DATASETS,
    Dataset,
    DiorR,
    Dota,
    Isaid,
    LoveDA,
    OpenEarthMap,
    Potsdam,
    Vaihingen,
    register,
)

__all__ = [
    "DATASETS",
    "Dataset",
    "DiorR",
    "Dota",
    "Isaid",
    "LoveDA",
    "OpenEarthMap",
    "Potsdam",
    "Vaihingen",
    "register",
]
