"""Generated source files: textured images that compress like aerial photographs, and masks of objects."""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

NUM_CLASSES = 16
JPEG_QUALITY = 92
OCTAVES = (
    (1, 5.0),
    (3, 14.0),
    (16, 18.0),
    (70, 25.0),
)  # standard deviation in pixels, contrast in grey levels


@dataclass(frozen=True)
class Sources:
    """Paths relative to `root`: the same images in three encodings, and their masks."""

    root: Path
    images: dict[str, list[str]]
    masks: list[str]

    def write_splits(self, encoding: str) -> tuple[Path, Path]:
        """Write the labeled and the unlabeled split of one encoding and returns their paths."""
        labeled, unlabeled = self.root / f"{encoding}_l.txt", self.root / f"{encoding}_u.txt"
        pairs = zip(self.images[encoding], self.masks, strict=True)
        labeled.write_text("".join(f"{image} {mask}\n" for image, mask in pairs))
        unlabeled.write_text("".join(f"{image}\n" for image in self.images[encoding]))
        return labeled, unlabeled

    def mean_kilobytes(self, encoding: str) -> float:
        """Mean file size of an encoding."""
        return float(np.mean([(self.root / name).stat().st_size for name in self.images[encoding]])) / 1000


def write_sources(root: Path, count: int, size: int) -> Sources:
    """Write `count` images as JPEG, as PNG of OpenCV and as PNG of Pillow, with their masks."""
    names: dict[str, list[str]] = {"JPEG": [], "PNG": [], "PNG, Pillow": []}
    masks = []
    for index in range(count):
        image, mask = texture(np.random.default_rng(index), size)
        encoded = {
            "JPEG": _opencv(".jpg", image),
            "PNG": _opencv(".png", image),
            "PNG, Pillow": _pillow(image),
        }
        for number, (encoding, data) in enumerate(encoded.items()):
            names[encoding].append(f"{index}_{number}{'.jpg' if encoding == 'JPEG' else '.png'}")
            (root / names[encoding][-1]).write_bytes(data)
        masks.append(f"{index}_mask.png")
        (root / masks[-1]).write_bytes(_pillow(mask))
    return Sources(root, names, masks)


def texture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of several scales with sensor noise, and objects with hard edges on it.

    Returns:
        Image (size, size, 3) uint8 and mask (size, size) uint8: 0 = background, 1..15 = class of the object.
    """
    image, mask = np.full((size, size, 3), 115, np.float32), np.zeros((size, size), np.uint8)
    for sigma, contrast in OCTAVES:
        coarse = rng.normal(size=(max(size // sigma, 2),) * 2 + (3,)).astype(np.float32)
        coarse = 0.9 * coarse.mean(2, keepdims=True) * 3**0.5 + 0.1 * coarse  # mostly brightness
        image += contrast * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    for x, y, width, height in (rng.random((60, 4)) * (size, size, size / 8, size / 8)).astype(int).tolist():
        class_id = int(rng.integers(1, NUM_CLASSES))
        color = tuple(rng.uniform(40, 220, 3).tolist())
        for canvas, value in ((image, color), (mask, class_id)):
            cv2.rectangle(canvas, (x, y), (x + width, y + height), value, -1)
    image += rng.normal(scale=2, size=image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def _opencv(extension: str, image: np.ndarray) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if extension == ".jpg" else []
    return cv2.imencode(extension, image, options)[1].tobytes()


def _pillow(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
