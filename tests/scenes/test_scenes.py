"""The embedded scenes: determinism, masks, boxes, label sets, colour not being enough, and the command."""

import json
import shutil

import cv2
import numpy as np
import pytest

from s5.data.image_io import read_image, read_mask
from s5.data.label_table import IGNORE
from s5.data.labels import get_table
from s5.data.splits import Split
from s5.errors import DataError
from scenes import BOX_CLASSES, CLASSES, LABEL_SETS, THEMES, generate_scene
from scenes.__main__ import main
from scenes.canvas import Canvas, Sun
from scenes.classes import BUILDING, PLANE, SHIP, VEHICLE, WATER, Material
from scenes.dataset import PARTS, Request, dota_lines, write_dataset
from scenes.geometry import box
from scenes.palette import Palette
from scenes.render import cast_shadows
from scenes.scene import polygons, visible_boxes, visible_share

SMALL = Request(labeled=6, unlabeled=4, val=3, size=48)


@pytest.fixture(scope="module")
def scenes():
    """Six scenes of every theme, 128 pixels."""
    return [generate_scene(0, index, 128) for index in range(36)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small dataset on disk."""
    root = tmp_path_factory.mktemp("world")
    assert write_dataset(root, SMALL) == (13, 0)
    return root


@pytest.mark.parametrize("theme", THEMES)
def test_a_scene_is_a_pure_function_of_seed_index_and_theme(theme):
    first, again = generate_scene(3, 11, 64, theme), generate_scene(3, 11, 64, theme)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.mask, again.mask)
    assert np.array_equal(first.boxes, again.boxes)
    assert first.meta == again.meta and first.meta["theme"] == theme
    assert not np.array_equal(first.image, generate_scene(3, 12, 64, theme).image)
    assert not np.array_equal(first.image, generate_scene(4, 11, 64, theme).image)


@pytest.mark.filterwarnings("error")
def test_a_town_with_a_single_cross_street():
    """Its streets have no length along the other axis."""
    assert generate_scene(0, PARTS["unlabeled"].first + 616, 256).image.shape == (256, 256, 3)


def test_themes_take_turns_and_an_unknown_one_is_named():
    themes = {generate_scene(0, index, 32).meta["theme"] for index in range(len(THEMES))}
    assert themes == set(THEMES)
    with pytest.raises(ValueError, match="desert.*rural"):
        generate_scene(0, 0, 32, "desert")


def test_scenes_are_well_formed_and_every_class_occurs(scenes):
    share = np.zeros(len(CLASSES))
    for scene in scenes:
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        assert scene.mask.shape == (128, 128) and scene.mask.dtype == np.uint8
        assert scene.boxes.shape[1] == 6 and scene.boxes.dtype == np.float32
        assert 0.2 <= scene.meta["gsd"] <= 1.0
        share += np.bincount(scene.mask.ravel(), minlength=len(CLASSES))[: len(CLASSES)]
    share /= share.sum()
    assert share.sum() == pytest.approx(1) and share.max() < 0.5
    assert (share[:BUILDING] > 0.05).all() and (share[BUILDING:] > 0.001).all()


def test_class_ids_are_those_of_the_label_table():
    assert [CLASSES[i] for i in (WATER, BUILDING, VEHICLE, SHIP, PLANE)] == [
        "water",
        "building",
        "vehicle",
        "ship",
        "plane",
    ]
    assert all(CLASSES[label] == name for label, name in BOX_CLASSES.items())


def test_boxes_hold_their_objects_tightly(scenes):
    checked = {label: 0 for label in BOX_CLASSES}
    for scene in scenes:
        for polygon, row in zip(scene.polygons, scene.boxes, strict=True):
            if visible_share(row[None], 128)[0] < 0.999 or min(row[2:4]) < 5:
                continue
            inside = np.zeros((128, 128), np.uint8)
            cv2.fillPoly(inside, [np.round((polygon - 0.5) * 16).astype(np.int32)], 1, shift=4)
            fill = (scene.mask[inside > 0] == row[5]).mean()
            assert fill > {VEHICLE: 0.75, SHIP: 0.5, PLANE: 0.12}[int(row[5])]
            checked[int(row[5])] += 1
    assert min(checked.values()) >= 5


def test_every_whole_object_of_the_mask_has_a_box(scenes):
    for scene in scenes:
        covered = np.zeros(scene.mask.shape, np.uint8)
        for polygon in scene.polygons:
            cv2.fillPoly(covered, [np.round(polygon - 0.5).astype(np.int32)], 1)
        covered = cv2.dilate(covered, np.ones((5, 5), np.uint8))
        inner = (slice(40, -40), slice(40, -40))  # objects that the border cuts may have no box
        assert not ((scene.mask >= VEHICLE) & (covered == 0))[inner].any()


def test_vehicles_stand_on_roads_and_ships_in_water(scenes):
    for label, ground in ((VEHICLE, "road"), (SHIP, "water")):
        around = np.zeros(len(CLASSES))
        for scene in scenes:
            objects = (scene.mask == label).astype(np.uint8)
            ring = cv2.dilate(objects, np.ones((5, 5), np.uint8)) - objects
            around += np.bincount(scene.mask[ring > 0], minlength=len(CLASSES))
        assert around[CLASSES.index(ground)] > 0.85 * around.sum()


def test_visible_boxes():
    rows = [(50, 50, 10, 30, 0.25, 5), (50, 50, 30, 10, 3.0, 5), (0, 50, 20, 8, 0, 5), (-9, 50, 20, 8, 0, 5)]
    boxes = np.array(rows)
    out = visible_boxes(boxes, 100)
    assert len(out) == 3  # the last one is mostly out of the image
    assert (out[:, 2] >= out[:, 3]).all() and (np.abs(out[:, 4]) <= np.pi / 2).all()
    for before, after in zip(boxes[:2], out, strict=False):
        a, b = polygons(before[None])[0], polygons(after[None])[0]
        assert {tuple(p) for p in np.round(a, 3)} == {tuple(p) for p in np.round(b, 3)}
    first = polygons(np.array([(50.0, 50, 10, 4, np.pi / 2, 5)]))[0]
    assert np.allclose(first, [(52, 45), (52, 55), (48, 55), (48, 45)])
    text = dota_lines(out[1:], 100).splitlines()[1]
    assert text == "-10.00 46.00 10.00 46.00 10.00 54.00 -10.00 54.00 vehicle 1"


def test_shadows_fall_away_from_the_sun_as_far_as_the_height_says():
    rng = np.random.default_rng(0)
    sun = Sun(np.array([1.0, 0.0]), 1.0)  # 45 degrees high, on the right
    canvas = Canvas(64, 1.0, rng, Palette.draw(rng), sun)
    canvas.fill(box(4, 30), Material.ROOF, (90, 90, 90), height=10.0)
    shadow = cast_shadows(canvas)
    row = shadow[32]
    assert row[:18].max() < 0.1 and row[23:29].min() > 0.9 and row[36:].max() < 0.1


def test_label_sets():
    mask = np.array([[0, 1, 2, 3, 4, 5, 6, 7, IGNORE]], np.uint8)
    wanted = {
        "scenes": [0, 1, 2, 3, 4, 5, 6, 7, 255],
        "landcover": [0, 1, 2, 3, 3, 255, 255, 255, 255],
        "roads": [0, 0, 0, 1, 0, 0, 0, 0, 255],
        "water": [0, 0, 1, 0, 0, 0, 0, 0, 255],
        "objects": [0, 0, 0, 0, 0, 1, 2, 3, 255],
    }
    for name, ids in wanted.items():
        assert LABEL_SETS[name].apply(mask).tolist() == [ids]
        assert len(LABEL_SETS[name].classes) == len(set(ids) - {IGNORE})
    assert LABEL_SETS["scenes"].classes == get_table("scenes").classes


def test_colour_alone_does_not_decide_the_class(scenes):
    """The best class per colour, learned from as many scenes, stays far below what context reaches."""
    others = [generate_scene(0, 1000 + index, 128) for index in range(36)]

    def colors(items):
        pixels = np.stack([scene.image for scene in items]).reshape(-1, 3).astype(int) >> 3
        return pixels @ (1024, 32, 1), np.stack([scene.mask for scene in items]).ravel()

    bins, labels = colors(scenes)
    counts = np.bincount(bins * 8 + labels, minlength=8 << 15).reshape(-1, 8)
    bins, labels = colors(others)
    predicted = (counts + 1e-6 * counts.sum(0)).argmax(1)[bins]
    matrix = np.bincount(labels.astype(int) * 8 + predicted, minlength=64).reshape(8, 8)
    hit = np.diag(matrix)
    iou = hit / (matrix.sum(0) + matrix.sum(1) - hit)
    assert iou.mean() < 0.33
    assert iou[VEHICLE:].max() < 0.2
    assert iou.mean() > 0.10  # or the measurement itself is broken


def test_plot_shows_image_mask_and_boxes():
    scene = generate_scene(0, 2, 64)
    picture = scene.plot(zoom=2)
    assert picture.shape == (128, 384, 3)
    assert np.array_equal(picture[::2, 128:256:2], get_table("scenes").colorize(scene.mask))


def test_dataset_layout_and_splits(world):
    split = Split("splits/labeled/labeled.txt", world)
    assert len(split) == 6 and split.sample(0).name == "labeled/scenes/train/images/000000.png"
    for index in range(6):
        sample, scene = split.sample(index), generate_scene(0, index, 48)
        assert np.array_equal(read_image(sample.image), scene.image)
        assert np.array_equal(read_mask(sample.mask), scene.mask)
        text = (world / f"labeled/scenes/train/labelTxt/{index:06d}.txt").read_text()
        assert text == dota_lines(scene.boxes, 48)
    unlabeled, val = Split("splits/unlabeled/scenes.txt", world), Split("splits/val.txt", world)
    assert len(unlabeled) == 4 and unlabeled.sample(3).mask is None and len(val) == 3
    assert np.array_equal(read_image(val.sample(1).image), generate_scene(0, 2_000_001, 48).image)
    assert read_image(unlabeled.sample(3).image).shape == (48, 48, 3)
    assert {path.name for path in world.iterdir()} == {"labeled", "unlabeled", "splits", "scenes.json"}


def test_dataset_does_not_depend_on_the_number_of_workers(world, tmp_path):
    write_dataset(tmp_path, SMALL, workers=3)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((world / path).read_bytes() == (tmp_path / path).read_bytes() for path in files)


def _command(root, **numbers):
    return ["--out", str(root), "--workers", "1", *(f"--{name}={value}" for name, value in numbers.items())]


def test_command_is_idempotent_and_completes_what_is_missing(world, tmp_path, capsys):
    root = tmp_path / "copy of world"
    shutil.copytree(world, root)
    command = _command(root, labeled=6, unlabeled=4, val=3, size=48)
    assert main(command) == 0
    assert "0 scenes written" in capsys.readouterr().out
    gone, kept = (root / f"labeled/scenes/val/masks/00000{i}.png" for i in (1, 2))
    content, time = gone.read_bytes(), kept.stat().st_mtime_ns
    gone.unlink()
    assert main(command) == 0
    assert "1 scenes written" in capsys.readouterr().out
    assert gone.read_bytes() == content and kept.stat().st_mtime_ns == time


def test_command_with_other_parameters_asks_before_replacing(world, tmp_path, capsys):
    root = tmp_path / "world"
    shutil.copytree(world, root)
    command = _command(root, labeled=2, unlabeled=0, val=1, size=32)
    assert main(command) == 1
    message = capsys.readouterr().err
    assert all(
        part in message for part in (str(root / "scenes.json"), "size=48 (requested: 32)", "--overwrite")
    )
    assert main([*command, "--overwrite"]) == 0
    assert len(list((root / "labeled/scenes/train/images").iterdir())) == 2
    assert not (root / "splits/unlabeled/scenes.txt").exists()
    assert json.loads((root / "scenes.json").read_text())["size"] == 32


def test_other_files_are_never_overwritten(tmp_path):
    mine = tmp_path / "splits/val.txt"
    mine.parent.mkdir()
    mine.write_text("my own list\n")
    with pytest.raises(DataError, match="val.txt exists but was not written by this command; choose another"):
        write_dataset(tmp_path, SMALL, overwrite=True)
    assert mine.read_text() == "my own list\n"


@pytest.mark.parametrize(("name", "value"), [("size", 16), ("labeled", -1), ("val", 2_000_000)])
def test_impossible_requests_name_the_value(name, value):
    with pytest.raises(DataError, match=f"{name}={value}"):
        Request(**{name: value})
