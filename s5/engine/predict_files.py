"""Prediction of image files to files: index masks, colour masks and overlays for every task."""

import logging
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from s5.data.band_writers import BandWriter, PngWriter, TiffWriter
from s5.data.errors import ImageError
from s5.data.geotiff import open_raster
from s5.data.image_io import read_image
from s5.data.labels import LabelTable
from s5.data.progress import Progress
from s5.engine.lanes import Lanes
from s5.engine.predict_sources import Source
from s5.models.inference import Rows, rows_of
from s5.models.segmentation_model import SegmentationModel

logger = logging.getLogger(__name__)

KINDS = ("index", "color", "overlay")
WRITERS = 4  # threads
WAITING = 6  # bands or images that wait to be written
AHEAD = 2  # images read in advance


@dataclass(frozen=True)
class Target:
    """Where results go and which.

    Attributes:
        folder: results are ``<folder>/<task>/<kind>/<name>.png``, ``.tif`` for a TIFF.
        tables: classes of the tasks to predict.
        kinds: of :data:`KINDS`. An index mask holds the raw values of the task's label table.
        alpha: weight of the colours in overlays, 0 to 1.
    """

    folder: Path
    tables: Mapping[str, LabelTable]
    kinds: Sequence[str] = KINDS
    alpha: float = 0.5

    def paths(self, source: Source) -> list[Path]:
        """All results of an image."""
        return [source.result(self.folder / task / kind) for task in self.tables for kind in self.kinds]


def predict_files(model: SegmentationModel, sources: Sequence[Source], target: Target) -> list[ImageError]:
    """Predict images and write the results; reading, the network and writing overlap.

    Images are held whole, TIFFs by bands of rows (in the mode ``slide_window``). Every result appears whole
    or not at all.

    Args:
        model: in evaluation mode.
        sources: the images.
        target: where to.

    Returns:
        Errors of images that could not be read; the others are done.

    Raises:
        OSError: a result cannot be written.
    """
    problems: list[ImageError] = []
    with (
        Lanes(WRITERS, WAITING) as lanes,
        closing(_read_ahead(sources)) as images,
        Progress(len(sources), "predicting", "images", logger) as progress,
    ):
        for number, (source, image) in enumerate(images):
            try:
                with _rows(source, image) as rows:
                    _predict(model, rows, source, target, lanes, number)
            except ImageError as error:
                problems.append(error)
            progress.update()
        lanes.wait()
    return problems


def _read_ahead(sources: Sequence[Source]) -> Generator[tuple[Source, Future | None]]:
    """The images with their pixels, which are read in threads; those of a TIFF (None) are read in bands."""
    with ThreadPoolExecutor(AHEAD) as pool:
        ahead: deque[tuple[Source, Future | None]] = deque()
        for source in sources:
            ahead.append((source, None if source.is_tiff else pool.submit(read_image, source.path)))
            if len(ahead) > AHEAD:
                yield ahead.popleft()
        yield from ahead


@contextmanager
def _rows(source: Source, image: Future | None) -> Iterator[Rows]:
    if image is not None:
        yield rows_of(_channels_first(image.result()))
        return
    with open_raster(source.path) as raster:
        yield Rows(
            raster.height,
            raster.width,
            lambda top, bottom: _channels_first(raster.read(top, 0, bottom - top)),
        )


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _predict(
    model: SegmentationModel, rows: Rows, source: Source, target: Target, lanes: Lanes, lane: int
) -> None:
    """Predict one image; what is computed is handed to the lane of the image, which writes it."""
    writers = {
        (task, kind): _writer(source.result(target.folder / task / kind), source, kind)
        for task in target.tables
        for kind in target.kinds
    }
    jobs: list[Future] = []
    try:
        with model.autocast():
            for top, bands in model.predict_rows(rows, list(target.tables)):
                ids = {task: band.cpu().numpy() for task, band in bands.items()}
                height = len(next(iter(ids.values())))
                photo = None
                if "overlay" in target.kinds:
                    photo = rows.read(top, top + height).permute(1, 2, 0).contiguous().numpy()
                jobs.append(lanes.submit(lane, _write_band, writers, top, ids, photo, target))
    except BaseException:
        wait(jobs)
        for writer in writers.values():
            writer.discard()
        raise
    lanes.submit(lane, _finish, writers)


def _writer(path: Path, source: Source, kind: str) -> BandWriter:
    return TiffWriter(path, source.path, 1 if kind == "index" else 3) if source.is_tiff else PngWriter(path)


def _write_band(
    writers: Mapping[tuple[str, str], BandWriter],
    top: int,
    bands: Mapping[str, np.ndarray],
    photo: np.ndarray | None,
    target: Target,
) -> None:
    for task, ids in bands.items():
        table = target.tables[task]
        for kind in target.kinds:
            writers[task, kind].write(top, _painted(kind, ids, table, photo, target.alpha))


def _painted(
    kind: str, ids: np.ndarray, table: LabelTable, photo: np.ndarray | None, alpha: float
) -> np.ndarray:
    if kind == "index":
        return np.array(table.values, np.uint8)[ids]
    colors = table.colorize(ids)
    return colors if photo is None or kind == "color" else cv2.addWeighted(photo, 1 - alpha, colors, alpha, 0)


def _finish(writers: Mapping[tuple[str, str], BandWriter]) -> None:
    for writer in writers.values():
        writer.finish()
