"""Every row of docs/baselines.md has its configurations, and its commands train.

Full backbones would not fit: narrow ones of the same kind, with 4 to 6 blocks, stand for their names here.
The published files cannot be downloaded: files in the layout of each project are made here, and lie where the
configurations expect them. Only where these name weights of timm does `--init` give the file instead.
"""

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from s5.backbones import ARCHITECTURES, Architecture, create_backbone, get_architecture, parse_normalization
from s5.backbones.normalization import DINOV3_SAT, IMAGENET, Normalization
from s5.backbones.rvsa import RVSA_VARIANTS
from s5.backbones.timm_models import TIMM_MODELS
from s5.backbones.timm_vit import TIMM_VITS
from s5.backbones.vit import VARIANTS
from s5.checkpoints.reading import read_checkpoint
from s5.detection.config import DetConfig
from s5.segmentation.mdf_config import MDFConfig
from s5.training.config import load_config, load_python_config
from tests.helpers import det_runs, mdf_runs, project_files, s4p_runs, timm_vits
from tests.helpers.project_files import network
from tests.helpers.vit_checkpoints import DEPTH, HEADS, RVSA, SIZE, WIDTH, drawn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs/baselines"
PAGE = (ROOT / "docs/baselines.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` .* \| `(\S+)` \| `(\S+)` \|$", PAGE, re.MULTILINE)  # name, backbone, weights
S4P = re.findall(r"^bash S4_Pretrain/scripts/train.sh 8 12345 (\S+) (\S+)(.*)$", PAGE, re.MULTILINE)
ON_CPU = ["--device", "cpu", "--work-dir", "run"]
SWIN = {"embed_dim": 16, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 2, 2)}


def narrow(row: Architecture) -> Architecture:
    """A row of the registry with the same name and kind, but few channels and blocks."""
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": HEADS, "out_blocks": (0, 1, 2, 3)}
    if row.name in VARIANTS:
        return replace(row, **sizes)
    if row.name in RVSA_VARIANTS:
        return replace(row, **sizes, global_every=RVSA.global_every, window=RVSA.window)
    if row.name in TIMM_MODELS:
        return replace(row, options={**row.options, **SWIN}, max_expert_channels=8 * SWIN["embed_dim"])
    return replace(row, width=WIDTH, options=timm_vits.SIZES)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    known = VARIANTS | RVSA_VARIANTS | TIMM_MODELS | TIMM_VITS
    for name in ("vit_b", "vit_l", "vit_g", "vit_b_rvsa", "vit_l_rvsa", "swin_b", "dinov2_l", "dinov3_l"):
        monkeypatch.setitem(ARCHITECTURES, name, narrow(known[name]))


def masked(wrap: Callable[[dict], dict]) -> Callable[[], dict]:
    """Make a file of a masked autoencoder for a plain ViT."""
    return lambda: wrap(network().state_dict())


def rotated(name: str, wrap: Callable[[object], dict]) -> Callable[[], dict]:
    """Make a file of a ViT with RVSA."""
    return lambda: wrap(drawn(create_backbone(name, SIZE)))


def swin() -> dict:
    """GFM's file: windows of 6 patches."""
    name = TIMM_MODELS["swin_b"].timm
    return project_files.gfm(drawn(timm.create_model(name, window_size=6, **SWIN)).state_dict())


def dinov3() -> dict:
    return timm_vits.as_dinov3(timm_vits.drawn_timm("dinov3", SIZE).state_dict())


MAE = "MAE or timm"
# By row: what its file is recognised as, and what the file holds.
FILES: dict[str, tuple[str, Callable[[], dict]]] = {
    "rvsa": (MAE, masked(project_files.mae)),
    "gfm": ("Swin, SimMIM or GFM", swin),
    "scale_mae": (MAE, masked(project_files.scale_mae)),
    "samrs": ("RVSA, SAMRS or MTP", rotated("vit_b_rvsa", project_files.samrs)),
    "satmae_pp": (MAE, masked(project_files.satmae_pp)),
    "billionfm": (MAE, masked(project_files.fsdp)),
    "oreole": (MAE, masked(project_files.fsdp)),
    "mtp": ("RVSA, SAMRS or MTP", rotated("vit_l_rvsa", project_files.mtp)),
    "ma3e": (MAE, masked(project_files.ma3e)),
    "selective_mae": (MAE, masked(project_files.selective_mae)),
    "mae": (MAE, masked(project_files.mae)),
    "dinov2": ("DINOv2", lambda: timm_vits.as_dinov2(timm_vits.drawn_timm("dinov2", 56, 14).state_dict())),
    "dinov3": ("DINOv3", dinov3),
    "dinov3_sat": ("DINOv3", dinov3),
}


def config_of(row: str) -> MDFConfig:
    return load_config(MDFConfig, FOLDER / f"segmentation/{row}.yaml")


def detector_of(row: str) -> DetConfig:
    return load_python_config(DetConfig, FOLDER / f"detection/{row}.py")


def normalization_of(row: str) -> Normalization:
    return config_of(row).model.normalization or (DINOV3_SAT if row == "dinov3_sat" else IMAGENET)


