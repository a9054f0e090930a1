"""Preparing DOTA: windows with their objects, in one and several scales."""

import shutil

import numpy as np
import pytest

from s5.data.datasets import Dota
from s5.data.datasets.dota import DOTA_V1, DOTA_V2
from s5.data.image_io import read_image, read_image_with_valid, write_image
from s5.data.oriented.annotations import AnnotationReader, write_objects
from s5.data.oriented.geometry import share_inside
from s5.data.oriented.merge import merge_objects, parse_window_name
from s5.data.oriented.sources import PADDING, OrientedImages, OrientedValidation
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from tests.helpers.oriented_data import paint, rectangles
from tests.helpers.shipped_data import DOTA_HEIGHT as HEIGHT
from tests.helpers.shipped_data import DOTA_OBJECTS as OBJECTS
from tests.helpers.shipped_data import DOTA_WIDTH as WIDTH
from tests.helpers.shipped_data import make_dota
from tests.helpers.shipped_data import write_dota as write


def run(src, out, *more):
    options = ["--size", "64", "--gap", "16", "--workers", "1", *more]
    return main(["dota", "--src", str(src), "--out", str(out), *options])


@pytest.fixture
def dota(tmp_path):
    make_dota(tmp_path / "DOTA")
    return tmp_path / "DOTA"


def parts_of(out, part="train"):
    """Windows of a part: name, image and objects."""
    reader = AnnotationReader(DOTA_V2)
    for sample in Split(f"dota/splits/{part}.txt", out):
        yield sample.image.stem, read_image(sample.image), reader.read(sample.mask) if sample.mask else None


def test_windows_are_cut_and_named_as_the_field_does(dota, tmp_path, capsys):
    assert run(dota, tmp_path / "root") == 0
    text = capsys.readouterr().out
    assert "4 source files cut into 24 patches" in text and "classes: dota_v2" in text
    names = [name for name, _, _ in parts_of(tmp_path / "root")]
    expected = [f"P000{i}__64__{x}___{y}" for i in (1, 2) for y in (0, 26) for x in (0, 48, 86)]
    assert names == expected
    whole = paint(OBJECTS, HEIGHT, WIDTH)
    for name, image, _ in parts_of(tmp_path / "root"):
        place = parse_window_name(name)
        if place.image == "P0001":
            assert np.array_equal(image, whole[place.y : place.y + 64, place.x : place.x + 64])


def test_objects_of_windows(dota, tmp_path):
    """Seven tenths inside; whole; difficult ones difficult; truncated ones marked."""
    run(dota, tmp_path / "root")
    seen = set()
    for name, _, objects in parts_of(tmp_path / "root"):
        place = parse_window_name(name)
        if place.image == "P0002":
            assert len(objects) == 0
            continue
        share = share_inside(OBJECTS.polygons, (place.x, place.y, place.x + 64, place.y + 64))
        kept = OBJECTS.select(share >= 0.7)
        offset = np.array([place.x, place.y], np.float32)
        assert objects.polygons == pytest.approx(kept.polygons - offset, abs=1e-4)
        assert np.array_equal(objects.labels, kept.labels)
        assert np.array_equal(objects.difficult, kept.difficult)
        lines = (tmp_path / f"root/dota/train/annotations/{name}.txt").read_text().splitlines()
        flags = [line.split()[9] for line in lines]
        far = (kept.polygons < offset - 0.01) | (kept.polygons > offset + 64.01)
        truncated = far.any((1, 2))
        assert flags == [
            "1" if d else "2" if t else "0" for d, t in zip(kept.difficult, truncated, strict=True)
        ]
        seen.update(flags)
    assert seen == {"0", "1", "2"}
    merged = merge_objects((name, objects) for name, _, objects in parts_of(tmp_path / "root"))
    assert 20 < len(merged["P0001"]) <= 30


