"""Samples and batches of training: image and label are cut alike, draws keyed, broken files replaced."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch

from s5.data.augmentation import StrongAugmentation, sample_rng
from s5.data.image_io import write_image
from s5.data.labels import get_table
from s5.data.loaders import (
    FixMatchCollate,
    fixmatch_loader,
    resolve_split,
    tasks_loader,
    validation_loader,
)
from s5.data.sampler import Draw
from s5.data.sources import (
    MAX_SUBSTITUTES,
    LabeledImages,
    MultiSourceDataset,
    UnlabeledImages,
    ValidationImages,
    WeakAugmentation,
    read_labeled,
)
from s5.data.splits import Split
from s5.errors import DataError, ImageError
from s5.launch import Launch
from tests.helpers.s4p_runs import write_dataset

TABLE = get_table({"name": "test", "classes": ["ground", "water", "roof"], "ignore": [255]})
COLORS = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)
AS_IT_IS = {"scale": (1, 1), "flip": False, "rotate": False}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def write_colored(root: Path, count: int = 3, height: int = 90, width: int = 120) -> Split:
    """Images painted in the colours of their labels, in blocks of 22 pixels or more."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        blocks = rng.integers(0, 3, (4, 5), dtype=np.uint8)
        mask = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(root / f"{i}.png"), COLORS[mask][..., ::-1])
        cv2.imwrite(str(root / f"{i}_mask.png"), mask)
        lines.append(f"{i}.png {i}_mask.png")
    (root / "colored.txt").write_text("\n".join(lines))
    return Split("colored.txt", root)


def assert_alike(image: np.ndarray, label: np.ndarray, size: int) -> int:
    """The colour of every pixel inside a region says its label; returns how many pixels were compared."""
    assert image.shape == (size, size, 3) and label.shape == (size, size)
    assert image.dtype == label.dtype == np.uint8
    kernel = np.ones((7, 7), np.uint8)
    inside = cv2.erode(label, kernel) == cv2.dilate(label, kernel)
    inside[[0, 1, 2, -3, -2, -1]] = inside[:, [0, 1, 2, -3, -2, -1]] = False  # another region may lie beyond
    known = inside & (label != 255)
    assert np.abs(image[known].astype(int) - COLORS[label[known]]).max(initial=0) <= 1
    padded = inside & (label == 255)
    assert not image[padded].any()
    return int(known.sum())


@pytest.mark.parametrize("size", [48, 100])
def test_image_and_label_are_cut_alike(tmp_path: Path, size: int) -> None:
    source = LabeledImages(write_colored(tmp_path), TABLE, WeakAugmentation(size, (0.5, 2.0)))
    compared = 0
    for position in range(40):
        item = source.load(position % 3, sample_rng(0, 0, position))
        compared += assert_alike(item["image"], item["label"], size)
        assert item["name"] == f"{position % 3}.png"
    assert compared > 40 * size * size / 4


def test_stored_pseudo_labels_are_cut_alike(tmp_path: Path) -> None:
    split = write_colored(tmp_path)
    source = UnlabeledImages(split, WeakAugmentation(100), StrongAugmentation(), stored=TABLE)
    for position in range(20):
        item = source.load(position % 3, sample_rng(0, 1, position))
        assert assert_alike(item["image"], item["stored"], 100)
        assert np.array_equal(item["padding"] == 255, item["stored"] == 255)


def test_draws_differ_from_sample_to_sample(tmp_path: Path) -> None:
    source = LabeledImages(write_colored(tmp_path), TABLE, WeakAugmentation(48))
    images = {source.load(0, sample_rng(0, 0, position))["image"].tobytes() for position in range(10)}
    assert len(images) == 10


def sources(
    root: Path, size: int = 64, views: int = 1, **weak: object
) -> list[LabeledImages | UnlabeledImages]:
    cut = WeakAugmentation(size, **weak)
    labeled = LabeledImages(Split("splits/labeled/labeled.txt", root), TABLE, cut)
    unlabeled = UnlabeledImages(
        Split("splits/unlabeled/pool.txt", root), cut, StrongAugmentation(views=views)
    )
    return [labeled, unlabeled]


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        assert np.array_equal(one[key], other[key]), key