def test_every_row_has_its_files_and_they_agree() -> None:
    assert [name for name, *_ in ROWS] == list(FILES)
    for folder in (FOLDER / "segmentation", FOLDER / "detection"):
        assert {path.stem for path in folder.iterdir() if path.is_file()} == {"_single", *FILES}
    for row, backbone, init in ROWS:
        seg, det = config_of(row), detector_of(row)
        assert seg.backbone == det.backbone == backbone and seg.init == str(det.load_from) == init, row
        assert seg.init_bands == det.init_bands and get_architecture(backbone).name == backbone
        for key in ("norm_eps", "normalization", "activation_checkpointing", "finetune"):
            assert getattr(seg.model, key) == getattr(det.model, key), f"{row}: {key}"
    assert [pair[:2] for pair in S4P] == [pair[1:] for pair in ROWS]


def test_rows_change_the_recipe_only_in_what_they_say() -> None:
    recipe = load_config(MDFConfig, ROOT / "Semantic_Segmentation/configs/rsseg.yaml").model_dump()
    recipe["tasks"]["vaihingen"]["start_epoch"] = 0
    detection = ROOT / "Object_Detection/configs/obb/oriented_rcnn/mtd/vit_b_moe_dior_r_dota2.py"
    detector = load_python_config(DetConfig, detection).model_dump()
    for row in FILES:
        for cfg, base in ((config_of(row), recipe), (detector_of(row), detector)):
            values = cfg.model_dump()
            changed = {key for key in values if values[key] != base[key]}
            assert changed <= {"backbone", "init", "load_from", "init_bands", "model"}, row
            changed = {key for key in values["model"] if values["model"][key] != base["model"][key]}
            assert changed <= {"norm_eps", "normalization", "drop_path", "activation_checkpointing"}, row


def initial_weights(row: str, folder: Path) -> list[str]:
    """Write the row's file where its configuration expects it, or else return the option that names it."""
    init = config_of(row).init
    named = "/" not in init
    path = folder / ("dinov3_sat493m.pth" if row == "dinov3_sat" else "weights.pth" if named else init)
    path.parent.mkdir(exist_ok=True)
    torch.save(FILES[row][1](), path)
    return ["--init", str(path)] if named else []


def assert_trained(row: str, weights: Path) -> None:
    """Two steps, from weights of the right project, on images normalised as for these."""
    losses = [record["loss"] for record in s4p_runs.records(weights.parent) if "loss" in record]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    log, meta = (weights.parent / "train.log").read_text(), read_checkpoint(weights)["meta"]
    assert FILES[row][0] in log
    assert config_of(row).init_bands is None or "channels 3, 2, 1" in log
    assert parse_normalization(meta["normalization"]) == normalization_of(row)
    assert meta["norm_eps"] == config_of(row).model.norm_eps


def in_two_steps(root: Path, **changes: object) -> list[str]:
    """Options that make a run of two steps on small images of one."""
    values = {"data_root": str(root), "workers": 0, "schedule.epochs": 1, "schedule.steps_per_epoch": 2}
    values |= {"schedule.log_interval": 1, "schedule.val_interval": 1} | changes
    return ["--cfg-options", *(f"{key}={json.dumps(value)}" for key, value in values.items())]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images for segmentation (`ponds`), for detection (`a`), and for S4P (`splits`)."""
    folder = mdf_runs.write_datasets(tmp_path_factory.mktemp("data"), train=2, val=1)
    det_runs.write_images(folder / "a", ["1", "2"])
    return s4p_runs.write_dataset(folder, labeled=2, unlabeled=2, val=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a command is typed in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("row", FILES)
def test_segmentation(row: str, root: Path, folder: Path) -> None:
    data = {part: {k: f"ponds/{part}/{k}" for k in ("images", "masks")} for part in ("train", "val")}
    task = {"labels": {"classes": mdf_runs.TASKS["ponds"]}, "batch_size": 2} | data
    small = in_two_steps(root, **{"tasks.loveda": task, "crop": SIZE, "model.decoder_channels": 8})
    args = ["--config", str(FOLDER / f"segmentation/{row}.yaml"), "--tasks", "loveda", *ON_CPU]
    assert mdf_runs.script().main([*args, *initial_weights(row, folder), *small]) == 0
    assert_trained(row, folder / f"run/{config_of(row).backbone}_mdf.pth")


@pytest.mark.parametrize("row", FILES)
def test_detection(row: str, root: Path, folder: Path) -> None:
    data = {"images": "a/images", "annotations": "a/labelTxt"}
    task = {"classes": ["box"], "train": data, "val": data, "batch_size": 2}
    model = {"channels": 32, "fc_channels": 32, "proposals": 20, "max_per_img": 10}
    model = {f"model.{key}": value for key, value in model.items()}
    small = in_two_steps(root, **{"tasks.dior": task, "size": SIZE, "schedule.milestones": []}, **model)
    args = [str(FOLDER / f"detection/{row}.py"), "--tasks", "dior", *ON_CPU]
    assert det_runs.script().main([*args, *initial_weights(row, folder), *small]) == 0
    assert_trained(row, folder / f"run/{config_of(row).backbone}_det.pth")


@pytest.mark.parametrize(("row", "command"), [*zip(FILES, S4P, strict=False)], ids=FILES)
def test_pre_training(row: str, command: tuple[str, str, str], root: Path, folder: Path) -> None:
    """What the launcher passes on, as it is on the page."""
    backbone, init, options = command
    args = ["--backbone", backbone, "--init", init, *shlex.split(options), *ON_CPU]
    args += initial_weights(row, folder)
    args += s4p_runs.options(root, schedule__total_iters=2, schedule__val_interval=2, data__val__stride=SIZE)
    assert s4p_runs.script().main(args) == 0
    assert_trained(row, folder / f"run/{backbone}_s4p.pth")
