"""Configurations: published values, overrides, and errors that list what is valid."""

import os
from pathlib import Path

import pytest
import yaml

from s5.curate import CurateConfig
from s5.data.augmentation import StrongAugmentation
from s5.errors import ConfigError
from s5.segmentation.mdf import build_tables
from s5.segmentation.mdf_config import MDFConfig
from s5.segmentation.methods.fixmatch import FixMatchSettings
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import Section, load_config, save_config

REPO = Path(__file__).parents[2]
PRETRAIN = REPO / "S4_Pretrain/configs/pretrain.yaml"
CURATE = REPO / "S4_Pretrain/configs/curate.yaml"
RSSEG = REPO / "Semantic_Segmentation/configs/rsseg.yaml"


def test_published_values() -> None:
    cfg = load_config(S4PConfig, PRETRAIN)
    assert (cfg.schedule.total_iters, cfg.data.crop) == (120_000, 512)
    assert (cfg.data.labeled.batch_size, cfg.data.unlabeled.batch_size) == (12, 12)
    assert (cfg.optim.lr, cfg.optim.betas, cfg.optim.weight_decay) == (5e-5, (0.9, 0.999), 0.01)
    fixmatch = cfg.settings
    assert isinstance(fixmatch, FixMatchSettings) and fixmatch == FixMatchSettings()
    assert (fixmatch.conf_thresh, fixmatch.lambda_u, fixmatch.threshold) == (0.95, 1.0, "fixed")
    assert (fixmatch.pseudo_labels, fixmatch.alignment) == ("current", "none")
    assert (fixmatch.warmup_iters, fixmatch.ramp_iters, fixmatch.feature_dropout) == (0, 0, 0.0)
    assert fixmatch.strong == StrongAugmentation(
        views=1,
        jitter_p=0.8,
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        hue=0.25,
        gray_p=0.2,
        blur_p=0.5,
        blur_sigma=(0.1, 2.0),
        cutmix_p=0.5,
    )
    splits = [str(cfg.data.labeled.split), str(cfg.data.unlabeled.split), str(cfg.data.val.split)]
    assert splits == ["splits/labeled/labeled.txt", "splits/unlabeled/RS4P-1M.txt", "splits/val.txt"]


def test_published_values_of_fine_tuning() -> None:
    cfg = load_config(MDFConfig, RSSEG)
    assert list(cfg.tasks) == [
        "vaihingen",
        "potsdam",
        "openearthmap",
        "loveda",
    ]  # the published experts' order
    assert (cfg.schedule.epochs, cfg.crop, cfg.model.expert_channels) == (100, 512, 256)
    assert (cfg.optim.lr, cfg.optim.betas) == (5e-5, (0.9, 0.999))
    assert (cfg.optim.weight_decay, cfg.optim.layer_decay, cfg.optim.warmup_iters) == (0.05, 0.9, 0)
    assert {task.batch_size for task in cfg.tasks.values()} == {12}
    assert {name: task.start_epoch for name, task in cfg.tasks.items() if task.start_epoch} == {
        "vaihingen": 70
    }
    metrics = {name: task.evaluation.metric for name, task in cfg.tasks.items()}
    assert metrics.pop("potsdam") == "mF1" and set(metrics.values()) == {"mIoU"}
    assert {name: table.num_classes for name, table in build_tables(cfg).items()} == {
        "vaihingen": 5,
        "potsdam": 5,
        "openearthmap": 9,
        "loveda": 7,
    }


@pytest.mark.parametrize(
    ("schema", "path"), [(S4PConfig, PRETRAIN), (MDFConfig, RSSEG), (CurateConfig, CURATE)]
)
def test_file_spells_out_every_default(schema: type[Section], path: Path) -> None:
    """A user sees every option in the file, and the file and the schema do not drift apart."""
    written = yaml.safe_load(path.read_text())
    cfg = load_config(schema, path).model_dump(mode="json")

    def keys(tree: dict, prefix: str = "") -> set[str]:
        return {f"{prefix}{k}" for k in tree} | {
            name for k, v in tree.items() if isinstance(v, dict) for name in keys(v, f"{prefix}{k}.")
        }

    assert keys(written) == keys(cfg)


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Path) -> None:
    if "sources" in yaml.safe_load(path.read_text()):
        load_config(CurateConfig, path)
        return
    if "tasks" not in yaml.safe_load(path.read_text()):
        load_config(S4PConfig, path)
        return
    cfg = load_config(MDFConfig, path)
    assert list(build_tables(cfg)) == list(cfg.tasks)
    for task in cfg.tasks.values():  # the window that fits the training crops
        assert task.evaluation.crop == cfg.crop


def test_overrides_and_saving(tmp_path: Path) -> None:
    cfg = load_config(
        S4PConfig, PRETRAIN, ["data_root=/data", "optim.lr=1e-3", "data.scale=[1, 2]", "seed=3"]
    )
    assert (cfg.data_root, cfg.optim.lr, cfg.data.scale, cfg.seed) == (Path("/data"), 1e-3, (1.0, 2.0), 3)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(S4PConfig, tmp_path / "config.yaml") == cfg


