"""Multi-dataset runs of the entry script in this process: outputs, late tasks, equal resume, equal tasks."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from s5.backbones.vit import VARIANTS, Variant
from s5.checkpoints.loading import load_weights
from s5.checkpoints.reading import read_checkpoint
from s5.ops.losses import pixel_cross_entropy
from s5.segmentation.multi_dataset import MultiDataset, TaskLoss, task_parameters
from s5.segmentation.segmentor import Segmentor, build_segmentor
from s5.training.optim import param_groups
from tests.helpers import mdf_runs
from tests.helpers.mdf_runs import TASKS, arguments, losses, script, write_datasets

LATE = {"tasks.ponds.start_epoch": 1}
TINY = Variant("tiny", 32, 4, 2, (0, 1, 2, 3))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps; the task `ponds` joins in the second."""
    work_dir = tmp_path_factory.mktemp("runs") / "finished"
    assert script().main(arguments(root, work_dir, **LATE, **{"schedule.val_interval": 1})) == 0
    return work_dir


def state(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def test_writes_what_the_readme_lists(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "train.log", "log.jsonl", "tensorboard", "final_metrics.json"} <= names
    assert {"vit_t_moe_mdf.pth", "vit_t_moe_mdf_best.pth"} <= names
    assert {f"vit_t_moe_mdf_best_{task}.pth" for task in TASKS} <= names
    assert sorted(path.name for path in finished.glob("iter_*")) == ["iter_3.pth", "iter_6.pth"]
    pictures = {path.name for path in (finished / "pictures").iterdir()}
    assert pictures == {"val_roofs_000003.jpg", "val_roofs_000006.jpg", "val_ponds_000006.jpg"}


def test_best_weights_are_those_of_the_best_validation(finished: Path) -> None:
    records = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    scores = {r["step"]: r for r in records if "roofs/mIoU" in r}
    assert sorted(scores) == [3, 6] and scores[3]["ponds/mIoU"] is None
    best = read_checkpoint(finished / "vit_t_moe_mdf_best_roofs.pth")["meta"]
    assert best["iteration"] == max(scores, key=lambda step: scores[step]["roofs/mIoU"])
    both = read_checkpoint(finished / "vit_t_moe_mdf_best.pth")["meta"]
    assert both["iteration"] == 6, "an average over one task does not compete with one over two"
    assert both["roofs/mIoU"] == pytest.approx(scores[6]["roofs/mIoU"])


def test_task_that_has_not_started_costs_nothing(root: Path, finished: Path, tmp_path: Path) -> None:
    logged = losses(finished)
    assert ["loss_ponds" in dict(logged[step]) for step in range(1, 7)] == [False] * 3 + [True] * 3
    first = read_checkpoint(finished / "iter_3.pth")
    indices = set(first["optimizer"]["state"])
    assert script().main(arguments(root, tmp_path / "run", **{"schedule.epochs": 1})) == 0
    everything = set(read_checkpoint(tmp_path / "run/iter_3.pth")["optimizer"]["state"])
    assert indices < everything, "the optimizer has no state for weights of a task that has not started"
    assert first["data"]["consumed"] == [0, 6]
    assert read_checkpoint(finished / "iter_6.pth")["data"]["consumed"] == [6, 12]


@pytest.mark.parametrize("stop", [3, 4])
def test_resume_equals_the_uninterrupted_run(root: Path, finished: Path, tmp_path: Path, stop: int) -> None:
    """Also across the start of a task."""
    work_dir = tmp_path / "run"
    changes = {**LATE, "schedule.val_interval": 1}
    if stop == 3:
        work_dir.mkdir()
        (work_dir / "iter_3.pth").write_bytes((finished / "iter_3.pth").read_bytes())
    else:
        epochs_of_4 = {**changes, "schedule.steps_per_epoch": 4, "schedule.lr_per_epoch": True}
        assert script().main(arguments(root, work_dir, **epochs_of_4)) == 0
        finished, changes = tmp_path / "whole", epochs_of_4
        work_dir.rename(finished)
        work_dir.mkdir()
        (work_dir / "iter_4.pth").write_bytes((finished / "iter_4.pth").read_bytes())
    assert script().main(arguments(root, work_dir, "--resume", **changes)) == 0
    whole = losses(finished)
    assert losses(work_dir) == {step: value for step, value in whole.items() if step > stop}
    ours, theirs = (state(run / "vit_t_moe_mdf.pth") for run in (work_dir, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (read_checkpoint(run / "vit_t_moe_mdf_best.pth")["meta"] for run in (work_dir, finished))
    assert ours == theirs


def test_learning_rate_by_epoch(root: Path, tmp_path: Path) -> None:
    assert script().main(arguments(root, tmp_path / "run", **{"schedule.lr_per_epoch": True})) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    rates = [line["base_lr"] for line in lines if "loss" in line]
    assert rates == pytest.approx([1e-4] * 3 + [5e-5] * 3)


def test_results_do_not_depend_on_the_number_of_workers(root: Path, finished: Path, tmp_path: Path) -> None:
    assert script().main(arguments(root, tmp_path / "run", **LATE, workers=2)) == 0
    assert losses(tmp_path / "run") == losses(finished)


def test_starts_from_a_dense_checkpoint_with_or_without_pth(root: Path, tmp_path: Path) -> None:
    dense = build_segmentor("vit_t", {"s4p": 5}, mdf_runs.SIZE, channels=8)
    torch.save({"state_dict": dense.state_dict()}, tmp_path / "vit_t_s4p_upernet.pth")
    args = arguments(root, tmp_path / "run", "--load-network", "True", **{"optim.lr": 1e-30})
    assert script().main([*args, "--init", str(tmp_path / "vit_t_s4p_upernet")]) == 0
    log = (tmp_path / "run/train.log").read_text()
    assert "dense FFNs split: last 48 channels copied to every expert" in log
    moe = build_segmentor("vit_t", {t: len(c) for t, c in TASKS.items()}, 32, channels=8, expert_channels=48)
    load_weights(moe, tmp_path / "run/vit_t_moe_mdf.pth").require_heads()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        counts = dict.fromkeys(moe.tasks, 1)
        for ours, theirs in zip(moe.eval().encode(images, counts), dense.eval().encode(images), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_false_starts_from_random_weights(root: Path, tmp_path: Path) -> None:
    args = arguments(root, tmp_path / "run", "--load-network", "False", **{"schedule.epochs": 1})
    assert script().main([*args, "--checkpoint", str(tmp_path / "not_there.pth")]) == 0
    assert "initial weights: random" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        ("vit_t", {}),
        ("vit_t_moe", {"precision": "bf16", "model.activation_checkpointing": True}),
        ("vit_t_moe", {"tasks.ponds.loss": {"kind": "ce_dice", "weight": 0.5}}),
        ("vit_t_moe", {"tasks.roofs.loss.kind": "focal", "tasks.roofs.val": {"hold_out": 0.34}}),
        ("vit_t_moe", {"tasks.roofs.evaluation.mode": "resize", "tasks.ponds.evaluation.mode": "original"}),
        ("vit_t_moe", {"tasks.roofs.batch_size": 3, "tasks.roofs.evaluation.metric": "mF1"}),
    ],
)
def test_options_train(root: Path, tmp_path: Path, backbone: str, changes: dict) -> None:
    args = arguments(root, tmp_path / "run", backbone=backbone, **{"schedule.epochs": 1}, **changes)
    assert script().main(args) == 0
    scores = json.loads((tmp_path / "run/final_metrics.json").read_text())
    assert all(0 <= scores[f"{task}/mIoU"] <= 100 for task in TASKS)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [0, 192])
def test_no_experts_and_nothing_but_experts(root: Path, tmp_path: Path, channels: int) -> None:
    """The ends of the range: trained from a dense checkpoint, scored, and started from once more."""
    dense = build_segmentor("vit_t", {"s4p": 5}, 32, channels=8)
    torch.save({"state_dict": dense.state_dict()}, tmp_path / "dense.pth")
    changes = {"model.expert_channels": channels, "schedule.epochs": 1, "precision": "fp32"}
    args = arguments(root, tmp_path / "run", "--checkpoint", str(tmp_path / "dense.pth"), **changes)
    assert script().main(args) == 0
    best = tmp_path / "run/vit_t_moe_mdf_best.pth"
    meta = read_checkpoint(best)["meta"]
    assert (meta["backbone"], meta["expert_channels"]) == ("vit_t_moe", channels)
    assert (
        script("evaluate").main([str(best), "--device", "cpu", "--work-dir", str(tmp_path / "scores")]) == 0
    )
    scores = json.loads((tmp_path / "scores/scores.json").read_text())
    trained = json.loads((tmp_path / "run/final_metrics.json").read_text())
    assert {task: scores[task]["mIoU"] for task in TASKS} == pytest.approx(
        {task: trained[f"{task}/mIoU"] for task in TASKS}
    )
    again = arguments(root, tmp_path / "again", "--checkpoint", str(best), **changes)
    assert script().main(again) == 0


def test_subset_and_single_task(root: Path, tmp_path: Path) -> None:
    args = arguments(root, tmp_path / "run", "--tasks", "roofs", **{"schedule.epochs": 1})
    assert script().main(args) == 0
    meta = read_checkpoint(tmp_path / "run/vit_t_moe_mdf_best.pth")["meta"]
    assert meta["tasks"] == {"roofs": TASKS["roofs"]} and meta["expert_channels"] == 48
    assert meta["inference"] == {"roofs": {"mode": "slide_window", "crop": 32, "stride": 24}}
    assert not (tmp_path / "run/vit_t_moe_mdf_best_roofs.pth").exists(), "it would be the same file"


def test_subset_of_late_tasks_starts_at_once(root: Path, tmp_path: Path) -> None:
    """Also where the configuration's epochs are fewer than the start of a task that is left out."""
    late = {"tasks.ponds.start_epoch": 5, "tasks.roofs.start_epoch": 7, "schedule.epochs": 1}
    assert script().main(arguments(root, tmp_path / "run", "--tasks", "ponds", **late)) == 0
    assert "loss_ponds" in dict(losses(tmp_path / "run")[1])


def test_relative_data_root(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    args = arguments(Path(root.name), tmp_path / "run", **{"schedule.epochs": 1})
    assert script().main(args) == 0


@pytest.mark.slow
def test_images_in_training_and_validation_are_reported(root: Path, tmp_path: Path) -> None:
    same = {"tasks.ponds.val": {"images": "ponds/train/images", "masks": "ponds/train/masks"}}
    assert script().main(arguments(root, tmp_path / "run", **same, **{"schedule.epochs": 1})) == 0
    assert "ponds: 6 images are in both training and validation" in (tmp_path / "run/train.log").read_text()


def test_single_class_dataset_of_16_bit_geotiffs(root: Path, tmp_path: Path) -> None:
    """A user's own: one class, masks of 0 and 255, images with map coordinates."""
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    for i in range(6):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((10, 10))).astype(np.uint8) * 255
        pixels = (rng.normal(900, 90, (3, 40, 40)) + mask * 6).astype(np.uint16)
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        profile = {"driver": "GTiff", "height": 40, "width": 40, "crs": "EPSG:32632"}
        profile["transform"] = rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5)
        with rasterio.open(tmp_path / f"images/{i}.tif", "w", **profile, count=3, dtype="uint16") as file:
            file.write(pixels)
        cv2.imwrite(str(tmp_path / f"masks/{i}.png"), mask)
    mine = {
        "labels": {"classes": ["roof"], "values": [255], "ignore": []},
        "train": {"images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")},
        "val": {"hold_out": 0.3},
        "batch_size": 2,
    }
    args = arguments(root, tmp_path / "run", **{"tasks.mine": mine, "schedule.epochs": 1})
    assert script().main(args) == 0
    scores = json.loads((tmp_path / "run/final_metrics.json").read_text())
    assert {"mine/IoU.background", "mine/IoU.roof", "mine/mIoU_no_background"} <= set(scores)


