"""Prediction of image files by a detector: cut into windows, in batches through the network, merged again."""

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby, islice

import numpy as np
import torch

from s5.data.errors import ImageError
from s5.data.oriented.detections import Detections, make_detections
from s5.data.oriented.merge import merge_windows, window_name
from s5.data.oriented.sources import fit_image, pad_image, pad_valid
from s5.data.prepare.patches import Decoded, Readable, Window, windows
from s5.data.progress import Progress
from s5.data.rasters import Georeference, read_georeference
from s5.detection.metric import detections_of
from s5.detection.network import DetectionModel, on_data
from s5.detection.results import DetResults, reduced, write_results
from s5.prediction.pipeline import Lanes, Reading, ahead, open_pixels, read_ahead
from s5.prediction.sources import Source

logger = logging.getLogger(__name__)

WRITERS = 4  # threads
WAITING = 6  # images that wait to be written
WHOLE = "image"  # in the names of windows
READY = 2  # batches that are cut in advance
GPU_BATCH = 4  # windows in one pass; on a CPU more than one take memory and no less time
MANY = 100  # windows of an image, from which on their progress is told
BAND_BYTES = 128 << 20  # pixels of a large image that are in memory at a time
BLOCK = 1024  # pixels, side of the parts of a TIFF that are looked at again for missing data


@dataclass(frozen=True)
class Cutting:
    """How images go into the network.

    Attributes:
        size: side of the square that the network sees, in pixels.
        window: side of the windows in pixels of the image; an image with both sides within it is one.
        pad: pad what is smaller than a window, so that all images have one scale; else it is enlarged.
        overlap: pixels that neighbouring windows share.
        nms: rotated IoU above which the lower of two detections of a class is dropped, as windows are merged.
    """

    size: int
    window: int
    pad: bool
    overlap: int
    nms: float


@dataclass
class _Image:
    """An image on its way.

    Attributes:
        source: the file.
        georeference: where on the earth it is; read for GeoJSON alone.
        total: its windows.
        drawing: what to draw on, see :func:`reduced`; of a TIFF it is read at the end.
        valid: bool (H, W), false where an image that is not a TIFF has no data; None if there is none.
        lacks_data: whether some window lacks data somewhere.
        found: by task, name and detections of the windows that are done.
    """

    source: Source
    georeference: Georeference | None
    total: int
    drawing: tuple[np.ndarray, int] | None
    valid: np.ndarray | None
    lacks_data: bool = False
    found: dict[str, list[tuple[str, Detections]]] = field(default_factory=dict)

    def add(self, name: str, found: Mapping[str, Detections]) -> bool:
        """Take what was found in a window; returns whether it was the last."""
        for task, detections in found.items():
            self.found.setdefault(task, []).append((name, detections))
        return all(len(parts) == self.total for parts in self.found.values())

    def merged(self, nms: float) -> dict[str, Detections]:
        """Detections of the whole image by task; windows merged with the threshold ``nms``."""
        if self.total == 1:
            return {task: parts[0][1] for task, parts in self.found.items()}
        return {task: merge_windows(parts, nms)[WHOLE] for task, parts in self.found.items()}


@dataclass(frozen=True)
class _Item:
    """A window as the network takes it: padded square, shape without padding, scale.

    ``valid`` is bool (H, W) in pixels of the image, false where the window has no data, None if it has data
    everywhere. A window wholly without data has no square and does not go through the network.
    """

    image: _Image
    name: str
    valid: np.ndarray | None
    square: np.ndarray | None = None
    scale: float = 1.0
    shape: tuple[int, int] = (0, 0)


def predict_files(
    model: DetectionModel, sources: Sequence[Source], results: DetResults, how: Cutting
) -> list[ImageError]:
    """Predict images and write the results; reading, the network and writing overlap.

    Images are held whole, TIFFs by bands of rows. Every result appears whole or not at all. Detections whose
    centre lies where the image has no data are dropped.

    Args:
        model: in evaluation mode, with the tasks of ``results``.
        sources: the images.
        results: where to.
        how: windows and size.

    Returns:
        Errors of images that could not be read; the others are done.

    Raises:
        OSError: a result cannot be written.
    """
    problems: list[ImageError] = []
    undrawn: list[ImageError] = []  # apart, as they count as progress already
    batch = GPU_BATCH if model.device.type == "cuda" else 1
    written = dropped = 0
    with (
        Lanes(WRITERS, WAITING) as lanes,
        Progress(len(sources), "predicting", "images", logger) as progress,
        closing(ahead(_items(sources, results, how, problems), READY * batch)) as items,
    ):
        while group := list(islice(items, batch)):
            detected, without_data = _detect(model, group, results.tasks)
            dropped += without_data
            for item, found in zip(group, detected, strict=True):
                if item.image.add(item.name, found):
                    lanes.submit(written, _write, item.image, results, how.nms, undrawn)
                    written += 1
            if done := written + len(problems) - progress.done:
                progress.update(done)
        lanes.wait()
    if dropped:
        logger.info("%d detections whose centre has no data were dropped", dropped)
    return problems + undrawn


def _items(
    sources: Sequence[Source], results: DetResults, how: Cutting, problems: list[ImageError]
) -> Generator[_Item]:
    """The windows of all images, one image after the other."""
    with closing(read_ahead(sources)) as images:
        for source, image in images:
            try:
                yield from _items_of(source, image, results, how)
            except ImageError as error:
                problems.append(error)


