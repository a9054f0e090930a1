"""The experiments on real tiles, on images of noise with the same names."""

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from experiments import real_images, training_runs
from experiments import real_images_mdf as experiment
from experiments import real_tiles as tiles
from experiments.report_tables import mean_and_deviation
from s5.checkpoints.reading import read_checkpoint
from s5.data.labels import get_table
from s5.data.splits import Split
from s5.errors import DataError
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import load_config
from tests.helpers.mdf_runs import script
from tests.helpers.s4p_runs import REPO

CLASSES = {"dubai": 5, "fair_buildings": 2, "epfl_roads": 2}
STEMS = {
    "dubai": [f"tile{scene}_{number:03d}" for scene in range(1, 7) for number in (3, 4)],
    "fair_buildings": [
        *(f"OAM-1238448-{row}-21" for row in range(1046528, 1046534)),
        "OAM-619224-523264-20",
        "OAM-309612-261632-19",
        "OAM-1238424-1046544-21",
        "OAM-619212-523272-20",
        "OAM-309606-261636-19",
    ],
    "epfl_roads": [f"satImage_{number:03d}" for number in (1, 2, 3, 79, 80, 81, 100)],
}
HELD_OUT = {
    "dubai": {"tile2_003", "tile2_004"},
    "fair_buildings": {"OAM-1238424-1046544-21", "OAM-619212-523272-20", "OAM-309606-261636-19"},
    "epfl_roads": {"satImage_081", "satImage_100"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiles")
    rng = np.random.default_rng(0)
    for name, stems in STEMS.items():
        for kind in ("images", "masks"):
            (root / "seg" / name / kind).mkdir(parents=True)
        for stem in stems:
            image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            mask = rng.integers(0, CLASSES[name], (40, 48), dtype=np.uint8)
            cv2.imwrite(str(root / f"seg/{name}/images/{stem}.jpg"), image)
            cv2.imwrite(str(root / f"seg/{name}/masks/{stem}.png"), mask)
    for folder in (tiles.RSSCN7, tiles.EPFL_UNLABELED):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / f"{folder[:3]}.png"), np.zeros((40, 48, 3), np.uint8))
    return root


