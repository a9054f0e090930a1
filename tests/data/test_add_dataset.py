"""What `docs/add_dataset.md` says: the module on the page is registered, prepared, checked and loaded."""

import numpy as np
import pytest

import s5.datasets
from s5.data.check import check_split
from s5.data.datasets import DATASETS, TABLES, register
from s5.data.image_io import write_image, write_mask
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from tests.helpers.datasets import DatasetContract
from tests.helpers.shipped_data import class_map, noise


def make(src):
    for part, count in (("train", 3), ("val", 2)):
        for i in range(count):
            write_image(src / f"Rivers/{part}/images/{i}.png", noise(80, 64, i))
            write_mask(src / f"Rivers/{part}/masks/{i}.png", class_map(80, 64, 2, i))


@pytest.fixture(scope="module")
def page(request):
    lines = (request.config.rootpath / "docs/add_dataset.md").read_text().splitlines()
    assert len(lines) <= 40
    return "\n".join(lines)


@pytest.fixture
def rivers(page):
    """The class on the page, for the number of images of the small copy, registered for one test."""
    code = page.split("```python\n")[1].split("```")[0].replace("400", "5")
    module = {"__name__": "rivers"}
    exec(compile(code, "docs/add_dataset.md", "exec"), module)
    before = [dict(known) for known in (DATASETS, TABLES)]
    yield register(module["Rivers"])
    for known, entries in zip((DATASETS, TABLES), before, strict=True):
        known.clear()
        known.update(entries)


class TestRivers(DatasetContract):
    """All checks that known datasets have to pass."""

    counts, options = {"train": 3, "val": 2}, ("--size", "32")
    make = staticmethod(make)

    @pytest.fixture(autouse=True)
    def register(self, rivers):
        type(self).dataset = rivers


def test_page(rivers, tmp_path, capsys):
    make(tmp_path / "src")
    arguments = ["rivers", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "root"), "--workers", "1"]
    assert main([*arguments, "--size", "32", "--overlap", "0"]) == 0
    assert "5 source files cut into 20 patches" in capsys.readouterr().out
    table = get_table("rivers")
    assert table.classes == ("land", "water") and table.background == 0
    split = Split("rivers/splits/train.txt", tmp_path / "root")
    assert check_split(split, table).ok
    dataset = s5.datasets.Rivers(tmp_path / "root")
    assert len(dataset) == len(split) == 18 and "Rivers" in dir(s5.datasets)
    assert np.array_equal(dataset[0]["mask"], class_map(80, 64, 2, 0)[:32, :32])


def test_incomplete(rivers, tmp_path, capsys):
    make(tmp_path / "src")
    (tmp_path / "src/Rivers/val/masks/1.png").unlink()
    assert main(["rivers", "--src", str(tmp_path / "src"), "--out", str(tmp_path / "root")]) == 1
    error = capsys.readouterr().err
    assert "4 pairs of 5" in error and "https://rivers.example" in error and "--partial" in error
