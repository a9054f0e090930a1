"""The shipped configurations against the published ones: patches, length of a run, documented options."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.generated_scenes import CONFIG as EXPERIMENT
from experiments.generated_scenes import arm_options
from s5.data.datasets import DATASETS, LoveDA, Potsdam, Vaihingen
from s5.data.datasets.base import TRAIN, VAL
from s5.data.datasets.shipped import Source
from s5.data.image_io import write_image
from s5.data.labels import get_table, parse_table
from s5.data.prepare.__main__ import main as prepare
from s5.data.prepare.__main__ import parse_args
from s5.data.prepare.segmentation import MaskCutter, dataset_cutter
from s5.data.sampler import MultiSourceSampler
from s5.detection.trained import load_det_config
from s5.errors import ConfigError
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.methods.fixmatch import FixMatchSettings
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import load_config
from tests.data.prepare.test_prepare_isprs import VAIHINGEN_SIZES
from tests.helpers.s4p_runs import learnable_pair

ROOT = Path(__file__).resolve().parents[2]
TREES = {
    "S4_Pretrain": "configs/pretrain.yaml",
    "Semantic_Segmentation": "configs/rsseg.yaml",
    "Object_Detection": "configs/obb/oriented_rcnn/mtd/vit_b_moe_dior_r_dota2.py",
}
OPTION = re.compile(r"`((?:tasks|data|model|optim|schedule|fixmatch|precision)[\w.]*=[^`]+)`")
TITLE = "## Differs from the published code"


def cutter(name: str, *options: str) -> MaskCutter:
    """What a command line cuts images with."""
    args = parse_args([name, *options, "--src", "shipped", "--out", "root"])
    return dataset_cutter(DATASETS[name], args)


def patches(chosen: MaskCutter, sizes: Iterator[tuple[int, int]], group: str = TRAIN) -> int:
    """How many patches images of these heights and widths give."""
    source = Source("key", group, "stem", Path("image.tif"))
    return sum(len(list(chosen.windows(source, *size))) for size in sizes)


def vaihingen(tiles: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    return (VAIHINGEN_SIZES[int(tile)] for tile in tiles)


def training_images() -> dict[str, int]:
    """What `prepare` gives by default for each dataset, whose images have the sizes that are shipped."""
    oem = 3000 - 697  # of train.txt, without those from xBD
    return {
        "vaihingen": patches(cutter("vaihingen"), vaihingen(Vaihingen.tiles[TRAIN])),
        "potsdam": patches(cutter("potsdam"), ((6000, 6000) for _ in Potsdam.tiles[TRAIN])),
        "openearthmap": patches(cutter("openearthmap"), ((1024, 1024) for _ in range(oem))),
        "loveda": patches(cutter("loveda"), ((1024, 1024) for _ in range(LoveDA.counts[TRAIN]))),
    }


def test_as_many_training_images_as_published() -> None:
    """Potsdam and OpenEarthMap; LoveDA with its validation images; Vaihingen with patches of 256 pixels."""
    counts = training_images()
    assert counts == {"vaihingen": 1046, "potsdam": 12_696, "openearthmap": 2303, "loveda": 2522}
    loveda = cutter("loveda")
    validation = patches(loveda, ((1024, 1024) for _ in range(LoveDA.counts[VAL])), VAL)
    assert LoveDA.splits["trainval"] == (TRAIN, VAL)
    assert counts["loveda"] + validation == 4191
    small = cutter("vaihingen", "--size", "256", "--overlap", "0")
    assert patches(small, vaihingen(Vaihingen.tiles[TRAIN])) == 1324


def test_an_epoch_is_as_long_as_published() -> None:
    """529 steps on two GPUs, 52,900 in all; the page says so."""
    cfg = load_config(MDFConfig, ROOT / "Semantic_Segmentation/configs/rsseg.yaml")
    counts = training_images()
    lengths = [counts[name] for name in cfg.tasks]
    sampler = MultiSourceSampler(lengths, [task.batch_size for task in cfg.tasks.values()], world_size=2)
    assert (sampler.epoch_steps, sampler.epoch_steps * cfg.schedule.epochs) == (529, 52_900)
    page = (ROOT / "Semantic_Segmentation/README.md").read_text()
    assert "529 steps" in page and "52,900" in page and "12,696" in page


@pytest.mark.parametrize("dataset", ["vaihingen", "potsdam"])
def test_overlap_is_half_of_any_size(dataset: str) -> None:
    chosen = cutter(dataset, "--size", "300")
    assert (chosen.size, chosen.overlap) == (300, 150)
    assert cutter(dataset, "--size", "300", "--overlap", "0").overlap == 0


def test_validation_images_do_not_overlap() -> None:
    for dataset in ("vaihingen", "potsdam", "loveda", "openearthmap"):
        assert patches(cutter(dataset), iter([(6000, 6000)]), VAL) == 1
    assert patches(cutter("potsdam", "--val-size", "512"), iter([(6000, 6000)]), VAL) == 12**2


def test_images_of_fixed_size_can_be_cut() -> None:
    assert patches(cutter("loveda", "--size", "512"), iter([(1024, 1024)])) == 9
    assert patches(cutter("openearthmap", "--size", "512", "--overlap", "0"), iter([(1024, 1024)])) == 4


# -- the pages


def differences(tree: str) -> str:
    """The section of a tree's page that says how it differs."""
    text = (ROOT / tree / "README.md").read_text()
    assert text.count(TITLE) == 1, f"{tree}/README.md has no section {TITLE!r}"
    return re.split(r"^## ", text.split(TITLE)[1], flags=re.MULTILINE)[0]


