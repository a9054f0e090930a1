"""Training source and validation images of oriented detection."""

import logging
import pickle

import numpy as np
import pytest

from s5.data.image_io import write_image
from s5.data.loaders import collate_validation
from s5.data.oriented.annotations import AnnotationError, make_objects
from s5.data.oriented.geometry import to_boxes, to_polygons
from s5.data.oriented.sources import PADDING, OrientedImages, OrientedValidation, fit_image
from s5.data.sampler import Draw
from s5.data.sources import MultiSourceDataset
from s5.errors import DataError, ImageError, SplitError
from tests.helpers.oriented_data import CLASSES, paint, rectangles, write_pair, write_set, xml

INSIDE = make_objects(
    [[8, 8, 28, 8, 28, 20, 8, 20], [34, 18, 54, 24, 50, 34, 30, 28]], [0, 1], [False, False]
)


def source(folder, **options):
    return OrientedImages(folder / "images", folder / "labels", CLASSES, **options)


def validation(folder, **options):
    return OrientedValidation(folder / "images", folder / "labels", CLASSES, "harbour", **options)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path)
    return tmp_path


def test_item(tmp_path):
    write_pair(tmp_path, "a", INSIDE)
    item = source(tmp_path, size=32, flip=False).load(0, rng())
    assert item["image"].shape == (32, 32, 3) and item["image"].dtype == np.uint8
    assert (item["shape"], item["original"], item["scale"], item["name"]) == ((20, 32), (40, 64), 0.5, "a")
    assert (item["image"][20:] == PADDING).all() and item["image"][:20].std() > 50
    assert item["boxes"] == pytest.approx(to_boxes(INSIDE.polygons / 2)) and item["boxes"].dtype == np.float32
    assert item["labels"].tolist() == [0, 1] and item["labels"].dtype == np.int64
    assert item["ignored"].shape == (0, 5)


@pytest.mark.parametrize("size", [48, 64, 100, 131])
def test_boxes_fit_the_pixels_whatever_scale_and_flip(tmp_path, size):
    """Objects painted at the boxes of an item give its image."""
    write_pair(tmp_path, "a", INSIDE, 37, 61)
    images = source(tmp_path, size=size)
    seen = set()
    for seed in range(12):
        item = images.load(0, rng(seed))
        height, width = item["shape"]
        painted = make_objects(to_polygons(item["boxes"]), item["labels"], [False, False])
        expected = paint(painted, size, size)[:height, :width].astype(int)
        difference = np.abs(item["image"][:height, :width].astype(int) - expected) / 255
        assert difference.mean() < 0.05, "edges are blurred, nothing else"
        seen.add(tuple(item["boxes"][0, :2].round().tolist()))
    assert len(seen) == 4, "all four mirrorings"


def test_scale_is_exact_and_shape_is_rounded(tmp_path):
    write_pair(tmp_path, "a", INSIDE, 37, 61)
    item = source(tmp_path, size=100, flip=False).load(0, rng())
    assert item["scale"] == 100 / 61 and item["shape"] == (round(37 * 100 / 61), 100)
    assert item["boxes"][:, :4] / item["scale"] == pytest.approx(INSIDE.boxes[:, :4], abs=1e-4)


def test_draws_come_from_the_generator_alone(folder):
    images = source(folder)
    first, second, other = (images.load(1, rng(seed)) for seed in (3, 3, 1))
    for key in ("image", "boxes", "labels", "ignored"):
        assert np.array_equal(first[key], second[key])
    assert not np.array_equal(first["image"], other["image"])
    assert np.array_equal(source(folder, flip=False).load(1, rng(3))["image"], validation(folder)[1]["image"])


def test_objects_that_leave_the_image(tmp_path):
    """Half inside: trained on whole. Less: neither object nor background. Nothing: dropped."""
    shifts = [0, -9, -11, -30]  # of an object 20 wide whose left side is at the border
    polygons = [[s, 5, s + 20, 5, s + 20, 15, s, 15] for s in shifts]
    write_pair(tmp_path, "a", make_objects(polygons, [0] * 4, [False] * 4))
    item = source(tmp_path, size=64, flip=False).load(0, rng())
    assert item["boxes"][:, 0].tolist() == [10, 1] and item["boxes"][:, 2].tolist() == [20, 20]
    assert item["ignored"][:, 0].tolist() == [-1]
    assert len(validation(tmp_path)[0]["objects"]) == 4


def test_difficult_objects_are_ignored_or_trained_on(tmp_path):
    write_pair(tmp_path, "a", make_objects(INSIDE.polygons, [0, 1], [False, True]))
    item = source(tmp_path, flip=False).load(0, rng())
    assert item["labels"].tolist() == [0] and len(item["ignored"]) == 1
    item = source(tmp_path, flip=False, train_difficult=True).load(0, rng())
    assert item["labels"].tolist() == [0, 1] and len(item["ignored"]) == 0


