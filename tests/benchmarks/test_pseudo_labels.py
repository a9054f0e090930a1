"""The report on pseudo-labels: the same run with and without it, and numbers that are those of the data."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import pseudo_labels
from benchmarks.pseudo_labels import ObservedFixMatch, report
from s5.errors import ConfigError
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


@pytest.mark.slow
def test_a_resumed_run_reports_the_same(root: Path, tmp_path: Path) -> None:
    """Also on steps that were reported before the run was killed, after its last checkpoint."""
    config = ["--config", str(Path(__file__).parents[2] / "S4_Pretrain/configs/pretrain.yaml")]
    intervals = {"schedule.checkpoint_interval": 2, "schedule.keep_checkpoints": 9}
    args = [
        *config,
        *arguments(root, tmp_path / "run", "--truth", "splits/truth.txt", **OPTIONS, **intervals),
    ]
    assert pseudo_labels.main(args) == 0
    whole = (tmp_path / "run/pseudo_labels.md").read_text()
    for written in (4, 6):
        (tmp_path / f"run/iter_{written}.pth").unlink()
    assert pseudo_labels.main([*args, "--resume"]) == 0
    assert (tmp_path / "run/pseudo_labels.md").read_text() == whole


@pytest.mark.parametrize("option", ["data.unlabeled.batch_size", "fixmatch.lambda_u"])
def test_a_run_without_pseudo_labels_is_refused(root: Path, tmp_path: Path, option: str) -> None:
    config = ["--config", str(Path(__file__).parents[2] / "S4_Pretrain/configs/pretrain.yaml")]
    args = arguments(root, tmp_path / "run", "--truth", "splits/truth.txt", **{option: 0})
    with pytest.raises(ConfigError, match="no pseudo-labels to report"):
        pseudo_labels.main([*config, *args])


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
    assert torch.equal(model.bins[0].sum(1), torch.bincount(pseudo.flatten(), minlength=4))
    bins = (probability * 10).long().flatten().bincount(minlength=10)
    assert torch.equal(model.bins[0].sum(0), bins)
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
    model.bins[0, :, 9], model.bins[1, :, 9] = torch.tensor([30, 10]), torch.tensor([20, 5])
    last = next(line for line in report(model, ["a", "b"]).splitlines() if line.startswith("| 0.9 to 1.0"))
    assert [cell.strip() for cell in last.split("|")[2:-1]] == ["100.0", "62.5", "66.7", "50.0"]
