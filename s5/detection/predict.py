"""Prediction with a trained detector: images are cut into windows, and what is found in them is merged."""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s5.command import Progress
from s5.compat import mmcv_ext
from s5.data.gdal_files import Georeference, read_georeference
from s5.data.oriented.detections import Detections, make_detections
from s5.data.oriented.merge import merge_windows, window_name
from s5.data.oriented.sources import fit_image, pad_image, pad_valid
from s5.data.prepare.patches import Decoded, Readable, Window, windows
from s5.detection.metric import detections_of
from s5.detection.network import DetectionModel, on_data
from s5.detection.results import FORMATS, DetectionResult, write_results
from s5.detection.trained import DetectionSpec
from s5.errors import ConfigError, ImageError
from s5.prediction.images import Picture, reduced
from s5.prediction.pipeline import Lanes, Reading, open_pixels, prefetch, read_ahead
from s5.prediction.plan import Target
from s5.prediction.predictor import Predictor
from s5.prediction.sources import Source

logger = logging.getLogger(__name__)

OVERLAP = 200 / 1024  # of the window, as DOTA is cut
SCORE_THR = 0.3
SMALLEST = 32  # pixels of a window
WRITERS = 4  # threads
WAITING = 6  # images that wait to be written
WHOLE = "image"  # in the names of windows
READY = 2  # batches that are cut in advance
GPU_BATCH = 4  # windows in one pass; on a CPU more than one take memory and no less time
MANY = 100  # windows of an image, from which on their progress is shown
BAND_BYTES = 128 << 20  # pixels of a large image that are in memory at a time
BLOCK = 1024  # pixels, side of the parts of a TIFF that are looked at again for missing data


@dataclass(frozen=True)
class Cutting:
    """How images go into the network.

    Attributes:
        size: Side of the square that the network sees, in pixels.
        window: Side of the windows in pixels of the image; an image with both sides within it is one.
        pad: Pad what is smaller than a window, so that all images have one scale; else it is enlarged.
        overlap: Pixels that neighbouring windows share.
        nms: Rotated IoU above which the lower of two detections of a class is dropped, as windows are merged.
    """

    size: int
    window: int
    pad: bool
    overlap: int
    nms: float


class DetectionPredictor(Predictor[DetectionModel]):
    """Predicts the oriented objects of an image for each task.

    An image whose sides fit the window goes through the network at once, resized as in training; a larger one
    in overlapping windows, which are merged. Detections whose centre has no data are dropped.

    Args:
        spec: How to rebuild the model.
        checkpoint: Its weights.
        device: Where it runs.
        precision: See :func:`s5.compat.precision.resolve_precision`.
        score_thr: Detections below this score are dropped.
        window: Side of the windows in pixels, to which smaller images are padded; by default that of
            training, to which they are enlarged.
        overlap: Pixels that neighbouring windows share; by default 200 of 1024.

    Raises:
        ConfigError: A threshold outside 0 to 1, or windows that are too small or leave gaps.
        ExtensionError: Mmcv's compiled operators do not run on the device.
    """

    formats = FORMATS
    spec: DetectionSpec

    def __init__(
        self,
        spec: DetectionSpec,
        checkpoint: Path,
        device: torch.device,
        precision: str = "auto",
        *,
        score_thr: float = SCORE_THR,
        window: int | None = None,
        overlap: int | None = None,
    ) -> None:
        if not 0 <= score_thr <= 1:
            raise ConfigError(f"score_thr {score_thr}: from 0 to 1")
        mmcv_ext.require_device(device.type)
        spec = replace(spec, settings=replace(spec.settings, score_thr=score_thr))
        super().__init__(spec, checkpoint, device, precision)
        self.cutting = make_cutting(spec, window, overlap)

    def _predict(
        self, picture: Picture, tasks: Sequence[str], probabilities: bool
    ) -> dict[str, DetectionResult]:
        """See :meth:`Predictor._predict`."""
        if probabilities:
            raise ValueError("probabilities are those of segmentation; the objects of a detector have scores")
        georeference = picture.read_georeference()
        with picture.open() as pixels:
            size = pixels.height, pixels.width
            places = windows(*size, self.cutting.window, self.cutting.overlap)
            image = _Image(len(places), str(picture.source))
            items = _windows(image, pixels, places, self.cutting)
            for _ in _finished(self.model, items, tasks):
                pass
            found = image.merged(self.cutting.nms)
            if image.lacks_data:
                found = {task: _on_data(part, pixels) for task, part in found.items()}
        return {
            task: DetectionResult(task, *self.tasks[task], *size, georeference, picture, found[task])
            for task in tasks
        }

    def predict_files(self, sources: Sequence[Source], target: Target) -> list[ImageError]:
        """See :meth:`Predictor.predict_files`.

        Images are held whole, TIFFs by bands of rows. Every result appears whole or not at all.
        """
        return predict_files(self, sources, target)

    def settings(self, task: str) -> dict[str, Any]:
        """Settings of Oriented R-CNN, windows and classes."""
        chosen = asdict(self.spec.settings)
        chosen["enlarge"] = list(self.spec.settings.enlarge)  # YAML has no tuples
        how = self.cutting
        return {
            **chosen,
            "size": how.size,
            "window": how.window,
            "pad": how.pad,
            "overlap": how.overlap,
            "classes": list(self.spec.classes[task]),
        }


