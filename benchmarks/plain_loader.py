"""The plain input pipeline: per sample and on the full image, with Pillow and torchvision.

Decode with Pillow, resize the full image, crop, flip; for unlabeled images two strong views (of which
FixMatch uses one), each with torchvision's jitter and grayscale and Pillow's blur; then tensors, normalised.
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms

NORMALIZE = transforms.Compose(
    [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)
JITTER = transforms.RandomApply([transforms.ColorJitter(0.5, 0.5, 0.5, 0.25)], p=0.8)
GRAYSCALE = transforms.RandomGrayscale(p=0.2)


def plain_labeled(image_path: Path, mask_path: Path, size: int) -> tuple[Tensor, Tensor]:
    """Load one labeled sample: image (3, size, size) float32 and label (size, size) int64."""
    image, mask = _weak(Image.open(image_path).convert("RGB"), Image.open(mask_path), size)
    return NORMALIZE(image), torch.from_numpy(np.array(mask)).long()


def plain_unlabeled(image_path: Path, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load one unlabeled sample: weak and two strong views (3, size, size), padding (size, size)."""
    image = Image.open(image_path).convert("RGB")
    image, mask = _weak(image, Image.fromarray(np.zeros((image.height, image.width), np.uint8)), size)
    first, second = _strong(image.copy()), _strong(image.copy())
    return NORMALIZE(image), NORMALIZE(first), NORMALIZE(second), torch.from_numpy(np.array(mask)).long()


def _weak(image: Image.Image, mask: Image.Image, size: int) -> tuple[Image.Image, Image.Image]:
    factor = random.uniform(0.5, 2.0)
    resized = (round(image.width * factor), round(image.height * factor))
    image = image.resize(resized, Image.Resampling.BILINEAR)
    mask = mask.resize(resized, Image.Resampling.NEAREST)
    border = (0, 0, max(size - image.width, 0), max(size - image.height, 0))
    image, mask = ImageOps.expand(image, border, 0), ImageOps.expand(mask, border, 255)
    x, y = random.randint(0, image.width - size), random.randint(0, image.height - size)
    image, mask = (part.crop((x, y, x + size, y + size)) for part in (image, mask))
    return (ImageOps.mirror(image), ImageOps.mirror(mask)) if random.random() < 0.5 else (image, mask)


def _strong(image: Image.Image) -> Image.Image:
    image = GRAYSCALE(JITTER(image))
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))
    return image
