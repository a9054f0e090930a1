"""Bad configurations and splits: an error that says what to do."""

import re
from pathlib import Path

import pytest

from s5.errors import ConfigError, DataError, SplitError
from tests.helpers.s4p_runs import losses
from tests.segmentation.bad_input.training import LABELED, UNLABELED, VAL, assert_nothing_trained, train


def test_unknown_key(root: Path, work_dir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"pretrain.yaml[\s\S]*unknown key 'data.batch'.*labeled, .*unlabeled"
    ):
        train(root, work_dir, **{"data.batch": 4})
    assert not work_dir.exists()


@pytest.mark.parametrize("crop", [16, 40])
def test_crop_that_is_not_made_of_patches(root: Path, work_dir: Path, crop: int) -> None:
    with pytest.raises(ConfigError, match=rf"data.crop = {crop}: .*(32|multiple of 16)"):
        train(root, work_dir, **{"data.crop": crop})


@pytest.mark.parametrize(
    "alone",
    [{"data.unlabeled.batch_size": 0}, {"fixmatch.warmup_iters": 1}, {"fixmatch.lambda_u": 0.0}],
    ids=lambda alone: "-".join(alone),
)
def test_batch_of_one_image(root: Path, work_dir: Path, alone: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="data.labeled.batch_size = 1 .*batch norm needs at least two"):
        train(root, work_dir, **{"data.labeled.batch_size": 1}, **alone)


def test_half_precision_without_a_gpu(root: Path, work_dir: Path) -> None:
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU.*bf16 or fp32"):
        train(root, work_dir, precision="fp16")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("optim.warmup_iters", "optim.warmup_iters"),
        ("fixmatch.warmup_iters", "fixmatch.warmup_iters [+] ramp_iters"),
        ("fixmatch.ramp_iters", "fixmatch.warmup_iters [+] ramp_iters"),
    ],
)
def test_warm_up_longer_than_the_run(root: Path, work_dir: Path, key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name} 9 must be smaller than schedule.total_iters 4"):
        train(root, work_dir, **{key: 9})


@pytest.mark.parametrize("option", [{"fixmatch.alignment": "labels"}, {"fixmatch.threshold": "freematch"}])
def test_statistics_of_predictions_with_stored_labels(
    root: Path, work_dir: Path, option: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match="stored, set alignment: none and threshold: fixed"):
        train(root, work_dir, **{"fixmatch.pseudo_labels": "stored"}, **option)


@pytest.mark.parametrize("kind", ["labeled", "unlabeled", "val"])
def test_missing_split(root: Path, work_dir: Path, kind: str) -> None:
    message = rf"split file {root}/splits/no.txt not found; .*Correct its path, .*s5.data.prepare"
    with pytest.raises(SplitError, match=message):
        train(root, work_dir, **{f"data.{kind}.split": "splits/no.txt"})
    assert_nothing_trained(work_dir)


@pytest.mark.parametrize("split", [LABELED, UNLABELED, VAL])
def test_empty_split(root: Path, work_dir: Path, split: str) -> None:
    (root / split).write_text("\n \n")
    with pytest.raises(
        SplitError, match=rf"{root}/{split}: no samples. Each line is 'image' or 'image mask'"
    ):
        train(root, work_dir)
    assert_nothing_trained(work_dir)


def test_windows_line_ends_and_spaces_in_names_train(root: Path, work_dir: Path) -> None:
    for name in ("labeled", "unlabeled", "val"):
        (root / name).rename(root / f"{name} set 1")
    for split in (LABELED, UNLABELED, VAL):
        lines = (root / split).read_text().splitlines()
        lines = [
            re.sub(r"\b(labeled|unlabeled|val)(/\S*images|/\S*masks)", r"\1 set 1\2", line) for line in lines
        ]
        (root / split).write_bytes("\ufeff".encode() + "\r\n".join([*lines, "", ""]).encode())
    assert b"labeled set 1/labeled/masks/003.png\r\n" in (root / LABELED).read_bytes()
    assert train(root, work_dir) == 0
    assert not (work_dir / "unreadable.txt").exists()
    assert sorted(losses(work_dir)) == [1, 2, 3, 4]


@pytest.mark.parametrize(("kind", "images"), [("labeled", 6), ("unlabeled", 8)])
def test_fewer_images_than_a_step_takes(root: Path, work_dir: Path, kind: str, images: int) -> None:
    message = rf"{kind}: {images} images, fewer .*9 per process x 1 processes = 9\)\. Reduce the batch size"
    with pytest.raises(DataError, match=message):
        train(root, work_dir, **{f"data.{kind}.batch_size": 9})
    assert_nothing_trained(work_dir)
