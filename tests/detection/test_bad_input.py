"""Detection runs on bad data, configurations and checkpoints: an error that says what to do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from s5.checkpoints.loading import load_weights
from s5.command import run_command
from s5.detection.network import build_detector
from s5.errors import UserError
from s5.segmentation.segmentor import build_segmentor
from tests.helpers.det_runs import SIZE, losses, script, write_config, write_datasets
from tests.helpers.oriented_data import xml

CORNERS = [8, 15, 24, 15, 24, 25, 8, 25]
LINE = " ".join(map(str, CORNERS))


@pytest.fixture(scope="module")
def whole_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_datasets(tmp_path_factory.mktemp("whole"))


def arguments(root: Path, *extra: str, **changes: object) -> list[str]:
    """Of a run in ``root/run``; `changes` override the configuration, with `__` for a dot."""
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    options = ["--cfg-options", *overrides] if overrides else []
    work_dir = str(root / "run")
    return [str(write_config(root)), "--device", "cpu", "--work-dir", work_dir, *extra, *options]


def fails(root: Path, message: str, *extra: str, **changes: object) -> str:
    """The run stops before its first step with a user error, which is printed without a traceback."""
    with pytest.raises(UserError, match=message) as error:
        script().main(arguments(root, *extra, **changes))
    assert not list((root / "run").glob("*.pth")) and not (root / "run/log.jsonl").exists()
    return str(error.value)


# -- annotations


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{LINE} box 0\n1 2 3 4 box 0\n", r"2\.txt, line 2: 6 fields instead of 9 or 10.*1 2 3 4 box 0"),
        (f"{LINE} kite 0\n", r"2\.txt, line 1: unknown class 'kite'.*has box; .*leave_out"),
        (f"nan{LINE[1:]} box 0\n", r"2\.txt, line 1: a coordinate is not a finite number"),
    ],
    ids=["too few numbers", "unknown class", "nan"],
)
def test_bad_text(root: Path, part: str, text: str, message: str) -> None:
    other = root / ("val" if part == "train" else "train")
    shutil.copytree(root / "a", other)
    (root / "a/labelTxt/2.txt").write_text(text)
    images = {"images": f"{other.name}/images", "annotations": f"{other.name}/labelTxt"}
    key = "tasks__a__val" if part == "train" else "tasks__a__train"
    fails(root, rf"^tasks\.a\.{part}: .*{message}", **{key: images})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml([("box", CORNERS)])[:80], r"2\.xml: malformed XML"),
        (
            xml([("box", CORNERS)]).replace("robndbox", "bndbox"),
            r"2\.xml, object 1 \(box\): no <robndbox>",
        ),
        (xml([("kite", CORNERS)]), r"2\.xml, object 1 \(kite\): unknown class 'kite'"),
        (
            "<annotation><object><name>box</name><robndbox><cx>9</cx><cy>9</cy><w>-4</w><h>4</h>"
            "<angle>0</angle></robndbox></object></annotation>",
            r"2\.xml, object 1 \(box\): a box of -4 x 4 pixels",
        ),
    ],
    ids=["malformed", "no robndbox", "unknown class", "negative size"],
)
def test_bad_xml(root: Path, text: str, message: str) -> None:
    (root / "a/labelTxt/2.txt").unlink()
    (root / "a/labelTxt/2.xml").write_text(text)
    fails(root, message)


def test_object_of_zero_size_is_left_out_and_the_run_goes_on(root: Path) -> None:
    with (root / "a/labelTxt/2.txt").open("a") as file:
        file.write("5 5 5 5 5 5 5 5 box 0\n")
    assert script().main(arguments(root, schedule__epochs=1, schedule__milestones=[])) == 0
    log = (root / "run/train.log").read_text()
    assert re.search(r"1 objects skipped[\s\S]*2\.txt, line 3: a box of 0 x 0 pixels has no area", log)
    assert np.isfinite(list(losses(root / "run").values())).all()


def test_image_without_annotation_and_annotation_without_image(root: Path) -> None:
    (root / "a/labelTxt/2.txt").rename(root / "a/labelTxt/7.txt")
    text = fails(root, r"^tasks\.a\.train: \S*a/images: ")
    assert "1 images (2.png) without an annotation file" in text
    assert "1 annotation files (7.txt) without an image" in text


def test_all_images_empty(root: Path) -> None:
    for path in (root / "b/labelTxt").iterdir():
        path.write_text("")
    fails(root, r"^tasks\.b\.train: \S*b/images: none of the 2 images has an object of the classes box")


def test_all_objects_difficult(root: Path) -> None:
    for path in (root / "a/labelTxt").iterdir():
        path.write_text(f"{LINE} box 1\n")
    fails(root, r"^tasks\.a\.train: .*all objects are difficult.*set train_difficult")
    options = {"tasks__a__train_difficult": True, "schedule__epochs": 1, "schedule__milestones": []}
    assert script().main(arguments(root, **options)) == 0


# -- folders and images


def test_task_that_no_data_has(root: Path) -> None:
    where = {"images": "c/images", "annotations": "c/labelTxt"}
    message = rf"^tasks\.c\.train: {root}/c/images: no such folder; give the folder of the images"
    fails(root, message, tasks__c={"classes": ["box"], "train": where, "val": where})


def test_missing_labels_of_the_whole_images(root: Path) -> None:
    shutil.rmtree(root / "b/whole")
    fails(root, rf"tasks\.b\.whole: {root}/b/whole: no such folder")


def test_wrong_labels_of_the_whole_images(root: Path) -> None:
    """Reported before the first step, not at the first validation."""
    (root / "b/whole/big.txt").write_text(f"{LINE} kite 0\n")
    fails(root, rf"^tasks\.b\.whole: {root}/b/whole/big\.txt, line 1: unknown class 'kite'.*leave_out")
    (root / "b/whole/big.txt").unlink()
    message = rf"^tasks\.b\.whole: labels of 1 of 1 full images are missing: {root}/b/whole/big\.txt\. Add"
    fails(root, message)


@pytest.mark.parametrize("part", ["train", "val"])
def test_empty_split(root: Path, part: str) -> None:
    (root / "names.txt").write_text("\n \n")
    message = rf"^tasks\.a\.{part}: {root}/names\.txt: no samples"
    fails(root, message, **{f"tasks__a__{part}__names": "names.txt"})


def test_folder_without_images(root: Path) -> None:
    for path in (root / "a/images").iterdir():
        path.unlink()
    fails(root, r"^tasks\.a\.train: \S*a/images: no images \(.*\.png.*\); give the folder")


def test_fewer_images_than_a_step_takes(root: Path) -> None:
    message = r"b: 2 images, fewer .*\(3 per process x 1 processes = 3\)\. Reduce the batch size"
    fails(root, message, tasks__b__batch_size=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image(root: Path, workers: int, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("1", "2", "3"):
        path = root / f"a/images/{name}.png"
        path.write_bytes(path.read_bytes()[:-200])
    assert run_command(lambda: script().main(arguments(root, workers=workers))) == 1
    said = capfd.readouterr().err
    assert re.search(r"^error: \S*a/images/\d\.png: truncated", said, re.M)
    assert "Traceback" not in said[said.index("error: ") :]


# -- configurations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks__a__leave_out": ["Box"]}, r"tasks\.a: Box in both classes and leave_out"),
        (
            {"tasks__a__classes": "dior_r", "tasks__a__leave_out": ["kite", "ship"]},
            r"ship in both classes and leave_out; remove them from one of the two",
        ),
        ({"tasks__a__classes": "dota3"}, r"classes 'dota3': must be .*dota_v2.*or a list of names"),
        ({"tasks__a__classes": "ship"}, r"classes 'ship': .*a single class is written \['ship'\]"),
        ({"tasks__a__train_dificult": True}, r"unknown key 'tasks\.a\.train_dificult' - did you mean"),
        ({"tasks": {}}, r"tasks"),
        ({"size": 100}, r"size = 100"),
        ({"model__expert_channels": 193}, r"expert_channels 193: vit_t_moe .* choose 0 .* to 192 "),
        ({"model__expert_channels": -1}, r"model.expert_channels = -1: .*greater than or equal to 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_configuration(root: Path, changes: dict, message: str) -> None:
    fails(root, message, **changes)


def test_left_out_classes_are_read_past_everywhere(root: Path) -> None:
    for path in (*(root / "a/labelTxt").iterdir(), *(root / "b").glob("*/big*.txt")):
        path.write_text(f"{path.read_text()}{LINE} kite 0\n")
    fails(root, "unknown class 'kite'")
    short = {"schedule__epochs": 1, "schedule__milestones": [], "schedule__val_interval": 1}
    left_out = {f"tasks__{task}__leave_out": ["kite"] for task in "ab"}
    assert script().main(arguments(root, **short, **left_out)) == 0
    assert "b/mAP50" in json.loads((root / "run/final_metrics.json").read_text())


# -- checkpoints


def weights(path: Path, tasks: dict[str, int], backbone: str = "vit_t", expert_channels: int = 48) -> Path:
    """Weights of a detector, randomly initialised."""
    detector = build_detector(backbone, tasks, SIZE, expert_channels=expert_channels)
    torch.save({"state_dict": detector.state_dict()}, path)
    return path


def test_checkpoint_of_another_task_set(root: Path, tmp_path: Path) -> None:
    path = weights(tmp_path / "vit_t_moe_det.pth", {"a": 1, "ships": 3})
    message = r"vit_t_moe_det\.pth: the checkpoint has experts for a, ships, but none for b, which the model"
    fails(root, message, "--load-from", str(path))


def test_dense_checkpoint_of_another_task_set_says_which_heads_are_new(root: Path, tmp_path: Path) -> None:
    path = weights(tmp_path / "vit_t_det.pth", {"a": 1, "ships": 3}, expert_channels=0)
    short = {"schedule__epochs": 1, "schedule__milestones": [], "backbone": "vit_t"}
    assert script().main(arguments(root, "--load-from", str(path), **short)) == 0
    log = (root / "run/train.log").read_text()
    assert "the model has no ships, whose heads are not loaded; b start from random weights" in log


def test_classifier_of_a_lone_task_is_not_taken_for_other_tasks() -> None:
    lone = build_detector("vit_t", {"ships": 2}, SIZE)
    model = build_detector("vit_t", {"a": 2, "b": 2}, SIZE)
    loaded = load_weights(model, {"state_dict": lone.state_dict()}).loaded
    assert "heads.b.roi_head.bbox_head.fc_reg.weight" in loaded
    assert not [name for name in loaded if "fc_cls" in name]


def no_weights(path: Path) -> str:
    path.write_bytes(b"<html>not found</html>")
    return r"start\.pth \(\d+ bytes\) is not a checkpoint but a web page"


def another_kind_of_network(path: Path) -> str:
    torch.save(
        {"model": {"conv1.weight": torch.zeros(8, 3, 7, 7), "layer1.0.bn1.weight": torch.ones(8)}}, path
    )
    return r"start\.pth: unrecognised checkpoint, with keys conv1\.weight.*Known layouts: S5"


def another_size(path: Path) -> str:
    weights(path, {"a": 1, "b": 1}, "vit_s")
    return r"start\.pth: weights of another architecture: width 384.*in vit_t.*choose vit_s as the backbone"


def other_experts(path: Path) -> str:
    model = build_segmentor("vit_t", {"ponds": 2, "roofs": 3}, SIZE, channels=8, expert_channels=48)
    torch.save({"state_dict": model.state_dict()}, path)
    return r"start\.pth: the checkpoint has experts for ponds, roofs, but none for a, b"


def narrower_experts(path: Path) -> str:
    weights(path, {"a": 1, "b": 1}, expert_channels=32)
    return r"experts of 32 channels in the checkpoint, of 48 in the model: set model\.expert_channels=32"


@pytest.mark.parametrize(
    "write", [no_weights, another_kind_of_network, another_size, other_experts, narrower_experts]
)
def test_checkpoint_that_is_something_else(root: Path, tmp_path: Path, write: Callable[[Path], str]) -> None:
    message = write(tmp_path / "start.pth")
    fails(root, message, load_from=str(tmp_path / "start.pth"))


def test_checkpoint_of_other_bands(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "bgr_nir.pth"
    state = build_segmentor("vit_t", {"a": 2}, SIZE, channels=8).backbone.state_dict()
    state["patch_embed.proj.weight"] = torch.randn(192, 4, 16, 16)
    torch.save({"state_dict": state}, path)
    fails(root, r"images with 4 channels.*--init-bands R,G,B \(init_bands", "--load-from", str(path))
    fails(root, r"init_bands 5,2,1.*has 4 channels", load_from=str(path), init_bands=[5, 2, 1])
    fails(root, "init_bands 3,2,1 selects channels of a checkpoint, but", "--init-bands", "3,2,1")
    fails(root, "init_bands 3,2,1 selects channels", load_from="none", init_bands=[3, 2, 1])
    short = {"schedule__epochs": 1, "schedule__milestones": []}
    shutil.rmtree(root / "run")
    assert script().main(arguments(root, "--load-from", str(path), "--init-bands", "3,2,1", **short)) == 0
    assert "red, green and blue are channels 3, 2, 1 of 4" in (root / "run/train.log").read_text()


def test_missing_checkpoint(root: Path) -> None:
    fails(
        root,
        r"init 'nowhere\.pth': no file at .*Use none, timm, timm:NAME, hf-hub:OWNER/NAME",
        "--load-from",
        "nowhere.pth",
    )


def test_resume_from_weights_and_from_a_run_of_other_tasks(root: Path, tmp_path: Path) -> None:
    path = weights(tmp_path / "vit_t_moe_det.pth", {"a": 1, "b": 1})
    fails(root, r"it has no .*optimizer.*iter_<number>\.pth; .*--init", "--resume", str(path))
    short = {"schedule__epochs": 1, "schedule__milestones": []}
    assert script().main(arguments(root, **short)) == 0
    moved = (root / "run/iter_1.pth").rename(tmp_path / "iter_1.pth")
    shutil.rmtree(root / "run")
    more = {
        "classes": ["box"],
        **{p: {"images": "a/images", "annotations": "a/labelTxt"} for p in ("train", "val")},
    }
    fails(root, r"of another model: \d+ tensors differ", "--resume", str(moved), tasks__c=more, **short)


def test_grey_and_16_bit_images_train(root: Path) -> None:
    for i, path in enumerate(sorted((root / "a/images").iterdir())):
        grey = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2GRAY)
        cv2.imwrite(str(path), grey if i else grey.astype(np.uint16) * 16)
    short = {"schedule__epochs": 1, "schedule__milestones": []}
    assert script().main(arguments(root, **short)) == 0