# -- the model


def tiny(expert_channels: int = 8) -> Segmentor:
    torch.manual_seed(0)
    return build_segmentor(TINY, {"a": 3, "b": 4, "c": 2}, 32, channels=8, expert_channels=expert_channels)


def mdf(segmentor: Segmentor, **weights: float) -> MultiDataset:
    return MultiDataset(segmentor, {}, {t: TaskLoss(weight=weights.get(t, 1.0)) for t in segmentor.tasks})


def test_loss_is_the_weighted_sum_of_the_tasks_alone() -> None:
    model = mdf(tiny(), a=0.25, c=2.0).eval()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 2, (6, 32, 32), dtype=torch.uint8)
    together = model.loss(images, labels, {"a": 2, "b": 1, "c": 3})
    parts = {}
    for task, x, y in zip("abc", images.split([2, 1, 3]), labels.split([2, 1, 3]), strict=True):
        logits = model.segmentor(model._prepare(x), task)
        parts[task] = pixel_cross_entropy(logits, y)
        torch.testing.assert_close(together[f"loss_{task}"], parts[task], atol=1e-5, rtol=1e-5)
    expected = 0.25 * parts["a"] + parts["b"] + 2 * parts["c"]
    torch.testing.assert_close(together["loss"], expected, atol=1e-5, rtol=1e-5)
    minimised, logged = model.parse_losses(together)
    assert minimised is together["loss"] and set(logged) == {"loss", "loss_a", "loss_b", "loss_c"}


