"""Runs of the entry script in this process: outputs, equal resume, evaluation, options."""

import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch

from s5.checkpoints.loading import load_weights
from s5.checkpoints.reading import read_checkpoint
from s5.data.oriented.drawing import LINE
from s5.errors import CheckpointError, ConfigError
from s5.segmentation.s4p_config import S4PConfig
from s5.segmentation.segmentor import build_segmentor
from s5.training.config import load_config
from s5.training.hooks import checkpoints
from s5.training.hooks.pictures import TITLE_HEIGHT
from tests.helpers.s4p_runs import (
    CLASSES,
    REPO,
    arguments,
    losses,
    options,
    records,
    script,
    validations,
    write_dataset,
)
from tests.helpers.trained_models import table, write_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("runs") / "finished"
    assert script().main(arguments(root, work_dir)) == 0
    return work_dir


def test_writes_what_the_readme_lists(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "train.log", "log.jsonl", "tensorboard", "pictures", "final_metrics.json"} <= names
    assert {"vit_t_s4p.pth", "vit_t_s4p_upernet.pth", "vit_t_s4p_upernet_best.pth"} <= names
    assert sorted(finished.glob("iter_*.pth")) == [finished / "iter_4.pth", finished / "iter_6.pth"]
    assert {path.name for path in (finished / "pictures").iterdir()} == {
        "unlabeled_000006.jpg",
        "val_000006.jpg",
    }
    assert not list(finished.glob("**/*.tmp"))