def test_an_override_does_not_reach_what_a_yaml_alias_shares(tmp_path: Path) -> None:
    text = RSSEG.read_text()
    start = text.index("  potsdam:")
    shared = text[:start].replace("  vaihingen:", "  vaihingen: &first") + "  second: *first\n" + text[start:]
    (tmp_path / "config.yaml").write_text(shared)
    cfg = load_config(
        MDFConfig,
        tmp_path / "config.yaml",
        ["tasks.second.evaluation.metric=mF1", "tasks.second.batch_size=3"],
    )
    first, second = cfg.tasks["vaihingen"], cfg.tasks["second"]
    assert (second.evaluation.metric, second.batch_size) == ("mF1", 3)
    assert (first.evaluation.metric, first.batch_size) == ("mIoU", 12) and second.labels == first.labels


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", r"unknown key 'optim.learning_rate'.*lr"),
        ("fixmatch.conf_tresh=0.9", r"did you mean 'conf_thresh'\?"),
        ("fixmatch.collapse.shar=1", r"unknown key 'fixmatch.collapse.shar' - did you mean 'share'\?"),
        ("data.val.strid=1", r"unknown key 'data.val.strid' - did you mean 'stride'\? .*crop, mode, split"),
        ("data.val.mode=whole", r"data.val.mode = 'whole'.*'slide_window'"),
        ("fixmatch.strong=1", r"fixmatch.strong = 1: Input should be a dictionary"),
        ("fixmatch.strong.blur_sigma=[3, 1]", r"fixmatch.strong: blur_sigma \(3.0, 1.0\): the first value"),
        ("fixmatch.strong.blur=1", r"unknown key 'fixmatch.strong.blur'.*blur_sigma"),
        ("fixmatch.conf_thresh=1.5", r"fixmatch.conf_thresh = 1.5.*less than or equal to 1"),
        ("schedule.total_iters=many", r"schedule.total_iters = 'many'.*integer"),
        ("data.val.stride=1024", r"data.val: stride 1024: must be between 1 and the crop of 512 pixels"),
        ("precision=half", r"precision = 'half'.*'bf16'"),
        ("data.labeled", r"expected section.key=value"),
    ],
)
def test_bad_values_name_key_and_valid_ones(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(S4PConfig, PRETRAIN, [override])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_editors(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(PRETRAIN.read_text(encoding="utf-8").replace("\n", "\r\n"), encoding=encoding, newline="")
    assert load_config(S4PConfig, path) == load_config(S4PConfig, PRETRAIN)
    path.write_bytes("seed: 0 # Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="a.yaml: not valid YAML"):
        load_config(S4PConfig, path)


def test_backbone_and_initial_weights_are_keys_that_the_command_line_overrides(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"_base_: {RSSEG}\nbackbone: vit_l_rvsa\ninit: weights/a b.pth\n")
    cfg = load_config(MDFConfig, path, backbone=None, init=None)
    assert (cfg.backbone, cfg.init) == ("vit_l_rvsa", "weights/a b.pth")
    odd = os.fsdecode(b"no: # \xff \xf0\x9f\x98\x80.pth")  # neither YAML nor UTF-8
    cfg = load_config(MDFConfig, path, ["init=x"], backbone="timm:test_vit", init=odd)
    assert (cfg.backbone, cfg.init) == ("timm:test_vit", odd)


@pytest.mark.parametrize(
    ("schema", "path", "name", "message"),
    [
        (
            S4PConfig,
            PRETRAIN,
            "vit_b_moe",
            "= 'vit_b_moe': .*experts are for several tasks; use vit_b",
        ),
        (S4PConfig, PRETRAIN, "vitb", "backbone = 'vitb': unknown backbone.*did you mean 'vit_b'"),
        (MDFConfig, RSSEG, "vitb", "backbone = 'vitb': unknown backbone.*did you mean 'vit_b'"),
    ],
)
def test_backbones_that_cannot_be(schema: type[Section], path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(schema, path, [f"backbone={name}"])


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "first.yaml").write_text(f"_base_: {RSSEG}\nmodel: {{drop_path: 0.3}}\ncrop: 256\n")
    path = tmp_path / "more/second.yaml"
    path.write_text("_base_: ../first.yaml\ncrop: 128\ntasks: {loveda: {scale: [1, 1]}}\n")
    cfg, published = load_config(MDFConfig, path, ["optim.lr=1"]), load_config(MDFConfig, RSSEG)
    assert (cfg.crop, cfg.model.drop_path, cfg.optim.lr) == (128, 0.3, 1)
    assert cfg.tasks["loveda"].scale == (1, 1) and list(cfg.tasks) == list(published.tasks)
    assert cfg.tasks["loveda"].train == published.tasks["loveda"].train
    assert cfg.tasks["potsdam"] == published.tasks["potsdam"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_base_: nowhere.yaml", r"nowhere.yaml: no such configuration file"),
        ("_base_: a.yaml", r"a.yaml: _base_ = 'a.yaml': these files extend each other"),
        ("_base_: b.yaml", r"b.yaml: _base_ = 'a.yaml': these files extend each other"),
        ("_base_: [x.yaml]", r"_base_ = \['x.yaml'\]: expected the path of the file to extend"),
        ("_base_: c.yaml", r"unknown key 'crops' - did you mean 'crop'"),
    ],
)
def test_files_that_cannot_be_extended(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("_base_: a.yaml")
    (tmp_path / "c.yaml").write_text("crops: 3")
    with pytest.raises(ConfigError, match=message):
        load_config(MDFConfig, tmp_path / "a.yaml")


def test_missing_file_and_bad_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such configuration file"):
        load_config(S4PConfig, tmp_path / "nowhere.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("data: [unclosed")
    with pytest.raises(ConfigError, match=r"bad.yaml: not valid YAML"):
        load_config(S4PConfig, bad)


def test_validation_is_by_windows_unless_the_configuration_says_otherwise() -> None:
    """Images of any size then fit into memory, whatever a configuration leaves out."""
    cfg = S4PConfig.model_validate(
        {
            "data_root": "data",
            "data": {
                "labeled": {"split": "a", "batch_size": 2},
                "unlabeled": {"split": "b", "batch_size": 2},
                "val": {"split": "c"},
            },
        }
    )
    assert (cfg.data.val.mode, cfg.data.val.crop, cfg.data.val.stride) == ("slide_window", 512, 384)
