"""Images of any shape as squares, which the network takes."""

import cv2
import numpy as np

PADDING = (124, 116, 104)  # mean colour of ImageNet: close to 0 once normalised, as the published padding is


def pad_image(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) with padding at the right and below, uint8 (size, size, 3)."""
    height, width = image.shape[:2]
    square = np.empty((size, size, 3), np.uint8)
    square[:height, :width] = image
    square[height:] = square[:height, width:] = PADDING
    return square


def pad_valid(valid: np.ndarray, size: int) -> np.ndarray:
    """Where a padded image has data, bool (size, size); padding counts as data, to keep its colour."""
    padded = np.ones((size, size), bool)
    padded[: valid.shape[0], : valid.shape[1]] = valid
    return padded


def fit_image(image: np.ndarray, size: int) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Resize an image (H, W, 3) to fit a square, keeping its proportions, and pad it at the right and below.

    Returns:
        uint8 (size, size, 3); the scale, exact for both axes; height and width of the image in the square.
    """
    scale = size / max(image.shape[:2])
    if min(image.shape[:2]) * scale < 1:  # a line of pixels, which stays one
        height, width = (max(1, round(side * scale)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    elif scale != 1:
        # By the factor: by the size, the rounded one, the axes would have slightly different scales.
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return pad_image(image, size), scale, image.shape[:2]
