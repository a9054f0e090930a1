"""The pages `docs/add_*.md`: each is short, and what it shows is done as it says.

`docs/add_dataset.md` is tested by `tests/data/test_add_dataset.py`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from s5 import backbones
from s5.checkpoints import layouts
from s5.data.image_io import write_image, write_mask
from s5.segmentation.mdf import MDFExperiment
from s5.segmentation.methods import METHODS
from tests.backbones.contract import BackboneContract
from tests.checkpoints.test_layout_contract import LayoutContract, timm_state
from tests.helpers import mdf_runs, s4p_runs

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("dataset", "backbone", "layout", "method", "task", "metric")


def block(page: str, language: str = "python") -> str:
    """The code on a page."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", (DOCS / f"add_{page}.md").read_text(), re.DOTALL)
    return code


def run(page: str) -> dict[str, Any]:
    """Names that the code on a page defines."""
    names: dict[str, Any] = {"__name__": page}
    exec(compile(block(page), f"add_{page}.md", "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short_and_names_what_exists(page: str, repository: Path) -> None:
    text = (DOCS / f"add_{page}.md").read_text()
    assert len(text.splitlines()) <= 40
    for name in re.findall(
        r"`((?:s5|tests|S4_Pretrain|Semantic_Segmentation|Object_Detection)/[\w./]+)`", text
    ):
        assert (repository / name).exists(), name


class TestBackbone(BackboneContract):
    """The row, as small as the contract needs."""

    row = run("backbone")["row"]
    architecture = replace(
        row, options={**row.options, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 2)}
    )

    def test_its_name_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert timm.is_model(self.row.timm)
        monkeypatch.setitem(backbones.ARCHITECTURES, self.row.name, self.architecture)
        assert self.row.name in backbones.list_backbones()
        assert backbones.create_backbone(self.row.name, 64).num_layers == 6


class TestLayout(LayoutContract):
    key = "acme"

    @pytest.fixture(autouse=True)
    def row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layouts, "LAYOUTS", (run("layout")["Acme"](), *layouts.LAYOUTS))

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """The state dict of timm under the names on the page."""
        state = timm_state()
        for old, new in (
            ("blocks.", "stages."),
            ("attn.", "attention."),
            ("attention.proj", "attention.out"),
        ):
            state = {name.replace(old, new): tensor for name, tensor in state.items()}
        return state


def test_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "relative", run("method")["RelativeThreshold"])
    root = s4p_runs.write_dataset(tmp_path / "data")
    changes = {"method": "relative", "schedule.total_iters": 2, "schedule.log_interval": 1}
    assert s4p_runs.script().main(s4p_runs.arguments(root, tmp_path / "run", **changes)) == 0
    confident = [r["confident"] for r in s4p_runs.records(tmp_path / "run") if "confident" in r]
    assert len(confident) == 2 and all(0.1 < share < 0.9 for share in confident)  # about half of the pixels


def test_formula_of_the_method() -> None:
    cls = run("method")["RelativeThreshold"]
    method = cls.__new__(cls)
    torch.nn.Module.__init__(method)
    method.num_classes = 3
    pseudo, confidence = torch.tensor([[0, 0, 2]]), torch.tensor([[0.25, 0.75, 0.5]])
    assert method.weights(pseudo, confidence).tolist() == [[False, True, False]]


def test_task_and_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry trains from folders, and the scores of the metric stand among the others."""
    rng = np.random.default_rng(0)
    for i in range(8):
        mask = np.zeros((64, 64), np.uint8)
        mask[: 8 * i] = 1
        write_mask(tmp_path / f"roofs/masks/{i}.png", mask)
        write_image(tmp_path / f"roofs/images/{i}.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    schedule = {"epochs": 1, "steps_per_epoch": 2, "log_interval": 1}
    small = {"decoder_channels": 8, "expert_channels": 16}
    cfg = {"data_root": str(tmp_path), "crop": 64, "workers": 0, "model": small, "schedule": schedule}
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(cfg) + block("task", "yaml"))
    metric, standard = run("metric")["PerfectImages"], MDFExperiment.build_metrics
    monkeypatch.setattr(
        MDFExperiment, "build_metrics", lambda self: [*standard(self), metric("roofs", prefix="roofs")]
    )
    options = ["--config", str(tmp_path / "cfg.yaml"), "--backbone", "vit_t_moe", "--device", "cpu"]
    assert mdf_runs.script().main([*options, "--work-dir", str(tmp_path / "run")]) == 0
    scores = json.loads((tmp_path / "run/final_metrics.json").read_text())
    assert {"roofs/mIoU", "roofs/perfect"} <= scores.keys()
    assert (tmp_path / "run/vit_t_moe_mdf_best.pth").is_file()


def test_metric_by_hand() -> None:
    metric = run("metric")["PerfectImages"]("roofs")
    masks = [torch.tensor([[0, 1]]), torch.tensor([[0, 1]]), torch.tensor([[1, 1]])]
    labels = [torch.tensor([[0, 255]]), torch.tensor([[0, 1]]), torch.tensor([[1, 1]])]
    metric.process({"labels": labels[:2], "tasks": ["roofs", "roads"]}, masks[:2])
    metric.process({"labels": [torch.tensor([[0, 1]])], "tasks": ["roofs"]}, masks[2:])
    assert metric.evaluate(2) == {"perfect": 50.0}