def test_logs_losses_shares_rates_and_memory(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    train = next(r for r in records if "loss" in r)
    assert {"loss_s", "loss_u", "confident", "lr", "images_per_s", "data_wait", "peak_memory_gib"} <= set(
        train
    )
    assert any("pseudo/ground" in r for r in records)
    assert any("mIoU" in r and "IoU.roof" in r for r in records)


def test_metrics_file(finished: Path) -> None:
    metrics = json.loads((finished / "final_metrics.json").read_text())
    assert metrics["iteration"] == 6
    assert 0 <= metrics["mIoU"] <= 100
    assert {"mF1", "mAcc", "aAcc", "IoU.water", "F1.water"} <= set(metrics)


def test_pictures_show_views_side_by_side(finished: Path) -> None:
    sheet = cv2.imread(str(finished / "pictures/unlabeled_000006.jpg"))
    assert sheet.shape == (TITLE_HEIGHT + 2 * 68 + 2 * LINE, 4 * 68, 3)


def test_weight_files_load_into_a_fresh_model(finished: Path) -> None:
    segmentor = build_segmentor("vit_t", {"s4p": 3}, 64, channels=8)
    assert load_weights(segmentor, finished / "vit_t_s4p_upernet").missing == ()
    report = load_weights(build_segmentor("vit_t", {"other": 5}, 96, channels=8), finished / "vit_t_s4p.pth")
    assert report.backbone_share == 1.0
    meta = read_checkpoint(finished / "vit_t_s4p.pth")["meta"]
    assert meta["backbone"] == "vit_t" and meta["iteration"] == 6


@pytest.mark.slow
def test_resume_equals_the_uninterrupted_run(root: Path, finished: Path, tmp_path: Path) -> None:
    first = tmp_path / "run"
    stop_at_4 = {"schedule.checkpoint_interval": 4, "schedule.keep_checkpoints": 5}
    assert script().main(arguments(root, first, **stop_at_4)) == 0
    (first / "iter_6.pth").unlink()
    (first / "log.jsonl").unlink()
    assert script().main(arguments(root, first, "--resume", **stop_at_4)) == 0
    resumed, whole = losses(first), losses(finished)
    assert sorted(resumed) == [5, 6]
    assert resumed == {step: whole[step] for step in (5, 6)}
    ours, theirs = (read_checkpoint(run / "vit_t_s4p_upernet.pth")["state_dict"] for run in (first, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers(root: Path, finished: Path, tmp_path: Path) -> None:
    assert script().main(arguments(root, tmp_path / "run", **{"data.workers": 2})) == 0
    assert losses(tmp_path / "run") == losses(finished)


def test_finished_run_can_be_resumed_and_validates_again(root: Path, finished: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "iter_6.pth").write_bytes((finished / "iter_6.pth").read_bytes())
    assert script().main(arguments(root, work_dir, "--resume")) == 0
    ours, theirs = (json.loads((d / "final_metrics.json").read_text()) for d in (work_dir, finished))
    assert ours == theirs


@pytest.mark.slow
def test_validation_that_was_cut_off_is_repeated(root: Path, tmp_path: Path) -> None:
    """A checkpoint is written before the validation of its step; a kill must not change the best weights."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    changes = {"schedule.val_interval": 2, "schedule.keep_checkpoints": 9}
    assert script().main(arguments(root, whole, **changes)) == 0
    resumed.mkdir()
    (resumed / "iter_2.pth").write_bytes((whole / "iter_2.pth").read_bytes())
    assert script().main(arguments(root, resumed, "--resume", **changes)) == 0
    assert validations(resumed) == validations(whole)
    assert sorted(validations(whole)) == [2, 4, 6]
    ours, theirs = (read_checkpoint(run / "vit_t_s4p_upernet_best.pth")["meta"] for run in (resumed, whole))
    assert ours == theirs


def test_a_resumed_run_compares_with_the_best_weights_in_its_folder(
    root: Path, finished: Path, tmp_path: Path
) -> None:
    """Not with those of the folder that its checkpoint comes from."""
    best = "vit_t_s4p_upernet_best.pth"
    for name, score in (("without", None), ("better", 100.0), ("worse", 0.0)):
        work_dir = tmp_path / name
        work_dir.mkdir()
        shutil.copy(finished / "iter_6.pth", work_dir)
        if score is not None:
            content = torch.load(finished / best)
            content["meta"]["mIoU"] = score
            torch.save(content, work_dir / best)
        assert script().main(arguments(root, work_dir, "--resume")) == 0
        mean = validations(work_dir)[6]
        assert mean > 0
        assert read_checkpoint(work_dir / best)["meta"]["mIoU"] == pytest.approx(score or mean)


def test_weights_are_written_before_the_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a run killed between the two does not resume from a checkpoint whose weights are missing."""
    original, written = checkpoints.save_atomic, []

    def save(content: dict, path: Path) -> None:
        original(content, path)
        written.append(path.name)

    monkeypatch.setattr(checkpoints, "save_atomic", save)
    assert script().main(arguments(root, tmp_path / "run", **{"schedule.total_iters": 2})) == 0
    assert written[:3] == ["vit_t_s4p_upernet.pth", "vit_t_s4p.pth", "iter_2.pth"]


def test_a_second_run_does_not_overwrite_the_first(root: Path, finished: Path) -> None:
    with pytest.raises(RuntimeError, match=r"already holds a run \(iter_6.pth\).*--resume"):
        script().main(arguments(root, finished))


def test_init_from_a_checkpoint_is_not_resume(root: Path, finished: Path, tmp_path: Path) -> None:
    args = arguments(root, tmp_path / "run", **{"schedule.total_iters": 2})
    args[args.index("none")] = str(finished / "vit_t_s4p_upernet.pth")
    assert script().main(args) == 0
    log = (tmp_path / "run/train.log").read_text()
    assert "layout" in log and "100.0% of the backbone" in log
    assert sorted(losses(tmp_path / "run")) == [1, 2]


def test_the_teacher_starts_from_the_initial_weights(root: Path, finished: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing, it stays there; from other weights it would be halfway."""
    changes = {"fixmatch.pseudo_labels": "ema", "schedule.total_iters": 1, "optim.lr": 1e-30}
    args = arguments(root, tmp_path / "run", **changes)
    args[args.index("none")] = str(finished / "vit_t_s4p_upernet.pth")
    assert script().main(args) == 0
    state = read_checkpoint(tmp_path / "run/iter_1.pth")["state_dict"]
    initial = read_checkpoint(finished / "vit_t_s4p_upernet.pth")["state_dict"]
    names = [name for name in initial if "running" not in name and "num_batches" not in name]
    assert len(names) > 50
    for name in names:
        torch.testing.assert_close(state[f"teacher.network.{name}"], initial[name])


def test_evaluate_gives_the_scores_of_training(root: Path, finished: Path, tmp_path: Path) -> None:
    args = [str(finished / "vit_t_s4p_upernet.pth"), "--device", "cpu"]  # which says that it is a vit_t
    args += ["--work-dir", str(tmp_path / "eval"), "--pictures", "2"]
    assert script("evaluate").main(args) == 0, "with the configuration beside the checkpoint"
    ours = json.loads((tmp_path / "eval/final_metrics.json").read_text())
    theirs = json.loads((finished / "final_metrics.json").read_text())
    assert ours["mIoU"] == theirs["mIoU"] and ours["aAcc"] == theirs["aAcc"]
    sheet = cv2.imread(str(tmp_path / "eval/pictures/val_000000.jpg"))
    assert sheet.shape == (TITLE_HEIGHT + 2 * 76 + 2 * LINE, 3 * 84, 3), "two of the three images"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data.unlabeled.batch_size": 0},
        {"fixmatch.pseudo_labels": "ema"},
        {"fixmatch.strong.views": 2},
        {"data.val.mode": "original"},
        {"model.activation_checkpointing": "true"},
        {"optim.warmup_iters": 1, "optim.layer_decay": 0.9, "optim.clip_grad": 1.0},
        {"precision": "bf16"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_options_train(root: Path, tmp_path: Path, changes: dict) -> None:
    work_dir = tmp_path / "run"
    assert script().main(arguments(root, work_dir, **{"schedule.total_iters": 2}, **changes)) == 0
    assert (work_dir / "final_metrics.json").exists()


@pytest.mark.slow
def test_few_labels_trains_and_resumes_with_teacher_thresholds_and_ramp(root: Path, tmp_path: Path) -> None:
    changes = {
        "data.labeled.split": "splits/labeled/labeled.txt",
        "data.val.split": "splits/val.txt",
        "fixmatch.warmup_iters": 1,
        "fixmatch.ramp_iters": 2,
        "fixmatch.momentum": 0.5,
        "optim.warmup_iters": 1,
        "schedule.total_iters": 4,
    }
    args = arguments(root, tmp_path / "run", "--config", str(REPO / "configs/few_labels.yaml"), **changes)
    assert script().main(args) == 0
    cfg = load_config(S4PConfig, tmp_path / "run/config.yaml")
    assert cfg.settings.pseudo_labels == "ema" and cfg.settings.feature_dropout == 0.5
    whole = [r for r in records(tmp_path / "run") if "loss" in r]
    assert ["loss_u" in r for r in whole] == [False, True, True, True]
    scalars = [r for r in records(tmp_path / "run") if f"threshold/{CLASSES[0]}" in r]
    assert [len({v for k, v in r.items() if k.startswith("threshold/")}) for r in scalars] == [1, 3, 3, 3]
    count = len(records(tmp_path / "run"))
    (tmp_path / "run/iter_4.pth").unlink()
    assert script().main([*args, "--resume"]) == 0
    again = [r for r in records(tmp_path / "run")[count:] if "loss" in r]
    assert [(r["step"], r["loss"], r["loss_u"]) for r in again] == [
        (r["step"], r["loss"], r["loss_u"]) for r in whole[-len(again) :]
    ]
    assert again[-1]["step"] == 4


def test_stored_pseudo_labels(root: Path, tmp_path: Path) -> None:
    lines = (root / "splits/labeled/labeled.txt").read_text()
    (root / "splits/unlabeled/stored.txt").write_text(lines)
    changes = {"fixmatch.pseudo_labels": "stored", "data.unlabeled.split": "splits/unlabeled/stored.txt"}
    assert script().main(arguments(root, tmp_path / "run", **{"schedule.total_iters": 2}, **changes)) == 0


def test_evaluating_a_checkpoint_without_a_fitting_head_is_refused(root: Path, finished: Path) -> None:
    args = ["--backbone", "vit_t", "--device", "cpu", *options(root)]
    with pytest.raises(CheckpointError, match=r"vit_t_s4p.pth has no matching decoder.*full model"):
        script("evaluate").main([str(finished / "vit_t_s4p.pth"), *args])


def test_evaluating_another_model_is_refused(root: Path, finished: Path, tmp_path: Path) -> None:
    args = ["--device", "cpu", "--work-dir", str(tmp_path / "eval")]
    whole = str(finished / "vit_t_s4p_upernet.pth")
    with pytest.raises(ConfigError, match=r"--backbone vit_b: .*holds a vit_t; omit the option"):
        script("evaluate").main([whole, "--backbone", "vit_b", *args, *options(root)])
    other = json.dumps({"name": "other", "classes": ["ground", "water", "tree"]})
    with pytest.raises(ConfigError, match="trained for the classes ground, water, roof, .*has ground, water"):
        script("evaluate").main([whole, *args, *options(root, data__labels=other)])
    tables = {task: table(task, ["ground", "water"]) for task in ("ponds", "lakes")}
    write_checkpoint(tmp_path / "several.pth", tables)
    (tmp_path / "config.yaml").write_text("tasks: {ponds: {}}\n")  # of fine-tuning, beside its checkpoint
    with pytest.raises(ConfigError, match=r"has the tasks ponds, lakes; evaluate it with Semantic_Seg"):
        script("evaluate").main([str(tmp_path / "several.pth"), *args, *options(root)])


def test_evaluating_a_checkpoint_without_metadata(root: Path, finished: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "vit_t_s4p_upernet.pth")
    torch.save(content["state_dict"], tmp_path / "plain.pth")
    args = [str(tmp_path / "plain.pth"), "--device", "cpu", "--work-dir", str(tmp_path / "eval")]
    assert script("evaluate").main([*args, "--backbone", "vit_t", *options(root)]) == 0
    ours = json.loads((tmp_path / "eval/final_metrics.json").read_text())
    assert ours["mIoU"] == json.loads((finished / "final_metrics.json").read_text())["mIoU"]


def test_evaluating_a_mistyped_checkpoint_leaves_no_folder(root: Path, tmp_path: Path) -> None:
    args = ["--backbone", "vit_t", "--device", "cpu", *options(root)]
    with pytest.raises(CheckpointError, match="no checkpoint .*typo/model.pth"):
        script("evaluate").main([str(tmp_path / "typo/model.pth"), *args])
    assert not list(tmp_path.glob("typo*"))


def test_a_refused_run_leaves_the_configuration_of_the_first(root: Path, finished: Path) -> None:
    before = (finished / "config.yaml").read_text()
    with pytest.raises(RuntimeError, match="already holds a run"):
        script().main(arguments(root, finished, **{"optim.lr": 1e-3}))
    assert (finished / "config.yaml").read_text() == before
