"""All benchmarks run at a size for seconds, on the smallest backbone too."""

import argparse
import itertools
import sys
from pathlib import Path

import pytest

from benchmarks import (
    backbones,
    curation,
    detection_step,
    loader,
    mdf_step,
    photometric,
    references,
    rotated,
    s4p_options,
    s4p_step,
    sliding,
    steps,
)

SMALL = {"backbone": "vit_t", "size": 64, "batch": 1, "steps": 1, "threads": 1, "device": "cpu", "repeats": 1}
SMALL |= {"source_size": 96, "crop": 64, "images": 2, "boxes": 20, "detections": 30, "rois": 4}
SMALL |= {"scenes": 1, "tile": 32}
SMALL |= {"image": 128, "window": 64, "stride": 48, "bf16": False}


@pytest.mark.parametrize("variant", ["plain float32", "S5 float32"])
@pytest.mark.parametrize("module", [s4p_step, mdf_step, detection_step], ids=lambda module: module.__name__)
def test_a_step(module: object, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("steps", "detection_step"):
        monkeypatch.setattr(f"benchmarks.{name}.keep_freed_memory", lambda: True)
    args = argparse.Namespace(**SMALL, variant=variant)
    assert module.BENCHMARK.measure(args)["seconds"] > 0
    assert "vit_t" in module.BENCHMARK.what(args) and module.BENCHMARK.images(args) > 0


@pytest.mark.parametrize("variant", ["plain float32", "S5 float32"])
def test_sliding_windows(variant: str) -> None:
    assert sliding.measure(argparse.Namespace(**SMALL, variant=variant))["seconds"] > 0


def test_options_of_s4p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s4p_options, "keep_freed_memory", lambda: True)
    arms = {arm: s4p_options.ARMS[arm] for arm in ("labels", "truth", "fixmatch", "best")}
    monkeypatch.setattr(s4p_options, "ARMS", arms)
    title, _, _, _, *rows = s4p_options.run(argparse.Namespace(**SMALL | {"batch": 2})).splitlines()
    assert "2 labeled + 2 unlabeled images of 64" in title
    ratios = {name.strip(): float(ratio) for _, name, _, ratio, _ in (row.split("|") for row in rows)}
    assert list(ratios) == list(arms) and ratios["fixmatch"] == 1 and min(ratios.values()) > 0


def test_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "keep_freed_memory", lambda: True)
    memory = itertools.count()
    monkeypatch.setattr(backbones, "peak_memory", lambda device: next(memory))

    def measure(name: str, args: argparse.Namespace) -> dict[str, float]:
        return backbones.measure(argparse.Namespace(**vars(args) | {"backbone": name}))

    monkeypatch.setattr(backbones, "_measure_apart", measure)
    args = argparse.Namespace(**SMALL | {"bf16": True}, backbones="vit_t,swin_t")
    *_, first, second = backbones.run(args).splitlines()
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[0] == "vit_t" and cells[2] == cells[4] == "1" and "swin_t" in second


@pytest.mark.parametrize(
    "module", [loader, photometric, references, rotated], ids=lambda module: module.__name__
)
def test_tables(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotated, "_memory_apart", lambda *_: 10**9)
    title, *table = module.run(argparse.Namespace(**SMALL)).splitlines()
    assert "vice" in title, "what the figures belong to"
    rows = [line.split("|")[1:-1] for line in table if line.startswith("|")]
    assert len(rows) > 3 and len({len(cells) for cells in rows}) == 1


def test_expert_channels_fit_every_backbone() -> None:
    channels = [
        steps.expert_channels(argparse.Namespace(backbone=name)) for name in ("vit_t", "vit_b", "vit_l")
    ]
    assert channels == [64, 256, 256]


def test_curation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb", reason="curation needs duckdb: pip install -e '.[curate]'")
    pytest.importorskip("pyarrow", reason="curation needs pyarrow: pip install -e '.[curate]'")
    monkeypatch.setattr(curation, "SHARD", 1500)

    def measure(folder: str, count: int) -> dict[str, float]:
        return curation.measure_select(Path(folder), count) if count else curation.measure_index(Path(folder))

    monkeypatch.setattr(curation, "_measure_apart", measure)
    args = argparse.Namespace(patches=[4000], files=[30])
    title, *table = curation.run(args).splitlines()
    assert "vice" in title and table[-1].split()[1] == "30"
    assert any(line.split()[1:4:2] == ["4000", "400"] for line in table if "4000" in line)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install -e '.[curate]'" in curation.run(args)