def test_a_list_of_classes_among_the_labels(dota, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    (dota / "train/labelTxt-v2.0/DOTA-v2.0_train/classes.txt").write_text("plane\nship\n")
    assert run(dota, tmp_path / "root") == 0
    assert "could not be used" not in capsys.readouterr().out
    assert "classes.txt: a list of classes, not an annotation; skipped" in caplog.text


def test_labels_of_whole_images_are_kept(dota, tmp_path):
    run(dota, tmp_path / "root")
    again = AnnotationReader(DOTA_V2).read(tmp_path / "root/dota/val/whole/P0003.txt")
    assert np.array_equal(again.polygons, OBJECTS.polygons)
    assert np.array_equal(again.difficult, OBJECTS.difficult)


def test_test_part_has_no_labels(dota, tmp_path):
    run(dota, tmp_path / "root")
    windows = list(parts_of(tmp_path / "root", "test-dev"))
    assert len(windows) == 6 and all(objects is None for _, _, objects in windows)
    assert not (tmp_path / "root/dota/splits/test.txt").exists()
    assert not (tmp_path / "root/dota/test-dev/annotations").exists()


def test_test_images_may_lie_in_the_folder_of_their_part(dota, tmp_path, capsys):
    write_image(dota / "test-challenge/P0005.png", paint(OBJECTS, HEIGHT, WIDTH))
    run(dota, tmp_path / "root")
    assert len(list(parts_of(tmp_path / "root", "test-challenge"))) == 6
    said = capsys.readouterr().out
    assert "test=dict(images='dota/test-dev/images', names='dota/splits/test-dev.txt', windows=True)" in said
    train = "train=dict(images='dota/train/images', annotations='dota/train/annotations', names='dota/splits"
    assert train in said and "test-dev/annotations" not in said
    listed = tmp_path / "root/dota/splits/test-dev.txt"
    images = OrientedValidation(
        tmp_path / "root/dota/test-dev/images", None, DOTA_V2, "dota", size=64, split=listed
    )
    assert len(images) == 6 and len(images[0]["objects"]) == 0


def test_several_scales(dota, tmp_path):
    """At rate 0.5 windows are twice as large, at 2 half as large; pixels stay those of the image."""
    assert run(dota, tmp_path / "root", "--rates", "0.5", "1", "2") == 0
    windows = [item for item in parts_of(tmp_path / "root") if item[0].startswith("P0001")]
    sizes = {name.split("__")[1] for name, _, _ in windows}
    assert sizes == {"128", "64", "32"}
    large = [image for name, image, _ in windows if "__128__" in name]
    assert [image.shape for image in large] == [(128, 128, 3)] * 2, "padded, so that the scale is the same"
    assert np.array_equal(large[0][:90], paint(OBJECTS, HEIGHT, WIDTH)[:, :128])
    assert (large[0][90:] == PADDING).all()


def test_runs_again_and_in_processes(dota, tmp_path, capsys):
    run(dota, tmp_path / "a", "--rates", "0.5", "1", "--classes", *DOTA_V2)
    capsys.readouterr()
    assert run(dota, tmp_path / "a", "--rates", "0.5", "1", "--classes", *DOTA_V2) == 0
    assert "nothing to do: 4" in capsys.readouterr().out
    assert run(dota, tmp_path / "b", "--rates", "0.5", "1", "--workers", "2") == 0
    for path in sorted((tmp_path / "a/dota").rglob("*.*")):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.suffix == ".jsonl" or path.read_bytes() == other.read_bytes()


def test_result_can_be_trained_on(dota, tmp_path):
    run(dota, tmp_path / "root", "--format", "jpg")
    base = tmp_path / "root/dota/train"
    images = OrientedImages(base / "images", base / "annotations", DOTA_V2, size=64, keep_empty=False)
    assert 3 <= len(images) <= 6
    listed = OrientedImages(
        base / "images", base / "annotations", DOTA_V2, split=tmp_path / "root/dota/splits/train.txt"
    )
    assert len(listed) == 12


def test_own_data_in_one_folder(tmp_path, capsys):
    classes = ("buoy", "raft")
    own = rectangles(12, HEIGHT, WIDTH, classes=2)
    write(tmp_path / "own", "a 1", own, "labelTxt", classes)
    assert run(tmp_path / "own", tmp_path / "root", "--name", "lake", "--classes", *classes) == 0
    assert "classes: buoy, raft" in capsys.readouterr().out
    path = tmp_path / "root/lake/train/whole/a_1.txt"
    assert np.array_equal(AnnotationReader(classes).read(path).labels, own.labels)


def test_versions():
    assert {version: len(Dota.class_lists[Dota.class_list(version)]) for version in Dota.versions} == {
        "1.0": 15,
        "1.5": 16,
        "2.0": 18,
    }


def test_labels_of_whole_images_that_are_lost_are_written_again(dota, tmp_path):
    run(dota, tmp_path / "root")
    path = tmp_path / "root/dota/train/whole/P0001.txt"
    before = path.read_bytes()
    path.unlink()
    assert run(dota, tmp_path / "root") == 0 and path.read_bytes() == before


def test_images_that_moved_to_another_part_are_trained_on_no_more(dota, tmp_path):
    """Their windows stay where they were, but not in the list, which configurations name."""
    run(dota, tmp_path / "root")
    for kind in ("images/part1/P0001.png", "labelTxt-v2.0/DOTA-v2.0_train/P0001.txt"):
        target = dota / "val" / kind.replace("/DOTA-v2.0_train", "")
        target.parent.mkdir(parents=True, exist_ok=True)
        (dota / "train" / kind).rename(target)
    assert run(dota, tmp_path / "root") == 0
    names = {part: {name[:5] for name, *_ in parts_of(tmp_path / "root", part)} for part in ("train", "val")}
    assert names == {"train": {"P0002"}, "val": {"P0001", "P0003"}}
    shutil.rmtree(dota / "val")
    assert run(dota, tmp_path / "root") == 0
    assert not (tmp_path / "root/dota/splits/val.txt").exists(), "a part that is gone has no list"


# Bad input


def test_names_that_differ_in_white_space_alone(dota, tmp_path, capsys):
    for name in ("P 7", "P_7"):
        write(dota / "train", name)
    assert run(dota, tmp_path / "root") == 1
    assert "P 7.png and " in (said := capsys.readouterr().err) and "rename one of them" in said
    assert not list((tmp_path / "root").rglob("*.png"))
    (dota / "train/images/part1/P 7.png").unlink()
    assert run(dota, tmp_path / "root") == 0, "labels without an image are listed as unusable"


def test_what_is_unusable_is_listed_and_the_rest_is_done(dota, tmp_path, capsys):
    labels = dota / "train/labelTxt-v2.0/DOTA-v2.0_train"
    write(dota / "train", "P0010")
    (labels / "P0010.txt").write_text("1 2 3 4 5 6 7 8 spaceship 0\n")
    write(dota / "train", "P0011")
    (labels / "P0011.txt").unlink()
    write_objects(labels / "P0012.txt", OBJECTS, DOTA_V2)
    write(dota / "train", "P0013")
    image = dota / "train/images/part1/P0013.png"
    image.write_bytes(image.read_bytes()[:-40])
    assert run(dota, tmp_path / "root") == 0
    text = capsys.readouterr().out
    assert "4 source files could not be used" in text and "4 source files cut into 24" in text
    unusable = (tmp_path / "root/dota/unusable.txt").read_text().splitlines()
    assert len(unusable) == 4
    for line, words in zip(
        unusable,
        (
            ("P0010.txt, line 1", "'spaceship'"),
            ("P0011.txt",),
            ("P0012.png", "not found"),
            ("P0013.png", "truncated"),
        ),
        strict=True,
    ):
        assert all(word in line for word in words), line


def test_objects_without_area_are_left_out_with_a_note(dota, tmp_path, capsys):
    path = dota / "train/labelTxt-v2.0/DOTA-v2.0_train/P0002.txt"
    path.write_text("5 5 5 5 5 9 5 9 ship 0\n")
    assert run(dota, tmp_path / "root") == 0
    assert "train/P0002: 1 objects left out, the first: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda src: None, ["no images", "train/images", "captain-whu"]),
        (
            lambda src: write_image(src / "train/images/a.png", np.zeros((9, 9, 3), np.uint8)),
            ["1 images and 0 label"],
        ),
        (lambda src: (src / "train.zip").touch(), ["unpack first: train.zip"]),
    ],
)
def test_incomplete_data_set(tmp_path, capsys, change, words):
    (tmp_path / "src").mkdir()
    change(tmp_path / "src")
    assert run(tmp_path / "src", tmp_path / "root") == 1
    text = capsys.readouterr().err
    assert all(word in text for word in words), text


