"""`Semantic_Segmentation/evaluate.py`: scores, reports, and data that do not fit."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
import yaml

from s5.data.image_io import read_image, read_mask, write_image, write_mask
from s5.errors import CheckpointError, ConfigError, DataError
from tests.helpers.mdf_runs import REPO, TASKS, configuration, overrides, script, write_datasets
from tests.helpers.processes import start_ranks
from tests.helpers.trained_models import table, write_checkpoint

EVALUATE = REPO / "Semantic_Segmentation/evaluate.py"
TABLES = {task: table(task, classes) for task, classes in TASKS.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_datasets(root, train=2, val=3)
    for task in TASKS:
        shutil.rmtree(root / task / "train")  # evaluation does not need it
    return root


@pytest.fixture(scope="module")
def model_folder(root, tmp_path_factory) -> Path:
    """A folder as training leaves it: the configuration beside the weights."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    write_checkpoint(folder / "vit_t_moe_mdf_best.pth", TABLES)
    cfg = configuration(root) | {"precision": "fp32"}
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    torch.manual_seed(0)
    return write_checkpoint(model_folder / "again.pth", TABLES)


def evaluate(checkpoint: Path, work_dir: Path, *options: str, **changes: object) -> dict:
    arguments = [str(checkpoint), "--device", "cpu", "--work-dir", str(work_dir), *options]
    assert script("evaluate").main([*arguments, *overrides(changes)]) == 0
    return json.loads((work_dir / "scores.json").read_text())


@pytest.fixture(scope="module")
def evaluated(model_folder, tmp_path_factory) -> Path:
    work_dir = tmp_path_factory.mktemp("evaluated")
    evaluate(model_folder / "vit_t_moe_mdf_best.pth", work_dir)
    return work_dir


def counted(model, root: Path, task: str) -> np.ndarray:
    """Pixels by true and predicted class, by the definition."""
    classes = len(TASKS[task])
    matrix = np.zeros((classes, classes), int)
    for path in sorted((root / task / "val/images").iterdir()):
        image = torch.from_numpy(read_image(path)).permute(2, 0, 1)
        label = read_mask(root / task / "val/masks" / path.name)
        np.add.at(matrix, (label, model.predict(image, task).numpy()), 1)
    return matrix


def rows(path: Path) -> list[list[str]]:
    return list(csv.reader(path.open(encoding="utf-8")))


def test_scores_are_those_of_counting(evaluated, model, root):
    report = json.loads((evaluated / "scores.json").read_text())
    assert list(report) == list(TASKS)
    for task, found in report.items():
        matrix = counted(model, root, task)
        hit, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        assert (hit > 0).sum() > 1
        iou = 100 * hit / (true + said - hit)
        assert found["mIoU"] == pytest.approx(iou.mean())
        assert found["mF1"] == pytest.approx((200 * hit / (true + said)).mean())
        assert found["aAcc"] == pytest.approx(100 * hit.sum() / true.sum())
        for i, name in enumerate(TASKS[task]):
            expected = {
                "IoU": iou[i],
                "F1": 200 * hit[i] / (true[i] + said[i]),
                "Precision": 100 * hit[i] / said[i] if said[i] else None,
                "Recall": 100 * hit[i] / true[i],
                "Acc": 100 * hit[i] / true[i],
                "pixels": true[i],
                "predicted_pixels": said[i],
            }
            assert found["classes"][name] == pytest.approx(expected)
        assert (found["mode"], found["crop"], found["stride"], found["tta"]) == ("slide_window", 32, 24, None)


def test_tables_and_pictures_are_written_per_task(evaluated, model, root):
    for task, classes in TASKS.items():
        confusion = rows(evaluated / f"{task}_confusion.csv")
        assert confusion[0][1:] == classes
        assert [row[0] for row in confusion[1:]] == classes
        assert np.array_equal(
            [[int(n) for n in row[1:]] for row in confusion[1:]], counted(model, root, task)
        )
        header, *lines = rows(evaluated / f"{task}_classes.csv")
        assert header == ["class", "IoU", "F1", "Precision", "Recall", "Acc", "pixels", "predicted_pixels"]
        assert [line[0] for line in lines] == classes
        assert min(read_image(evaluated / f"{task}_confusion.png").shape[:2]) > 100
        assert (evaluated / f"pictures/val_{task}_000000.jpg").exists()


