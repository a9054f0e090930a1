"""Frozen backbones and LoRA in runs of all three trees: what changes, resuming, and using the weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import s5
from s5.backbones import Lora, adapter_names
from s5.checkpoints.reading import read_checkpoint
from s5.errors import CheckpointError, ConfigError
from s5.segmentation.multi_dataset import MultiDataset, TaskLoss
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.windows import Inference
from s5.training.optim import build_optim_wrapper, param_groups
from tests.helpers import det_runs, mdf_runs, s4p_runs
from tests.helpers.shallow_vit import SHALLOW
from tests.helpers.trained_models import table, write_checkpoint

HOW = ("frozen", "lora")
DENSE, MOE = "vit_t", "vit_t_moe"


@pytest.fixture(scope="module")
def mdf_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mdf_runs.write_datasets(tmp_path_factory.mktemp("mdf"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "vit_t_s4p_upernet.pth"
    write_checkpoint(path, {"s4p": table("t", ["a", "b"])}, backbone=DENSE)
    return path


@pytest.fixture(scope="module")
def lora_run(mdf_root: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps with experts and adapters; one task joins in the second."""
    work_dir = tmp_path_factory.mktemp("runs") / "lora"
    assert fine_tune(mdf_root, work_dir, base, MOE, "lora", LATE) == 0
    return work_dir


LATE = {"tasks.ponds.start_epoch": 1, "schedule.val_interval": 1}


def fine_tune(
    root: Path, work_dir: Path, base: Path, backbone: str, how: str, changes: dict, *extra: str
) -> int:
    changes = {"model.finetune": how, "optim.lr": 1e-2, **changes}
    init = () if "--resume" in extra else ("--init", str(base))
    args = mdf_runs.arguments(root, work_dir, *init, *extra, backbone=backbone, **changes)
    return mdf_runs.script().main(args)


def encoder(path: Path) -> dict[str, torch.Tensor]:
    state = read_checkpoint(path)["state_dict"]
    return {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}


def changed(path: Path, base: dict[str, torch.Tensor]) -> set[str]:
    """Names of the backbone's tensors that differ from the base model, which lacks some of them."""
    return {
        name
        for name, value in encoder(path).items()
        if name not in base or not torch.equal(value, base[name])
    }


def is_own(name: str) -> bool:
    return name.startswith("pyramid.") or ".lora." in name or ".experts." in name


@pytest.mark.parametrize("how", HOW)
def test_pre_training(base: Path, tmp_path: Path, how: str) -> None:
    """With an EMA teacher, which follows the adapters."""
    root = s4p_runs.write_dataset(tmp_path / "data")
    changes = {"model.finetune": how, "fixmatch.pseudo_labels": "ema", "optim.lr": 1e-2}
    args = s4p_runs.arguments(root, tmp_path / "run", "--init", str(base), **changes)
    assert s4p_runs.script().main(args) == 0
    own = changed(tmp_path / "run/vit_t_s4p_upernet.pth", encoder(base))
    resampled = {"lora_scale", "pos_embed"}  # to the size of the crops
    assert own and all(map(is_own, own - resampled))
    assert bool(adapter_names(own)) == (how == "lora")
    whole = read_checkpoint(tmp_path / "run/iter_6.pth")
    teacher = {k for k in whole["state_dict"] if k.startswith("teacher.network.backbone.")}
    assert len(teacher) == len(encoder(tmp_path / "run/vit_t_s4p_upernet.pth"))
    log = (tmp_path / "run/train.log").read_text()
    trained, total = (
        int(number.replace(",", ""))
        for number in re.search(r"trained parameters: ([\d,]+) of ([\d,]+) ", log).groups()
    )
    assert trained < 0.3 * total
    stored = whole["optimizer"]["state"]
    assert sum(state["exp_avg"].numel() for state in stored.values()) == trained


