"""Prediction with a trained detector: images are cut into windows, and their detections are merged."""

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
from s5.detection.results import FORMATS, DetectionResult, drop_without_data, write_results
from s5.detection.trained import DetectionSpec
from s5.errors import ConfigError, ImageError
from s5.prediction.images import Picture, reduced
from s5.prediction.pipeline import Lanes, Reading, open_pixels, prefetch, read_ahead
from s5.prediction.plan import Target
from s5.prediction.predictor import Predictor
from s5.prediction.sources import Source

logger = logging.getLogger(__name__)

OVERLAP = 200 / 1024  # share of the window, as customary for DOTA
SCORE_THR = 0.3
SMALLEST = 32  # minimum side of a window in pixels
WRITERS = 4  # threads
WAITING = 6  # maximum number of images waiting to be written
WHOLE = "image"  # name of the full image in the names of its windows
READY = 2  # number of prefetched batches
GPU_BATCH = 4  # windows per forward pass; on a CPU, larger batches cost memory and save no time
MANY = 100  # number of windows per image from which on their progress is shown
BAND_BYTES = 128 << 20  # maximum size of a band of a large image in memory


@dataclass(frozen=True)
class Cutting:
    """How images are cut into windows and resized.

    Attributes:
        size: Side of the network's square input in pixels.
        window: Side of the windows in pixels of the image; an image that fits is a single window.
        pad: Pad images smaller than a window, so that all images keep their scale, instead of enlarging them.
        overlap: Overlap of neighbouring windows in pixels.
        nms: Rotated IoU above which the lower-scoring of two detections of a class is dropped when windows
            are merged.
    """

    size: int
    window: int
    pad: bool
    overlap: int
    nms: float


class DetectionPredictor(Predictor[DetectionModel]):
    """Predicts the oriented objects of an image for each task.

    An image that fits into a window is predicted in one pass, resized as in training. Larger images are
    predicted in overlapping windows, whose detections are merged. Detections whose centre has no data are
    dropped.

    Args:
        spec: Description of the model.
        checkpoint: Weights of the model.
        device: Device to predict on.
        precision: See :func:`s5.compat.precision.resolve_precision`.
        score_thr: Minimum score of detections.
        window: Side of the windows in pixels, to which smaller images are padded; by default the training
            size, to which smaller images are enlarged.
        overlap: Overlap of neighbouring windows in pixels; by default 200/1024 of their side.

    Raises:
        ConfigError: The threshold is outside 0 to 1, or windows are too small or leave gaps.
        ExtensionError: mmcv's compiled operators do not run on the device.
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
            raise ConfigError(f"score_thr {score_thr}: must be from 0 to 1")
        mmcv_ext.require_device(device.type)
        spec = replace(spec, settings=replace(spec.settings, score_thr=score_thr))
        super().__init__(spec, checkpoint, device, precision)
        self.cutting = make_cutting(spec, window, overlap)

    def _predict(
        self, picture: Picture, tasks: Sequence[str], probabilities: bool
    ) -> dict[str, DetectionResult]:
        """See :meth:`Predictor._predict`."""
        if probabilities:
            raise ValueError("probabilities are available for segmentation only; detections have scores")
        georeference = picture.read_georeference()
        with picture.open() as pixels:
            size = pixels.height, pixels.width
            positions = windows(*size, self.cutting.window, self.cutting.overlap)
            image = _Image(len(positions), str(picture.source))
            items = _windows(image, pixels, positions, self.cutting)
            for _ in _finished(self.model, items, tasks):
                pass
            found = image.merged(self.cutting.nms)
            if image.lacks_data:
                found = {task: drop_without_data(part, pixels) for task, part in found.items()}
        return {
            task: DetectionResult(task, *self.tasks[task], *size, georeference, picture, found[task])
            for task in tasks
        }

    def predict_files(self, sources: Sequence[Source], target: Target) -> list[ImageError]:
        """See :meth:`Predictor.predict_files`.

        TIFFs are read in bands of rows, other images at once. Result files are written atomically.
        """
        return predict_files(self, sources, target)

    def settings(self, task: str) -> dict[str, Any]:
        """Settings of Oriented R-CNN, windows and classes."""
        chosen = asdict(self.spec.settings)
        chosen["enlarge"] = list(self.spec.settings.enlarge)  # YAML has no tuples
        cutting = self.cutting
        return {
            **chosen,
            "size": cutting.size,
            "window": cutting.window,
            "pad": cutting.pad,
            "overlap": cutting.overlap,
            "classes": list(self.spec.classes[task]),
        }


def make_cutting(spec: DetectionSpec, window: int | None, overlap: int | None) -> Cutting:
    """Resolve the window settings of a detector, see :class:`DetectionPredictor`.

    Raises:
        ConfigError: The windows would be too small or leave gaps.
    """
    side = spec.img_size if window is None else window
    if side < SMALLEST:
        raise ConfigError(f"window {side}: must be at least {SMALLEST} pixels")
    shared = round(OVERLAP * side) if overlap is None else overlap
    if not 0 <= shared < side:
        raise ConfigError(f"overlap {shared}: must be from 0 to less than the window of {side} pixels")
    return Cutting(spec.img_size, side, window is not None, shared, spec.settings.nms)


@dataclass
class _Image:
    """An image whose windows are being predicted.

    Attributes:
        total: Number of windows.
        name: Name for the log.
        lacks_data: Whether any window has pixels without data.
        found: By task, names and detections of the finished windows.
    """

    total: int
    name: str
    lacks_data: bool = False
    found: dict[str, list[tuple[str, Detections]]] = field(default_factory=dict)

    def add(self, name: str, found: Mapping[str, Detections]) -> bool:
        """Add the detections of a window; return whether it was the last one."""
        for task, detections in found.items():
            self.found.setdefault(task, []).append((name, detections))
        return all(len(parts) == self.total for parts in self.found.values())

    def merged(self, nms: float) -> dict[str, Detections]:
        """Merge the windows with the threshold `nms`; return the detections in the image by task."""
        if self.total == 1:
            return {task: parts[0][1] for task, parts in self.found.items()}
        return {task: merge_windows(parts, nms)[WHOLE] for task, parts in self.found.items()}


@dataclass
class _File(_Image):
    """An image file whose windows are being predicted.

    Attributes:
        source: The file.
        georeference: Georeference, read only for GeoJSON.
        drawing: Image to draw on, see :func:`reduced`; for a TIFF it is read at the end.
        valid: For other formats than TIFF, bool (H, W), false where the image has no data; None if it has
            data everywhere.
    """

    source: Source = field(kw_only=True)
    georeference: Georeference | None = None
    drawing: tuple[np.ndarray, int] | None = None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class _Item:
    """A window as network input: letterboxed square, shape without padding, scale.

    `valid` is bool (H, W) in pixels of the image, false where the window has no data, or None if it has data
    everywhere. A window without any data has no square and is not predicted.
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
    undrawn: list[ImageError] = []  # kept apart, because these images already count as progress
    model, cutting = predictor.model, predictor.cutting
    written = dropped = 0
    with (
        Lanes(WRITERS, WAITING) as lanes,
        Progress(len(sources), "predicting", "images", logger) as progress,
        closing(prefetch(_items(sources, target, cutting, problems), READY * _batch(model))) as items,
    ):
        for images, without_data in _finished(model, items, target.tasks):
            dropped += without_data
            for image in images:
                lanes.submit(written, _write, image, target, predictor.spec.classes, cutting.nms, undrawn)
                written += 1
            if done := written + len(problems) - progress.done:
                progress.update(done)
        lanes.wait()
    if dropped:
        logger.info("%d detections whose centre has no data were dropped", dropped)
    return problems + undrawn


