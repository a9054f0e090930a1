"""Known datasets as samples: each keeps the contract, from the folder as shipped and prepared."""

import subprocess
import sys

import numpy as np
import pytest

import s5.datasets
from s5.data.datasets import DATASETS
from s5.data.image_io import read_image, write_image
from s5.datasets import DiorR, Dota, Isaid, LoveDA, OpenEarthMap, Potsdam, Vaihingen
from s5.errors import DataError
from tests.helpers.datasets import DatasetContract
from tests.helpers.shipped_data import (
    DOTA_OBJECTS,
    HEIGHT,
    OEM_XBD,
    WIDTH,
    make_dior_r,
    make_dota,
    make_isaid,
    make_loveda,
    make_openearthmap,
    make_potsdam,
    make_vaihingen,
    noise,
)


class TestVaihingen(DatasetContract):
    dataset, counts, options = Vaihingen, {"train": 16, "val": 17}, ("--size", "32")
    make = staticmethod(make_vaihingen)


class TestPotsdam(DatasetContract):
    dataset, counts, options = Potsdam, {"train": 24, "val": 14}, ("--size", "32")
    make = staticmethod(make_potsdam)

    def test_variants(self, shipped):
        """Options of the prepare command, and clutter counted or ignored."""
        truth = make_potsdam(shipped)["2_10"]
        five, six = Potsdam(shipped), Potsdam(shipped, labels="potsdam_6", bands="irrg")
        assert np.array_equal(six[0]["mask"], truth) and len(six.classes) == 6
        assert np.array_equal(five[0]["mask"], np.where(truth == 5, 255, truth))
        assert not np.array_equal(five[0]["image"], six[0]["image"])
        with pytest.raises(DataError, match="unknown bands 'nir'; known: rgb, irrg"):
            Potsdam(shipped, bands="nir")
        assert five[0]["name"] == "2_10" and "255" not in str(set(np.unique(five[0]["mask"])) - {255})

    def test_prepared_data_have_no_variants(self, prepared):
        with pytest.raises(DataError, match="is prepared, and bands chooses among shipped files.*--name"):
            Potsdam(prepared, bands="irrg")


class TestLoveDA(DatasetContract):
    dataset, counts, options = LoveDA, {"train": 4, "val": 4, "test": 4, "trainval": 8}, ("--partial",)
    unlabeled = ("test",)

    @staticmethod
    def make(src):
        return make_loveda(src, 2)

    def test_prepared_and_shipped_samples_are_equal(self, shipped, prepared):
        for mine, theirs in zip(LoveDA(prepared, "val"), LoveDA(shipped, "val"), strict=True):
            assert np.array_equal(mine["image"], theirs["image"])
            assert np.array_equal(mine["mask"], theirs["mask"])

    def test_values_are_train_ids(self, shipped):
        raw, sample = self.make(shipped)[0], LoveDA(shipped)[0]
        assert sample["name"] == "Rural/0" and np.array_equal(sample["image"], read_image(sample["path"]))
        assert np.array_equal(sample["mask"], np.where(raw == 0, 255, raw - 1))


class TestOpenEarthMap(DatasetContract):
    dataset, counts, unlabeled = OpenEarthMap, {"train": 3, "val": 1, "test": 1}, ("test",)
    make = staticmethod(make_openearthmap)

    def test_images_from_xbd(self, shipped, tmp_path):
        write_image(tmp_path / "xbd" / OEM_XBD["houston_1.tif"], noise(HEIGHT, WIDTH, 7))
        dataset = OpenEarthMap(shipped, xbd=str(tmp_path / "xbd"))
        assert [sample["name"] for sample in dataset][-1] == "houston_1" and len(dataset) == 4


class TestIsaid(DatasetContract):
    dataset, counts, options = Isaid, {"train": 2, "val": 1}, ("--size", "32")
    make = staticmethod(make_isaid)


class TestDiorR(DatasetContract):
    dataset, counts = DiorR, {"train": 2, "val": 1, "test": 2}
    make = staticmethod(make_dior_r)


class TestDota(DatasetContract):
    dataset, counts, options = Dota, {"train": 2, "val": 1, "test-dev": 1}, ("--size", "64", "--gap", "16")
    unlabeled = ("test-dev",)
    make = staticmethod(make_dota)

    def test_objects(self, shipped):
        sample = Dota(shipped)[0]
        assert sample["name"] == "P0001" and np.array_equal(sample["labels"], DOTA_OBJECTS.labels)
        assert np.allclose(sample["polygons"], DOTA_OBJECTS.polygons)
        assert Dota(shipped, labels="dota_v2_as_stored").classes == Dota.class_lists["dota_v2_as_stored"]


def test_all_are_tested_and_public():
    tested = {getattr(cls, "dataset", None) for cls in DatasetContract.__subclasses__()}
    assert tested >= set(DATASETS.values())
    assert {cls.__name__ for cls in DATASETS.values()} <= set(dir(s5.datasets))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'; available: .*LoveDA"):
        _ = s5.datasets.Nothing


def test_labels_need_no_torch(repository):
    """Label tables are wanted where no model is; `import s5` itself may have loaded torch."""
    code = (
        "import sys, s5; before = 'torch' in sys.modules; import s5.data.labels; "
        "assert before or 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=repository)


def test_pages_tell_the_same_numbers(repository):
    for name, datasets in (
        ("datasets.md", (Vaihingen, Potsdam, LoveDA, OpenEarthMap)),
        ("datasets_detection.md", (DiorR,)),
    ):
        page = (repository / "docs" / name).read_text()
        for dataset in datasets:
            assert all(str(count) in page for count in dataset.counts.values()), dataset
            assert dataset.inner_archives is None or dataset.url in page, dataset


def test_real_images(shared):
    dataset = Dota(shared / "data/rot/dota14", version="1.0")
    assert len(dataset) == 14 and sum(len(sample["labels"]) for sample in dataset) > 500
    assert dataset.plot(0).size[0] == dataset[0]["image"].shape[1]


def test_an_option_may_be_given_its_default():
    assert object.__new__(OpenEarthMap)._complete({"xbd": None})["xbd"] is None
