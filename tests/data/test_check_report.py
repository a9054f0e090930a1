"""Masks written for another table: found by the check, said in plain words, refused before training.

Where the user's own classes may explain them as well, they are a warning.
"""

import logging

import cv2
import numpy as np
import pytest

from s5.data.check import check_split, main, require_clean
from s5.data.folders import pair_folders
from s5.data.image_io import read_mask, write_image, write_mask
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main as prepare
from s5.data.splits import Split
from s5.errors import DataError
from scenes.dataset import PARTS
from tests.helpers.shipped_data import class_map, erode, isprs_colors, make_potsdam


def report_on(folder, masks, labels):
    """The check of these masks, each beside an image of its size."""
    for i, mask in enumerate(masks):
        write_image(folder / f"images/{i}.png", np.zeros((*mask.shape[:2], 3), np.uint8))
        (write_mask if mask.ndim == 2 else write_image)(folder / f"masks/{i}.png", mask)
    return check_split(pair_folders("images", "masks", folder), get_table(labels, default_name="own"))


def conventions(report):
    return [problem.message for problem in report.problems if problem.kind == "convention"]


def isprs_masks(clutter=True):
    """Ids 0 to 5 with 255 between objects."""
    return [erode(class_map(90, 90, 6 if clutter else 5, i)) for i in range(3)]


def as_mmseg(mask):
    return np.where(mask == 255, 0, mask + 1).astype(np.uint8)


@pytest.mark.parametrize("name", ["vaihingen", "potsdam"])
def test_real_masks_of_mmsegmentation(shared, name):
    """No value of these is outside the tables: only their borders tell."""
    split = pair_folders("img_dir", "ann_dir", shared / "data/seg/mmseg_fixtures" / name)
    for six in ("", "_6"):
        (message,) = check_split(split, get_table(name + six)).errors
        assert "mmsegmentation convention" in message and f"Set labels: {name}_mmseg{six} " in message
        assert check_split(split, get_table(f"{name}_mmseg{six}")).ok


def test_real_masks_of_loveda(shared):
    split = pair_folders("img_dir", "ann_dir", shared / "data/seg/mmseg_fixtures/loveda")
    assert check_split(split, get_table("loveda")).ok
    message = check_split(split, get_table("loveda_train_ids")).errors[0]
    assert message.endswith("Set labels: loveda")


def test_training_refuses_shifted_masks(shared, tmp_path):
    split = pair_folders("img_dir", "ann_dir", shared / "data/seg/mmseg_fixtures/potsdam")
    with pytest.raises(DataError, match=r"mmsegmentation convention.*Set labels: potsdam_mmseg") as error:
        require_clean(split, get_table("potsdam"), tmp_path)
    command = str(error.value).splitlines()[-1].partition("See all with: ")[2]
    assert f"{split.path} --root" in command and f"--masks {split.path.parent / 'ann_dir'}" in command
    assert main(command.split()[3:]) == 1


@pytest.mark.parametrize("clutter", [True, False])
@pytest.mark.parametrize("six", ["", "_6"])
def test_isprs_masks_either_way(tmp_path, six, clutter):
    masks = isprs_masks(clutter)
    ours, mmseg = f"potsdam{six}", f"potsdam_mmseg{six}"
    assert report_on(tmp_path / "a", masks, ours).ok
    (message,) = conventions(report_on(tmp_path / "b", masks, mmseg))
    assert f"Set labels: {ours}" in message and "count classes from 0" in message
    shifted = [as_mmseg(mask) for mask in masks]
    assert report_on(tmp_path / "c", shifted, mmseg).ok
    (message,) = conventions(report_on(tmp_path / "d", shifted, ours))
    assert f"Set labels: {mmseg} " in message


def test_isprs_masks_without_eroded_boundary(tmp_path):
    masks = [class_map(90, 90, 6, i) for i in range(3)]
    assert report_on(tmp_path / "a", masks, "potsdam").ok
    assert conventions(report_on(tmp_path / "b", masks, "potsdam_mmseg"))
    shifted = [mask + 1 for mask in masks]
    assert conventions(report_on(tmp_path / "c", shifted, "potsdam"))
    no_clutter = [np.where(mask == 6, 1, mask).astype(np.uint8) for mask in shifted]
    assert conventions(report_on(tmp_path / "d", no_clutter, "potsdam")), "no value is outside the table"


def test_prepared_masks_are_clean(tmp_path):
    make_potsdam(tmp_path / "p", bands=("RGB",))
    arguments = ["potsdam", "--src", str(tmp_path / "p"), "--out", str(tmp_path), "--size", "32"]
    assert prepare([*arguments, "--boundary", "eroded", "--workers", "1"]) == 0
    for group in ("train", "val"):
        split = Split(f"potsdam/splits/{group}.txt", tmp_path)
        assert check_split(split, get_table("potsdam")).ok
        assert check_split(split, get_table("potsdam_6")).ok


