"""Known datasets: a module with the facts of each, registered here.

`DATASETS` has the dataset classes by name, `TABLES` their label tables of masks and `CLASS_LISTS` their lists
of object classes. :mod:`s5.data.prepare` cuts them; users import them from :mod:`s5.datasets`.
"""

from s5.data.datasets.base import Dataset
from s5.data.datasets.dior_r import DiorR
from s5.data.datasets.dota import Dota
from s5.data.datasets.isaid import Isaid
from s5.data.datasets.isprs import Potsdam, Vaihingen
from s5.data.datasets.loveda import LoveDA
from s5.data.datasets.openearthmap import OpenEarthMap
from s5.data.label_table import LabelTable, build_table

SCENES = build_table(
    "scenes",
    ("field", (190, 200, 110)),
    ("forest", (40, 110, 50)),
    ("water", (50, 110, 200)),
    ("road", (150, 150, 150)),
    ("building", (220, 90, 60)),
    ("vehicle", (250, 220, 50)),
    ("ship", (240, 240, 250)),
    ("plane", (200, 70, 200)),
)
"""The embedded synthetic scenes, which `python -m scenes` writes."""

DATASETS: dict[str, type[Dataset]] = {}
TABLES: dict[str, LabelTable] = {}
CLASS_LISTS: dict[str, tuple[str, ...]] = {}


def register(dataset: type[Dataset]) -> type[Dataset]:
    """Register a dataset and its labels by name; also a decorator."""
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
