"""The experiment of detection on real images, on drawn images with the same names."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

from experiments import real_images_det
from s5.data.prepare.__main__ import main as prepare
from tests.helpers.det_runs import script, write_images

NAMES = {"ucas_aod": ["p0003", "p1299", "p1300", "P1311"], "dota14": ["P0003", "P0004"]}
CLASSES = {"ucas_aod": "car", "dota14": "ship"}


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, whose commands run in this process."""

    def run(command: Sequence[object]) -> None:
        words = [str(part) for part in command[1:]]
        if words[:2] == ["-m", "s5.data.prepare"]:
            assert prepare(words[2:]) == 0
        else:
            assert script(Path(words[0]).stem).main(words[1:]) == 0

    monkeypatch.setattr(real_images_det, "run_command_line", run)
    return real_images_det


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "given/rot"
    for name, stems in NAMES.items():
        write_images(root / name, stems)
        for stem in stems:
            label, image = root / name / f"labelTxt/{stem}.txt", root / name / f"images/{stem}.png"
            label.write_text(label.read_text().replace("box", CLASSES[name]))
            cv2.imwrite(str(image.with_suffix(".jpg")), cv2.imread(str(image)))
            image.unlink()
    return root.parent


def test_held_out_images_are_of_other_numbers(experiment: ModuleType, data: Path) -> None:
    parts = experiment.ucas_parts(data / "rot/ucas_aod")
    assert parts == {"train": ["p0003", "p1299"], "val": ["P1311", "p1300"]}


def test_real_images_are_all_there(experiment: ModuleType, shared: Path) -> None:
    parts = experiment.ucas_parts(shared / "data/rot/ucas_aod")
    assert {name: len(stems) for name, stems in parts.items()} == {"train": 64, "val": 12}


@pytest.mark.slow
def test_one_model_is_trained_scored_and_applied(experiment: ModuleType, data: Path, tmp_path: Path) -> None:
    """And a second call goes on: there is nothing left to train."""
    out = tmp_path / "out"
    changes = ["size=64", "workers=0", "tasks.dota14.batch_size=1", "model.channels=16"]
    changes += ["model.fc_channels=16", "model.proposals=20", "model.max_per_img=9", "optim.warmup_iters=0"]
    changes += ["schedule.steps_per_epoch=1", "schedule.epochs=2", "schedule.milestones=[1]"]
    changes += ["schedule.val_interval=2", "schedule.log_interval=1"]
    given = ["--data", str(data), "--out", str(out), "--device", "cpu", "--cfg-options", *changes]
    for _ in range(2):
        assert experiment.main(given) == 0
        scores = json.loads((out / "evaluation/scores.json").read_text())
        assert scores["ucas"]["classes"]["car"]["objects"] == 4
        assert scores["dota14"]["classes"]["ship"]["objects"] == 4
        assert {path.stem for path in (out / "predictions/ucas/dota").iterdir()} == {"P1311", "p1300"}
        assert {path.stem for path in (out / "predictions/dota14/dota").iterdir()} == {"P0003", "P0004"}
        for task in ("ucas", "dota14"):
            assert cv2.imread(str(out / f"{task}_predictions.jpg")) is not None
    log = (out / "run/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log if "lr" in json.loads(line)] == [1, 2]


def test_sheet_has_the_detections_alone(experiment: ModuleType, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 80, 3), np.uint8))
    (tmp_path / "a.txt").write_text("10 20 50 20 50 40 10 40 ship 0 0.9\n")
    texts, images = [tmp_path / "a.txt"] * 4, [tmp_path / "a.png"] * 4
    experiment.write_sheet(tmp_path / "sheet.png", texts, images, ("car", "ship"))
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] < sheet.shape[1] and sheet.mean() > 200, "two rows of up to three, on white"
    first, beside = sheet[:60, :80], sheet[-60:, -80:]
    assert (first != 255).any(2)[20, 10:50].all() and (beside == 255).all()
