"""The experiment on generated scenes: its data, the options of its arms, and its table."""

from pathlib import Path

import numpy as np
import pytest

from experiments import generated_scenes as experiment
from experiments import training_runs
from s5.data.image_io import read_mask
from s5.data.splits import Split
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import load_config
from scenes.dataset import Request
from scenes.scene import generate_scene

REQUEST = Request(labeled=12, unlabeled=3, val=2, size=64, seed=5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    experiment.prepare(root, REQUEST, workers=1)
    return root


def run(
    root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> dict[str, tuple[list[str], Path, int]]:
    """The commands of all runs by folder, which are not started; scores grow with the seed."""
    runs = {}

    def train_once(command: list[str], work_dir: Path, iterations: int) -> dict[str, float]:
        runs[work_dir.name] = (command, work_dir, iterations)
        arm, seed, _ = work_dir.name.rsplit("_", 2)
        score = {"first_run": 25.0, "labels": 30.0, "best": 35.0, "bound": 40.0}[arm] + int(seed)
        return {"mIoU": score, "IoU.field": 50.0}

    monkeypatch.setattr(training_runs, "train_once", train_once)
    monkeypatch.setattr(experiment, "SCENES_PER_SEED", 4)
    sizes = "--pool 12 --unlabeled 3 --val 2 --size 64 --world 5 --labels 4".split()
    assert experiment.main(["--data", str(root), "--out", str(root / "out"), *sizes, *arguments]) == 0
    return runs


def test_true_masks_belong_to_the_unlabeled_scenes(root: Path) -> None:
    samples = list(Split(root / experiment.TRUTH, root))
    assert [sample.image.name for sample in samples] == ["000000.jpg", "000001.jpg", "000002.jpg"]
    scene = generate_scene(5, 1_000_000 + 2, 64)
    np.testing.assert_array_equal(read_mask(samples[2].mask), scene.mask)


def test_seeds_take_other_scenes_and_more_labels_include_fewer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "SCENES_PER_SEED", 4)

    def numbers(labels: int, seed: int) -> list[int]:
        alone, everything = experiment.write_labeled(root, labels, seed)
        assert len((root / everything).read_text().splitlines()) == labels + 3
        return [int(sample.image.stem) for sample in Split(root / alone, root)]

    assert numbers(4, seed=0) == [0, 1, 2, 3]
    assert numbers(4, seed=1) == [4, 5, 6, 7]
    assert numbers(2, seed=1) == [4, 5]


def test_every_arm_has_a_valid_configuration(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs, "train_once", lambda command, *_: {"command": command})
    args = experiment.parse_args(["--data", str(root), "--labels", "4", "--size", "64"])
    splits = experiment.write_labeled(root, args.labels, seed=0)
    for arm in [experiment.FIRST, *experiment.ARMS]:
        command = experiment.train(args, splits, arm, 0).scores["command"]
        options = command[command.index("--cfg-options") + 1 :]
        cfg = load_config(S4PConfig, experiment.CONFIG, options)
        assert (cfg.data.unlabeled.batch_size == 0) == arm.startswith(("first", "labels", "bound"))
        assert cfg.schedule.total_iters == (2700 if arm == "labels, equal time" else 1000)
        assert (cfg.settings.ramp_iters == 150) == (arm in ("ramp", "mild", "best, one view", "best"))


def test_warmup_comes_before_pseudo_labels_of_the_teacher() -> None:
    without, with_warmup = (experiment.arm_options("best", 1000, warmup) for warmup in (0, 400))
    assert with_warmup == [*without, "fixmatch.warmup_iters=400"]
    for arm in ("labels", "fixmatch", "truth"):
        assert experiment.arm_options(arm, 1000, warmup=400) == experiment.ARMS[arm]


@pytest.mark.parametrize(
    ("backbone", "start"),
    [("vit_t", "none"), ("vit_t", "mae.pth"), ("timm:tf_efficientnet_lite0", "timm")],
)
def test_arms_start_from_the_first_run_of_their_seed_with_a_lower_learning_rate(
    root: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, start: str
) -> None:
    arguments = ["--arms", "labels", "best", "--seeds", "2", "--jobs", "8"]
    runs = run(root, monkeypatch, *arguments, "--backbone", backbone, "--init", start)
    first = {name[10]: work_dir for name, (_, work_dir, _) in runs.items() if name.startswith("first_run")}
    assert set(first) == {"0", "1"}
    for name, (command, *_) in runs.items():
        init = command[command.index("--init") + 1]
        seed = name.split("_")[-2]
        written = f"{backbone.replace(':', '_')}_s4p_upernet.pth"
        expected = start if name.startswith("first") else str(first[seed] / written)
        assert init == expected
        assert ("optim.lr=3.0e-4" in command) == (not name.startswith("first"))


def test_report_compares_with_labels_and_bound(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")]
    runs = run(root, monkeypatch, "--arms", "labels", "best", "bound", "--seeds", "3", *out)
    assert len(runs) == 12 and {n for *_, n in runs.values()} == {1000}
    assert cells_of(tmp_path, "| best") == [["36.0 ± 1.0", "+5.0", "0.0", "50 %", "50.0 ± 0.0"]]


def cells_of(root: Path, start: str) -> list[list[str]]:
    """Cells of the report's rows that start so."""
    lines = (root / "out/4_1000_vit_t/report.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith(start)]


def test_tables_are_added_to_the_report(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    run(root, monkeypatch, "--arms", "best", "--seeds", "1", *out)
    run(root, monkeypatch, "--arms", "labels", "best", "--seeds", "1", *out, "--cfg-options", "optim.lr=0.1")
    run(root, monkeypatch, "--arms", "best", "--seeds", "1", *out)
    assert cells_of(tmp_path, "| best") == [["35.0", "", "", "", "50.0"], ["35.0", "+5.0", "", "", "50.0"]]
    text = (tmp_path / "out/4_1000_vit_t/report.md").read_text()
    assert (
        text.count("Scenes of seed 5 (3 unlabeled, 2 for validation, of 64 pixels), vit_t from") == 2
        and "two runs, optim.lr=0.1" in text
    )


def test_every_world_has_its_own_folder() -> None:
    folders = {experiment.parse_args(["--world", str(seed)]).data for seed in (1, 2)}
    assert len(folders) == 2


def test_other_options_or_initial_weights_are_other_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--arms", "labels", "--seeds", "1"]
    others: list[list[str]] = [[], ["--cfg-options", "optim.lr=0.1"], ["--init", "mae.pth"]]
    runs = [set(run(root, monkeypatch, *arguments, *other)) for other in others]
    assert runs[0] == set(run(root, monkeypatch, *arguments))
    assert len(set.union(*runs)) == sum(map(len, runs))


def test_masks_of_other_scenes_are_replaced(tmp_path: Path) -> None:
    masks = []
    for seed in (5, 6, 5):
        experiment.prepare(tmp_path, Request(labeled=1, unlabeled=1, val=1, size=64, seed=seed), workers=1)
        masks.append(read_mask(next(iter(Split(tmp_path / experiment.TRUTH, tmp_path))).mask))
    assert np.array_equal(masks[0], masks[2]) and not np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "41"], "--labels 41: a seed has at most 40 labeled scenes"),
        (["--seeds", "6"], "--pool 200: 6 seeds need 240 labeled scenes"),
    ],
)
def test_seeds_would_share_scenes(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        experiment.parse_args(arguments)
    assert message in capsys.readouterr().err