def _items_of(source: Source, image: Reading | None, results: DetResults, how: Cutting) -> Iterator[_Item]:
    """The windows of one image, which is in memory no longer than this."""
    with open_pixels(source, image) as pixels:
        yield from _windows(source, pixels, results, how)


def _windows(source: Source, pixels: Readable, results: DetResults, how: Cutting) -> Iterator[_Item]:
    places = windows(pixels.height, pixels.width, how.window, how.overlap)
    in_memory = "drawings" in results.kinds and not source.is_tiff
    on_earth = "geojson" in results.kinds and source.is_tiff
    image = _Image(
        source,
        read_georeference(source.path) if on_earth else None,
        len(places),
        reduced(pixels) if in_memory else None,
        None if source.is_tiff else pixels.read_with_valid(0, 0, pixels.height, pixels.width)[1],
    )
    with ExitStack() as stack:
        if len(places) >= MANY:
            progress = stack.enter_context(Progress(len(places), str(source.name), "windows", logger))
        for window, part, valid in _parts(pixels, places):
            name = window_name(WHOLE, how.window, window.left, window.top)
            image.lacks_data |= valid is not None
            if valid is not None and not valid.any():
                yield _Item(image, name, valid)
            else:
                if how.pad and min(part.shape[:2]) < how.window:
                    part = pad_image(part, how.window)
                    valid = None if valid is None else pad_valid(valid, how.window)
                yield _Item(image, name, valid, *fit_image(part, how.size))
            if len(places) >= MANY:
                progress.update()


def _parts(
    pixels: Readable, places: Sequence[Window]
) -> Iterator[tuple[Window, np.ndarray, np.ndarray | None]]:
    """Windows with their pixels, read for many windows of a row at once, and where they have data."""
    for _, row in groupby(places, lambda window: window.top):
        windows_of_row = list(row)
        top, height = windows_of_row[0].top, windows_of_row[0].height
        columns = max(1, BAND_BYTES // (3 * height))
        while windows_of_row:
            left = windows_of_row[0].left
            group = [w for w in windows_of_row if w.left + w.width <= left + columns] or windows_of_row[:1]
            band, valid = pixels.read_with_valid(top, left, height, group[-1].left + group[-1].width - left)
            for window in group:
                start, stop = window.left - left, window.left - left + window.width
                yield window, band[:, start:stop], None if valid is None else valid[:, start:stop]
            windows_of_row = windows_of_row[len(group) :]


@torch.inference_mode()
def _detect(
    model: DetectionModel, group: Sequence[_Item], tasks: Sequence[str]
) -> tuple[list[dict[str, Detections]], int]:
    """Detections in pixels of each window, by task, and how many were dropped, their centre without data."""
    detected = [{task: make_detections() for task in tasks} for _ in group]
    squares = {i: item.square for i, item in enumerate(group) if item.square is not None}
    if not squares:
        return detected, 0
    images = torch.from_numpy(np.stack([*squares.values()]))
    if model.device.type == "cuda":
        images = images.pin_memory()
    images = images.to(model.device, non_blocking=True).permute(0, 3, 1, 2)
    results = model.predict_all(images, [group[i].shape for i in squares], [group[i].scale for i in squares])
    dropped = 0
    for task, of_windows in results.items():
        for i, found in zip(squares, of_windows, strict=True):
            valid = group[i].valid
            kept = on_data(found, None if valid is None else torch.from_numpy(valid))
            detected[i][task] = detections_of(kept)
            dropped += len(found["scores"]) - len(kept["scores"])
    return detected, dropped


def _write(image: _Image, results: DetResults, nms: float, problems: list[ImageError]) -> None:
    """Write the results of an image, none of one that can no longer be read for its drawing."""
    drawing = image.drawing
    found = image.merged(nms)
    try:
        if image.source.is_tiff and (image.lacks_data or "drawings" in results.kinds):
            with open_pixels(image.source, None) as pixels:
                if image.lacks_data:
                    found = {task: _on_data(part, pixels) for task, part in found.items()}
                if "drawings" in results.kinds:
                    drawing = reduced(pixels)
        elif image.valid is not None:
            known = Decoded(image.valid, valid=image.valid)  # the pixels themselves are given up
            found = {task: _on_data(part, known) for task, part in found.items()}
    except ImageError as error:
        problems.append(error)
        return
    write_results(results, image.source, found, image.georeference, drawing)


def _on_data(found: Detections, image: Readable) -> Detections:
    """Drop what has its centre where the image has no data; a window knows that of centres inside it only."""
    columns = np.floor(found.boxes[:, 0]).astype(np.int64).clip(0, image.width - 1)
    rows = np.floor(found.boxes[:, 1]).astype(np.int64).clip(0, image.height - 1)
    kept = np.ones(len(rows), bool)
    for top, left in sorted(set(zip(rows // BLOCK * BLOCK, columns // BLOCK * BLOCK, strict=True))):
        height, width = min(BLOCK, image.height - top), min(BLOCK, image.width - left)
        _, valid = image.read_with_valid(int(top), int(left), int(height), int(width))
        if valid is not None:
            here = (rows // BLOCK * BLOCK == top) & (columns // BLOCK * BLOCK == left)
            kept[here] = valid[rows[here] - top, columns[here] - left]
    return found.select(kept)