@pytest.mark.parametrize("tree", TREES)
def test_options_that_give_the_published_behaviour_exist(tree: str) -> None:
    """Each is valid in the shipped configuration and changes it."""
    load = {
        "S4_Pretrain": lambda path, options: load_config(S4PConfig, path, options),
        "Semantic_Segmentation": lambda path, options: load_config(MDFConfig, path, options),
        "Object_Detection": load_det_config,
    }[tree]
    path = ROOT / tree / TREES[tree]
    found = OPTION.findall(differences(tree))
    assert len(found) > 3
    shipped = load(path, [])
    for option in found:
        assert load(path, [option]) != shipped, f"{tree}: {option} is what is shipped"
    assert load(path, found) != shipped, "all together are valid as well"


def test_shipped_fine_tuning_has_the_published_augmentation() -> None:
    cfg = load_config(MDFConfig, ROOT / "Semantic_Segmentation/configs/rsseg.yaml")
    for task in cfg.tasks.values():
        assert (task.scale, task.flip, task.rotate) == ((0.5, 2.0), True, True)
        values = task.photometric
        assert values is not None
        assert (values.jitter_p, values.gray_p, values.blur_p) == (0.8, 0.2, 0.5)
        assert (values.brightness, values.contrast, values.saturation, values.hue) == (0.5, 0.5, 0.5, 0.25)
    assert (cfg.schedule.best_metric, cfg.schedule.lr_per_epoch, cfg.model.norm_eps) == ("mIoU", True, 1e-5)


def test_shipped_pre_training_has_the_published_intervals() -> None:
    cfg = load_config(S4PConfig, ROOT / "S4_Pretrain/configs/pretrain.yaml")
    assert (cfg.schedule.val_interval, cfg.schedule.log_interval, cfg.model.norm_eps) == (2000, 200, 1e-5)


def test_shipped_detection_trains_on_the_published_objects() -> None:
    cfg = load_det_config(ROOT / "Object_Detection" / TREES["Object_Detection"])
    dota, dior = cfg.tasks["dota"], cfg.tasks["dior"]
    assert [str(names) for names in dota.train.names or ()] == [
        "dota/splits/train.txt",
        "dota/splits/val.txt",
    ]
    assert (dota.ignore_below, dior.ignore_below) == (2, 0)
    assert dota.train_difficult and dior.train_difficult


@pytest.mark.parametrize("path", ["configs/few_labels.yaml", "configs/quickstart.yaml"])
def test_shipped_options_are_those_that_were_measured(path: str) -> None:
    def options(path: Path, *changes: str) -> FixMatchSettings:
        return replace(load_config(S4PConfig, path, changes).settings, warmup_iters=0, ramp_iters=0)

    assert options(EXPERIMENT) == FixMatchSettings(), "the experiment starts from published FixMatch"
    assert options(ROOT / path) == options(EXPERIMENT, *arm_options("best", 1000)) != FixMatchSettings()


def test_commands_of_few_labels_write_its_splits(tmp_path: Path) -> None:
    for i in range(6):
        image, mask = learnable_pair(np.random.default_rng(i), 3, 60, 60)
        write_image(tmp_path / f"images/{i}.png", image)
        write_image(tmp_path / f"masks/{i}.png", mask)
    (tmp_path / "labels.yaml").write_text("{name: mine, classes: [background, building, road]}")
    places = {"IMAGES": "images", "MASKS": "masks", "UNLABELED": "images", "labels.yaml": "labels.yaml"}
    places = {name: str(tmp_path / path) for name, path in places.items()} | {"/path/to/data": str(tmp_path)}
    path = ROOT / "configs/few_labels.yaml"
    commands = re.findall(r"^#   python -m s5.data.prepare ([^#\n]*)", path.read_text(), re.M)
    assert len(commands) == 2
    for command in commands:
        arguments = [places.get(word, word) for word in command.split()]
        assert prepare([*arguments, "--size", "32", "--workers", "1"]) == 0
    cfg = load_config(S4PConfig, path)
    assert (cfg.backbone, cfg.init) == ("timm:tf_efficientnet_lite0", "timm")
    assert get_table(cfg.data.labels) == parse_table(str(tmp_path / "labels.yaml"))
    for part in (cfg.data.labeled, cfg.data.unlabeled, cfg.data.val):
        assert (tmp_path / part.split).read_text().strip()


def test_few_labels_trains_on_labels_alone_for_any_length() -> None:
    """The first of the two runs that docs/method.md describes."""
    path, short = ROOT / "configs/few_labels.yaml", "schedule.total_iters=1000"
    assert load_config(S4PConfig, path, [short, "data.unlabeled.batch_size=0"]).settings.warmup_iters == 5000
    with pytest.raises(ConfigError, match=r"fixmatch.warmup_iters \+ ramp_iters 6500 must be smaller"):
        load_config(S4PConfig, path, [short])
