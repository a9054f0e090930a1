"""Pools of small images and runs of a curation on them."""

import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from s5.data.image_io import write_image
from s5.training.config import load_config
from tests.helpers.trained_models import table, write_checkpoint

CLASSES = ["background", "field", "road", "roof"]


def noise(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Image (height, width, 3) of coloured blocks of 8 pixels and a little noise."""
    rng = np.random.default_rng(seed)
    blocks = (
        rng.integers(0, 200, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    )
    return (blocks + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)


def write_pool(root: Path) -> None:
    """Labeled images, a folder, a zip, a tar and a GeoTIFF of unlabeled ones: 40 patches of 32 pixels."""
    for i in range(6):
        write_image(root / f"labeled/{i}.png", noise(i))
    for i in range(12):
        write_image(root / f"folder/sub é/{i}.png", noise(100 + i))
    with (
        zipfile.ZipFile(root / "pool.zip", "w") as pool_zip,
        tarfile.open(root / "pool.tar", "w") as pool_tar,
    ):
        for i in range(6):
            write_image(root / "one.png", noise(200 + i))
            pool_zip.write(root / "one.png", f"a/{i}.png")
            write_image(root / "one.png", noise(300 + i))
            pool_tar.add(root / "one.png", f"b/{i}.png")
    (root / "one.png").unlink()
    pixels = noise(400, 128, 128).transpose(2, 0, 1)
    profile = {"driver": "GTiff", "height": 128, "width": 128, "count": 3, "dtype": "uint8"}
    with rasterio.open(root / "big.tif", "w", tiled=True, blockxsize=32, blockysize=32, **profile) as file:
        file.write(pixels)
    write_checkpoint(root / "model.pth", {"s": table("s", CLASSES, background=0)}, "vit_t")


def configuration(root: Path, **changes: Any) -> Any:
    """The configuration of a curation of this pool; keys such as `select__count` change values."""
    from s5.curate.config import CurateConfig

    path = root / "curate.yaml"
    path.write_text(
        f"data_root: {root}\nout: {root}/out\ncheckpoint: {root}/model.pth\nlabeled: labeled\n"
        "sources: {folder: folder, zip: pool.zip, tar: pool.tar, big: big.tif}\n"
        "patch: {size: 32, min_size: 16}\nscore: {batch_size: 4, workers: 0}\ncluster: {count: 3}\n"
        "select: {count: 20, min_deviation: 1.0}\n",
        encoding="utf-8",
    )
    options = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return load_config(CurateConfig, path, options)


def chosen(out: Path) -> list[str]:
    """Lines of the written split."""
    return (out / "splits/curated.txt").read_text(encoding="utf-8").splitlines()
