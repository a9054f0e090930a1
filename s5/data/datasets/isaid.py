"""iSAID: semantic masks of objects on the images of DOTA-v1.0."""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from s5.data.datasets.base import TRAIN, VAL, Dataset
from s5.data.datasets.shipped import Shipped, Source, safe_name
from s5.data.folders import find_images
from s5.data.label_table import build_table
from s5.errors import PrepareError

_MASK = re.compile(r"(?P<stem>.+)_instance_color_RGB")
_URL = "https://captain-whu.github.io/iSAID"
_IMAGES_URL = "https://captain-whu.github.io/DOTA"
_SPLIT_FILES = {TRAIN: "splits/labeled/labeled.txt", VAL: "splits/val.txt"}


class Isaid(Dataset):
    """15 classes of objects and background in 1869 images of DOTA-v1.0, of 800 to 13000 pixels a side.

    The semantic masks, in colours, come from the iSAID authors, the images from DOTA-v1.0; train and val
    have both. Pre-training uses it as the labeled part.
    """

    name = "isaid"
    title = "iSAID"
    summary = "iSAID masks and DOTA-v1.0 images -> labeled/iSAID, with the lists for training"
    url = _URL
    licence = "academic use only; images under the terms of DOTA and Google Earth"
    citation = (
        "Waqas Zamir et al., iSAID: A Large-scale Dataset for Instance Segmentation in Aerial Images, "
        "CVPRW 2019"
    )
    layout = f"""expected below {{src}}:
  train/images/P0000.png ...                                       images of DOTA-v1.0, training set
  train/Semantic_masks/images/P0000_instance_color_RGB.png ...     semantic masks of iSAID, training set
  val/images/P0003.png ...                                         images of DOTA-v1.0, validation set
  val/Semantic_masks/images/P0003_instance_color_RGB.png ...       semantic masks of iSAID, validation set
(Folders in between do not matter; masks may lie beside the images.)
Masks: {_URL}  Images: {_IMAGES_URL} (DOTA-v1.0)"""
    # Ids and colours of the authors' development kit (github.com/CAPTAIN-WHU/iSAID_Devkit, labels.py).
    tables = (
        build_table(
            "isaid",
            ("background", (0, 0, 0)),
            ("ship", (0, 0, 63)),
            ("storage_tank", (0, 63, 63)),
            ("baseball_diamond", (0, 63, 0)),
            ("tennis_court", (0, 63, 127)),
            ("basketball_court", (0, 63, 191)),
            ("ground_track_field", (0, 63, 255)),
            ("bridge", (0, 127, 63)),
            ("large_vehicle", (0, 127, 127)),
            ("small_vehicle", (0, 0, 127)),
            ("helicopter", (0, 0, 191)),
            ("swimming_pool", (0, 0, 255)),
            ("roundabout", (0, 191, 127)),
            ("soccer_ball_field", (0, 127, 191)),
            ("plane", (0, 127, 255)),
            ("harbor", (0, 100, 155)),
            background=0,
        ),
    )
    counts = {TRAIN: 1411, VAL: 458}
    optional = ()
    overlap = 0
    cut_parts = (TRAIN, VAL)
    folder = "labeled/iSAID"
    keep_lost = True
    inner_archives = None

    @classmethod
    def find(cls, shipped: Shipped) -> list[Source]:
        """Images and masks paired by name; those without a partner are reported as unusable."""
        found = {group: _find(shipped.src / group) for group in cls.splits}
        lacking = [
            f"{group}: {len(images)} images and {len(masks)} masks, {len(images.keys() & masks.keys())} pairs"
            for group, (images, masks) in found.items()
            if not images.keys() & masks.keys()
        ]
        if lacking:
            raise shipped.incomplete(*lacking)
        return [
            Source(
                key=f"{group}/{stem}",
                group=group,
                stem=safe_name(stem),
                image=images.get(stem) or shipped.src / f"{group}/images/{stem}.png",
                mask=masks.get(stem)
                or shipped.src / f"{group}/Semantic_masks/images/{stem}_instance_color_RGB.png",
            )
            for group, (images, masks) in found.items()
            for stem in sorted(images.keys() | masks.keys())
        ]

    @classmethod
    def split_file(cls, split: str, folder: str) -> str:
        """The split files that the shipped pre-training configuration refers to."""
        return _SPLIT_FILES[split]


def _find(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and semantic masks below a part's folder, by the stem of the image."""
    images, masks = defaultdict(list), defaultdict(list)
    for path in find_images(folder):
        match = _MASK.fullmatch(path.stem)
        if match:
            masks[match["stem"]].append(path)
        elif "_instance_" not in path.stem:
            images[path.stem].append(path)
    return _single(images), _single(masks)


def _single(found: Mapping[str, list[Path]]) -> dict[str, Path]:
    """One file for each name; among several masks, the semantic one."""
    chosen = {}
    for stem, paths in found.items():
        candidates = [path for path in paths if "Semantic_masks" in path.parts] or paths
        if len(candidates) > 1:
            raise PrepareError(f"{candidates[0]} and {candidates[1]} have the same name; keep one of them")
        chosen[stem] = candidates[0]
    return chosen
