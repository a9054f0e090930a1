"""Bad configurations, data, checkpoints and places: an error that says what to do, or a run that copes."""

import json
import re
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from processes import run_here, start, wait_until
from s4p_runs import CLASSES, arguments, losses, options, write_dataset

from s5.data.errors import DataError, SplitError
from s5.engine import launch
from s5.engine.checkpoint import CheckpointError, read_checkpoint
from s5.engine.command import USER_ERRORS, run_command
from s5.engine.config import ConfigError
from s5.engine.launch import LaunchError
from s5.models.segmentor import build_segmentor

SHORT = {"schedule.total_iters": 4, "schedule.val_interval": 4}
LABELED, UNLABELED, VAL = (f"splits/{name}.txt" for name in ("labeled/labeled", "unlabeled/pool", "val"))


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def root(whole_root: Path, tmp_path: Path) -> Path:
    """A data root to break."""
    return shutil.copytree(whole_root, tmp_path / "data")


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(scope="module")
def trained(whole_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp("trained") / "run"
    assert run_here("train", arguments(whole_root, work_dir, **SHORT)) == 0
    return work_dir


def train(
    root: Path, work_dir: Path, *extra: str, init: str = "none", resume: str | None = None, **changes: object
) -> int:
    extra += () if resume is None else ("--resume", resume)
    args = arguments(root, work_dir, *extra, **SHORT | changes)
    args[args.index("none")] = init
    return run_here("train", args)


def assert_nothing_trained(work_dir: Path) -> None:
    assert not list(work_dir.glob("*.pth")) and not (work_dir / "log.jsonl").exists()


def truncate(path: Path) -> None:
    """Make the file at ``path`` the first half of a JPEG."""
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (72, 80, 3), np.uint8))[1].tobytes()
    path.write_bytes(data[: len(data) // 2])


# -- configuration and splits


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


def test_batch_of_one_image(root: Path, work_dir: Path) -> None:
    with pytest.raises(ConfigError, match="data.labeled.batch_size = 1 .*batch norm needs at least two"):
        train(root, work_dir, **{"data.labeled.batch_size": 1, "data.unlabeled.batch_size": 0})


def test_half_precision_without_a_gpu(root: Path, work_dir: Path) -> None:
    with pytest.raises(ConfigError, match="precision fp16 needs a GPU.*bf16 or fp32"):
        train(root, work_dir, precision="fp16")


@pytest.mark.parametrize("kind", ["labeled", "unlabeled", "val"])
def test_missing_split(root: Path, work_dir: Path, kind: str) -> None:
    message = rf"split file {root}/splits/no.txt not found; .*Set its path, .*s5.data.prepare"
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
    message = rf"{kind}: {images} images, fewer .*9 per process x 1 processes = 9\)\. Lower the batch size"
    with pytest.raises(DataError, match=message):
        train(root, work_dir, **{f"data.{kind}.batch_size": 9})
    assert_nothing_trained(work_dir)


# -- images and masks that training refuses


def remove_image(image: Path, mask: Path) -> str:
    image.unlink()
    return rf"{image}: file not found"


def remove_mask(image: Path, mask: Path) -> str:
    mask.unlink()
    return rf"{mask}: file not found"


def truncate_image(image: Path, mask: Path) -> str:
    truncate(image)
    return rf"{image}: truncated JPEG"


def shrink_mask(image: Path, mask: Path) -> str:
    cv2.imwrite(str(mask), np.zeros((40, 50), np.uint8))
    return rf"{mask}: mask of 40x50 pixels for an image of 72x80 .*{image}"


def spoil_mask(image: Path, mask: Path) -> str:
    values = np.zeros((72, 80), np.uint8)
    values[:5, :2] = 7
    cv2.imwrite(str(mask), values)
    return rf"{mask}: value 7 \(10 pixels\) is not in label table 'test' \(valid: 0..2; ignored 255\)"


BREAKERS = [remove_image, remove_mask, truncate_image, shrink_mask, spoil_mask]


@pytest.mark.parametrize("kind", ["labeled/labeled", "val"])
@pytest.mark.parametrize("damage", BREAKERS, ids=lambda damage: damage.__name__)
def test_labeled_split_with_errors_is_refused(
    root: Path, work_dir: Path, kind: str, damage: Callable[[Path, Path], str]
) -> None:
    problem = damage(root / kind / "images/001.png", root / kind / "masks/001.png")
    with pytest.raises(DataError, match=rf"{kind}.txt: 1 errors in \d samples[\s\S]*{problem}") as error:
        train(root, work_dir)
    assert "See all with: python -m s5.data.check" in str(error.value)
    assert_nothing_trained(work_dir)


def test_line_without_mask(root: Path, work_dir: Path) -> None:
    shutil.copy(root / UNLABELED, root / LABELED)
    with pytest.raises(DataError, match=r"unlabeled/pool/images/000.png: its line has no mask"):
        train(root, work_dir)


@pytest.mark.parametrize("workers", [0, 1])
def test_error_that_no_check_found_is_still_clear(
    root: Path, work_dir: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for index in range(6):
        problem = spoil_mask(root, root / f"labeled/labeled/masks/{index:03d}.png")
    problem = problem.replace("005", r"\d{3}")
    changes = {"data.check": "false", "data.workers": workers}
    assert run_command(lambda: train(root, work_dir, **changes)) == 1
    assert re.search(rf"^error: {problem}", capfd.readouterr().err, re.M)
    assert_nothing_trained(work_dir)


# -- unlabeled images that cannot be read


@pytest.fixture
def partly_unreadable(root: Path) -> Path:
    """Two of eight unlabeled images are broken, 25 %; four steps of two see all of them."""
    (root / "unlabeled/pool/images/003.png").unlink()
    truncate(root / "unlabeled/pool/images/005.png")
    return root


def test_unreadable_unlabeled_images_are_skipped_and_listed(partly_unreadable: Path, work_dir: Path) -> None:
    (work_dir / "checks").mkdir(parents=True)
    (work_dir / "unreadable.txt").write_text("repaired.png\tof an earlier attempt\n")
    changes = {"data.unlabeled.max_unreadable": 0.25}
    assert train(partly_unreadable, work_dir, **changes) == 0
    lines = sorted((work_dir / "unreadable.txt").read_text().splitlines())
    assert [line.split("\t")[0] for line in lines] == [
        "unlabeled/pool/images/003.png",
        "unlabeled/pool/images/005.png",
    ]
    assert "file not found" in lines[0] and "truncated JPEG" in lines[1]
    log = (work_dir / "train.log").read_text()
    assert log.count("skipped unreadable image unlabeled/pool/images/003.png: ") == 1

    (work_dir / "iter_4.pth").unlink()
    assert train(partly_unreadable, work_dir, "--resume", **changes) == 0
    assert sorted((work_dir / "unreadable.txt").read_text().splitlines()) == lines


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_unlabeled_images(partly_unreadable: Path, work_dir: Path, workers: int) -> None:
    message = (
        r"2 of 8 unlabeled images \(25.00%\) cannot be read, more than data.unlabeled.max_unreadable = "
        rf"20.00%; they are listed in {work_dir}/unreadable.txt"
    )
    with pytest.raises(DataError, match=message):
        train(partly_unreadable, work_dir, **{"data.unlabeled.max_unreadable": 0.2, "data.workers": workers})
    assert len((work_dir / "unreadable.txt").read_text().splitlines()) == 2


# -- images of other kinds, which train


def test_one_and_four_channels_and_16_bits_train(root: Path, work_dir: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [((72, 80), np.uint8, 255), ((72, 80, 4), np.uint8, 255), ((72, 80, 3), np.uint16, 4000)]
    for folder in ("labeled/labeled", "unlabeled/pool", "val"):
        for path in sorted((root / folder / "images").iterdir()):
            shape, dtype, top = kinds[int(path.stem) % 3]
            cv2.imwrite(str(path), rng.integers(0, top, shape).astype(dtype))
    assert train(root, work_dir) == 0
    assert not (work_dir / "unreadable.txt").exists()
    assert all(np.isfinite(values).all() for values in losses(work_dir).values())


def test_images_smaller_than_the_crop_train(root: Path, work_dir: Path) -> None:
    for path in root.glob("*/**/*.png"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        height, width = (1, 1) if path.stem == "000" else (24, 40)
        cv2.imwrite(str(path), np.ascontiguousarray(image[:height, :width]))
    assert train(root, work_dir, **{"data.crop": 96, "data.scale": "[0.5, 1.0]"}) == 0
    assert all(np.isfinite(values).all() for values in losses(work_dir).values())


# -- checkpoints


def write_weights(path: Path, backbone: str) -> None:
    """A whole model of zeros, in a small file."""
    with torch.device("meta"):
        shapes = build_segmentor(backbone, {"s4p": 3}, 64, channels=8).state_dict()
    tensors = {name: torch.zeros((), dtype=value.dtype).expand(value.shape) for name, value in shapes.items()}
    torch.save({"state_dict": tensors}, path)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("option", ["init", "resume"])
def test_checkpoint_with_code_is_refused_and_not_run(
    root: Path, work_dir: Path, tmp_path: Path, option: str, trained: Path
) -> None:
    path, created = tmp_path / "evil.pth", tmp_path / "created"
    torch.save(torch.load(trained / "iter_4.pth", weights_only=False) | {"extra": Payload(created)}, path)
    with pytest.raises(CheckpointError, match=rf"{path} holds more than weights \(.*open\).*it was not run"):
        train(root, work_dir, **{option: str(path)})
    assert not created.exists()
    assert_nothing_trained(work_dir)


@pytest.mark.parametrize("option", ["init", "resume"])
def test_truncated_checkpoint(root: Path, work_dir: Path, tmp_path: Path, option: str, trained: Path) -> None:
    path = tmp_path / "cut.pth"
    path.write_bytes((trained / "iter_4.pth").read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=rf"{path} \(100000 bytes\) is truncated or no checkpoint"):
        train(root, work_dir, **{option: str(path)})
    assert_nothing_trained(work_dir)


def test_truncated_latest_checkpoint(root: Path, work_dir: Path, trained: Path) -> None:
    shutil.copytree(trained, work_dir)
    (work_dir / "iter_4.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{work_dir}/iter_4.pth \(0 bytes\) is truncated"):
        train(root, work_dir, "--resume")


def test_init_of_another_architecture(root: Path, work_dir: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "vit_s.pth", "vit_s")
    message = (
        r"vit_s.pth: weights of another architecture: width 384.* in the checkpoint, width 192.* in vit_t"
    )
    with pytest.raises(CheckpointError, match=message):
        train(root, work_dir, init=str(tmp_path / "vit_s.pth"))
    assert_nothing_trained(work_dir)


@pytest.mark.parametrize("init", ["mae", "weights/none.pth"])
def test_init_that_is_not_there(root: Path, work_dir: Path, init: str) -> None:
    place = (
        r"\S*/nowhere/vit_t.pth.*published .*then set init_paths.mae.vit_t"
        if init == "mae"
        else r"\S*/none.pth"
    )
    with pytest.raises(CheckpointError, match=rf"init '{init}': no file at {place}"):
        train(root, work_dir, init=init, **{"init_paths.mae.vit_t": "nowhere/vit_t.pth"})


def test_resume_that_is_not_there(root: Path, work_dir: Path) -> None:
    with pytest.raises(LaunchError, match=rf"--resume nowhere.pth: no such file; .*of {work_dir} is none"):
        train(root, work_dir, resume="nowhere.pth")


def test_resume_from_weights(root: Path, work_dir: Path, trained: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"vit_t_s4p_upernet.pth: it has no .*optimizer.*iter_<.*--init"
    ):
        train(root, work_dir, resume=str(trained / "vit_t_s4p_upernet.pth"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.decoder_channels": 16}, r"another model: \d+ tensors differ.*\(.*8.*here .*16.*\)"),
        (
            {"data.labels": json.dumps({"name": "t", "classes": [*CLASSES, "d"]})},
            r"another model.*classifier",
        ),
        ({"fixmatch.pseudo_labels": "ema"}, r"another model.*teacher.*absent"),
        ({"optim.lr": 1e-5}, "another learning-rate schedule.*--init"),
        ({"schedule.total_iters": 8}, "another learning-rate schedule.*number of iterations"),
        ({"optim.layer_decay": 0.9}, "another learning-rate schedule.*layer decay"),
        ({"data.unlabeled.batch_size": 0}, "2 data sources, this run has 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_resume_of_another_run(
    root: Path, work_dir: Path, trained: Path, changes: dict, message: str
) -> None:
    with pytest.raises((CheckpointError, DataError), match=message):
        train(root, work_dir, resume=str(trained / "iter_4.pth"), **changes)


# -- places


def test_output_folder_that_cannot_be_written(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LaunchError, match=rf"{tmp_path}/file/run: .*cannot be written \(.+\); .*--work-dir"):
        train(root, tmp_path / "file/run")


def test_full_disk_keeps_the_last_checkpoint(root: Path, work_dir: Path) -> None:
    changes = {"schedule.total_iters": 8, "schedule.val_interval": 8}
    run = start("train", arguments(root, work_dir, **changes), work_dir.parent)
    wait_until((work_dir / "iter_2.pth").exists, run)
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # writes fail as on a full disk
    assert run.wait() == 1
    assert re.search(r"error: cannot write \S+\.pth: .*Check that the disk has room", run.text())
    assert "Traceback" not in run.text()
    assert not list(work_dir.glob("**/*.tmp"))
    last = max(work_dir.glob("iter_*.pth"), key=lambda path: path.stat().st_mtime)
    assert read_checkpoint(last)["meta"]["iter"] < 8
    assert train(root, work_dir, "--resume", **changes) == 0
    assert sorted(losses(work_dir)) == list(range(1, 9))


def test_port_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        variables = {
            "RANK": 0,
            "LOCAL_RANK": 0,
            "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(LaunchError, match=rf"cannot listen on or reach 127.0.0.1:{port} .*another port"):
            launch.start("cpu")


# -- how errors are told


@pytest.mark.parametrize("error", USER_ERRORS, ids=lambda error: error.__name__)
def test_user_errors_are_printed_without_traceback(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error("a.png: broken. Restore it")

    assert run_command(fail) == 1
    assert capsys.readouterr() == ("", "error: a.png: broken. Restore it\n")


def test_ctrl_c_before_training_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run_command(interrupt) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_scripts_end_with_1_and_the_message(root: Path, tmp_path: Path, name: str) -> None:
    (root / VAL).unlink()
    args = arguments(root, tmp_path / "run") if name == "train" else evaluation(root, tmp_path)
    run = start(name, args, tmp_path)
    assert run.wait() == 1
    assert re.search(r"^error: split file \S+/splits/val.txt not found", run.text(), re.M)
    assert "Traceback" not in run.text()


def evaluation(root: Path, tmp_path: Path) -> list[str]:
    write_weights(tmp_path / "weights.pth", "vit_t")
    return [str(tmp_path / "weights.pth"), "--backbone", "vit_t", "--device", "cpu", *options(root)]
