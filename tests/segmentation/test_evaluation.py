"""The summary table of an evaluation."""

import torch

from s5.data.labels import get_table
from s5.segmentation.evaluation import summary
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