@pytest.mark.parametrize("source", [0, 1])
def test_same_draw_gives_the_same_sample_whatever_was_loaded_before(root: Path, source: int) -> None:
    draw = Draw(source, 2, 17)
    first = MultiSourceDataset(sources(root), seed=5)[draw]
    dataset = MultiSourceDataset(sources(root), seed=5)
    for position in range(6):
        dataset[Draw(position % 2, position, position)]
    np.random.random(3)
    assert_same(dataset[draw], first)
    assert_same(dataset[draw], first)
    assert (first["source"], first["position"]) == (source, 17)
    for other in (Draw(source, 2, 18),):
        assert not np.array_equal(dataset[other]["image"], first["image"])
    assert not np.array_equal(MultiSourceDataset(sources(root), seed=6)[draw]["image"], first["image"])


# -- files that cannot be read


def test_unreadable_image_is_replaced_and_named(tmp_path: Path) -> None:
    root = write_dataset(tmp_path)
    (root / "unlabeled/pool/images/002.png").write_bytes(b"")
    _, source = sources(root)
    item = source.load(2, sample_rng(0, 1, 0))
    assert item["name"] != "unlabeled/pool/images/002.png"
    ((name, reason),) = set(item["skipped"])
    assert name == "unlabeled/pool/images/002.png" and "002.png: is empty" in reason
    assert_same(item, source.load(2, sample_rng(0, 1, 0)))
    assert source.load(3, sample_rng(0, 1, 0))["skipped"] == []


def test_unreadable_stored_mask_is_replaced_too(tmp_path: Path) -> None:
    split = write_colored(tmp_path)
    (tmp_path / "1_mask.png").unlink()
    source = UnlabeledImages(split, WeakAugmentation(48), StrongAugmentation(), stored=TABLE)
    item = source.load(1, sample_rng(0, 1, 0))
    assert item["name"] != "1.png" and "1_mask.png: file not found" in item["skipped"][0][1]


def test_wrong_value_in_a_stored_mask_is_an_error(tmp_path: Path) -> None:
    split = write_colored(tmp_path)
    cv2.imwrite(str(tmp_path / "1_mask.png"), np.full((90, 120), 9, np.uint8))
    source = UnlabeledImages(split, WeakAugmentation(48), StrongAugmentation(), stored=TABLE)
    with pytest.raises(DataError, match=r"1_mask.png: value 9 \(10800 pixels\)"):
        source.load(1, sample_rng(0, 1, 0))


def test_twenty_unreadable_images_in_a_row_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("\n".join(f"gone/{i}.png" for i in range(100)))
    source = UnlabeledImages(Split("none.txt", tmp_path), WeakAugmentation(48), StrongAugmentation())
    assert MAX_SUBSTITUTES == 20
    with pytest.raises(
        DataError, match=r"none.txt: 20 images in a row cannot be read, the last: \S*gone/\d+.png"
    ):
        source.load(0, sample_rng(0, 1, 0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0.png", r"0.png: the line of the split has no mask; labeled lines are `image mask`"),
        (
            "0.png small.png",
            r"small.png: mask of 5x6 pixels for an image of 90x120 \(height x width\), .*0.png",
        ),
    ],
)
def test_labeled_line_without_a_fitting_mask(tmp_path: Path, line: str, message: str) -> None:
    write_colored(tmp_path)
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((5, 6), np.uint8))
    (tmp_path / "line.txt").write_text(line)
    with pytest.raises(DataError, match=message):
        read_labeled(Split("line.txt", tmp_path).sample(0), TABLE)


# -- batches

ALONE = Launch(torch.device("cpu"), rank=0, world_size=1)


def loader(
    root: Path, labeled: int = 2, unlabeled: int = 3, **options: object
) -> torch.utils.data.DataLoader:
    one, other = sources(root, **options)
    return fixmatch_loader(one, labeled, other if unlabeled else None, unlabeled, 3, ALONE, 0).loader


