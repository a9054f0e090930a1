"""The report on pseudo-labels: the same run with and without it, and numbers that are those of the data."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import pseudo_labels
from benchmarks.pseudo_labels import ObservedFixMatch, report
from s5.segmentation.methods.fixmatch import FixMatchSettings
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.windows import Inference
from tests.helpers.s4p_runs import CLASSES, SIZE, arguments, losses, script, write_dataset
from tests.segmentation.test_fixmatch import SIZE as CROP
from tests.segmentation.test_fixmatch import TINY, make_batch, step

OPTIONS = {"fixmatch.strong.views": 2, "fixmatch.threshold": "freematch", "schedule.log_interval": 3}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tiny dataset, with masks of the unlabeled images, all of the first class."""
    root = write_dataset(tmp_path / "data")
    lines = (root / "splits/unlabeled/pool.txt").read_text().split()
    for name in lines:
        height, width = cv2.imread(str(root / name)).shape[:2]
        cv2.imwrite(str(root / f"{name}.mask.png"), np.zeros((height, width), np.uint8))
    (root / "splits/truth.txt").write_text("".join(f"{name} {name}.mask.png\n" for name in lines))
    return root


def test_a_run_with_truth_is_the_run_without(root: Path, tmp_path: Path) -> None:
    observed, plain = tmp_path / "observed", tmp_path / "plain"
    args = arguments(root, observed, "--truth", "splits/truth.txt", **OPTIONS)
    config = ["--config", str(Path(__file__).parents[2] / "S4_Pretrain/configs/pretrain.yaml")]
    assert pseudo_labels.main([*config, *args]) == 0
    assert script().main(arguments(root, plain, **OPTIONS)) == 0
    assert losses(observed) == losses(plain)
    text = (observed / "pseudo_labels.md").read_text()
    assert re.findall(r"^## Steps to (\d)$", text, re.M) == ["3", "6"]
    assert f"| {CLASSES[0]} " in text and re.search(rf"\| {CLASSES[0]} +\| +100.0 \|", text)
    *_, newest = sorted(observed.glob("pictures/strong_*.jpg"))
    sheet = cv2.imread(str(newest))
    assert sheet.shape[1] == (3 + 2 * 4) * (SIZE + 4)  # the weak view and both strong ones


def test_counts_are_those_of_the_views() -> None:
    """Truth equal to the pseudo-labels: everything selected is right, wherever CutMix pastes it."""
    torch.manual_seed(0)
    segmentor = build_segmentor(TINY, {"s4p": 4}, CROP, channels=16)
    model = ObservedFixMatch(segmentor, {"s4p": Inference()}, None, FixMatchSettings(conf_thresh=0.3)).eval()
    batch = make_batch()
    weak = batch["images"][2:].float() / 255
    probability, pseudo = model.logits(weak).softmax(1).max(1)
    batch["stored"] = pseudo.to(torch.uint8)
    step(model, batch)
    assert model.pseudo.sum() == pseudo.numel() == model.pseudo.diagonal().sum()
    assert model.selected.sum() == (probability >= 0.3).sum()
    assert torch.equal(model.bins[0], model.bins[1])
    assert model.student[1].sum() == 0 and model.student.sum() == pseudo.numel()
    batch["stored"] = (batch["stored"] + 1) % 4
    model.reset()
    step(model, batch)
    assert model.pseudo.diagonal().sum() == 0 and model.bins[1].sum() == 0
    assert model.student[0].sum() == 0 and model.student[1].sum() > 0


def test_report_computes_precision_and_share() -> None:
    model = ObservedFixMatch.__new__(ObservedFixMatch)
    torch.nn.Module.__init__(model)
    model.num_classes = 2
    model.reset()
    model.pseudo = torch.tensor([[30, 10], [20, 40]])
    model.selected = torch.tensor([[15, 5], [0, 5]])
    first = next(line for line in report(model, ["a", "b"]).splitlines() if line.startswith("| b"))
    cells = [cell.strip() for cell in first.split("|")[2:-1]]
    assert cells == ["60.0", "50.0", "40.0", "8.3", "80.0", "50.0", "8.3"]
