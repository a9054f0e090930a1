"""The examples of the documentation run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from s5.backbones import ARCHITECTURES
from s5.data.image_io import write_image
from s5.data.labels import get_table
from tests.api.contract import PLACE
from tests.detection.predict.det_models import picture, write_detector
from tests.helpers.tiff_files import write_tiff
from tests.helpers.trained_models import table, write_checkpoint

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image.Image, "show", lambda image: None)
    small = replace(
        ARCHITECTURES["vit_s"], name="vit_b", depth=4, out_blocks=(0, 1, 2, 3)
    )  # for the time it takes
    monkeypatch.setitem(ARCHITECTURES, "vit_b", small)
    write_checkpoint(
        tmp_path / "vit_b_moe_mdf_best.pth", {"loveda": get_table("loveda"), "roads": table("r", ["a", "b"])}
    )
    tables = {"potsdam": get_table("potsdam"), "roads": table("roads", ["other", "road"])}
    write_checkpoint(tmp_path / "published.pth", tables, "vit_b_moe", published=True)
    write_detector(tmp_path / "vit_b_moe_det.pth", {"dota": ("ship", "plane")})
    bands = np.dstack([picture(40, 60), picture(40, 60, 1)[..., 0]]).transpose(2, 0, 1)
    write_tiff(tmp_path / "scene.tif", bands, photometric="rgb", **PLACE)
    for i in range(2):
        write_image(tmp_path / f"images/{i}.png", picture(40, 40, i))
    blocks = BLOCK.findall((DOCS / "api.md").read_text())
    assert len(blocks) > 4
    names: dict = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["false_colour"].mask.shape == (40, 60)
    assert list(names["every_task"]) == ["loveda", "roads"]
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.crs.to_epsg() == 32633
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"mask.tif", "overlay.jpg", "objects.geojson", "0.png", "1.png"} <= found


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells, one after the other, as a notebook runs them; what it shows is small."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tour.ipynb").read_text()
    assert len(text) < 200_000
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"] >= 5) == (4, True)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    torch.manual_seed(0)
    names: dict = {}
    for number, cell in enumerate(cells, 1):
        exec(compile("".join(cell["source"]), f"tour.ipynb, cell {number}", "exec"), names)
    assert names["accuracy"] > 0.6