def test_the_files_of_prediction_are_scored_where_they_have_data(model_folder, model, root, tmp_path):
    """GeoTIFFs of five bands and 16 bits with a no-data value, and transparent PNGs."""
    valid = np.add(*np.mgrid[:40, :48]) > 30
    matrix = np.zeros((3, 3), int)
    for path in sorted((root / "roofs/val/images").iterdir()):
        rgb, label = read_image(path), read_mask(root / "roofs/val/masks" / path.name)
        write_mask(tmp_path / "roofs/val/masks" / path.name, label)
        image = tmp_path / "roofs/val/images" / path.name
        if path.stem == "000":
            write_image(image, rgb, valid=valid)
        else:
            image = image.with_suffix(".tif")
            image.parent.mkdir(parents=True, exist_ok=True)
            bands = np.where(
                valid, rgb[..., [0, 1, 2, 0, 1]].transpose(2, 0, 1).astype(np.uint16) * 90 + 300, 7
            )
            with rasterio.open(
                image, "w", "GTiff", count=5, height=40, width=48, dtype="uint16", nodata=7
            ) as file:
                file.write(bands.astype(np.uint16))
        pixels = torch.from_numpy(read_image(image)).permute(2, 0, 1)
        np.add.at(matrix, (label[valid], model.predict(pixels, "roofs").numpy()[valid]), 1)
    checkpoint = model_folder / "vit_t_moe_mdf_best.pth"
    evaluate(checkpoint, tmp_path / "scores", "--tasks", "roofs", data_root=str(tmp_path))
    confusion = [[int(n) for n in row[1:]] for row in rows(tmp_path / "scores/roofs_confusion.csv")[1:]]
    assert confusion == matrix.tolist() and matrix.sum() == 3 * valid.sum()


def test_console_sums_up(evaluated):
    log = (evaluated / "train.log").read_text()
    report = json.loads((evaluated / "scores.json").read_text())
    lines = {words[0]: words for line in log.splitlines() if (words := line.split())}
    for task in TASKS:
        assert lines[task][1] == f"{report[task]['mIoU']:.2f}"
    mean = np.mean([report[task]["mIoU"] for task in TASKS])
    assert float(lines["mean"][1]) == pytest.approx(mean, abs=0.006)


def test_some_tasks_in_another_way(model_folder, model, root, tmp_path):
    checkpoint = model_folder / "vit_t_moe_mdf_best.pth"
    options = (
        "--tasks",
        "roofs",
        "--mode",
        "resize",
        "--crop",
        "48",
        "--tta",
        "flip",
        "--scales",
        "1",
        "1.5",
    )
    report = evaluate(checkpoint, tmp_path, *options)
    assert list(report) == ["roofs"]
    assert (report["roofs"]["mode"], report["roofs"]["crop"]) == ("resize", 48)
    assert report["roofs"]["tta"] == {"flip": True, "scales": [1, 1.5]}
    assert not (tmp_path / "ponds_classes.csv").exists()
    plain = evaluate(checkpoint, tmp_path / "plain", "--tasks", "roofs")
    assert plain["roofs"]["mIoU"] != report["roofs"]["mIoU"]


@pytest.mark.parametrize("processes", [2, 5])
def test_scores_do_not_depend_on_the_number_of_processes(evaluated, model_folder, tmp_path, processes):
    """Also with a process that has images of one task only."""
    args = [
        str(model_folder / "vit_t_moe_mdf_best.pth"),
        "--device",
        "cpu",
        "--work-dir",
        str(tmp_path / "all"),
    ]
    for process in start_ranks(EVALUATE, args, tmp_path, processes):
        assert process.wait() == 0, process.text()
    for name in ("scores.json", *(f"{task}_confusion.csv" for task in TASKS)):
        assert (tmp_path / "all" / name).read_text() == (evaluated / name).read_text()


def test_dense_model_of_an_explicit_configuration(model_folder, root, tmp_path):
    torch.manual_seed(0)
    write_checkpoint(tmp_path / "elsewhere/vit_t_mdf.pth", TABLES, "vit_t")
    report = evaluate(
        tmp_path / "elsewhere/vit_t_mdf.pth", tmp_path / "out", "--config", str(model_folder / "config.yaml")
    )
    assert list(report) == list(TASKS)