@pytest.mark.parametrize(("backbone", "how"), [(DENSE, "frozen"), (MOE, "frozen"), (DENSE, "lora")])
def test_fine_tuning(mdf_root: Path, base: Path, tmp_path: Path, backbone: str, how: str) -> None:
    """Recomputing activations."""
    changes = {"model.activation_checkpointing": True, "schedule.epochs": 1, "schedule.val_interval": 1}
    assert fine_tune(mdf_root, tmp_path / "run", base, backbone, how, changes) == 0
    own = changed(tmp_path / f"run/{backbone}_mdf.pth", encoder(base))
    assert own and all(map(is_own, own - {"lora_scale", *(n for n in own if ".mlp.fc2." in n)}))
    assert set(adapter_names(own)) == (set(mdf_runs.TASKS) if how == "lora" else set())
    warned = "experts" in (tmp_path / "run/train.log").read_text() and backbone == MOE
    assert warned == (backbone == MOE)


def test_adapters_of_a_task_that_has_not_started_stay_as_they_are(lora_run: Path) -> None:
    early, late = (
        {k: v for k, v in read_checkpoint(lora_run / f"iter_{n}.pth")["state_dict"].items() if ".lora." in k}
        for n in (3, 6)
    )
    assert not any(value.any() for name, value in early.items() if name.endswith(".lora.ponds.b"))
    assert all(value.any() for name, value in early.items() if name.endswith(".lora.roofs.b"))
    assert all(value.any() for name, value in late.items() if name.endswith(".b"))
    for name, value in early.items():
        assert not torch.equal(value, late[name])


