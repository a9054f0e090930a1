"""What every known dataset has to do, inherited by a test class of each."""

import numpy as np
import pytest
from PIL import Image

from s5.data.datasets import CLASS_LISTS, TABLES, Dataset
from s5.data.prepare.__main__ import main
from s5.errors import DataError


class DatasetContract:
    """Set `dataset` and `counts`, and write a small one as shipped in `make`."""

    dataset: type[Dataset]
    counts: dict[str, int]  # whole images of each split, as shipped
    options: tuple[str, ...] = ()  # of the prepare command
    unlabeled: tuple[str, ...] = ()  # splits without labels

    @staticmethod
    def make(src):
        raise NotImplementedError

    @pytest.fixture
    def shipped(self, tmp_path):
        self.make(tmp_path / "shipped")
        return tmp_path / "shipped"

    @pytest.fixture
    def prepared(self, shipped, tmp_path):
        arguments = ["--src", str(shipped), "--out", str(tmp_path / "root"), "--workers", "1", *self.options]
        assert main([self.dataset.name, *arguments]) == 0
        return tmp_path / "root"

    def check(self, dataset, split):
        assert len(list(dataset)) == len(dataset) > 0
        for sample in dataset:
            image = sample["image"]
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
            assert isinstance(sample["name"], str) and sample["path"].startswith(str(dataset.root.parent))
            if split in self.unlabeled:
                assert not {"mask", "boxes"} & set(sample)
            elif self.dataset.tables:
                mask = sample["mask"]
                assert mask.dtype == np.uint8 and mask.shape == image.shape[:2]
                assert set(np.unique(mask)) <= {*range(len(dataset.classes)), dataset.ignore}
            else:
                n = len(sample["labels"])
                assert sample["boxes"].shape == (n, 5) and sample["polygons"].shape == (n, 4, 2)
                assert sample["boxes"].dtype == np.float32 and sample["labels"].dtype == np.int64
                assert ((sample["labels"] >= 0) & (sample["labels"] < len(dataset.classes))).all()
        picture = dataset.plot(0)
        assert isinstance(picture, Image.Image) and np.asarray(picture).std() > 0
        assert picture.height >= dataset[0]["image"].shape[0]

    def test_shipped(self, shipped):
        for split, count in self.counts.items():
            dataset = self.dataset(shipped, split)
            assert len(dataset) == count and not dataset.prepared
            self.check(dataset, split)

    def test_prepared(self, prepared):
        for split in self.counts:
            dataset = self.dataset(prepared, split)
            assert dataset.prepared
            self.check(dataset, split)
            if not self.dataset.folder:
                below = self.dataset(prepared / self.dataset.name, split)
                assert [s.image for s in below.samples] == [s.image for s in dataset.samples]

    def test_facts(self):
        facts = self.dataset
        assert facts.name and facts.url.startswith("https://") and facts.url in facts.layout
        assert facts.layout.format(src="X").startswith("expected below X")
        assert all(TABLES[table.name] is table for table in facts.tables)
        assert all(CLASS_LISTS[name] == classes for name, classes in facts.class_lists.items())
        assert bool(facts.tables) != bool(facts.class_lists)
        assert {part for parts in facts.splits.values() for part in parts} >= set(facts.counts)
        for lower, higher in facts.twins.items():
            assert [v + 1 for v in TABLES[lower].values] == list(TABLES[higher].values)
        for text in (facts.licence, facts.citation, facts.url, "Classes (", "Splits: train"):
            assert text in facts.__doc__

    def test_wrong_arguments(self, shipped, tmp_path):
        with pytest.raises(DataError, match=r"unknown split 'no'; known: train"):
            self.dataset(shipped, "no")
        with pytest.raises(DataError, match="unknown labels 'no'; known: "):
            self.dataset(shipped, labels="no")
        with pytest.raises(DataError, match="unknown option 'no'"):
            self.dataset(shipped, no=1)

    def test_nothing_there(self, tmp_path):
        for folder in (tmp_path / "nowhere", tmp_path):
            with pytest.raises(DataError) as error:
                self.dataset(folder)
            text = str(error.value)
            assert f"{self.dataset.title} is not in {folder}" in text and self.dataset.url in text
            assert f"python -m s5.data.prepare {self.dataset.name} --src" in text
            assert str(folder / self.dataset.split_file("train", self.dataset.name)) in text