def test_shifted_loveda(tmp_path):
    raw = [class_map(90, 90, 8, i) for i in range(3)]
    assert report_on(tmp_path / "a", raw, "loveda").ok
    shifted = [(mask - 1).astype(np.uint8) for mask in raw]  # 0 becomes 255
    report = report_on(tmp_path / "b", shifted, "loveda")
    assert "Set labels: loveda_train_ids" in report.errors[0], "before the errors of single masks"
    assert report_on(tmp_path / "c", shifted, "loveda_train_ids").ok
    no_ignored = [np.where(class_map(90, 90, 10, i) > 6, 0, class_map(90, 90, 10, i)) for i in range(3)]
    (message,) = conventions(report_on(tmp_path / "d", [m.astype(np.uint8) for m in no_ignored], "loveda"))
    assert "count classes from 0" in message


def no_data_at_the_sides(masks, share=0.1):
    """These masks with 0 where the scene ends, along a slope."""
    side = np.tri(90, 90, -round(90 * (1 - (2 * share) ** 0.5)), dtype=bool)
    return [np.where(side, 0, mask).astype(np.uint8) for mask in masks]


def test_shifted_loveda_without_no_data_is_a_warning(tmp_path):
    """No value is outside the table; only what 0 looks like tells."""
    shifted = [class_map(90, 90, 7, i) for i in range(8)]
    report = report_on(tmp_path / "a", shifted, "loveda")
    assert report.ok
    (message,) = report.warnings
    assert "no 7 ('agricultural')" in message and "Set labels: loveda_train_ids" in message
    assert "'check: false'" in message
    assert not report_on(tmp_path / "b", [mask + 1 for mask in shifted], "loveda").warnings


def test_shifted_real_masks_of_loveda(shared, tmp_path):
    paths = sorted((shared / "data/seg/mmseg_fixtures/loveda/ann_dir").rglob("*.png"))
    report = report_on(tmp_path, [read_mask(path) - np.uint8(1) for path in paths], "loveda")
    assert any("loveda_train_ids" in message for message in [*report.errors, *report.warnings])


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_no_data_at_the_sides_is_no_shift(tmp_path, share):
    """Right masks of a few images without the last class."""
    masks = no_data_at_the_sides([class_map(90, 90, 6, i) + np.uint8(1) for i in range(16)], share)
    report = report_on(tmp_path, masks, "loveda")
    assert report.ok and not report.warnings


def test_own_classes_one_higher(tmp_path):
    own = {"classes": ["soil", "crop", "path", "water"]}
    masks = [class_map(90, 90, 4, i) for i in range(3)]
    assert report_on(tmp_path / "a", masks, own).ok
    (message,) = conventions(report_on(tmp_path / "b", [mask + 1 for mask in masks], own))
    assert "Set values: [1, 2, 3, 4] and ignore: [0]. If only 4 is missing in the table, add it" in message
    eroded = [as_mmseg(erode(mask)) for mask in masks]
    assert conventions(report_on(tmp_path / "c", eroded, own))


def enlarged(mask, times):
    return np.kron(mask, np.ones((times, times), np.uint8))


def parcels():
    """Areas of values 1, 2 and 3, divided by lines of 0."""
    masks = [enlarged(class_map(30, 30, 3, i), 4) + np.uint8(1) for i in range(3)]
    for mask in masks:
        for line in range(40, 120, 40):
            mask[line - 2 : line + 2] = mask[:, line - 2 : line + 2] = 0
    return masks


@pytest.mark.parametrize("classes", [["road", "field", "forest", "water"], ["background", "a", "b", "c"]])
def test_a_thin_first_class_is_a_warning(tmp_path, caplog, classes):
    """Roads between parcels look like boundaries; only the user knows, and training goes on."""
    own = {"name": "own", "classes": classes}
    report = report_on(tmp_path, parcels(), own)
    assert report.ok and report.as_dict()["warnings"] == report.warnings
    (message,) = report.warnings
    assert f"{tmp_path / 'images'}: the masks hold 0, 1, 2, 3, 0 only between objects" in message
    assert f"Set values: [1, 2, 3, 4] and ignore: [0]. If 0 is {classes[0]!r}" in message
    assert "'background: 0'" in message and "'check: false' silences this warning" in message
    summary = report.summary()
    assert "1 warnings:" in summary and message in summary and summary.endswith("no errors")

    split = pair_folders("images", "masks", tmp_path)
    with caplog.at_level(logging.WARNING, "s5.data.check"):
        for times in (1, 2):  # the second time it is remembered
            require_clean(split, get_table(own), tmp_path / "cache")
            assert len(caplog.records) == times and message in caplog.records[-1].getMessage()
    assert not report_on(tmp_path, parcels(), own | {"background": 0}).warnings