def test_held_out_images_are_those_of_training(model_folder, root, tmp_path):
    """With `hold_out` the training images are needed, of which a share is evaluated."""
    data = tmp_path / "data"
    shutil.copytree(root, data)
    shutil.copytree(data / "roofs/val", data / "roofs/train")
    report = evaluate(
        model_folder / "vit_t_moe_mdf_best.pth",
        tmp_path / "out",
        "--tasks",
        "roofs",
        data_root=str(data),
        tasks__roofs__val={"hold_out": 0.4},
    )
    pixels = sum(values["pixels"] for values in report["roofs"]["classes"].values())
    assert pixels == 40 * 48


def test_background_is_scored_with_and_without(model_folder, root, tmp_path):
    labels = {"classes": TASKS["roofs"], "background": 0}
    report = evaluate(
        model_folder / "vit_t_moe_mdf_best.pth", tmp_path, "--tasks", "roofs", tasks__roofs__labels=labels
    )["roofs"]
    iou = [report["classes"][name]["IoU"] for name in TASKS["roofs"]]
    assert report["mIoU"] == pytest.approx(np.mean(iou))
    assert report["mIoU_no_background"] == pytest.approx(np.mean(iou[1:]))


def test_image_and_mask_of_different_sizes_are_named(model_folder, root, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(root, data)
    mask = data / "ponds/val/masks/001.png"
    cv2.imwrite(str(mask), np.zeros((40, 47), np.uint8))
    with pytest.raises(DataError, match=r"masks/001.png: mask of 40x47 pixels for an image of 40x48"):
        evaluate(model_folder / "vit_t_moe_mdf_best.pth", tmp_path / "out", data_root=str(data))


def test_a_mistyped_checkpoint_leaves_no_folder(model_folder, tmp_path):
    config = ["--config", str(model_folder / "config.yaml"), "--device", "cpu"]
    with pytest.raises(CheckpointError, match="no checkpoint .*typo/model.pth"):
        script("evaluate").main([str(tmp_path / "typo/model.pth"), *config])
    assert not list(tmp_path.iterdir())


def test_unknown_task_lists_the_known(model_folder, tmp_path):
    with pytest.raises(ConfigError, match="unknown task 'pools'; the configuration's tasks: ponds, roofs"):
        evaluate(model_folder / "vit_t_moe_mdf_best.pth", tmp_path, "--tasks", "pools")


def test_a_checkpoint_of_fewer_tasks_says_which(model_folder, tmp_path):
    write_checkpoint(tmp_path / "one.pth", {"roofs": TABLES["roofs"]}, "vit_t")
    config = ("--config", str(model_folder / "config.yaml"))
    with pytest.raises(ConfigError, match=r"no task ponds; it has roofs.*--tasks"):
        evaluate(tmp_path / "one.pth", tmp_path / "out", *config)
    assert list(evaluate(tmp_path / "one.pth", tmp_path / "out", *config, "--tasks", "roofs")) == ["roofs"]


def test_other_classes_than_trained_for_are_an_error(model_folder, tmp_path):
    labels = {"classes": ["ground", "roof", "water"]}
    with pytest.raises(ConfigError, match="task roofs: .*ground, water, roof, .*ground, roof, water"):
        evaluate(model_folder / "vit_t_moe_mdf_best.pth", tmp_path, tasks__roofs__labels=labels)


def test_a_checkpoint_that_does_not_say_what_it_is_needs_a_backbone(model_folder, root, tmp_path):
    torch.manual_seed(0)
    tables = {"vaihingen": TABLES["ponds"], "loveda": TABLES["roofs"]}
    write_checkpoint(tmp_path / "published.pth", tables, published=True)
    cfg = configuration(root)
    cfg["tasks"] = dict(zip(tables, cfg["tasks"].values(), strict=True))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
    with pytest.raises(ConfigError, match=r"published.pth has no metadata about its network.*--backbone"):
        evaluate(tmp_path / "published.pth", tmp_path / "out")
    report = evaluate(tmp_path / "published.pth", tmp_path / "out", "--backbone", "vit_t_moe")
    assert list(report) == ["vaihingen", "loveda"]
