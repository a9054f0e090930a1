"""The summary table of an evaluation; tables and pictures of confusion matrices."""

import csv
import math

import cv2
import numpy as np
import pytest
import torch

from s5.data.datasets import TABLES
from s5.data.labels import get_table
from s5.segmentation import evaluation
from s5.segmentation.evaluation import (
    class_table,
    draw_confusion,
    summary,
    write_class_csv,
    write_confusion_csv,
)
from s5.segmentation.metrics import SegmentationMetric


def metric(task, matrix, background=None):
    classes = [f"c{i}" for i in range(len(matrix))]
    made = SegmentationMetric(get_table({"name": task, "classes": classes, "background": background}), task)
    made.matrix = torch.tensor(matrix)
    return made


def cells(text):
    header, *lines = text.splitlines()
    return {
        words[0]: dict(zip(header.split()[1:], words[1:], strict=False)) for words in map(str.split, lines)
    }


def test_a_task_without_a_score_is_left_out_of_the_mean():
    empty = metric("clouds", [[0, 0], [0, 0]])  # all of its pixels are ignored
    text = summary([metric("ponds", [[3, 1], [0, 4]]), empty, metric("roofs", [[8, 0], [0, 0]])])
    rows = cells(text)
    assert rows["clouds"]["mIoU"] == "nan"
    assert rows["mean"]["mIoU"] == f"{100 * ((3 / 4 + 4 / 5) / 2 + 1) / 2:.2f}"
    assert rows["mean"]["aAcc"] == f"{100 * (7 / 8 + 1) / 2:.2f}"
    assert "mIoU of 2 of 3 tasks" in text.splitlines()[-1]


def test_a_mean_of_all_needs_no_words():
    text = summary([metric("ponds", [[3, 1], [0, 4]]), metric("roofs", [[8, 0], [0, 2]])])
    assert text.splitlines()[-1].split()[0] == "mean"
    assert len(text.splitlines()) == 4


def test_no_score_at_all_is_no_number():
    text = summary([metric("a", [[0, 0], [0, 0]]), metric("b", [[0, 0], [0, 0]])])
    assert cells(text)["mean"]["mIoU"] == "nan"
    assert "mIoU of 0 of 2 tasks" in text


def test_scores_that_a_task_does_not_have_are_not_averaged():
    rows = cells(summary([metric("a", [[3, 1], [0, 4]], 0), metric("b", [[3, 1], [0, 4]])]))
    assert len(rows["a"]) == len(rows["mean"]) + 1


MATRIX = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
NAMES = ["sea", "sand, wet", "reef"]


def test_class_table_by_hand():
    table = class_table(MATRIX, NAMES)
    assert table["sea"] == pytest.approx(
        {
            "IoU": 100 * 6 / 9,
            "F1": 100 * 12 / 15,
            "Precision": 100 * 6 / 7,
            "Recall": 75,
            "Acc": 75,
            "pixels": 8,
            "predicted_pixels": 7,
        }
    )
    assert math.isnan(table["reef"]["IoU"]) and table["reef"]["pixels"] == 0


def test_csv_files_are_read_back(tmp_path):
    write_class_csv(tmp_path / "classes.csv", MATRIX, NAMES)
    write_confusion_csv(tmp_path / "confusion.csv", MATRIX, NAMES)
    classes = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["class"] for row in classes] == NAMES
    assert classes[1]["Recall"] == "75.0000" and classes[1]["pixels"] == "4"
    assert classes[2]["IoU"] == "" and classes[2]["predicted_pixels"] == "0"
    header, *rows = csv.reader((tmp_path / "confusion.csv").open())
    assert header[1:] == NAMES
    assert [[int(cell) for cell in row[1:]] for row in rows] == MATRIX.tolist()


def corners(picture, count):
    """Colour of the corner of every cell, clear of its number."""
    size = next(s for s in evaluation.CELL_SIZES if s * count <= evaluation.MATRIX_SIDE)
    bottom = picture.shape[0] - evaluation.MARGIN - size * count
    right = picture.shape[1] - evaluation.MARGIN - size * count
    at = np.arange(count) * size + 3
    return picture[bottom + at][:, right + at]


def test_colours_are_shares_of_the_row():
    picture = draw_confusion(MATRIX, NAMES, "coast")
    colors = corners(picture, 3)
    assert tuple(colors[2, 0]) == evaluation.GREY  # no such pixel in the ground truth
    darkness = 255 - colors[:2].astype(int)[..., 0]
    assert darkness[0, 0] == darkness[1, 1] > darkness[1, 0] == darkness[0, 1] > darkness[0, 2] == 0


def test_numbers_and_names_are_drawn(monkeypatch):
    drawn = []
    draw = evaluation._text
    monkeypatch.setattr(evaluation, "_text", lambda c, text, *a: (drawn.append(text), draw(c, text, *a)))
    draw_confusion(MATRIX, NAMES, "coast")
    assert {"75.0", "25.0", "coast", *NAMES} <= set(drawn)
    assert drawn.count("sea") == 2 and "0.0" not in drawn


@pytest.mark.parametrize("name", ["isaid", "openearthmap", "loveda"])
def test_pictures_of_the_known_tables_are_readable(name):
    """Names neither leave the picture nor touch the matrix: the margins around it stay white."""
    classes = TABLES[name].classes
    count = len(classes)
    picture = draw_confusion(torch.eye(count, dtype=torch.int64) * 100, classes, name)
    size = next(s for s in evaluation.CELL_SIZES if s * count <= evaluation.MATRIX_SIDE)
    top, left = (side - evaluation.MARGIN - size * count for side in picture.shape[:2])
    assert (picture[:, : evaluation.MARGIN // 2] == 255).all()
    assert (picture[top:, left - 4 : left] == 255).all() and (picture[top - 4 : top, left:] == 255).all()
    assert (picture[top:, :left] < 128).any() and (picture[:top, left:] < 128).any()


@pytest.mark.parametrize("count", [2, 30, 200])
def test_any_number_of_classes_and_any_script(count):
    names = [f"Gebäude 建筑 {i}" for i in range(count)]
    picture = draw_confusion(torch.ones(count, count, dtype=torch.int64), names, "a rather long title " * 3)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert max(picture.shape[:2]) < 2000
    assert cv2.imencode(".png", picture)[0]
