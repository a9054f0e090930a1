"""Bad images and masks: refused before training, or skipped and listed; unusual ones train."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from s5.command import run_command
from s5.errors import DataError
from tests.helpers.s4p_runs import losses
from tests.segmentation.bad_input.training import LABELED, UNLABELED, assert_nothing_trained, train, truncate


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

    assert (work_dir / "unreadable.txt.old").read_text().startswith("repaired.png")

    (work_dir / "iter_4.pth").unlink()
    assert train(partly_unreadable, work_dir, "--resume", **changes) == 0
    assert set((work_dir / "unreadable.txt").read_text().splitlines()) <= set(lines)
    old = (work_dir / "unreadable.txt.old").read_text().splitlines()
    assert old[0].startswith("repaired.png") and sorted(old[1:]) == lines


def test_files_that_were_repaired_before_a_resume_do_not_count(root: Path, work_dir: Path) -> None:
    path = root / "unlabeled/pool/images/003.png"
    path.rename(path.with_suffix(".away"))
    changes = {"data.unlabeled.max_unreadable": 0.125}
    assert train(root, work_dir, **changes) == 0
    path.with_suffix(".away").rename(path)
    truncate(root / "unlabeled/pool/images/005.png")
    (work_dir / "iter_4.pth").unlink()
    assert train(root, work_dir, "--resume", **changes) == 0, "one file at a time, not two"


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_unlabeled_images(partly_unreadable: Path, work_dir: Path, workers: int) -> None:
    message = (
        r"2 of 8 unlabeled images \(25.00%\) cannot be read, more than data.unlabeled.max_unreadable = "
        rf"20.00% allows; listed in {work_dir}/unreadable.txt"
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