@pytest.fixture
def arguments(data: Path, tmp_path: Path) -> list[str]:
    """Two steps of two images, at a rate that leaves the weights as they are."""
    cfg = yaml.safe_load((REPO / "experiments/configs/real_images_mdf.yaml").read_text())
    cfg |= {"crop": 32, "workers": 0, "model": {"decoder_channels": 8, "expert_channels": 48}}
    cfg["optim"] |= {"warmup_iters": 0, "lr": 1e-30}
    cfg["schedule"] |= {"steps_per_epoch": 2, "log_interval": 1}
    for task in cfg["tasks"].values():
        task |= {"batch_size": 2, "evaluation": {"mode": "slide_window", "crop": 32, "stride": 24}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    given = {"data": data, "out": tmp_path / "out", "config": tmp_path / "tiny.yaml", "device": "cpu"}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [*options, "--seeds", "1", "--epochs", "1"]


def test_places_are_on_one_side(data: Path) -> None:
    for name, held_out in HELD_OUT.items():
        images = [image for image, _ in tiles.tiles(data, name)]
        assert len(images) == len(STEMS[name])
        assert {Path(image).stem for image in images if tiles.is_validation(name, image)} == held_out


def test_real_tiles_are_all_there(shared: Path) -> None:
    counts = {}
    for name in CLASSES:
        held_out = [tiles.is_validation(name, image) for image, _ in tiles.tiles(shared / "data", name)]
        counts[name] = (held_out.count(False), held_out.count(True))
    assert counts == {"dubai": (45, 9), "fair_buildings": (121, 21), "epfl_roads": (80, 20)}


@pytest.mark.parametrize("name", HELD_OUT)
def test_splits_of_real_images(data: Path, tmp_path: Path, name: str) -> None:
    real_images.write_splits(data, tmp_path, name)
    parts = ("labeled", "labeled_all", "unlabeled_own", "unlabeled", "val")
    splits = [(tmp_path / f"{name}.txt").read_text().splitlines() for name in parts]
    labeled, everything, own, mixed, val = ({Path(line.split()[0]).stem for line in s} for s in splits)
    assert val == HELD_OUT[name] and everything == set(STEMS[name]) - val
    assert labeled and own and not labeled & own and labeled | own == everything | (own & {"seg"})
    assert ("seg" in own) == (name == "epfl_roads") and mixed == own | {"unl"}
    assert all(len(line.split()) == 1 for line in splits[2])


@pytest.mark.parametrize("name", HELD_OUT)
def test_methods_of_real_images_are_valid_runs(
    data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {}

    def train(config: Path, args: argparse.Namespace, options: list[str], work_dir: Path, *_: object) -> dict:
        cfg = load_config(S4PConfig, config, options, backbone=args.backbone)
        settings[work_dir.name] = cfg
        assert get_table(cfg.data.labels).num_classes == CLASSES[name]
        parts = cfg.data.labeled, cfg.data.unlabeled, cfg.data.val
        assert all(Path(part.split).is_file() for part in parts)
        work_dir.mkdir(parents=True)
        return {"mIoU": 50.0, "aAcc": 60.0}

    monkeypatch.setattr(real_images, "train_s4p", train)
    args = ["--data", str(data), "--out", str(tmp_path), "--dataset", name, "--seeds", "2"]
    assert real_images.main(args) == 0
    assert len(settings) == 2 * len(real_images.METHODS), "each run has a folder of its own"
    by_name = {name.rpartition("_")[0]: cfg for name, cfg in settings.items()}
    assert by_name["labels_labeled_unlabeled_own_1"].data.unlabeled.batch_size == 0
    assert by_name["labels_labeled_unlabeled_own_1"].seed == 1
    assert by_name["best_labeled_unlabeled_own_0"].settings.warmup_iters == 500
    assert "50.0 ± 0.0" in (tmp_path / name / "vit_t_none_1000/report.md").read_text()


def test_runs_from_another_file_of_the_same_name_are_other_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def train(config: Path, args: argparse.Namespace, options: list[str], work_dir: Path, *_: object) -> dict:
        folders.append(work_dir)
        work_dir.mkdir(parents=True)
        return {"mIoU": 50.0, "aAcc": 60.0}

    monkeypatch.setattr(real_images, "train_s4p", train)
    args = ["--data", str(data), "--out", str(tmp_path), "--seeds", "1", "--methods", "labels alone"]
    for init in ("a/vit_t_s4p.pth", "b/vit_t_s4p.pth"):
        assert real_images.main([*args, "--init", init]) == 0
    assert len(set(folders)) == 2


@pytest.mark.parametrize(
    ("name", "method", "missing"),
    [("dubai", "FixMatch, all", tiles.RSSCN7), ("epfl_roads", "bound", tiles.EPFL_UNLABELED)],
)
def test_missing_unlabeled_images_are_an_error(
    data: Path, tmp_path: Path, name: str, method: str, missing: str
) -> None:
    shutil.copytree(data / "seg", tmp_path / "seg", ignore=shutil.ignore_patterns("unlabeled"))
    args = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--dataset", name, "--methods", method]
    with pytest.raises(DataError, match=rf"{missing}: no images; docs/real_images.md says"):
        real_images.main(args)
    real_images.write_splits(tmp_path, tmp_path / "out", "dubai", mixed=False)
    assert not (tmp_path / "out/unlabeled.txt").exists()


@pytest.mark.slow
def test_all_methods_train_from_the_same_weights_and_are_kept(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = []

    def run(command: list[str]) -> None:
        started.append(command)
        assert script().main(command[2:]) == 0

    monkeypatch.setattr(training_runs, "run_command_line", run)
    assert experiment.main(arguments) == 0
    assert len(started) == 5, "two models of all datasets, and one of each"
    folder = tmp_path / "out/vit_t_2_random"
    report = (folder / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out
    assert "2 steps of 2 dubai, 2 fair_buildings, 2 epfl_roads images" in report
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in report.splitlines() if "|" in line}
    assert {"dubai/mIoU", "epfl_roads/IoU.road", "average mIoU", "parameters, millions"} <= set(rows)
    assert [cell.strip() for cell in rows["models"]] == ["1", "1", "3"]
    moe, dense, single = (float(cell) for cell in rows["parameters, millions"])
    assert dense < moe < single
    for task in CLASSES:
        assert cv2.imread(str(folder / f"{task}.jpg")) is not None
        split = Split(tmp_path / f"out/splits/{task}_val.txt", tmp_path)
        assert {Path(split.name(i)).stem for i in range(len(split))} == HELD_OUT[task]
    same_start(folder)

    assert experiment.main(arguments) == 0
    assert len(started) == 5, "finished runs are kept"


def same_start(folder: Path) -> None:
    """At a rate of nothing all models still are what they started from; experts start as copies."""
    initial = read_checkpoint(folder / "initial_0.pth")["state_dict"]
    files = sorted(folder.glob("*/vit_t*_mdf.pth"))
    assert len(files) == 5
    for file in files:
        state = read_checkpoint(file)["state_dict"]
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        own = (".fc2.", ".experts.") if "moe" in file.name else ()
        names = [n for n in state if not n.endswith(statistics) and not any(part in n for part in own)]
        assert len(names) >= 100 and any(".classifier" in name for name in names)
        for name in names:
            torch.testing.assert_close(state[name], initial[name], msg=f"{file}: {name}")


def test_starts_from_a_checkpoint(arguments: list[str], tmp_path: Path) -> None:
    """Its weights for every seed, and results that are not mixed with those of random ones."""
    random = experiment.Experiment(experiment.parse_args(arguments))
    weights = tmp_path / "mine.pth"
    weights.write_bytes(random.initial_weights(3).read_bytes())
    given = experiment.Experiment(experiment.parse_args([*arguments, "--checkpoint", str(weights)]))
    assert given.folder != random.folder
    name = "backbone.blocks.0.attn.qkv.weight"
    ours, theirs, others = (
        read_checkpoint(path)["state_dict"][name]
        for path in (given.initial_weights(0), weights, random.initial_weights(0))
    )
    assert torch.equal(ours, theirs) and not torch.equal(ours, others)


def test_needs_the_number_of_steps(arguments: list[str], tmp_path: Path) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(config.read_text().replace("steps_per_epoch: 2", "steps_per_epoch: null"))
    with pytest.raises(ValueError, match="set schedule.steps_per_epoch"):
        experiment.main(arguments)


def test_an_interrupted_run_is_not_taken_for_a_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "final_metrics.json").write_text('{"iteration": 50, "mIoU": 10}')

    def run(command: list[str]) -> None:
        assert command[-3:] == ["--work-dir", str(tmp_path), "--resume"]
        (tmp_path / "final_metrics.json").write_text('{"iteration": 100, "mIoU": 20}')

    monkeypatch.setattr(training_runs, "run_command_line", run)
    assert training_runs.train_once(["train.py"], tmp_path, 100)["mIoU"] == 20
    monkeypatch.setattr(training_runs, "run_command_line", None)
    assert training_runs.train_once(["train.py"], tmp_path, 100)["mIoU"] == 20


def test_a_failed_run_stops_the_experiment() -> None:
    with pytest.raises(SystemExit, match="3"):
        training_runs.run_command_line(["bash", "-c", "exit 3"])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([10.0, 20.0], "15.0 ± 7.1"),
        ([12.34], "12.3"),
        ([None, 10.0, 20.0], "15.0 ± 7.1 (2 of 3 runs)"),
        ([None], "absent"),
    ],
)
def test_mean_and_deviation(values: list[float | None], text: str) -> None:
    assert mean_and_deviation(values) == text