def test_two_images_of_one_name(dota, tmp_path, capsys):
    write_image(dota / "train/images/part2/P0001.png", paint(OBJECTS, HEIGHT, WIDTH))
    assert run(dota, tmp_path / "root") == 1
    assert "have the same name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rates", "0"], "--rates"),
        (["--rates", "1", "1"], "--rates"),
        (["--rates", "8"], "16 or more"),
        (["--iof", "0"], "--iof"),
        (["--gap", "64"], "overlap"),
        (["--classes", "a", "A"], "twice"),
        (["--name", "a/b"], "--name"),
    ],
)
def test_impossible_options(dota, tmp_path, capsys, options, word):
    assert run(dota, tmp_path / "root", *options) == 1
    assert word in capsys.readouterr().err


def test_real_images(shared, tmp_path, capsys):
    src = shared / "data/rot/dota14"
    assert run(src, tmp_path, "--version", "1.0", "--size", "512", "--gap", "100") == 0
    assert "P1478__1__853___962: 2 objects left out" in capsys.readouterr().out
    base = tmp_path / "dota/train"
    images = OrientedImages(base / "images", base / "annotations", DOTA_V1, size=512)
    whole = OrientedImages(src / "images", src / "labelTxt", DOTA_V1)
    merged = merge_objects((images.samples.name(i), images.samples.objects(i)) for i in range(len(images)))
    for i in range(len(whole)):
        objects = whole.samples.objects(i)
        height, width = whole.image_size(i)
        inside = share_inside(objects.polygons, (0, 0, width, height)) >= 0.7
        small = objects.boxes[:, 2] < 100
        found = merged[whole.samples.name(i)]
        assert len(found) >= (inside & small).sum(), "what fits into the gap is in some window"
        assert len(found) <= inside.sum()


