"""Errors of `predict.py`."""

import io
import os
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

from s5.command import run_command
from s5.data.image_io import read_image, read_mask
from s5.errors import ConfigError
from tests.helpers.mdf_runs import REPO
from tests.helpers.predict_contract import PredictContract
from tests.helpers.processes import STOPPED, start_ranks
from tests.helpers.trained_models import table, write_checkpoint
from tests.segmentation.predict.predicting import expected_ids, files, predict, write_geotiff


class TestContract(PredictContract):
    tasks = ("ponds", "roofs")
    format = "index"
    results = ["a.png", "deep/b.c.png", "deep/er/d.png"]
    bad_settings = [
        (("--stride", "33"), "stride 33: must be between 1 and the crop of 32"),
        (("--crop", "0"), "crop 0: must be at least one pixel"),
        (("--scales", "-1"), r"scales \[-1.0\]: must be one or more positive"),
    ]

    def predict(self, checkpoint, given, out, *options):
        return predict(checkpoint, given, out, *options)


def test_an_error_of_the_main_process_ends_all(checkpoint, model, tmp_path):
    shared = [str(checkpoint), str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    ranks = start_ranks(REPO / "Semantic_Segmentation/predict.py", shared, tmp_path, 2)
    assert [process.wait() for process in ranks] == [1, 1]
    assert "none: no such file or folder" in ranks[0].text()
    assert re.search(STOPPED, ranks[1].text()) and "Traceback" not in ranks[1].text()


def test_odd_names_are_predicted_or_named(checkpoint, model, images, tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    monkeypatch.setattr(sys, "stderr", stream)
    odd, long = os.fsdecode(b"caf\xe9"), "x" * 250
    (images / "a.png").rename(images / f"{odd}.png")
    shutil.copy(images / f"{odd}.png", images / f"{long}.png")
    write_geotiff(images / "b.tif", np.zeros((20, 20, 3), np.uint8))
    (images / "b.tif").rename(images / f"{odd} 2.tif")
    out = tmp_path / "out"
    options = ("--tasks", "ponds", "--kinds", "index")
    assert run_command(lambda: predict(checkpoint, images, out, *options)) == 1
    assert files(out / "ponds/index") == [f"{odd}.png", "deep/b.c.png", "deep/er/d.png"]
    stream.flush()
    said = stream.buffer.getvalue().decode("utf-8")
    assert rf"error: {images}/caf\xe9 2.tif: TIFFs whose path is not UTF-8" in said
    assert f"error: {images}/{long}.png: file names of its results would have 254 bytes" in said
    assert "2 images could not be read; all others are finished" in said
    with pytest.raises(ConfigError, match="GDAL cannot write TIFFs to a path that is not UTF-8"):
        predict(checkpoint, images, tmp_path / odd, *options)


def test_a_checkpoint_that_does_not_say_what_it_is(images, tmp_path, capsys):
    torch.manual_seed(0)
    tables = {"vaihingen": table("v", ["a", "b"]), "loveda": table("l", ["a", "b", "c"])}
    model = write_checkpoint(tmp_path / "model/published.pth", tables, published=True)
    config = {
        "data_root": str(tmp_path),
        "tasks": {
            name: {
                "labels": labels.as_mapping(),
                "train": "none.txt",
                "val": "none.txt",
                "evaluation": {"crop": 32, "stride": 24},
            }
            for name, labels in tables.items()
        },
        "crop": 32,
        "model": {"decoder_channels": 8, "expert_channels": 48},
    }
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    options = ("--config", str(tmp_path / "tasks.yaml"), "--kinds", "index", "--tasks", "loveda")
    given = (tmp_path / "model/published.pth", images / "a.png", tmp_path / "out", *options)
    with pytest.raises(ConfigError, match=r"published.pth has no metadata about its network.*--backbone"):
        predict(*given)
    assert predict(*given, "--backbone", "vit_t_moe") == 0
    ids = read_mask(tmp_path / "out/loveda/index/a.png")
    assert np.array_equal(ids, expected_ids(model, read_image(images / "a.png"), "loveda"))


def test_another_backbone_than_the_checkpoints_is_an_error(checkpoint, model, images, tmp_path):
    with pytest.raises(ConfigError, match="--backbone vit_t: .*holds a vit_t_moe"):
        predict(checkpoint, images, tmp_path / "out", "--backbone", "vit_t")