def test_resume_equals_the_uninterrupted_run(
    mdf_root: Path, base: Path, lora_run: Path, tmp_path: Path
) -> None:
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "iter_3.pth").write_bytes((lora_run / "iter_3.pth").read_bytes())
    assert fine_tune(mdf_root, work_dir, base, MOE, "lora", LATE, "--resume") == 0
    whole = mdf_runs.losses(lora_run)
    assert mdf_runs.losses(work_dir) == {step: value for step, value in whole.items() if step > 3}
    ours, theirs = (read_checkpoint(run / "vit_t_moe_mdf.pth")["state_dict"] for run in (work_dir, lora_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.lora.alpha": 8}, r"scaled by alpha / rank = 2, .* by 1: set the original model.lora.alpha"),
        ({"model.lora.rank": 4}, r"another model: \d+ tensors differ.*lora"),
        ({"model.finetune": "full"}, r"another model: \d+ tensors differ"),
        ({"model.finetune": "frozen"}, r"another model: \d+ tensors differ"),
    ],
)
def test_resume_with_other_adapters(
    mdf_root: Path, base: Path, lora_run: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    (work_dir / "iter_3.pth").write_bytes((lora_run / "iter_3.pth").read_bytes())
    with pytest.raises(CheckpointError, match=message):
        fine_tune(mdf_root, work_dir, base, MOE, "lora", {**LATE, **changes}, "--resume")


def test_resume_of_a_frozen_run_trains_the_same_parts(mdf_root: Path, base: Path, tmp_path: Path) -> None:
    short = {"schedule.epochs": 1, "schedule.val_interval": 1}
    assert fine_tune(mdf_root, tmp_path / "run", base, DENSE, "frozen", short) == 0
    with pytest.raises(
        CheckpointError, match=r"learning-rate schedule.*layer decay, warm-up and model.finet"
    ):
        resume = ("--resume", str(tmp_path / "run/iter_3.pth"))
        fine_tune(mdf_root, tmp_path / "other", base, DENSE, "full", short, *resume)


def test_weights_predict_and_are_scored_as_in_the_run(mdf_root: Path, lora_run: Path, tmp_path: Path) -> None:
    path = lora_run / "vit_t_moe_mdf.pth"
    model = s5.load(path, device="cpu", precision="fp32")
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    both = {task: model.predict(image, task=task) for task in mdf_runs.TASKS}
    alone = s5.load(path, device="cpu", precision="fp32", tasks=["roofs"]).predict(image)
    assert both.keys() == set(mdf_runs.TASKS)
    assert np.array_equal(alone.mask, both["roofs"].mask)
    config = str(lora_run / "config.yaml")
    args = [str(path), "--config", config, "--device", "cpu", "--work-dir", str(tmp_path / "eval")]
    assert mdf_runs.script("evaluate").main(args) == 0
    scores = json.loads((tmp_path / "eval/scores.json").read_text())
    logged = [json.loads(line) for line in (lora_run / "log.jsonl").read_text().splitlines()]
    last = [record for record in logged if "roofs/mIoU" in record][-1]
    for task in mdf_runs.TASKS:
        assert scores[task]["mIoU"] == pytest.approx(last[f"{task}/mIoU"])


@pytest.mark.parametrize("how", HOW)
def test_detection(tmp_path: Path, how: str) -> None:
    root = det_runs.write_datasets(tmp_path)
    config = det_runs.write_config(root)
    args = [str(config), "--device", "cpu", "--work-dir", str(tmp_path / "run")]
    changes = [f"model.finetune={how}", "model.lora.rank=2", "model.lora.targets=[attn.qkv,mlp.fc1]"]
    assert det_runs.script().main([*args, "--cfg-options", *changes]) == 0
    names = encoder(tmp_path / "run/vit_t_moe_det.pth")
    assert adapter_names(names) == (("a", "b") if how == "lora" else ())
    model = s5.load(tmp_path / "run/vit_t_moe_det.pth", device="cpu")
    assert model.predict(np.zeros((64, 64, 3), np.uint8), task="a") is not None
    log = (tmp_path / "run/train.log").read_text()
    assert f"model.finetune = {how} freezes a backbone of random weights" in log


def test_a_step_on_one_task_leaves_the_adapters_of_others_untouched() -> None:
    torch.manual_seed(0)
    segmentor = build_segmentor(SHALLOW, {"a": 2, "b": 2}, 32, channels=8, lora=Lora(2))
    inference, losses = dict.fromkeys("ab", Inference()), dict.fromkeys("ab", TaskLoss())
    model = MultiDataset(segmentor, inference, losses).train()
    wrapper = build_optim_wrapper(param_groups(segmentor, 1e-2, 0.05), 1e-2, (0.9, 0.999), None)
    before = {name: p.detach().clone() for name, p in segmentor.named_parameters()}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 2, (2, 32, 32), dtype=torch.uint8)
    with wrapper.optim_context(model):
        loss = model.loss(images, labels, {"a": 2, "b": 0})["loss"]
    wrapper.update_params(loss)
    moved = {name for name, p in segmentor.named_parameters() if not torch.equal(p, before[name])}
    adapters = {name for name in moved if ".lora." in name}
    assert adapters and all(".lora.a." in name for name in adapters)
    assert all(".lora." in name or name.startswith(("backbone.pyramid.", "heads.a.")) for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.finetune": "half"}, r"model.finetune = 'half'.*'full', 'frozen' or 'lora'"),
        ({"model.lora.rank": 0}, r"model.lora.rank = 0"),
        ({"model.lora.rank": 193}, r"model.lora.rank 193: must be between 1 and 192"),
        ({"model.lora.alpha": -1}, r"model.lora.alpha = -1"),
        ({"model.lora.r": 8}, r"unknown key 'model.lora.r'.*Valid here: alpha, rank, targets"),
        ({"model.lora.targets": ["qvk"]}, r"model.lora.targets 'qvk': vit_t has attn.qkv, attn.proj"),
    ],
)
def test_settings_that_do_not_fit(
    mdf_root: Path, base: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fine_tune(mdf_root, tmp_path / "run", base, DENSE, "lora", changes)


def test_adapters_of_other_tasks_are_refused(mdf_root: Path, lora_run: Path, tmp_path: Path) -> None:
    both = lora_run / "vit_t_moe_mdf.pth"
    with pytest.raises(CheckpointError, match=r"adapters for ponds, roofs, the model has none"):
        fine_tune(mdf_root, tmp_path / "run", both, MOE, "full", {})
