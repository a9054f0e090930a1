"""The report at the end of the quickstart."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from s5.data.image_io import read_mask
from s5.data.labels import get_table
from s5.data.splits import Split
from s5.engine.config import load_config, save_config
from s5.engine.s4p_config import S4PConfig

CONFIG = Path(__file__).resolve().parents[1] / "configs/quickstart.yaml"
TABLE = get_table(load_config(S4PConfig, CONFIG).data.labels)


@pytest.fixture(scope="module")
def report() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "scripts" / "quickstart_report.py"
    spec = importlib.util.spec_from_file_location("quickstart_report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(scenes_root: Path, tmp_path: Path) -> Path:
    """The two run folders as train.py leaves them."""
    cfg = load_config(S4PConfig, CONFIG, [f"data_root={scenes_root}"])
    for name, mean in (("s4p", 61.25), ("supervised", 54.5)):
        folder = tmp_path / name
        folder.mkdir()
        save_config(cfg, folder / "config.yaml")
        by_class = {f"IoU.{c}": mean for c in TABLE.classes} | {"IoU.building": None}
        (folder / "final_metrics.json").write_text(json.dumps({"iteration": 300, "mIoU": mean} | by_class))
    return tmp_path


def test_summary_has_both_runs_and_the_majority(report, runs: Path, scenes_root: Path, capsys) -> None:
    assert report.main([str(runs)]) == 0
    text = (runs / "summary.md").read_text()
    assert text.strip() in capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert list(rows)[2:] == [*TABLE.classes, "mIoU"]
    assert rows["mIoU"].split("|")[2:4] == ["   61.2 ", "            54.5 "]
    assert "absent" in rows["building"]
    assert len({len(line) for line in rows.values()}) == 1  # columns line up
    assert str(runs / "s4p" / "pictures") in text


def test_majority_by_hand(report, scenes_root: Path) -> None:
    split = Split("splits/val.txt", scenes_root)
    values = np.concatenate([read_mask(sample.mask).ravel() for sample in split])
    counts = np.bincount(values, minlength=256)[: TABLE.num_classes]  # objects are ignored
    name, scores = report.majority_scores(split, TABLE)
    assert name == TABLE.classes[counts.argmax()]
    assert scores[name] == pytest.approx(100 * counts.max() / counts.sum())
    assert scores["mIoU"] == pytest.approx(scores[name] / (counts > 0).sum())
