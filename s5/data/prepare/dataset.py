"""What labeled datasets have in common: folders, lists, training, validation and test parts."""

from __future__ import annotations

import argparse
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from s5.data.files import write_bytes
from s5.data.image_io import write_image
from s5.data.label_table import LabelTable
from s5.data.prepare.journal import Patch, PrepareError
from s5.data.prepare.patches import Window, open_image, plain_file, tiles, windows
from s5.data.prepare.recipe import Cut, LabeledRecipe, Source, require_name

TRAIN, VAL, TEST = "train", "val", "test"


@dataclass(frozen=True)
class DatasetRecipe(LabeledRecipe):
    """``NAME/{train,val}/{images,masks}``, ``NAME/test/images`` and ``NAME/splits/{train,val,test}.txt``.

    Training images are cut into patches, or stay whole with ``size`` 0. Validation images stay whole, so that
    they can be predicted whole or in sliding windows and every pixel counts once; of a given ``val_size`` on,
    they are divided into parts that do not overlap. Test images without masks are copied.

    Attributes:
        name: folder below the data root.
        val_size: largest side of validation images in pixels; 0 keeps them whole.
    """

    optional_groups: ClassVar[tuple[str, ...]] = (TEST,)
    lists_lost_sources: ClassVar[bool] = False  # one that moved from train to val must not stay in both
    default_val_size: ClassVar[int] = 0

    name: str = ""
    val_size: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible numbers and names."""
        super().__post_init__()
        require_name(self.name)
        if self.val_size and self.val_size < 16:
            raise PrepareError(f"--val-size must be 0 (whole images) or at least 16, got {self.val_size}")

    @property
    @abstractmethod
    def table(self) -> LabelTable:
        """The table of the masks that are written."""

    @property
    def folder(self) -> str:
        """Folder of the dataset."""
        return self.name

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Name and size of validation images, beside the common ones."""
        super().add_arguments(parser)
        cls.add_name(parser)
        size = cls.default_val_size
        parser.add_argument(
            "--val-size",
            type=int,
            default=size,
            help=f"divide validation images larger than this, in pixels; 0 keeps all whole (default: {size})",
        )

    @classmethod
    def add_name(cls, parser: argparse.ArgumentParser) -> None:
        """The argument that names the folder."""
        parser.add_argument(
            "--name",
            default=cls.command,
            help=f"folder below --out (default: {cls.command}); one per variant",
        )

    def lists(self) -> Mapping[str, str]:
        """One list per part."""
        return {group: f"{self.folder}/splits/{group}.txt" for group in (TRAIN, VAL, TEST)}

    def cut(self, source: Source) -> Cut:
        """Cut image and mask, or copy a test image."""
        if source.group == TEST and source.mask is None:
            return self._copy(source)
        return super().cut(source)

    def windows(self, source: Source, height: int, width: int) -> Iterable[tuple[str, Window]]:
        """Patches for training; whole images or large parts otherwise."""
        area = source.area or Window(0, 0, height, width)
        patches = source.group == TRAIN and self.size > 0
        if patches:
            cut = windows(area.height, area.width, self.size, self.overlap)
        else:
            largest = self.val_size if source.group != TRAIN else 0
            cut = tiles(area.height, area.width, largest or max(area.height, area.width))
        for part in cut:
            window = part._replace(top=part.top + area.top, left=part.left + area.left)
            whole = not patches and window == (0, 0, height, width)
            yield source.stem if whole else window.name(source.stem), window

    def _copy(self, source: Source) -> Cut:
        base = f"{self.folder}/{source.group}/images/{source.stem}"
        with self.local(source.image) as file, open_image(file) as image:  # a damaged file is found here
            plain = plain_file(file)
            if plain is None:
                patch = Patch(f"{base}.png")
                pixels, valid = image.read_with_valid(0, 0, image.height, image.width)
                write_image(self.out / patch.image, pixels, valid=valid)
            else:
                suffix, data = plain
                patch = Patch(f"{base}{suffix}")
                write_bytes(self.out / patch.image, data)
            return Cut((patch,), image.note)
