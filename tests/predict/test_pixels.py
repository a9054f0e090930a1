"""Reading of images in advance."""

from pathlib import Path

import numpy as np
import pytest

from s5.data.image_io import write_image
from s5.engine.predict import pixels
from s5.engine.predict.sources import find_sources

BYTES = 3 * 32 * 32


@pytest.mark.parametrize(("limit", "most"), [(9 * BYTES, 1 + pixels.AHEAD), (2 * BYTES, 2), (1, 1)])
def test_only_images_that_fit_are_read_in_advance(
    limit: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is larger than the limit is read when nothing else is there."""
    for name in "abcdef":
        write_image(tmp_path / f"{name}.png", np.full((32, 32, 3), ord(name), np.uint8))
    begun: list[Path] = []
    read = pixels.read_image
    monkeypatch.setattr(pixels, "read_image", lambda path: (begun.append(path), read(path))[1])
    monkeypatch.setattr(pixels, "AHEAD_BYTES", limit)
    done, waiting = 0, []
    for source, image in pixels.read_ahead(find_sources([str(tmp_path)], tmp_path / "out")):
        assert image is not None and (image.result() == ord(source.path.stem)).all()
        waiting.append(len(begun) - done)
        done += 1
    assert done == len(begun) == 6 and max(waiting) == most
