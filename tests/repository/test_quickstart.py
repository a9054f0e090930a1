"""The quickstart: its data, its stages and the report at the end."""

import json
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from experiments import quickstart_plan as planning
from experiments import quickstart_report as report
from s5.data.image_io import read_mask
from s5.data.labels import get_table
from s5.data.splits import Split, write_split
from s5.detection import evaluation as reports
from s5.detection.config import DetConfig
from s5.detection.experiment import DetectionExperiment
from s5.detection.metric import build_metrics
from s5.segmentation import mdf
from s5.segmentation.evaluation import write_reports
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import load_config, load_python_config, save_config
from scenes import LABEL_SETS, det_data, mdf_data
from scenes.dataset import Request, write_dataset
from tests.helpers.fake_python import FakePython, copy_scripts

REPO = Path(__file__).resolve().parents[2]
DETECTION = "Object_Detection/configs/obb/oriented_rcnn/small/vit_t_moe_scenes.py"
LITE0 = "timm_tf_efficientnet_lite0"
TABLE = get_table(load_config(S4PConfig, REPO / "configs/quickstart.yaml").data.labels)


@pytest.fixture(scope="module")
def tasks_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets of the fine-tuning, small."""
    root = tmp_path_factory.mktemp("tasks")
    mdf_data.write_tasks(root, 64, 3, 2, workers=1)
    return root


@pytest.fixture(scope="module")
def objects_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets of the detection, few: two scenes of each theme."""
    root = tmp_path_factory.mktemp("objects")
    det_data.write_tasks(root, 128, 12, 12, workers=1)
    return root


def detection(objects_root: Path) -> DetConfig:
    return load_python_config(DetConfig, REPO / DETECTION, [f"data_root={objects_root}", "workers=0"])


def configuration(tasks_root: Path) -> MDFConfig:
    return load_config(MDFConfig, REPO / "configs/quickstart_mdf.yaml", [f"data_root={tasks_root}"])


# -- data


def test_every_task_has_masks_of_its_label_set(tasks_root: Path) -> None:
    cfg = configuration(tasks_root)
    for task, table in mdf.build_tables(cfg).items():
        labels = LABEL_SETS[task]
        assert table.classes == labels.classes
        train, val = mdf.find_images(cfg, task)
        assert (len(train), len(val)) == (3, 2)
        for sample in (*train, *val):
            own = read_mask(sample.mask)
            table.encode(own, sample.mask)  # values that the table knows
            scene = read_mask(sample.mask.parents[1] / "masks" / sample.mask.name)
            np.testing.assert_array_equal(own, labels.apply(scene))


def test_no_scene_is_duplicate(tasks_root: Path, objects_root: Path, scenes_root: Path) -> None:
    roots = (tasks_root, objects_root, scenes_root)
    files = [path for root in roots for path in root.glob("**/images/*.png")]
    assert len(files) > 50
    assert len({sha256(path.read_bytes()).digest() for path in files}) == len(files)


def test_scenes_are_kept_and_masks_follow_the_label_set(tasks_root: Path, tmp_path: Path, capsys) -> None:
    root = shutil.copytree(tasks_root, tmp_path / "tasks")
    mask = root / "roads/labeled/scenes/train/roads/000000.png"
    before = read_mask(mask)
    cv2.imwrite(str(mask), before * 0 + 7)
    mdf_data.write_tasks(root, 64, 3, 2, workers=1)
    assert "roads: 0 scenes written, 5 existed already" in capsys.readouterr().out
    np.testing.assert_array_equal(read_mask(mask), before)


def test_detection_reads_the_objects_of_each_task(objects_root: Path) -> None:
    experiment = DetectionExperiment(detection(objects_root))
    parts = experiment.build_training_data().loader.dataset.sources
    assert {part.name: part.classes for part in parts} == {
        "craft": ("ship", "plane"),
        "buildings": ("building",),
    }
    assert all((part.samples.counts() > 0).all() and len(part) < 12 for part in parts)
    batch = next(iter(experiment.build_val_loader()))
    assert batch["images"].shape[2:] == (256, 256) and batch["scales"] == [2.0]


