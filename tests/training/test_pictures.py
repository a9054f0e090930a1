"""Contact sheets of validation images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s5.data.image_io import read_image
from s5.data.label_table import IGNORE
from s5.data.labels import get_table
from s5.data.oriented.drawing import LINE
from s5.training.hooks import PicturesHook
from s5.training.hooks.pictures import CELL, GAP, TITLE_HEIGHT, colored, contact_sheet, legend

TABLE = get_table({"name": "t", "classes": ["a", "b"], "palette": [[250, 0, 0], [0, 0, 250]]})


@pytest.fixture
def runner(tmp_path):
    sheets = {}
    visualizer = SimpleNamespace(add_image=lambda name, sheet, step: sheets.update({name: sheet}))
    return SimpleNamespace(rank=0, iter=7, work_dir=str(tmp_path), visualizer=visualizer, sheets=sheets)


def validate(hook, runner, height, width, count=1):
    """Validate images of which every other column is of the second class."""
    ids = (torch.arange(width) % 2).expand(height, width).clone()
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    batch = {"tasks": ["t"] * count, "images": [image] * count, "labels": [ids] * count}
    hook.after_val_iter(runner, 0, batch, [ids.to(torch.uint8)] * count)


def test_no_more_than_the_shrunk_pictures_are_kept(runner):
    hook = PicturesHook({"t": TABLE}, count=2)
    validate(hook, runner, 1500, 900, count=3)
    (rows,) = hook._rows.values()
    assert len(rows) == 2
    for row in rows:
        assert [picture.shape for picture in row] == [(CELL, 192, 3)] * 3
        owners = [picture if picture.base is None else picture.base for picture in row]
        assert all(owner.nbytes == CELL * 192 * 3 for owner in owners)


def test_shrunk_masks_hold_colours_of_classes_only(runner, tmp_path):
    hook = PicturesHook({"t": TABLE})
    validate(hook, runner, 500, 1001)
    hook.after_val_epoch(runner)
    sheet = runner.sheets["val"][TITLE_HEIGHT:-LINE]
    assert sheet.shape == (CELL * 500 // 1001 + 1 + GAP, 3 * (CELL + GAP), 3)
    label = sheet[:-GAP, CELL + GAP : 2 * CELL + GAP].reshape(-1, 3)
    assert {tuple(color) for color in np.unique(label, axis=0).tolist()} == {(250, 0, 0), (0, 0, 250)}
    assert np.all(sheet[:-GAP, :CELL] == 90)
    assert read_image(tmp_path / "pictures/val_000007.jpg").shape == runner.sheets["val"].shape
    assert hook._rows["t"] == []


@pytest.mark.parametrize("shape", [(3, 4), (1, 2000), (2000, 1)])
def test_small_and_thin_pictures(runner, shape):
    hook = PicturesHook({"t": TABLE})
    validate(hook, runner, *shape)
    hook.after_val_epoch(runner)
    around = runner.sheets["val"].shape[0] - min(shape[0], CELL) - GAP
    assert around >= TITLE_HEIGHT + LINE and (around - TITLE_HEIGHT) % LINE == 0


def test_titles_and_legend_stand_around_the_pictures():
    picture = np.full((40, 60, 3), 90, np.uint8)
    plain = contact_sheet([[picture, picture]])
    sheet = contact_sheet(
        [[picture, picture]], ("a", "a title too long for its column"), [("roof", (9, 8, 250))]
    )
    assert np.array_equal(sheet[TITLE_HEIGHT:-LINE], plain)
    titles = sheet[:TITLE_HEIGHT].min(2) < 128
    assert titles[:, : 60 + GAP].any() and titles[:, 60 + GAP :].any()
    assert not titles[:, -GAP:].any()  # shrunk to fit
    assert (sheet[-LINE:] == (9, 8, 250)).all(2).any()


def test_ignored_pixels_differ_from_a_black_background():
    black = get_table({"name": "roofs", "classes": ["roof"], "palette": [[220, 60, 60]]})
    ids = torch.tensor([[0, 1, IGNORE]])
    for table in (TABLE, black):
        colors = colored(ids, table)[0].tolist()
        assert len({tuple(color) for color in colors}) == 3
        assert legend(table, "no label")[-1] == ("no label", tuple(colors[2]))
    assert colored(ids, TABLE)[0, 2].tolist() == [0, 0, 0]
