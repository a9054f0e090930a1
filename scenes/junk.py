"""Images that curation should leave out, or take few of: noise, blur, blank, another domain, repeats.

    python -m scenes.junk OUT [--count 20] [--size 256] [--seed 0]

Writes `OUT/KIND/NNNN.jpg`, `count` of every kind, and twice as many of `repeat`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from s5.command import run_command
from s5.data.image_io import write_image
from scenes.scene import generate_scene

FIRST = 5_000_000  # scene index, above those of all splits


def noise(seed: int, number: int, size: int) -> np.ndarray:
    """Noise of a random scale, as of a sensor without light."""
    rng = np.random.default_rng((seed, number))
    side = max(2, size // int(rng.choice([1, 2, 4])))
    pixels = rng.normal(rng.uniform(60, 190), rng.uniform(20, 60), (side, side, 3))
    return cv2.resize(np.clip(pixels, 0, 255).astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST)


def blur(seed: int, number: int, size: int) -> np.ndarray:
    """A scene out of focus."""
    scene = generate_scene(seed, FIRST + number, size).image
    return cv2.GaussianBlur(scene, (0, 0), size / 16)


def blank(seed: int, number: int, size: int) -> np.ndarray:
    """A single colour."""
    colour = np.random.default_rng((seed, number)).integers(0, 256, 3)
    return np.broadcast_to(colour.astype(np.uint8), (size, size, 3)).copy()


def foreign(seed: int, number: int, size: int) -> np.ndarray:
    """Another domain: coloured circles, bars and text, as in a scanned chart."""
    rng = np.random.default_rng((seed, number))
    canvas = np.full((size, size, 3), rng.integers(200, 256), np.uint8)
    for _ in range(int(rng.integers(6, 14))):
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        (x, y), (dx, dy) = rng.integers(0, size, 2).tolist(), rng.integers(size // 16, size // 3, 2).tolist()
        if rng.random() < 0.5:
            cv2.circle(canvas, (x, y), dx // 2, colour, -1, cv2.LINE_AA)
        else:
            cv2.rectangle(canvas, (x, y), (x + dx, y + dy), colour, -1)
        cv2.putText(
            canvas, str(rng.integers(1000)), (y, x), cv2.FONT_HERSHEY_SIMPLEX, size / 300, (0, 0, 0), 1
        )
    return canvas


def repeat(seed: int, number: int, size: int) -> np.ndarray:
    """The same kind of place many times over: an airfield."""
    return generate_scene(seed, FIRST + 100_000 + number, size, theme=REPEATED).image


REPEATED = "airport"
KINDS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "blank": blank,
    "foreign": foreign,
    "repeat": repeat,
}


def write_junk(root: Path, count: int, size: int = 256, seed: int = 0) -> None:
    """Write `count` images of every kind, twice as many repeats; existing ones are kept."""
    for kind, make in KINDS.items():
        for number in range(2 * count if kind == "repeat" else count):
            path = root / kind / f"{number:04d}.jpg"
            if not path.exists():
                write_image(path, make(seed, number, size))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20, help="images of every kind")
    parser.add_argument("--size", type=int, default=256, help="side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    write_junk(args.out, args.count, args.size, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