def test_boxes_of_buildings_enclose_them() -> None:
    mask = np.zeros((100, 100), np.uint8)
    corners = np.array([[20, 30], [60, 10], [70, 30], [30, 50]])
    cv2.fillPoly(mask, [corners], 1)
    mask[70:90, 5:9] = mask[86:90, 5:25] = 1  # an angle
    mask[60:63, 60:64] = 1  # a remainder
    found = det_data.building_boxes(mask.astype(bool))
    assert found.difficult.tolist() == [False, True, True]
    assert found.boxes[0, :4] == pytest.approx([45.5, 30.5, 46.1, 23.7], abs=0.7), "outer edges"
    assert found.boxes[0, 4] == pytest.approx(np.arctan2(-20, 40), abs=0.03)
    assert found.boxes[1, :4] == pytest.approx([62, 61.5, 4, 3], abs=0.01)


# -- stages


@pytest.fixture
def quickstart(tmp_path: Path):
    """Run a copy of the script with an interpreter that only writes down what it is given."""
    root, python = tmp_path / "my repository", FakePython(tmp_path)
    copy_scripts(REPO, root)

    def run(*arguments: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        done = subprocess.run(
            ["bash", root / "scripts/quickstart.sh", *arguments],
            env=python.variables | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, [" ".join(call).replace(f"{root}/", "") for call in python.calls()]

    return run


def test_stages_in_order(quickstart) -> None:
    done, commands = quickstart()
    assert done.returncode == 0, done.stderr
    out = "work_dirs/quickstart"
    scenes = f"{out}/data/labeled/scenes/val/images"
    assert [line.split(" --")[0] for line in commands] == [
        "-m scenes",
        f"-m scenes.junk {out}/data/junk",
        f"-m scenes.mdf_data {out}/data/mdf",
        f"-m scenes.det_data {out}/data/det",
        f"-m experiments.imagenet_weights {out}/data/tf_efficientnet_lite0.pth",
        "-m experiments.quickstart_plan",
        "S4_Pretrain/train.py",
        "-m s5.curate run configs/quickstart_curate.yaml",
        "S4_Pretrain/train.py",
        "S4_Pretrain/train.py",
        "scripts/launch_check.py",
        "Semantic_Segmentation/md_finetune.py",
        f"Semantic_Segmentation/evaluate.py {out}/mdf/{LITE0}_mdf.pth",
        f"Semantic_Segmentation/predict.py {out}/mdf/{LITE0}_mdf.pth {scenes}",
        f"Object_Detection/tools/train.py {DETECTION}",
        f"Object_Detection/tools/test.py {out}/det/config.yaml {out}/det/{LITE0}_det.pth",
        f"Object_Detection/tools/predict.py {out}/det/{LITE0}_det.pth {scenes}/00000*.png",
        f"-m experiments.quickstart_report {out}",
    ]
    alone, curating, s4p, longer, fine_tuning, detecting = *commands[6:10], commands[11], commands[14]
    assert last(alone, "--backbone") == "timm:tf_efficientnet_lite0"
    assert last(alone, "--init") == f"{out}/data/tf_efficientnet_lite0.pth"
    assert "data.unlabeled.batch_size=0" in alone and "data.unlabeled.batch_size=0" in longer
    assert all(
        last(command, "--init") == f"{out}/supervised/{LITE0}_s4p_upernet" for command in (s4p, longer)
    )
    assert f"--device auto --cfg-options checkpoint={out}/supervised/{LITE0}_s4p_upernet" in curating
    assert f"data.unlabeled.split={out}/curated/splits/curated.txt" in s4p
    assert "--device cpu --config configs/quickstart_mdf.yaml" in fine_tuning
    assert f"--load-network True --init {out}/s4p/{LITE0}_s4p_upernet" in fine_tuning
    assert "--backbone timm:tf_efficientnet_lite0 " in fine_tuning and f"--work-dir {out}/mdf" in fine_tuning
    assert f"--work-dir {out}/det --init {out}/s4p/{LITE0}_s4p --device auto" in detecting
    assert f"backbone=timm:tf_efficientnet_lite0 data_root={out}/data/det" in detecting


def test_a_backbone_with_experts_goes_through_all_stages(quickstart) -> None:
    done, commands = quickstart("--backbone", "vit_t")
    assert done.returncode == 0, done.stderr
    out = "work_dirs/quickstart"
    alone, fine_tuning, detecting = commands[6], commands[11], commands[14]
    assert (last(alone, "--backbone"), last(alone, "--init")) == ("vit_t", "none")
    assert f"--backbone vit_t_moe --load-network True --init {out}/s4p/vit_t_s4p_upernet" in fine_tuning
    assert f"--init {out}/s4p/vit_t_s4p " in detecting and "backbone=vit_t_moe " in detecting


def last(command: str, name: str) -> str:
    """The value of an option that takes effect."""
    words = command.split()
    return words[len(words) - 1 - words[::-1].index(name) + 1]


@pytest.mark.parametrize(
    ("percent", "options", "s4p", "epoch", "detection"),
    [
        ("100", (), (500, 75), 30, 14),
        ("60", (), (300, 45), 18, 8),
        ("100", ("--cfg-options", "schedule.total_iters=40", "seed=1"), (40, 6), 30, 14),
    ],
)
def test_a_slow_machine_trains_fewer_steps(
    quickstart, percent: str, options: tuple[str, ...], s4p: tuple[int, ...], epoch: int, detection: int
) -> None:
    done, commands = quickstart(*options, FAKE_PERCENT=percent)
    assert done.returncode == 0, done.stderr
    keys = ("schedule.total_iters", "fixmatch.ramp_iters")
    for command in (commands[6], *commands[8:10]):
        given = dict(word.split("=", 1) for word in command.split() if "=" in word)  # the last one wins
        assert [int(given[key]) for key in keys] == list(s4p)
    assert f"schedule.steps_per_epoch={epoch}" in commands[11]
    assert f"schedule.steps_per_epoch={detection}" in commands[14]


def test_a_plan_that_is_no_number_ends_the_run(quickstart) -> None:
    done, commands = quickstart(FAKE_PERCENT="a warning")
    assert done.returncode == 1 and "the plan is no number: a warning" in done.stderr
    assert len(commands) == 6


def test_plan_keeps_to_the_time() -> None:
    steps = sum(planning.stages(500).values()) + planning.FIXED_STEPS
    full = (planning.LIMIT - planning.FIXED_SECONDS) / steps  # seconds of a step with which it just fits
    fast, slow, slower = (planning.plan(factor * full) for factor in (0.9, 2.0, 20.0))
    assert fast[0] == 100 and "of their steps" not in fast[1]
    assert 40 < slow[0] < 50 and f"{slow[0]} % of their steps (to stay near 15 minutes" in slow[1]
    assert "15 min in all" in slow[1]
    assert slower[0] == planning.SHORTEST
    assert "this machine is too slow for 15 minutes" in slower[1] and "near" not in slower[1]
    assert planning.plan(2.0 * full, whole_run=True)[0] == 100


def test_plan_knows_the_length_of_runs_and_the_time_of_starts() -> None:
    longer = planning.plan(0.01, iters=7000)[1]
    assert "S4P 70 s, labels alone 52 s" in longer
    *_, total = re.findall(r"(\d+) s in all", planning.plan(1e-6)[1])
    assert int(total) == planning.FIXED_SECONDS


def test_plan_measures_steps_of_the_quickstart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_dataset(tmp_path, Request(labeled=4, unlabeled=4, val=1, size=128))
    options = ["--device", "cpu", "--backbone", "vit_t", "--cfg-options", f"data_root={tmp_path}"]
    assert planning.main([*options, "data.workers=0"]) == 0
    printed = capsys.readouterr()
    assert planning.SHORTEST <= int(printed.out) <= 100
    assert re.search(r"step of S4P takes \d\.\d\d s here. Expected: S4P \d+", printed.err)


@pytest.mark.parametrize(
    ("arguments", "gpus", "backbone", "device"),
    [
        ((), "1", LITE0, "cuda"),
        (("--init", "other.pth", "--init-bands", "4,3,2"), "1", LITE0, "cuda"),
        (("--device", "cpu"), "1", LITE0, "cpu"),
        (("--device=cuda", "--backbone", "vit_s"), "0", "vit_s", "cuda"),
        (("--cfg-options", "seed=1", "--device", "cpu"), "0", LITE0, "cpu"),
    ],
)
def test_options(quickstart, arguments: tuple[str, ...], gpus: str, backbone: str, device: str) -> None:
    done, commands = quickstart(*arguments, FAKE_GPUS=gpus)
    assert done.returncode == 0, done.stderr
    planning, alone, curating, s4p, longer, _, fine_tuning, evaluation, _, *detecting = commands[5:16]
    assert all(" ".join(arguments) in command for command in (planning, alone, s4p, longer))
    if "other.pth" in arguments:
        assert last(alone, "--init") == "other.pth"
    for command in (s4p, longer):
        assert last(command, "--init") == f"work_dirs/quickstart/supervised/{backbone}_s4p_upernet"
        assert last(command, "--init-bands") == "1,2,3"
    model = "vit_s_moe" if backbone == "vit_s" else backbone
    assert f"--device {device} " in fine_tuning
    assert f"--backbone {model.replace('timm_', 'timm:')} " in fine_tuning
    assert "seed=1" not in fine_tuning, "options of train.py are not all options of md_finetune.py"
    assert f"{model}_mdf.pth" in evaluation
    wanted = device if "--device" in " ".join(arguments) else "auto"
    assert all(f"--device {wanted}" in command for command in (curating, *detecting))
    assert f"checkpoint=work_dirs/quickstart/supervised/{backbone}_s4p_upernet" in curating
    assert f"{model}_det.pth" in detecting[1]


@pytest.mark.parametrize(
    "failure",
    [
        "scenes.junk",
        "mdf_data",
        "det_data",
        "imagenet_weights",
        "S4_Pretrain/train.py",
        "s5.curate",
        "md_finetune.py",
        "evaluate.py",
        "Segmentation/predict.py",
        "tools/train.py",
        "tools/test.py",
        "tools/predict.py",
    ],
)
def test_stops_at_the_stage_that_fails(quickstart, failure: str) -> None:
    done, commands = quickstart(FAKE_FAILURE=failure)
    assert done.returncode != 0
    assert "failed after" in done.stderr
    assert failure in commands[-1]


# -- report


@pytest.fixture
def runs(scenes_root: Path, tasks_root: Path, objects_root: Path, tmp_path: Path) -> Path:
    """The run folders as the stages leave them."""
    cfg = load_config(S4PConfig, REPO / "configs/quickstart.yaml", [f"data_root={scenes_root}"])
    for name, mean in (("s4p", 61.25), ("supervised_longer", 54.5), ("supervised", 50.0)):
        folder = tmp_path / name
        folder.mkdir()
        save_config(cfg, folder / "config.yaml")
        by_class = {f"IoU.{c}": mean for c in TABLE.classes} | {"IoU.building": None}
        (folder / "final_metrics.json").write_text(json.dumps({"iteration": 300, "mIoU": mean} | by_class))
    write_split(tmp_path / "curated/splits/curated.txt", ["a.jpg", "junk/blur/1.jpg", "junk/blur/2.jpg"])
    reasons = {"chosen": 3, "quota": 5, "constant": 2}
    summary = {"config": {"data_root": str(tmp_path)}, "counts": {"select": {"reasons": reasons}}}
    (tmp_path / "curated/curation.json").write_text(json.dumps(summary))
    mdf_config = configuration(tasks_root)
    (tmp_path / "mdf").mkdir()
    save_config(mdf_config, tmp_path / "mdf/config.yaml")
    (tmp_path / "mdf/final_metrics.json").write_text('{"iteration": 120}')
    metrics = mdf.MDFExperiment(mdf_config).build_metrics()
    for metric in metrics:
        metric.matrix = torch.eye(metric.table.num_classes, dtype=torch.int64) * 10
        metric.matrix[0, 1] = 10
    write_reports(tmp_path / "mdf/evaluation", metrics, {task: {} for task in mdf_config.tasks})
    write_detection(detection(objects_root), tmp_path / "det")
    return tmp_path


def write_detection(cfg: DetConfig, folder: Path) -> None:
    """A run that finds all planes and buildings, and no ships."""
    experiment = DetectionExperiment(cfg)
    classes, loader = experiment.classes, experiment.build_val_loader()
    metrics = build_metrics(cfg, classes, loader)
    for batch in loader:
        (objects,), (task,) = batch["objects"], batch["task"]
        found = objects.select(np.array([classes[task][label] != "ship" for label in objects.labels], bool))
        parts = (torch.from_numpy(part) for part in (found.boxes, np.ones(len(found)), found.labels))
        sample = {"pred_instances": dict(zip(("bboxes", "scores", "labels"), parts, strict=True))}
        for metric in metrics:
            metric.process(batch, [sample])
    folder.mkdir()
    save_config(cfg, folder / "config.yaml")
    (folder / "final_metrics.json").write_text('{"iteration": 130}')
    scores = {name: value for metric in metrics for name, value in metric.evaluate(1).items()}
    reports.write_reports(folder / "evaluation", metrics, scores, {})


def rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "columns line up"
    return {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in (x.split("|") for x in lines)
    }


def test_summary_has_all_models_and_the_majority(runs: Path, capsys) -> None:
    assert report.main([str(runs)]) == 0
    text = (runs / "summary.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert str(runs / "det/evaluation/pictures") in text and str(runs / "det/predictions") in text
    curated, s4p, *parts = text.split("\n## Oriented")[0].split("\n##")[1:]
    assert "3 of 10 patches chosen" in curated and "junk in the pool: 2 of blur." in curated
    assert str(runs / "curated/report.html") in curated
    table = rows(s4p)
    assert list(table)[2:] == [*TABLE.classes, "mIoU"]
    assert table["mIoU"][:3] == ["61.2", "54.5", "50.0"]
    assert table["building"][0] == "absent"
    assert "in this run: +6.8 points" in s4p
    assert "120 steps" in parts[0] and "landcover 75.0" in parts[0]
    for task, part in zip(("landcover", "roads", "water"), parts[1:], strict=True):
        assert f"{task}: 3 scenes, 2 held out" in part
        table = rows(part)
        assert list(table)[2:] == [*LABEL_SETS[task].classes, "mIoU"]
        assert [values[0] for values in table.values()][2:4] == ["50.0", "50.0"]
    for place in ("s4p/pictures", "mdf/evaluation", "mdf/predictions"):
        assert str(runs / place) in text


def test_summary_has_the_scores_of_detection(runs: Path) -> None:
    assert report.main([str(runs)]) == 0
    head, craft, buildings = (runs / "summary.md").read_text().split("\n## Oriented")[1].split("\n###")
    assert "130 steps" in head and "mAP50: craft 50.0, buildings 100.0" in head
    table = rows(craft)
    assert table["plane"][:3] == ["100.0"] * 3 and table["ship"][:3] == ["0.0"] * 3
    assert int(table["ship"][3]) > 0
    assert rows(buildings)["building"][:3] == ["100.0"] * 3


def test_majority_by_hand(scenes_root: Path) -> None:
    split = Split("splits/val.txt", scenes_root)
    values = np.concatenate([read_mask(sample.mask).ravel() for sample in split])
    counts = np.bincount(values, minlength=256)[: TABLE.num_classes]  # objects are ignored
    name, scores = report.majority_scores(split, TABLE)
    assert name == TABLE.classes[counts.argmax()]
    assert scores[name] == pytest.approx(100 * counts.max() / counts.sum())
    assert scores["mIoU"] == pytest.approx(scores[name] / (counts > 0).sum())