@pytest.mark.parametrize("size", [64, 32])
def test_objects_that_are_small_at_the_input_are_ignored(tmp_path, size):
    """By the shorter side of the upright box, in pixels of the resized image; scores keep them."""
    polygons = [[5, 5, 25, 5, 25, 8, 5, 8], [30, 5, 34, 5, 34, 25, 30, 25], [40, 5, 55, 20, 54, 21, 39, 6]]
    write_pair(tmp_path, "a", make_objects(polygons, [0, 1, 1], [False] * 3))  # 3, 4 and 16 pixels
    item = source(tmp_path, size=size, flip=False, ignore_below=2).load(0, rng())
    trained = [0, 1, 1] if size == 64 else [1, 1]
    assert item["labels"].tolist() == trained and len(item["ignored"]) == 3 - len(trained)
    exactly = source(tmp_path, size=64, flip=False, ignore_below=4).load(0, rng())
    assert exactly["labels"].tolist() == [1, 1], "not below"
    assert len(validation(tmp_path, size=size)[0]["boxes"]) == 3


def test_images_without_objects_are_kept_or_left_out(folder):
    write_pair(folder, "b_empty", make_objects())
    assert len(source(folder)) == 5 and len(source(folder, keep_empty=False)) == 4
    item = source(folder).load(4, rng())
    assert item["name"] == "b_empty" and item["boxes"].shape == (0, 5) and item["labels"].shape == (0,)
    names = [source(folder, keep_empty=False).load(i, rng())["name"] for i in range(4)]
    assert names == ["a0", "a1", "a2", "a3"]


def test_validation_item(folder):
    items = [validation(folder, size=64)[i] for i in range(4)]
    batch = collate_validation(items[:2])
    assert batch["name"] == ["a0", "a1"] and batch["task"] == ["harbour"] * 2
    expected = rectangles(5, 40, 64, seed=1)
    assert np.array_equal(batch["objects"][1].polygons, expected.polygons), (
        "in pixels of the file, none dropped"
    )
    assert np.array_equal(batch["objects"][1].difficult, [False] * 5)


def test_validation_without_ground_truth(folder):
    items = OrientedValidation(folder / "images", None, CLASSES, "harbour", size=32)
    assert len(items) == 4 and len(items[2]["objects"]) == 0 and items[2]["boxes"].shape == (0, 5)