def test_the_same_masks_are_an_error_where_the_classes_are_known(tmp_path):
    """Also in a table of one's own, if a value is beyond it."""
    report = report_on(tmp_path / "a", parcels(), "potsdam")
    (message,) = conventions(report)
    assert "Set labels: potsdam_mmseg" in message and message.endswith("'check: false' skips this check")
    assert not report.warnings
    own = {"classes": ["field", "forest", "water"]}
    (message,) = conventions(report_on(tmp_path / "b", parcels(), own))
    assert "Set values: [1, 2, 3] and ignore: [0]" in message
    assert "If only 3 is missing in the table" in message and "check: false" not in message


def test_own_classes_one_lower(tmp_path):
    own = {"classes": ["soil", "crop", "path"], "values": [1, 2, 3], "ignore": [0]}
    masks = [class_map(90, 90, 3, i) for i in range(3)]
    masks[0][:9] = 255
    (message,) = conventions(report_on(tmp_path, masks, own))
    assert "Set values: [0, 1, 2] and ignore: [255]. If only 255 is missing in the table, add it" in message


def test_a_first_class_between_all_others_is_no_mistake(tmp_path):
    """Islands of other classes on the first one: all borders touch 0, but it is no line."""
    masks = []
    for i in range(4):
        mask = np.zeros((120, 120), np.uint8)
        for j, (y, x) in enumerate(np.ndindex(3, 3)):
            mask[y * 40 + 5 : y * 40 + 22, x * 40 + 5 : x * 40 + 22] = 1 + (i + j) % 4
        masks.append(mask)
    assert report_on(tmp_path / "a", masks, {"classes": ["sea", "a", "b", "c", "d"]}).ok
    assert report_on(tmp_path / "b", masks, "scenes").ok


def test_binary_masks_of_the_other_kind(tmp_path):
    high = [class_map(40, 40, 2, i) * np.uint8(255) for i in range(3)]
    (message,) = conventions(report_on(tmp_path / "a", high, {"classes": ["roof"]}))
    assert "0 and 255" in message and "'roof' never occurs" in message and "values: [255]" in message
    assert report_on(tmp_path / "b", high, {"classes": ["roof"], "values": [255], "ignore": []}).ok
    low = [mask // 255 for mask in high]
    assert report_on(tmp_path / "c", low, {"classes": ["roof"]}).ok
    report = report_on(tmp_path / "d", low, {"classes": ["roof"], "values": [255], "ignore": []})
    assert "Remove `values` and `ignore`" in report.errors[0]


def test_padding_of_images_without_objects_is_a_warning(tmp_path):
    """A small part for validation may well have no roof; 255 at the sides is padding then."""
    masks = [np.zeros((40, 40), np.uint8) for _ in range(3)]
    masks[0][:, 30:] = 255
    masks[1][:7], masks[1][:, :4] = 255, 255
    masks[2][np.tril_indices(40, -20)] = 255
    report = report_on(tmp_path / "a", masks, {"classes": ["roof"]})
    assert report.ok
    (message,) = report.warnings
    assert "255 touches the borders of the images" in message and "values: [255]" in message
    assert "check: false" in message
    masks[0][10:30, 10:20] = 1
    assert not report_on(tmp_path / "b", masks, {"classes": ["roof"]}).warnings
    with_roofs = [np.pad(class_map(20, 20, 2, i) * np.uint8(255), 10) for i in range(3)]
    (message,) = conventions(report_on(tmp_path / "c", with_roofs, {"classes": ["roof"]}))
    assert "255 lies inside the images" in message and "check: false" in message


def test_colour_coded_masks(tmp_path):
    colors = [isprs_colors(class_map(40, 40, 6, i)) for i in range(3)]
    report = report_on(tmp_path / "a", colors, "potsdam")
    assert report.ok and (report.histogram > 0).all(), "they are read by the palette"
    report = report_on(tmp_path / "none", colors, {"classes": list("abcdef")})
    assert {problem.kind for problem in report.problems} == {"colours"}
    assert "Add a palette to the label table" in report.errors[0]
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in colors]
    message = report_on(tmp_path / "b", grey, "potsdam").errors[0]
    assert "colours of label table 'potsdam' converted to grey" in message


def test_good_masks_stay_good(shared, scenes_root):
    """What is right is not suspected, whatever its classes."""
    seg = shared / "data/seg"
    dubai = {"classes": ["building", "land", "road", "vegetation", "water"]}
    for name, table in (
        ("dubai", dubai),
        ("fair_buildings", {"classes": ["building"]}),
        ("epfl_roads", {"classes": ["road"]}),
    ):
        report = check_split(pair_folders("images", "masks", seg / name), get_table(table, default_name=name))
        assert report.ok, report.summary()
    split = Split(PARTS["labeled"].split, scenes_root)
    assert check_split(split, get_table("scenes")).ok