def test_windows_keep_where_there_are_no_data(dota, tmp_path, capsys):
    """Without data and objects a window is not written; partly without, it is PNG whatever the format."""
    rgb = paint(OBJECTS, HEIGHT, WIDTH)
    for name in ("P0001", "P0002"):  # with and without objects
        valid = np.broadcast_to(np.arange(WIDTH) >= 70, (HEIGHT, WIDTH))
        write_image(dota / f"train/images/part1/{name}.png", rgb, valid=valid)
    write_image(dota / "test-dev/images/P0004.png", rgb[:50], valid=valid[:50])
    assert run(dota, tmp_path / "root", "--format", "jpg") == 0
    assert "3 patches without any data left out" in capsys.readouterr().out
    names = [sample.image.name for sample in Split("dota/splits/train.txt", tmp_path / "root")]
    expected = {0: ".png", 48: ".png", 86: ".jpg"}
    wanted = [
        f"{image}__64__{x}___{y}{end}"
        for image in ("P0001", "P0002")
        for y in (0, 26)
        for x, end in expected.items()
    ]
    assert names == [name for name in wanted if not name.startswith("P0002__64__0_")]
    image, known = read_image_with_valid(tmp_path / "root/dota/train/images/P0001__64__48___26.png")
    assert np.array_equal(known, valid[:64, 48:112]) and np.array_equal(image[known], rgb[26:, 48:112][known])
    image, known = read_image_with_valid(tmp_path / "root/dota/test-dev/images/P0004__64__48___0.png")
    assert np.array_equal(known[:50], valid[:50, 48:112]) and known[50:].all()
    assert (image[50:] == PADDING).all(), "padding is not black"
    item = OrientedValidation(tmp_path / "root/dota/test-dev/images", None, DOTA_V2, "dota", size=64)[0]
    assert np.array_equal(item["valid"].numpy(), known) and item["valid"] is not None