def test_every_active_weight_has_a_gradient_and_no_other() -> None:
    """So that processes can reduce gradients without looking for unused weights."""
    model = mdf(tiny())
    always_frozen = {name for name, p in model.segmentor.named_parameters() if not p.requires_grad}
    model.activate({"a", "c"})
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    labels = torch.zeros(4, 32, 32, dtype=torch.uint8)
    model.loss(images, labels, {"a": 2, "b": 0, "c": 2})["loss"].backward()
    of_b = {name for name, _ in task_parameters(model.segmentor, "b")}
    for name, parameter in model.segmentor.named_parameters():
        idle = name in of_b or name in always_frozen
        assert (parameter.grad is None) == idle == (not parameter.requires_grad), name
    model.activate({"a", "b", "c"})
    assert {name for name, p in model.segmentor.named_parameters() if not p.requires_grad} == always_frozen


@pytest.mark.usefixtures("real_vit_t")
@pytest.mark.parametrize("backbone", VARIANTS)
def test_layer_decay_covers_experts_of_every_backbone(backbone: str) -> None:
    """Experts have the rate of their block, heads the full one."""
    with torch.device("meta"):
        model = build_segmentor(backbone, {"a": 3, "b": 4}, 64, channels=16, expert_channels=64)
    depth = VARIANTS[backbone].depth
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, 1.0, 0.05, 0.9)
    assert len(groups) == 2 * (depth + 2), "of every layer those with and without weight decay"
    rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    for block in range(depth):
        for part in ("fc1.weight", "fc2.weight", "experts.a.weight", "experts.b.bias"):
            expected = 0.9 ** (depth - block)
            assert rates[f"backbone.blocks.{block}.mlp.{part}"] == pytest.approx(expected)
    assert all(rate == 1.0 for name, rate in rates.items() if name.startswith("heads."))