def make_cutting(spec: DetectionSpec, window: int | None, overlap: int | None) -> Cutting:
    """The windows of a detector; see :class:`DetectionPredictor`.

    Raises:
        ConfigError: They would be too small, or leave gaps.
    """
    side = spec.img_size if window is None else window
    if side < SMALLEST:
        raise ConfigError(f"window {side}: at least {SMALLEST} pixels")
    shared = round(OVERLAP * side) if overlap is None else overlap
    if not 0 <= shared < side:
        raise ConfigError(f"overlap {shared}: from 0 to less than the window of {side} pixels")
    return Cutting(spec.img_size, side, window is not None, shared, spec.settings.nms)


@dataclass
class _Image:
    """An image on its way through the network.

    Attributes:
        total: Its windows.
        name: For the log.
        lacks_data: Whether some window lacks data somewhere.
        found: By task, name and detections of the windows that are done.
    """

    total: int
    name: str
    lacks_data: bool = False
    found: dict[str, list[tuple[str, Detections]]] = field(default_factory=dict)

    def add(self, name: str, found: Mapping[str, Detections]) -> bool:
        """Take what was found in a window; returns whether it was the last."""
        for task, detections in found.items():
            self.found.setdefault(task, []).append((name, detections))
        return all(len(parts) == self.total for parts in self.found.values())

    def merged(self, nms: float) -> dict[str, Detections]:
        """Detections of the whole image by task; windows merged with the threshold `nms`."""
        if self.total == 1:
            return {task: parts[0][1] for task, parts in self.found.items()}
        return {task: merge_windows(parts, nms)[WHOLE] for task, parts in self.found.items()}


@dataclass
class _File(_Image):
    """An image file on its way to its results.

    Attributes:
        source: The file.
        georeference: Its location; read for GeoJSON alone.
        drawing: What to draw on, see :func:`reduced`; that of a TIFF is read at the end.
        valid: Bool (H, W), false where an image that is not a TIFF has no data; None if there is none.
    """

    source: Source = field(kw_only=True)
    georeference: Georeference | None = None
    drawing: tuple[np.ndarray, int] | None = None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class _Item:
    """A window as the network takes it: letterboxed square, shape without padding, scale.

    `valid` is bool (H, W) in pixels of the image, false where the window has no data, None if it has data
    everywhere. A window wholly without data has no square and does not go through the network.
    """

    image: _Image
    name: str
    valid: np.ndarray | None
    square: np.ndarray | None = None
    scale: float = 1.0
    shape: tuple[int, int] = (0, 0)


