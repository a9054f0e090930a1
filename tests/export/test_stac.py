"""The STAC item beside an exported file."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

import s5
from s5.export.plan import ExportOptions, make_plan
from s5.export.stac import make_item

CONTENT = b"graph and weights"


@pytest.fixture
def items(segmentor: Path, detector: Path, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Items of both tasks with a fixed size, of one task for any size, and of a detector."""
    chosen = {
        "both.onnx": (segmentor, ExportOptions(task="all", size=40, resolution=30.0)),
        "land.pt2": (segmentor, ExportOptions(task="land")),
        "ships.onnx": (detector, ExportOptions(task="harbour")),
    }
    made = {}
    for name, (checkpoint, options) in chosen.items():
        file = tmp_path / name
        file.write_bytes(CONTENT)
        made[file.stem] = make_item(make_plan(s5.load(checkpoint, "cpu"), options), [file], 1000)
    return made


Items = dict[str, dict[str, Any]]


def test_the_core_is_valid(items: Items) -> None:
    pytest.importorskip("jsonschema")
    validation = pytest.importorskip("pystac.validation")
    for item in items.values():
        assert validation.validate_dict(item, extensions=[])


def test_the_model_is_valid(items: Items) -> None:
    properties = pytest.importorskip("stac_model.schema").MLModelProperties
    for item in items.values():
        assert properties.model_validate(item["properties"]).total_parameters == 1000


def test_input_and_outputs(items: Items) -> None:
    shapes = {}
    for name, item in items.items():
        (given,) = item["properties"]["mlm:input"]
        results = [one["result"]["shape"] for one in item["properties"]["mlm:output"]]
        shapes[name] = [given["input"]["shape"], *results]
        for bands in (item["properties"]["bands"], item["assets"]["model"]["bands"]):
            assert [band["name"] for band in bands] == given["bands"] == ["red", "green", "blue"]
        assert given["value_scaling"] == [{"type": "min-max", "minimum": 0, "maximum": 255}]
    assert shapes == {
        "both": [[-1, 3, 40, 40], [-1, 2, 40, 40], [-1, 3, 40, 40]],
        "land": [[-1, 3, -1, -1], [-1, 3, -1, -1]],
        "ships": [[1, 3, 64, 64], [1, 7, -1]],
    }


def test_classes_tasks_and_framework(items: Items) -> None:
    roads, land = items["both"]["properties"]["mlm:output"]
    assert (roads["name"], land["name"], roads["tasks"]) == ("roads", "land", ["semantic-segmentation"])
    assert [one["description"] for one in roads["classification:classes"]] == ["other", "main road"]
    assert [one["name"] for one in roads["classification:classes"]] == ["other", "main_road"]
    assert items["ships"]["properties"]["mlm:tasks"] == ["object-detection"]
    assert items["ships"]["properties"]["mlm:framework"] == "ONNX"
    assert items["land"]["properties"]["mlm:framework"] == "PyTorch"
    assert items["both"]["properties"]["mlm:hyperparameters"]["resolution_cm"] == 30


def test_the_file_can_be_checked(items: Items) -> None:
    for name, artifact in (("both", "onnx"), ("land", "torch.export.save")):
        asset = items[name]["assets"]["model"]
        assert asset["href"].startswith(f"./{name}.") and asset["file:size"] == len(CONTENT)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(CONTENT).hexdigest()
        assert "mlm:model" in asset["roles"] and asset["mlm:artifact_type"] == artifact