def test_batch_is_labeled_first(root: Path) -> None:
    batch = next(iter(loader(root, views=2)))
    assert [name.split("/")[0] for name in batch["names"]] == ["labeled"] * 2 + ["unlabeled"] * 3
    assert batch["images"].shape == (5, 3, 64, 64) and batch["images"].dtype == torch.uint8
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert batch["labels"].shape == (2, 64, 64)
    assert batch["padding"].shape == (3, 64, 64) and batch["padding"].dtype == torch.bool
    assert {name: tuple(value.shape) for name, value in batch["views"].items()} == {
        "photometric": (2, 3, 6),
        "boxes": (2, 3, 4),
        "partner": (2, 3),
    }
    assert not (batch["views"]["partner"] == torch.arange(3)).any()


def test_padding_never_counts(root: Path) -> None:
    """The images are 72 x 80; at a crop of 96 the rest is padding, at the right and bottom."""
    batch = next(iter(loader(root, size=96, **AS_IT_IS)))
    outside = torch.ones(96, 96, dtype=torch.bool)
    outside[:72, :80] = False
    assert torch.equal(batch["padding"], outside.expand(3, 96, 96))
    assert torch.equal(batch["labels"] == 255, outside.expand(2, 96, 96))
    assert not batch["images"][..., outside].any()
    assert batch["images"][..., ~outside].float().mean() > 30


def test_without_unlabeled_images(root: Path) -> None:
    batch = next(iter(loader(root, unlabeled=0)))
    assert set(batch) == {"images", "labels", "names", "skipped"}
    assert len(batch["images"]) == 2


def test_lone_unlabeled_image_has_no_partner(root: Path) -> None:
    for _, batch in zip(range(6), loader(root, unlabeled=1), strict=False):
        assert not batch["views"]["boxes"].any()
        assert batch["views"]["partner"].tolist() == [[0]]


def test_partners_change_from_step_to_step_and_come_again(root: Path) -> None:
    def partners() -> list[list[int]]:
        batches = zip(range(8), loader(root, unlabeled=4), strict=False)
        return [batch["views"]["partner"][0].tolist() for _, batch in batches]

    assert partners() == partners()
    assert len({tuple(partner) for partner in partners()}) > 1


def test_stored_labels_are_in_the_batch(tmp_path: Path) -> None:
    source = UnlabeledImages(
        write_colored(tmp_path), WeakAugmentation(48), StrongAugmentation(), stored=TABLE
    )
    labeled = LabeledImages(write_colored(tmp_path), TABLE, WeakAugmentation(48))
    dataset = MultiSourceDataset([labeled, source], seed=0)
    batch = FixMatchCollate(0)([dataset[Draw(0, 0, 0)], dataset[Draw(1, 1, 0)], dataset[Draw(1, 2, 1)]])
    assert batch["stored"].shape == (2, 48, 48)
    assert torch.equal(batch["stored"][1], torch.from_numpy(dataset[Draw(1, 2, 1)]["stored"]))


def test_validation_gives_whole_images_in_order(root: Path) -> None:
    split = resolve_split(root, Path("splits/val.txt"))
    batches = list(validation_loader([ValidationImages(split, TABLE, "mine")], ALONE, 0))
    assert {task for batch in batches for task in batch["tasks"]} == {"mine"}
    assert [name for batch in batches for name in batch["names"]] == [split.name(i) for i in range(3)]
    for i, batch in enumerate(batches):
        image, label, _ = read_labeled(split.sample(i), TABLE)
        assert torch.equal(batch["images"][0], torch.from_numpy(image).permute(2, 0, 1))
        assert torch.equal(batch["labels"][0], torch.from_numpy(label))


def test_batch_of_several_tasks_is_ordered_by_task(root: Path) -> None:
    """A task that has not started is not loaded: its broken images do not matter before its epoch."""
    one, _ = sources(root)
    (root / "splits/broken.txt").write_text("gone/a.png gone/a_mask.png\n" * 3)
    broken = LabeledImages(Split("splits/broken.txt", root), TABLE, WeakAugmentation(64), "broken")
    data = tasks_loader([broken, one], [1, 2], [1, 0], seed=0, launch=ALONE, workers=0, epoch_steps=2)
    batches = iter(data.loader)
    for _ in range(2):
        batch = next(batches)
        assert batch["counts"] == {"broken": 0, "labeled": 2} and len(batch["names"]) == 2
        assert batch["images"].shape == (2, 3, 64, 64) and batch["labels"].shape == (2, 64, 64)
    with pytest.raises(ImageError, match=r"gone/a.png"):
        next(batches)
    two = LabeledImages(one.split, TABLE, WeakAugmentation(64), "two")
    both = tasks_loader([one, two], [1, 2], [0, 0], seed=0, launch=ALONE, workers=0)
    assert next(iter(both.loader))["counts"] == {"labeled": 1, "two": 2}
    assert both.sampler.epoch_steps == len(one)


