"""iSAID: 15 classes of objects and background on the images of DOTA-v1.0.

Waqas Zamir et al., "iSAID: A Large-scale Dataset for Instance Segmentation in Aerial Images", CVPRW 2019. The
semantic masks come from the iSAID authors, the images from DOTA-v1.0; train and val have both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from s5.data.folders import find_images
from s5.data.labels import TABLES
from s5.data.masks import open_mask
from s5.data.prepare.journal import PrepareError
from s5.data.prepare.patches import ReadableMask, safe_name
from s5.data.prepare.recipe import LabeledRecipe, Source

_MASK = re.compile(r"(?P<stem>.+)_instance_color_RGB")
_EXPECTED = """expected below {src}:
  train/images/P0000.png ...                                       images of DOTA-v1.0, training set
  train/Semantic_masks/images/P0000_instance_color_RGB.png ...     semantic masks of iSAID, training set
  val/images/P0003.png ...                                         images of DOTA-v1.0, validation set
  val/Semantic_masks/images/P0003_instance_color_RGB.png ...       semantic masks of iSAID, validation set
(Folders in between do not matter; masks may lie beside the images.)
Masks: https://captain-whu.github.io/iSAID  Images: https://captain-whu.github.io/DOTA (DOTA-v1.0)"""


class Isaid(LabeledRecipe):
    """Train goes to ``splits/labeled/labeled.txt``, val to ``splits/val.txt``."""

    command: ClassVar[str] = "isaid"
    help: ClassVar[str] = "iSAID masks and DOTA-v1.0 images -> labeled/iSAID, with the lists for training"
    folder = "labeled/iSAID"

    def lists(self) -> Mapping[str, str]:
        """Split file of each group."""
        return {"train": "splits/labeled/labeled.txt", "val": "splits/val.txt"}

    def sources(self) -> list[Source]:
        """Images and masks paired by name; one without its partner cannot be used, and says so."""
        found = {group: self._find(group) for group in self.lists()}
        lacking = [
            f"{group}: {len(images)} images and {len(masks)} masks, {len(images.keys() & masks.keys())} pairs"
            for group, (images, masks) in found.items()
            if not images.keys() & masks.keys()
        ]
        if lacking:
            raise PrepareError(
                "\n".join(["iSAID is not complete.", *lacking, *self._zips(), self._expected()])
            )
        return [
            self._source(group, stem, images.get(stem), masks.get(stem))
            for group, (images, masks) in found.items()
            for stem in sorted(images.keys() | masks.keys())
        ]

    def mask(self, path: Path) -> AbstractContextManager[ReadableMask]:
        """Class ids from the colours of the semantic mask; masks that were turned into ids are taken, too."""
        return open_mask(path, TABLES["isaid"])

    def _source(self, group: str, stem: str, image: Path | None, mask: Path | None) -> Source:
        base = self.src / group
        return Source(
            key=f"{group}/{stem}",
            group=group,
            stem=safe_name(stem),
            image=image or base / f"images/{stem}.png",
            mask=mask or base / f"Semantic_masks/images/{stem}_instance_color_RGB.png",
        )

    def _find(self, group: str) -> tuple[dict[str, Path], dict[str, Path]]:
        """Images and semantic masks below a group's folder, by the stem of the image."""
        images, masks = defaultdict(list), defaultdict(list)
        for path in find_images(self.src / group):
            match = _MASK.fullmatch(path.stem)
            if match:
                masks[match["stem"]].append(path)
            elif "_instance_" not in path.stem:
                images[path.stem].append(path)
        return _single(images), _single(masks)

    def _zips(self) -> list[str]:
        zips = [str(path.relative_to(self.src)) for path in sorted(self.src.rglob("*.zip"))]
        return [f"There are archives to unpack first: {', '.join(zips[:8])}"] if zips else []

    def _expected(self) -> str:
        return _EXPECTED.format(src=self.src)


def _single(found: Mapping[str, list[Path]]) -> dict[str, Path]:
    """The one file of each name; of several masks, the one of the semantic masks."""
    chosen = {}
    for stem, paths in found.items():
        semantic = [path for path in paths if "Semantic_masks" in path.parts]
        candidates = semantic or paths
        if len(candidates) > 1:
            raise PrepareError(f"{candidates[0]} and {candidates[1]} have the same name; keep one of them")
        chosen[stem] = candidates[0]
    return chosen
