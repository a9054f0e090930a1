"""What datasets of oriented objects have in common: folders, lists, annotations as DOTA's text."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from s5.data.oriented.annotations import AnnotationReader, Objects
from s5.data.prepare.journal import Patch, PrepareError
from s5.data.prepare.recipe import Recipe, Source, require_name

TRAIN, VAL, TEST = "train", "val", "test"
SHOWN = 8  # archives in a message


@dataclass(frozen=True)
class ObjectsRecipe(Recipe):
    """``NAME/PART/{images,annotations}`` and ``NAME/splits/PART.txt``, lines ``image annotation``.

    Attributes:
        name: folder below the data root.
    """

    title: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = (TRAIN, VAL, TEST)
    optional_groups: ClassVar[tuple[str, ...]] = parts
    lists_lost_sources: ClassVar[bool] = False  # one that moved from train to val must not stay in both
    layout: ClassVar[str]  # what is expected below the source folder, and where to get it

    name: str = ""

    def __post_init__(self) -> None:
        """Refuse impossible numbers and names."""
        super().__post_init__()
        require_name(self.name)

    @property
    def folder(self) -> str:
        """Folder of the dataset."""
        return self.name

    def lists(self) -> Mapping[str, str]:
        """One list per part."""
        return {part: f"{self.folder}/splits/{part}.txt" for part in self.parts}

    @classmethod
    def add_name(cls, parser: argparse.ArgumentParser) -> None:
        """The argument that names the folder."""
        help_text = f"folder below --out (default: {cls.command}); one per variant"
        parser.add_argument("--name", default=cls.command, help=help_text)

    def place(self, part: str, name: str, suffix: str, annotated: bool = True) -> Patch:
        """Where an image of this name is written, and its annotation."""
        base = f"{self.folder}/{part}"
        return Patch(f"{base}/images/{name}{suffix}", f"{base}/annotations/{name}.txt" if annotated else None)

    def usage_of(self, parts: Sequence[str], classes: str) -> str:
        """What to write into a configuration to use the result."""
        lines = []
        for part in parts:
            images, annotations = (f"{self.folder}/{part}/{kind}" for kind in ("images", "annotations"))
            names = self.lists()[part]
            lines.append(f"{part}=dict(images='{images}', annotations='{annotations}', names='{names}')")
        return "\n".join([f"below data_root={str(self.out)!r}:", *lines, f"classes: {classes}"])

    def incomplete(self, problem: str) -> PrepareError:
        """The error of a dataset that is not all there."""
        lines = [f"{self.title} below {self.src} is not complete: {problem}"]
        zips = [str(path.relative_to(self.src)) for path in sorted(self.src.rglob("*.zip"))]
        if zips:
            lines.append(f"There are archives to unpack first: {', '.join(zips[:SHOWN])}")
        return PrepareError("\n".join([*lines, self.layout.format(src=self.src)]))


def read_noted(reader: AnnotationReader, path: Path) -> tuple[Objects, str]:
    """Objects of a file, and what the user should know of those that were left out."""
    left_out: list[str] = []
    objects = reader.read(path, left_out)
    return objects, f"{len(left_out)} objects left out, the first: {left_out[0]}" if left_out else ""


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their name without extension.

    Raises:
        PrepareError: two have the same.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.stem, path)
        if other is not path:
            raise PrepareError(f"{other} and {path} have the same name; keep one of them")
    return found


def require_own_names(sources: Sequence[Source]) -> None:
    """Refuse images of a part whose results would have one name.

    Raises:
        PrepareError: two have.
    """
    found: dict[tuple[str, str], Source] = {}
    for source in (source for source in sources if source.image.exists()):
        other = found.setdefault((source.group, source.stem), source)
        if other is not source:
            raise PrepareError(
                f"{other.image} and {source.image} would be written under the same name; rename one of them"
            )
