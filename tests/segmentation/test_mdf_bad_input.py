"""Multi-dataset runs on bad configurations, data and checkpoints: an error that says what to do."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from s5.errors import CheckpointError, ConfigError, DataError, UserError
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.segmentor import build_segmentor
from s5.training.config import load_config
from tests.helpers.mdf_runs import SIZE, TASKS, arguments, configuration, script, write_datasets

ONE_EPOCH = {"schedule.epochs": 1}


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("whole"))


def fails(root: Path, tmp_path: Path, message: str, *extra: str, **changes: object) -> None:
    """The run stops with a user error, which is printed without a traceback."""
    backbone = str(changes.pop("backbone", "vit_t_moe"))
    with pytest.raises(UserError, match=message):
        script().main(arguments(root, tmp_path / "run", *extra, backbone=backbone, **ONE_EPOCH, **changes))


def test_task_that_the_configuration_lacks(root: Path, tmp_path: Path) -> None:
    fails(
        root,
        tmp_path,
        "unknown task 'lakes'; the configuration's tasks: ponds, roofs",
        "--tasks",
        "lakes",
    )


def test_two_datasets_of_the_same_name(root: Path, tmp_path: Path) -> None:
    text = yaml.safe_dump(configuration(root), sort_keys=False)
    twice = tmp_path / "twice.yaml"
    twice.write_text(text.replace("  roofs:\n", "  ponds:\n"))
    with pytest.raises(ConfigError, match=r"duplicate key 'ponds'[\s\S]*line"):
        load_config(MDFConfig, twice)
    fails(
        root,
        tmp_path,
        "dataset names must differ in more than case: roofs, Roofs",
        **{"tasks.Roofs": configuration(root)["tasks"]["roofs"]},
    )


@pytest.mark.parametrize("name", ["1st", "a.b", "keys", "my data"])
def test_name_that_cannot_be_a_task(root: Path, name: str) -> None:
    config = configuration(root)
    config["tasks"][name] = config["tasks"].pop("ponds")
    with pytest.raises(ValueError, match=f"'{name}' cannot name a task"):
        MDFConfig.model_validate(config)


def test_class_count_against_mask_values(root: Path, tmp_path: Path) -> None:
    fails(
        root,
        tmp_path,
        r"6 errors[\s\S]*roofs/train/masks/000.png: value 2 \(\d+ pixels\) is not in label table 'roofs'.*"
        r"add the value to classes .*or to ignore",
        **{"tasks.roofs.labels.classes": ["ground", "water"]},
    )


def test_shifted_masks_are_told_in_plain_words(root: Path, tmp_path: Path) -> None:
    """Written one higher, with 0 for ignored pixels: with six classes every value is in Potsdam's table."""
    for path in (root / "roofs").glob("*/masks/*.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) + 1
        mask[:4] = 0
        mask[-8:] = np.repeat(np.arange(1, 7, dtype=np.uint8), 8)
        cv2.imwrite(str(path), mask)
    fails(root, tmp_path, "potsdam_mmseg", **{"tasks.roofs.labels": "potsdam_6"})


def test_image_and_mask_of_different_size(root: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(root / "ponds/val/masks/001.png"), np.zeros((30, 48), np.uint8))
    fails(root, tmp_path, r"ponds/val/masks/001.png: mask of 30x48 pixels for an image of 40x48")


def test_empty_dataset(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "roofs/train/images")
    (root / "roofs/train/images").mkdir()
    fails(
        root,
        tmp_path,
        r"tasks.roofs.train: \S*roofs/train/images: no images \(.jpg.*; give the folder",
    )


def test_no_validation_images(root: Path) -> None:
    config = configuration(root)
    for val in ({}, {"val": None}):  # without the key, or with nothing behind it
        config["tasks"]["ponds"].pop("val", None)
        config["tasks"]["ponds"] |= val
        with pytest.raises(ValueError, match=r"tasks.ponds[\s\S]*no validation images[\s\S]*hold_out"):
            MDFConfig.model_validate(config)


def test_mask_without_image(root: Path, tmp_path: Path) -> None:
    (root / "ponds/train/images/002.png").unlink()
    fails(root, tmp_path, r"002")


def test_fewer_images_than_a_step_takes(root: Path, tmp_path: Path) -> None:
    fails(root, tmp_path, r"ponds: 6 images, fewer than one step takes \(7", **{"tasks.ponds.batch_size": 7})


def test_batch_of_one(root: Path, tmp_path: Path) -> None:
    fails(root, tmp_path, r"tasks.ponds.batch_size = 1: batch norm", **{"tasks.ponds.batch_size": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks.ponds.start_epoch": 3}, r"tasks.ponds.start_epoch 3: training ends after schedule.epochs 1"),
        ({"tasks.ponds.batchsize": 3}, r"unknown key 'tasks.ponds.batchsize' - did you mean 'batch_size'\?"),
        ({"tasks.ponds.train.folder": "x"}, r"unknown key 'tasks.ponds.train.folder'.*images, masks"),
        ({"tasks.ponds.train": {"images": "x"}}, r"  tasks.ponds.train.masks: required key is missing"),
        ({"tasks.ponds.val": 5}, r"  tasks.ponds.val = 5: "),
        ({"tasks.ponds.val": {"hold_out": 2}}, r"  tasks.ponds.val.hold_out = 2: "),
        ({"tasks.ponds.labels": "pond"}, r"unknown label table 'pond'; known: .*loveda"),
        (
            {"model.expert_channels": 193},
            r"expert_channels 193: vit_t_moe has 192 channels, so choose 0 .* to 192 .*such as 48",
        ),
        ({"tasks.ponds.train": "none.txt"}, r"split file \S*none.txt not found"),
        ({"precision": "fp16"}, r"precision fp16 needs a GPU"),
    ],
)
def test_bad_configuration(root: Path, tmp_path: Path, changes: dict, message: str) -> None:
    fails(root, tmp_path, message, **changes)


def test_warm_up_longer_than_the_run(root: Path, tmp_path: Path) -> None:
    fails(
        root,
        tmp_path,
        r"optim.warmup_iters 100: the run has only 3 iterations",
        **{"optim.warmup_iters": 100},
    )


def test_score_without_background_needs_one(root: Path, tmp_path: Path) -> None:
    metric = {"tasks.ponds.evaluation.metric": "mIoU_no_background"}
    fails(root, tmp_path, r"tasks.ponds.evaluation.metric mIoU_no_background: .*set background in", **metric)


def test_refused_resume_leaves_the_configuration_of_the_run(root: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    assert script().main(arguments(root, work_dir, **ONE_EPOCH)) == 0
    before = (work_dir / "config.yaml").read_text()
    with pytest.raises(CheckpointError, match=r"its run was to end at iteration 3, this one at 6"):
        script().main(arguments(root, work_dir, "--resume", **{"schedule.epochs": 2}))
    assert (work_dir / "config.yaml").read_text() == before


# -- checkpoints


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with experts of 48 channels for `ponds` and `streets`."""
    path = tmp_path_factory.mktemp("weights") / "vit_t_moe_mdf.pth"
    model = build_segmentor("vit_t", {"ponds": 2, "streets": 3}, SIZE, channels=8, expert_channels=48)
    torch.save({"state_dict": model.state_dict()}, path)
    return path


def test_checkpoint_of_other_tasks(root: Path, tmp_path: Path, moe_file: Path) -> None:
    message = r"vit_t_moe_mdf.pth: the checkpoint has experts for ponds, streets, but none for roofs"
    fails(root, tmp_path, message, "--checkpoint", str(moe_file))


def test_checkpoint_of_another_expert_width(root: Path, tmp_path: Path, moe_file: Path) -> None:
    message = r"experts of 48 channels in the checkpoint, of 32 in the model: set model.expert_channels=48"
    extra = ("--checkpoint", str(moe_file), "--tasks", "ponds")
    fails(root, tmp_path, message, *extra, **{"model.expert_channels": 32})


def test_moe_checkpoint_for_a_dense_model(root: Path, tmp_path: Path, moe_file: Path) -> None:
    message = r"experts for ponds, streets, the model has none: .*vit_t_moe, and model.expert_channels=48"
    fails(root, tmp_path, message, "--checkpoint", str(moe_file), backbone="vit_t")


def test_some_tasks_of_a_checkpoint(root: Path, tmp_path: Path, moe_file: Path) -> None:
    args = arguments(root, tmp_path / "run", "--tasks", "ponds", "--checkpoint", str(moe_file), **ONE_EPOCH)
    assert script().main(args) == 0


def test_checkpoint_of_other_bands(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "bgr_nir.pth"
    state = build_segmentor("vit_t", {"s4p": 5}, SIZE, channels=8).backbone.state_dict()
    state["patch_embed.proj.weight"] = torch.randn(192, 4, 16, 16)
    torch.save({"state_dict": state}, path)
    fails(root, tmp_path, r"images with 4 channels.*--init-bands R,G,B", "--checkpoint", str(path))
    fails(root, tmp_path, r"init_bands 3,2,1 selects channels of a checkpoint, but", "--init-bands", "3,2,1")
    extra = ("--checkpoint", str(path), "--init-bands", "3,2,1")
    assert script().main(arguments(root, tmp_path / "other", *extra, **ONE_EPOCH)) == 0
    log = (tmp_path / "other/train.log").read_text()
    assert "red, green and blue are channels 3, 2, 1 of 4" in log and "dense FFNs split" in log


def test_missing_checkpoint(root: Path, tmp_path: Path) -> None:
    fails(root, tmp_path, r"not_there", "--checkpoint", str(tmp_path / "not_there"))


def test_true_without_a_checkpoint(root: Path, tmp_path: Path) -> None:
    fails(root, tmp_path, "--load-network True needs --init CHECKPOINT", "--load-network", "True")


@pytest.mark.parametrize("value", ["yes", "1", ""])
def test_neither_true_nor_false(
    root: Path, tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script().main(arguments(root, tmp_path / "run", "--load-network", value))
    assert f"expected True or False, got {value!r}" in capsys.readouterr().err


def test_resume_with_other_tasks(root: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    assert script().main(arguments(root, work_dir, **ONE_EPOCH)) == 0
    with pytest.raises((CheckpointError, DataError), match=r"another model|data sources"):
        script().main(arguments(root, work_dir, "--resume", "--tasks", "roofs", **ONE_EPOCH))
    assert sorted(TASKS) == ["ponds", "roofs"]
