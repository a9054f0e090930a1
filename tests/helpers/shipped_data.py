"""Tiny datasets in the layouts of their providers, and what the tests of their preparation share."""

import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import cv2
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from s5.data.datasets import TABLES, Potsdam, Vaihingen
from s5.data.datasets.dota import DOTA_V2
from s5.data.image_io import write_image, write_mask
from s5.data.labels import get_table
from s5.data.oriented.annotations import make_objects, write_objects
from tests.helpers.oriented_data import paint, rectangles, xml

HEIGHT, WIDTH = 40, 50


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def class_map(height, width, classes, seed=0):
    """Blocks of 10 pixels of random ids below ``classes``."""
    ids = np.random.default_rng(seed).integers(0, classes, (height // 10 + 1, width // 10 + 1), np.uint8)
    return np.kron(ids, np.ones((10, 10), np.uint8))[:height, :width]


def tree(folder):
    """Content of every file below a folder, the journals' order aside."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: b"" if name.endswith(".jsonl") else data for name, data in files.items()}


def write_tiff(path, array):
    """``array`` (H, W) or (H, W, 3), uint8 or uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        options = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2]}
        with rasterio.open(path, "w", "GTiff", dtype=array.dtype, **options) as file:
            file.write(bands)


def pack(folder, archive, inside="", separator="/", compression=zipfile.ZIP_DEFLATED):
    """Move a folder's content into an archive, below the folder ``inside``."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            place = "/".join(part for part in (inside, path.relative_to(folder).as_posix()) if part)
            file.write(path, place.replace("/", separator))
    shutil.rmtree(folder)


def erode(ids):
    """The mask with 255 at the borders of objects."""
    kernel = np.ones((3, 3), np.uint8)
    return np.where(cv2.dilate(ids, kernel) == cv2.erode(ids, kernel), ids, np.uint8(255))


def isprs_colors(ids):
    """Ids 0 to 5, 255 for the boundary, in the colours of the code."""
    return TABLES["potsdam_6"].colorize(ids)


def make_vaihingen(src, labels="ISPRS_semantic_labeling_Vaihingen_ground_truth", top="top", suffix=".tif"):
    """All areas in folders; returns ids by area."""
    truth = {}
    for i, area in enumerate((*Vaihingen.tiles["train"], *Vaihingen.tiles["val"])):
        truth[area] = class_map(HEIGHT, WIDTH, 6, i)
        name = f"top_mosaic_09cm_area{area}"
        write_tiff(src / f"ISPRS_semantic_labeling_Vaihingen/{top}/{name}{suffix}", noise(HEIGHT, WIDTH, i))
        write_tiff(src / f"{labels}_COMPLETE/{name}{suffix}", isprs_colors(truth[area]))
        eroded = isprs_colors(erode(truth[area]))
        write_tiff(src / f"{labels}_eroded_COMPLETE/{name}_noBoundary{suffix}", eroded)
        dsm = src / f"ISPRS_semantic_labeling_Vaihingen/dsm/dsm_09cm_matching_area{area}{suffix}"
        write_tiff(dsm, noise(4, 4)[..., 0])
    return truth


def make_potsdam(src, bands=("RGB", "IRRG")):
    """All tiles in folders; returns ids by tile."""
    truth = {}
    folders = {"RGB": "2_Ortho_RGB", "IRRG": "3_Ortho_IRRG"}
    for i, tile in enumerate((*Potsdam.tiles["train"], *Potsdam.tiles["val"])):
        truth[tile] = class_map(HEIGHT, WIDTH, 6, i)
        name = f"top_potsdam_{tile}"
        for j, band in enumerate(bands):
            write_tiff(src / folders[band] / f"{name}_{band}.tif", noise(HEIGHT, WIDTH, 100 * j + i))
        write_tiff(src / f"5_Labels_all/{name}_label.tif", isprs_colors(truth[tile]))
        eroded = isprs_colors(erode(truth[tile]))
        write_tiff(src / f"5_Labels_all_noBoundary/{name}_label_noBoundary.tif", eroded)
    return truth


def make_loveda(src, counts, groups=("Train", "Val", "Test")):
    """``counts`` images per scene of each part; returns raw masks by number."""
    truth, number = {}, 0
    for group in groups:
        for scene in ("Rural", "Urban"):
            for _ in range(counts):
                folder = src / group / scene
                write_image(folder / f"images_png/{number}.png", noise(HEIGHT, WIDTH, number))
                if group != "Test":
                    truth[number] = class_map(HEIGHT, WIDTH, 8, number)
                    write_mask(folder / f"masks_png/{number}.png", truth[number])
                number += 1
    return truth


OEM_XBD = {"houston_1.tif": "hurricane-harvey_00000008_pre_disaster.png"}
OEM_LISTS = {
    "train.txt": ["aachen_1.tif", "aachen_2.tif", "el_rodeo_1.tif", "houston_1.tif"],
    "val.txt": ["aachen_3.tif"],
    "test.txt": ["aachen_4.tif"],
}


def make_openearthmap(src):
    """Three regions, one from xBD without its image; returns raw masks by name."""
    truth = {}
    for i, name in enumerate(name for names in OEM_LISTS.values() for name in names):
        region = name.rpartition("_")[0]
        if name not in OEM_XBD:
            write_tiff(src / region / "images" / name, noise(HEIGHT, WIDTH, i))
        if name not in OEM_LISTS["test.txt"]:
            truth[name] = class_map(HEIGHT, WIDTH, 9, i)
            write_tiff(src / region / "labels" / name, truth[name])
    for file, names in OEM_LISTS.items():
        (src / file).write_text("\r\n".join(names) + "\r\n")
    (src / "xbd_files.csv").write_text("".join(f"{xbd},{name}\n" for name, xbd in OEM_XBD.items()))
    return truth


def make_isaid(src, masks="Semantic_masks/images", images="images"):
    """Two training images, one validation image, as shipped; returns their class ids by name."""
    table = get_table("isaid")
    truth = {}
    for i, (group, name, size) in enumerate(
        [("train", "P0000", (100, 140)), ("train", "P0001", (40, 50)), ("val", "P0003", (64, 64))]
    ):
        ids = np.random.default_rng(i).integers(0, 16, (size[0] // 10 + 1, size[1] // 10 + 1), np.uint8)
        truth[name] = np.kron(ids, np.ones((10, 10), np.uint8))[: size[0], : size[1]]
        write_image(src / group / images / f"{name}.png", noise(*size, i))
        colors = table.colorize(truth[name])
        write_image(src / group / masks / f"{name}_instance_color_RGB.png", colors)
    return truth


DIOR_PARTS = {"train": ["00001", "00003"], "val": ["00002"], "test": ["11726", "11727"]}
DIOR_CORNERS = [5, 5, 20, 5, 20, 15, 5, 15]
DIOR_NAMES = ("golffield", "Expressway-Service-area", "ship", "airplane", "vehicle")


def make_dior_r(src):
    """Five images in three parts, with oriented and horizontal annotations."""
    rng = np.random.default_rng(0)
    names = [name for part in DIOR_PARTS.values() for name in part]
    for name, label in zip(names, DIOR_NAMES, strict=True):
        folder = "test" if name > "1" else "trainval"
        image = rng.integers(0, 255, (40, 40, 3), np.uint8)
        write_image(src / f"JPEGImages-{folder}/JPEGImages-{folder}/{name}.jpg", image)
        for kind in ("Oriented", "Horizontal"):
            path = src / f"Annotations/{kind} Bounding Boxes/{name}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(xml([(label, DIOR_CORNERS)]) if kind == "Oriented" else "<annotation/>")
    for part, members in DIOR_PARTS.items():
        path = src / f"ImageSets/Main/{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\r\n".join(members) + "\r\n")


DOTA_HEIGHT, DOTA_WIDTH = 90, 150
DOTA_OBJECTS = rectangles(30, DOTA_HEIGHT, DOTA_WIDTH, seed=3, classes=18)


def write_dota(folder, name, objects=DOTA_OBJECTS, labels="labelTxt-v2.0/DOTA-v2.0_train", classes=DOTA_V2):
    write_image(folder / f"images/part1/{name}.png", paint(objects, DOTA_HEIGHT, DOTA_WIDTH))
    write_objects(folder / f"{labels}/{name}.txt", objects, classes)
    path = folder / f"{labels}/{name}.txt"
    path.write_text(f"imagesource:GoogleEarth\ngsd:0.3\n{path.read_text()}")


def make_dota(src):
    """DOTA-v2.0 with horizontal labels and those of another version beside."""
    write_dota(src / "train", "P0001")
    write_dota(src / "train", "P0002", make_objects())
    write_dota(src / "val", "P0003", labels="labelTxt-v2.0")
    for name in ("labelTxt-v2.0/DOTA-v2.0_train_hbb", "labelTxt-v1.5"):
        write_objects(src / f"train/{name}/P0001.txt", make_objects(), DOTA_V2)
    write_image(src / "test-dev/images/P0004.png", paint(DOTA_OBJECTS, DOTA_HEIGHT, DOTA_WIDTH))


def start_and_wait_for(arguments, journal, entries):
    """Start the command in a process of its own; return when the journal has ``entries`` entries."""
    process = subprocess.Popen(
        [sys.executable, "-m", "s5.data.prepare", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > entries:
            return process
        time.sleep(0.005)
    raise AssertionError(f"ended early or never began: {process.communicate()[1]}")