def test_every_image_format_and_sorted_names(tmp_path):
    for name in ("c.jpg", "a.png", "d.tif", "b.bmp", "e.JPEG"):
        write_image(tmp_path / "images" / name, np.zeros((40, 64, 3), np.uint8))
        (tmp_path / f"labels/{name.split('.')[0]}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / f"labels/{name.split('.')[0]}.txt").write_text("1 1 9 1 9 5 1 5 ship 0")
    (tmp_path / "images/notes.md").touch()
    images = source(tmp_path, size=32)
    assert [images.load(i, rng())["name"] for i in range(len(images))] == list("abcde")
    assert [images.image_size(i) for i in range(5)] == [(40, 64)] * 5


def test_size_needs_no_decoding(tmp_path):
    write_pair(tmp_path, "a", INSIDE)
    images = source(tmp_path)
    path = tmp_path / "images/a.png"
    path.write_bytes(path.read_bytes()[:60])
    assert images.image_size(0) == (40, 64)


def test_several_folders_xml_and_official_list(tmp_path):
    """DIOR-R as it is shipped: two folders of images, one of annotations, a list of names."""
    corners = [5, 5, 20, 5, 20, 15, 5, 15]
    for number, folder in ((1, "trainval"), (2, "trainval"), (3, "test")):
        write_image(tmp_path / f"JPEGImages-{folder}/0000{number}.jpg", np.zeros((40, 64, 3), np.uint8))
        path = tmp_path / f"Annotations/0000{number}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(xml([(CLASSES[number - 1], corners)]))
    (tmp_path / "train.txt").write_text("00001\r\n00003\r\n")
    folders = [tmp_path / "JPEGImages-trainval", tmp_path / "JPEGImages-test"]
    images = OrientedImages(folders, tmp_path / "Annotations", CLASSES, split=tmp_path / "train.txt")
    assert [images.load(i, rng())["name"] for i in range(len(images))] == ["00001", "00003"]
    assert images.samples.counts().tolist() == [1, 0, 1]
    (tmp_path / "paths.txt").write_text("data/JPEGImages-test/00003.jpg data/Annotations/00003.xml\n")
    images = OrientedImages(folders, tmp_path / "Annotations", CLASSES, split=tmp_path / "paths.txt")
    assert len(images) == 1 and images.load(0, rng())["labels"].tolist() == [2]


def test_several_lists(folder):
    (folder / "one.txt").write_text("a2\n")
    (folder / "two.txt").write_text("a0\na2\n")
    images = source(folder, split=(folder / "one.txt", folder / "two.txt"))
    assert [images.load(i, rng())["name"] for i in range(len(images))] == ["a0", "a2"]


def test_a_line_of_pixels_stays_one():
    square, scale, shape = fit_image(np.full((1, 3000, 3), 7, np.uint8), 64)
    assert (scale, shape) == (64 / 3000, (1, 64)) and (square[0] == 7).all() and (square[1:] == PADDING).all()


def test_folders_in_folders(tmp_path):
    for name in ("x/a", "y/a"):
        write_pair(tmp_path, name, INSIDE)
    images = source(tmp_path)
    assert [images.load(i, rng())["name"] for i in range(2)] == ["x/a", "y/a"]


def test_as_a_source_of_the_batch(folder):
    data = MultiSourceDataset([source(folder, size=32), source(folder, size=32)], seed=1)
    item = data[Draw(1, 2, 7)]
    assert item["source"] == 1 and item["name"] == "a2"
    again = pickle.loads(pickle.dumps(data))[Draw(1, 2, 7)]
    assert np.array_equal(item["image"], again["image"]), "spawned workers get it by pickle"


def test_a_list_of_classes_is_no_annotation(folder, caplog):
    (folder / "labels/classes.txt").write_text("ship\nplane\n")
    with caplog.at_level(logging.INFO):
        assert len(source(folder)) == 4
    assert f"{folder}/labels/classes.txt: a list of classes" in caplog.text
    write_pair(folder, "classes", rectangles(5, 40, 64))
    assert "classes" in source(folder).samples.names, "of an image of this name it is the annotation"


# Bad input


def test_image_without_annotation_and_annotation_without_image(folder):
    (folder / "labels/a1.txt").rename(folder / "labels/b1.txt")
    with pytest.raises(SplitError) as error:
        source(folder)
    text = str(error.value)
    assert "1 images (a1.png) without an annotation file" in text
    assert "1 annotation files (b1.txt) without an image" in text and "split" in text


def test_list_of_an_image_that_is_not_there(folder):
    (folder / "names.txt").write_text("a0\na7\n")
    with pytest.raises(SplitError, match=r"names\.txt: 1 listed images \(a7\)"):
        source(folder, split=folder / "names.txt")


def test_list_with_backslashes(folder):
    (folder / "names.txt").write_text("images\\a0.png\n")
    with pytest.raises(SplitError, match=r"1 listed images \(images\\a0.png\) .* not in .*; .* backslashes"):
        source(folder, split=folder / "names.txt")


def test_empty_split(folder):
    (folder / "names.txt").write_text("\n")
    with pytest.raises(SplitError, match=r"names\.txt: no samples"):
        source(folder, split=folder / "names.txt")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(SplitError, match=r"images: no such folder"):
        source(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/readme.md").touch()
    with pytest.raises(SplitError, match=r"images: no images"):
        source(tmp_path)


def test_two_images_of_one_name(folder):
    write_image(folder / "images/a1.jpg", np.zeros((40, 64, 3), np.uint8))
    with pytest.raises(SplitError, match=r"a1\.\w+ and .*a1\.\w+ have the same name"):
        source(folder)


def test_bad_annotations_are_listed_before_anything_runs(folder):
    (folder / "labels/a0.txt").write_text("1 2 3")
    (folder / "labels/a3.txt").write_text("1 1 9 1 9 5 1 5 whale 0")
    for build in (source, validation):
        with pytest.raises(AnnotationError) as error:
            build(folder)
        text = str(error.value)
        assert "2 annotation files" in text and "a0.txt, line 1" in text and "a3.txt, line 1" in text
        assert "'whale'" in text


def test_objects_of_zero_size_are_left_out_with_a_warning(folder, caplog):
    with (folder / "labels/a2.txt").open("a") as file:
        file.write("5 5 5 5 5 9 5 9 ship 0\n")
    with caplog.at_level(logging.WARNING):
        images = source(folder)
    assert "1 objects skipped" in caplog.text and "a2.txt, line 6" in caplog.text
    assert images.samples.counts().sum() == 20


def test_all_images_empty(folder):
    for path in (folder / "labels").iterdir():
        path.write_text("gsd:1\n")
    for build in (source, validation):
        with pytest.raises(
            DataError, match=r"images: none of the 4 images has an object of the classes ship"
        ):
            build(folder)


def test_all_objects_difficult(tmp_path):
    write_pair(tmp_path, "a", make_objects(INSIDE.polygons, [0, 1], [True, True]))
    with pytest.raises(DataError, match=r"images: all objects are difficult.*train_difficult"):
        source(tmp_path)
    assert len(source(tmp_path, train_difficult=True)) == 1 and len(validation(tmp_path)) == 1


def test_unreadable_image(folder):
    path = folder / "images/a1.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ImageError, match=r"a1\.png: truncated"):
        source(folder).load(1, rng())
    with pytest.raises(ImageError, match=r"a1\.png: truncated"):
        validation(folder)[1]


def test_real_images(shared):
    rot = shared / "data/rot/ucas_aod"
    images = OrientedImages(rot / "images", rot / "labelTxt", ("plane", "car"))
    assert len(images) == 76 and images.samples.counts().tolist() == [386, 241]
    item = images.load(0, rng(0))
    assert item["image"].shape == (1024, 1024, 3) and item["original"] == (659, 1280) and item["scale"] == 0.8
    assert len(item["boxes"]) == 5