def predict_files(
    predictor: DetectionPredictor, sources: Sequence[Source], target: Target
) -> list[ImageError]:
    """Predict images and write the results, see :meth:`DetectionPredictor.predict_files`."""
    problems: list[ImageError] = []
    undrawn: list[ImageError] = []  # apart, as they count as progress already
    model, how = predictor.model, predictor.cutting
    written = dropped = 0
    with (
        Lanes(WRITERS, WAITING) as lanes,
        Progress(len(sources), "predicting", "images", logger) as progress,
        closing(prefetch(_items(sources, target, how, problems), READY * _batch(model))) as items,
    ):
        for images, without_data in _finished(model, items, target.tasks):
            dropped += without_data
            for image in images:
                lanes.submit(written, _write, image, target, predictor.spec.classes, how.nms, undrawn)
                written += 1
            if done := written + len(problems) - progress.done:
                progress.update(done)
        lanes.wait()
    if dropped:
        logger.info("%d detections whose centre has no data were dropped", dropped)
    return problems + undrawn


def _items(
    sources: Sequence[Source], target: Target, how: Cutting, problems: list[ImageError]
) -> Generator[_Item]:
    """The windows of all image files, one image after the other."""
    with closing(read_ahead(sources)) as images:
        for source, image in images:
            try:
                yield from _items_of(source, image, target, how)
            except ImageError as error:
                problems.append(error)


def _items_of(source: Source, image: Reading | None, target: Target, how: Cutting) -> Iterator[_Item]:
    """The windows of one image file, which is in memory no longer than this."""
    with open_pixels(source, image) as pixels:
        places = windows(pixels.height, pixels.width, how.window, how.overlap)
        file = _File(len(places), str(source.name), source=source)
        if source.is_tiff:
            file.georeference = read_georeference(source.path) if "geojson" in target.formats else None
        else:
            file.drawing = reduced(pixels) if "drawings" in target.formats else None
            file.valid = pixels.read_with_valid(0, 0, pixels.height, pixels.width)[1]
        yield from _windows(file, pixels, places, how)


def _windows(image: _Image, pixels: Readable, places: Sequence[Window], how: Cutting) -> Iterator[_Item]:
    """The windows of an image as the network takes them."""
    with ExitStack() as stack:
        if len(places) >= MANY:
            progress = stack.enter_context(Progress(len(places), image.name, "windows", logger))
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


def _batch(model: DetectionModel) -> int:
    """Windows in one pass."""
    return GPU_BATCH if model.device.type == "cuda" else 1


def _finished(
    model: DetectionModel, items: Iterable[_Item], tasks: Sequence[str]
) -> Iterator[tuple[list[Any], int]]:
    """Put windows through the network, in batches.

    Yields:
        After each batch, the images that are complete with it, and the number of detections that were dropped
        because their centre has no data.
    """
    items = iter(items)
    while group := list(islice(items, _batch(model))):
        detected, dropped = _detect(model, group, tasks)
        pairs = zip(group, detected, strict=True)
        yield [item.image for item, found in pairs if item.image.add(item.name, found)], dropped


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
    shapes, scales = [group[i].shape for i in squares], [group[i].scale for i in squares]
    results = model.predict_all(images, shapes, scales, tasks)
    dropped = 0
    for task, of_windows in results.items():
        for i, found in zip(squares, of_windows, strict=True):
            valid = group[i].valid
            kept = on_data(found, None if valid is None else torch.from_numpy(valid))
            detected[i][task] = detections_of(kept)
            dropped += len(found["scores"]) - len(kept["scores"])
    return detected, dropped


def _write(
    image: _File,
    target: Target,
    classes: Mapping[str, tuple[str, ...]],
    nms: float,
    problems: list[ImageError],
) -> None:
    """Write the results of an image file, none of one that can no longer be read for its drawing."""
    found, drawing = image.merged(nms), image.drawing
    try:
        if image.source.is_tiff and (image.lacks_data or "drawings" in target.formats):
            with open_pixels(image.source, None) as pixels:
                if image.lacks_data:
                    found = {task: _on_data(part, pixels) for task, part in found.items()}
                if "drawings" in target.formats:
                    drawing = reduced(pixels)
        elif image.valid is not None:
            known = Decoded(image.valid, valid=image.valid)  # the pixels themselves are no longer in memory
            found = {task: _on_data(part, known) for task, part in found.items()}
    except ImageError as error:
        problems.append(error)
        return
    write_results(target, image.source, classes, found, image.georeference, drawing)


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
