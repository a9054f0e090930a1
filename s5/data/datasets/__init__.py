"""Known datasets: one module of facts each, and a row here.

`DATASETS` has the classes by name, `TABLES` their label tables of masks and `CLASS_LISTS` their lists of
classes of objects. :mod:`s5.data.prepare` cuts them, :mod:`s5.datasets` is how users import them.
"""

from s5.data.datasets.base import Dataset
from s5.data.datasets.dior_r import DiorR
from s5.data.datasets.dota import Dota
from s5.data.datasets.isaid import Isaid
from s5.data.datasets.isprs import Potsdam, Vaihingen
from s5.data.datasets.loveda import LoveDA
from s5.data.datasets.openearthmap import OpenEarthMap
from s5.data.datasets.scenes import SCENES
from s5.data.label_table import LabelTable

DATASETS: dict[str, type[Dataset]] = {}
TABLES: dict[str, LabelTable] = {}
CLASS_LISTS: dict[str, tuple[str, ...]] = {}


def register(dataset: type[Dataset]) -> type[Dataset]:
    """Make a dataset and its labels known by name; also a decorator."""
    DATASETS[dataset.name] = dataset
    TABLES.update({table.name: table for table in dataset.tables})
    CLASS_LISTS.update(dataset.class_lists)
    return dataset


for _dataset in (
    Isaid,
    Vaihingen,
    Potsdam,
    LoveDA,
    OpenEarthMap,
    DiorR,
    Dota,
):
    register(_dataset)
TABLES[SCENES.name] = SCENES