def _items(
    sources: Sequence[Source], target: Target, cutting: Cutting, problems: list[ImageError]
) -> Generator[_Item]:
    """Yield the windows of all image files, one image after the other."""
    with closing(read_ahead(sources)) as images:
        for source, image in images:
            try:
                yield from _items_of(source, image, target, cutting)
            except ImageError as error:
                problems.append(error)


def _items_of(source: Source, image: Reading | None, target: Target, cutting: Cutting) -> Iterator[_Item]:
    """Yield the windows of one image file, then release its memory."""
    with open_pixels(source, image) as pixels:
        positions = windows(pixels.height, pixels.width, cutting.window, cutting.overlap)
        file = _File(len(positions), str(source.name), source=source)
        if source.is_tiff:
            file.georeference = read_georeference(source.path) if "geojson" in target.formats else None
        else:
            file.drawing = reduced(pixels) if "drawings" in target.formats else None
            file.valid = pixels.read_with_valid(0, 0, pixels.height, pixels.width)[1]
        yield from _windows(file, pixels, positions, cutting)


def _windows(
    image: _Image, pixels: Readable, positions: Sequence[Window], cutting: Cutting
) -> Iterator[_Item]:
    """Yield the windows of an image as network inputs."""
    with ExitStack() as stack:
        if len(positions) >= MANY:
            progress = stack.enter_context(Progress(len(positions), image.name, "windows", logger))
        for window, part, valid in _parts(pixels, positions):
            name = window_name(WHOLE, cutting.window, window.left, window.top)
            image.lacks_data |= valid is not None
            if valid is not None and not valid.any():
                yield _Item(image, name, valid)
            else:
                if cutting.pad and min(part.shape[:2]) < cutting.window:
                    part = pad_image(part, cutting.window)
                    valid = None if valid is None else pad_valid(valid, cutting.window)
                yield _Item(image, name, valid, *fit_image(part, cutting.size))
            if len(positions) >= MANY:
                progress.update()


def _parts(
    pixels: Readable, positions: Sequence[Window]
) -> Iterator[tuple[Window, np.ndarray, np.ndarray | None]]:
    """Yield windows with pixels and data masks, read for as many windows of a row as fit in `BAND_BYTES`."""
    for _, row in groupby(positions, lambda window: window.top):
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
    """Number of windows per forward pass."""
    return GPU_BATCH if model.device.type == "cuda" else 1


def _finished(
    model: DetectionModel, items: Iterable[_Item], tasks: Sequence[str]
) -> Iterator[tuple[list[Any], int]]:
    """Predict windows in batches.

    Yields:
        After each batch, the images it has completed, and the number of detections that were dropped because
        their centre has no data.
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
    """Return each window's detections by task, in its pixels, and the number dropped for lack of data."""
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
    """Write the results of an image file, or record a problem if it can no longer be read for its drawing."""
    found, drawing = image.merged(nms), image.drawing
    try:
        if image.source.is_tiff and (image.lacks_data or "drawings" in target.formats):
            with open_pixels(image.source, None) as pixels:
                if image.lacks_data:
                    found = {task: drop_without_data(part, pixels) for task, part in found.items()}
                if "drawings" in target.formats:
                    drawing = reduced(pixels)
        elif image.valid is not None:
            known = Decoded(image.valid, valid=image.valid)  # the pixels are no longer in memory
            found = {task: drop_without_data(part, known) for task, part in found.items()}
    except ImageError as error:
        problems.append(error)
        return
    write_results(target, image.source, classes, found, image.georeference, drawing)
