"""Helpers of the tests of `predict.py`."""

import warnings

import rasterio
import torch

from tests.helpers.mdf_runs import script
from tests.helpers.trained_models import table

TABLES = {
    "ponds": table("ponds", ["ground", "water"], values=[10, 20]),
    "roofs": table("roofs", ["ground", "water", "roof"], values=[1, 2, 3], ignore=[0]),
}


def predict(checkpoint, given, out, *options) -> int:
    given = given if isinstance(given, list) else [given]
    common = ["--out", out, "--device", "cpu", "--precision", "fp32"]
    return script("predict").main([str(part) for part in (checkpoint, *given, *common, *options)])


def expected_ids(model, pixels, task):
    return model.predict(torch.from_numpy(pixels).permute(2, 0, 1), task).numpy()


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_geotiff(path, pixels, **place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        height, width, count = pixels.shape
        shape = {"height": height, "width": width, "count": count, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", blockysize=4, **shape, **place) as file:
            file.write(pixels.transpose(2, 0, 1))
