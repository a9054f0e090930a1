"""Labeled samples that no split file lists: two folders paired by name, and a part of them held out."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from s5.data.errors import SplitError
from s5.data.folders import find_images
from s5.data.splits import IMAGE_EXTENSIONS, Split, format_line

_SHOWN = 3  # names in a message


def pair_folders(images: str | Path, masks: str | Path, root: str | Path) -> Split:
    """The images of one folder with the masks of another that have the same name.

    A pair has the same path below its folder, extension aside: ``images/a/1.tif`` and ``masks/a/1.png``.
    Hidden files and files that are no images are left out.

    Args:
        images: folder of the images, relative to ``root`` unless absolute.
        masks: folder of the masks, likewise.
        root: data root; paths below it are kept relative to it.

    Returns:
        The pairs in the order of their names; messages call the split by the folder of the images.

    Raises:
        SplitError: a folder is missing or empty, a file has no partner, or two files share a stem.
    """
    root = Path(root).absolute()
    found_images, found_masks = _by_stem(root / images), _by_stem(root / masks)
    _require_partners(found_images, found_masks, root / images, root / masks)
    lines = [
        format_line(_relative(found_images[stem], root), _relative(found_masks[stem], root))
        for stem in sorted(found_images)
    ]
    return Split.from_lines(lines, root, root / images)


def hold_out(split: Split, share: float, seed: int = 0) -> tuple[Split, Split]:
    """Divide a split into a part for training and one that is held out for validation.

    The choice depends on the names of the images and the seed only, not on their order. Each part has at
    least one image, and an image that is listed more than once is in one part only. Tiles of one scene may
    fall on both sides; where that matters, write two split files.

    Args:
        split: two images or more.
        share: part of the images to hold out, between 0 and 1.
        seed: another seed is another choice.

    Returns:
        Training and validation split, both in the order of ``split``.

    Raises:
        SplitError: fewer than two images, or a share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise SplitError(f"{split.path}: the share to hold out lies between 0 and 1, got {share}")
    names = [split.name(index) for index in range(len(split))]
    ranked = sorted(set(names), key=lambda name: _rank(name, seed))
    if len(ranked) < 2:
        raise SplitError(f"{split.path}: one image cannot be divided into training and validation; add more")
    held = set(ranked[: min(max(1, round(share * len(ranked))), len(ranked) - 1)])
    train, val = (
        [split.line(index) for index, name in enumerate(names) if (name in held) == is_val]
        for is_val in (False, True)
    )
    return Split.from_lines(train, split.root, split.path), Split.from_lines(val, split.root, split.path)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files below a folder by their path without extension."""
    if not folder.is_dir():
        raise SplitError(f"{folder}: no such folder; give the folders of images and masks")
    found: dict[str, Path] = {}
    for path in find_images(folder):
        other = found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise SplitError(f"{other} and {path} have the same name; keep one of them")
    if not found:
        raise SplitError(
            f"{folder}: no files that end in {', '.join(IMAGE_EXTENSIONS)}; put some there, or name "
            "another folder"
        )
    return found


def _require_partners(
    images: dict[str, Path], masks: dict[str, Path], image_folder: Path, mask_folder: Path
) -> None:
    problems = [
        f"{len(alone)} {what} have no partner in {other}: {', '.join(alone[:_SHOWN])}"
        + (" ..." if len(alone) > _SHOWN else "")
        for what, alone, other in (
            (f"images in {image_folder}", _names(images, masks), mask_folder),
            (f"masks in {mask_folder}", _names(masks, images), image_folder),
        )
        if alone
    ]
    if problems:
        raise SplitError(
            f"{'; '.join(problems)}. Image and mask have the same name, extension aside; take the others "
            "away, or write a split file"
        )


def _names(found: dict[str, Path], others: dict[str, Path]) -> list[str]:
    return [found[stem].name for stem in sorted(found.keys() - others.keys())]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _rank(name: str, seed: int) -> bytes:
    return blake2b(f"{seed}/{name}".encode(errors="surrogateescape"), digest_size=8).digest()