def test_validation_of_several_tasks_skips_inactive_ones(root: Path) -> None:
    images = [ValidationImages(Split("splits/val.txt", root), TABLE, task) for task in ("a", "b")]
    parts = [validation_loader(images, replace(ALONE, rank=rank, world_size=2), 0) for rank in range(2)]
    seen = [(batch["tasks"][0], batch["names"][0]) for part in parts for batch in part]
    assert len(seen) == len(set(seen)) == 6
    parts[0].sampler.active = {"b"}
    assert [batch["tasks"] for batch in parts[0]] == [["b"], ["b"]]


def test_split_paths_are_relative_to_the_root_or_absolute(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "elsewhere.txt"
    listed.write_text((root / "splits/val.txt").read_text())
    for path in (Path("splits/val.txt"), listed):
        assert resolve_split(root, path).sample(0).image == root / "val/images/000.png"


# -- pixels without data


def write_without_data(root: Path) -> tuple[Split, np.ndarray]:
    """A GeoTIFF of 16 bits with a mask, the same as transparent PNG, and where they have data."""
    write_colored(root, 1)
    rgb = cv2.imread(str(root / "0.png"))[..., ::-1]
    valid = np.add(*np.mgrid[:90, :120]) > 70
    deep = np.where(valid[..., None], rgb.astype(np.uint16) * 40, 7).transpose(2, 0, 1)
    size = {"width": 120, "height": 90, "count": 3, "dtype": "uint16"}
    with rasterio.open(root / "0.tif", "w", "GTiff", nodata=7, **size) as file:
        file.write(deep)
    write_image(root / "1.png", rgb, valid=valid)
    (root / "parts.txt").write_text("0.tif 0_mask.png\n1.png 0_mask.png\n")
    return Split("parts.txt", root), valid


@pytest.mark.parametrize("stored", [None, TABLE])
@pytest.mark.parametrize("index", [0, 1])
def test_unlabeled_pixels_without_data_are_padding(tmp_path: Path, stored: object, index: int) -> None:
    split, valid = write_without_data(tmp_path)
    weak = WeakAugmentation(100, **AS_IT_IS)
    item = UnlabeledImages(split, weak, StrongAugmentation(), stored=stored).load(index, sample_rng(0, 1, 0))
    left = next(x for x in range(21) if np.array_equal(item["padding"][:90] == 0, valid[:, x : x + 100]))
    assert (item["padding"][90:] == 255).all() and 0 <= left <= 20
    assert not item["image"][item["padding"] == 255].any()
    if stored is not None:
        assert np.array_equal(item["stored"] == 255, item["padding"] == 255)
    for position in range(10):
        source = UnlabeledImages(split, WeakAugmentation(64), StrongAugmentation(), stored=TABLE)
        item = source.load(index, sample_rng(0, 1, position))
        assert np.array_equal(item["stored"] == 255, item["padding"] == 255), "cut alike"


@pytest.mark.parametrize("index", [0, 1])
def test_labels_without_data_are_ignored(tmp_path: Path, index: int) -> None:
    split, valid = write_without_data(tmp_path)
    mask = cv2.imread(str(tmp_path / "0_mask.png"), cv2.IMREAD_UNCHANGED)
    label = ValidationImages(split, TABLE, "a")[index]["labels"].numpy()
    assert np.array_equal(label, np.where(valid, mask, 255))
    item = LabeledImages(split, TABLE, WeakAugmentation(120, **AS_IT_IS)).load(index, sample_rng(0, 0, 0))
    assert np.array_equal(item["label"][:90], label) and (item["label"][90:] == 255).all()
