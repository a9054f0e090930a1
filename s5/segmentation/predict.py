"""Prediction with a trained segmentor, of images in memory and of files of any size in bounded memory."""

import argparse
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s5.command import Progress
from s5.data.gdal_files import read_georeference
from s5.data.label_table import IGNORE, LabelTable
from s5.data.prepare.patches import Readable
from s5.errors import ImageError
from s5.launch import Launch
from s5.prediction.images import Picture
from s5.prediction.pipeline import Lanes, Reading, open_pixels, read_ahead
from s5.prediction.plan import Target
from s5.prediction.predictor import Predictor
from s5.prediction.sources import Source
from s5.prediction.spec import refuse_configuration
from s5.segmentation import trained
from s5.segmentation.model import SegmentationModel
from s5.segmentation.results import ALPHA, FORMATS, BandWriter, SegmentationResult, make_writer, paint
from s5.segmentation.trained import SegmentationSpec
from s5.segmentation.tta import add_inference_options, changed_inference, make_tta
from s5.segmentation.windows import Inference, Mode, Rows, Strip, column_strips
from s5.training.command import command_parser

logger = logging.getLogger(__name__)

WRITERS = 4  # threads
WAITING = 6  # maximum number of bands waiting to be written


class SegmentationPredictor(Predictor[SegmentationModel]):
    """Predicts a mask per image and task.

    Args:
        spec: Description of the model and its inference settings, which the arguments below override.
        checkpoint: Weights of the model.
        device: Device to predict on.
        precision: See :func:`s5.compat.precision.resolve_precision`.
        mode: `original` in one pass, `resize` to a square, or `slide_window`.
        crop: Side of a window or of the resized image, in pixels; the stride scales with it by default.
        stride: Step between windows in pixels.
        flip: Average over four flips of each window.
        scales: Average over each window resized by these factors.
        alpha: Weight of the colours in overlays, 0 to 1.

    Raises:
        ConfigError: The stride would leave gaps between windows, or a scale is not positive.
    """

    formats = FORMATS
    spec: SegmentationSpec

    def __init__(
        self,
        spec: SegmentationSpec,
        checkpoint: Path,
        device: torch.device,
        precision: str = "auto",
        *,
        mode: Mode | None = None,
        crop: int | None = None,
        stride: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        alpha: float = ALPHA,
    ) -> None:
        inference = changed_inference(spec.inference, mode, crop, stride)
        spec = replace(spec, inference=inference, tta=make_tta(flip, scales))
        super().__init__(spec, checkpoint, device, precision)
        self.alpha, self._flip, self._scales = alpha, flip, [*scales]

    def _predict(
        self, picture: Picture, tasks: Sequence[str], probabilities: bool
    ) -> dict[str, SegmentationResult]:
        """See :meth:`Predictor._predict`."""
        tables = {task: self.spec.tables[task] for task in tasks}
        georeference = picture.read_georeference()
        with picture.open() as pixels:
            height, width = pixels.height, pixels.width
            masks = {task: np.empty((height, width), np.uint8) for task in tasks}
            kept = {
                t: np.empty((tables[t].num_classes, height, width), np.float32)
                for t in tasks
                if probabilities
            }
            for top, left, ids, parts in _bands(self.model, pixels, tables, probabilities):
                for task, band in ids.items():
                    window = np.s_[top : top + band.shape[0], left : left + band.shape[1]]
                    masks[task][window] = band
                    if probabilities:
                        kept[task][(slice(None), *window)] = parts[task]
            if pixels.may_lack_data:
                _, valid = pixels.read_with_valid(0, 0, height, width)
                if valid is not None:
                    for mask in masks.values():
                        mask[~valid] = IGNORE
            declared = pixels.declares_no_data
        return {
            task: SegmentationResult(
                task,
                table.classes,
                table.palette,
                height,
                width,
                georeference,
                picture,
                masks[task],
                table,
                kept.get(task),
                declared,
                self.alpha,
            )
            for task, table in tables.items()
        }

    def predict_files(self, sources: Sequence[Source], target: Target) -> list[ImageError]:
        """See :meth:`Predictor.predict_files`.

        TIFFs are read in bands of rows, other images at once. With `slide_window`, results are computed in
        bands of rows, and those of wide images in strips of columns. Result files are written atomically.
        """
        return predict_files(self, sources, target)

    def settings(self, task: str) -> dict[str, Any]:
        """Inference settings, test-time augmentation and label table."""
        table = self.spec.tables[task]
        return {
            **asdict(self.spec.inference[task]),
            "tta": "flip" if self._flip else None,
            "scales": self._scales,
            "labels": table.as_mapping(),
            "no_data": table.no_data,
        }


@dataclass
class _Band:
    """A part of an image that is ready to be written.

    Attributes:
        top: First row.
        left: First column.
        ids: Train ids uint8 (rows, columns) by task.
        photo: The image, uint8 (rows, columns, 3); None if no format needs it.
        valid: Bool (rows, columns), false where the image has no data; None if it has data everywhere.
    """

    top: int
    left: int
    ids: Mapping[str, np.ndarray]
    photo: np.ndarray | None = None
    valid: np.ndarray | None = None


def predict_files(
    predictor: SegmentationPredictor, sources: Sequence[Source], target: Target
) -> list[ImageError]:
    """Predict images and write the results, see :meth:`SegmentationPredictor.predict_files`."""
    problems: list[ImageError] = []
    with (
        Lanes(WRITERS, WAITING) as lanes,
        closing(read_ahead(sources)) as images,
        Progress(len(sources), "predicting", "images", logger) as progress,
    ):
        for number, (source, image) in enumerate(images):
            try:
                _predict_image(predictor, source, image, target, lanes, number)
            except ImageError as error:
                problems.append(error)
            progress.update()
        lanes.wait()
    return problems


def _predict_image(
    predictor: SegmentationPredictor,
    source: Source,
    image: Reading | None,
    target: Target,
    lanes: Lanes,
    lane: int,
) -> None:
    """Predict one image and release its memory."""
    with open_pixels(source, image) as pixels:
        _stream(predictor, pixels, source, target, lanes, lane)


def _stream(
    predictor: SegmentationPredictor,
    pixels: Readable,
    source: Source,
    target: Target,
    lanes: Lanes,
    lane: int,
) -> None:
    """Predict one image and submit its bands to the image's writer lane."""
    georeference = read_georeference(source.path) if source.is_tiff else None
    size, tables = (pixels.height, pixels.width), predictor.spec.tables
    writers: dict[tuple[str, str], BandWriter] = {}
    jobs: list[Future] = []
    try:
        for task, kind in itertools.product(tables, target.formats):
            path, table = target.path(task, kind, source), tables[task]
            writers[task, kind] = make_writer(
                path, source.is_tiff, kind, table, size, georeference, pixels.declares_no_data
            )
        for top, left, ids, _ in _bands(predictor.model, pixels, tables):
            height, width = next(iter(ids.values())).shape
            band = _Band(top, left, ids)
            if "overlay" in target.formats or pixels.may_lack_data:
                photo, band.valid = pixels.read_with_valid(top, left, height, width)
                band.photo = np.ascontiguousarray(photo) if "overlay" in target.formats else None
            jobs.append(lanes.submit(lane, _write_band, writers, band, tables, predictor.alpha))
        lanes.submit(lane, _finish, writers, jobs)
    except BaseException:
        wait(jobs)
        for writer in writers.values():
            writer.discard()
        raise


def _bands(
    model: SegmentationModel, pixels: Readable, tables: Mapping[str, LabelTable], probabilities: bool = False
) -> Iterator[tuple[int, int, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield the bands of an image: first row and column, train ids and optionally probabilities by task."""
    with model.autocast():
        for tasks, strip in _strips(model.inference, pixels.width, tables):
            own = slice(strip.start - strip.left, strip.stop - strip.left)
            rows = columns(pixels, strip.left, strip.right)
            if not probabilities:
                for top, bands in model.predict_rows(rows, tasks):
                    yield top, strip.start, {t: band[:, own].cpu().numpy() for t, band in bands.items()}, {}
                continue
            for top, outputs in model.predict_probabilities(rows, tasks):
                ids = {task: band[:, own].cpu().numpy() for task, (band, _) in outputs.items()}
                parts = {task: part[..., own].cpu().numpy() for task, (_, part) in outputs.items()}
                yield top, strip.start, ids, parts


def columns(image: Readable, left: int, right: int) -> Rows:
    """Restrict an image to its columns [left, right)."""

    def read(top: int, bottom: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        pixels, valid = image.read_with_valid(top, left, bottom - top, right - left)
        return torch.from_numpy(pixels).permute(2, 0, 1), None if valid is None else torch.from_numpy(valid)

    return Rows(image.height, right - left, read)


def _strips(
    inference: Mapping[str, Inference], width: int, tables: Mapping[str, LabelTable]
) -> Iterator[tuple[list[str], Strip]]:
    """Yield the strips of an image, with the tasks that share inference settings and therefore strips."""
    for settings in dict.fromkeys(inference[task] for task in tables):
        tasks = [task for task in tables if inference[task] == settings]
        for strip in column_strips(width, settings, sum(tables[task].num_classes for task in tasks)):
            yield tasks, strip


def _write_band(
    writers: Mapping[tuple[str, str], BandWriter],
    band: _Band,
    tables: Mapping[str, LabelTable],
    alpha: float,
) -> None:
    for (task, kind), writer in writers.items():
        ids = band.ids.get(task)
        if ids is None:  # the task is predicted in other bands
            continue
        if band.valid is not None:
            ids = np.where(band.valid, ids, np.uint8(IGNORE))
        writer.write(band.top, band.left, paint(kind, ids, tables[task], band.photo, alpha), band.valid)


def _finish(writers: Mapping[tuple[str, str], BandWriter], bands: Sequence[Future]) -> None:
    """Finish the files of an image, or remove them if a band could not be written, by an earlier job."""
    waiting = list(writers.values())
    try:
        if any(band.exception() for band in bands):
            return
        while waiting:
            waiting[-1].finish()
            waiting.pop()
    finally:
        for writer in waiting:
            writer.discard()


def prediction_parser(description: str, config: Path) -> argparse.ArgumentParser:
    """Create a parser with the inference options.

    Args:
        description: Docstring of the command's module.
        config: Default configuration for checkpoints without metadata.
    """
    parser = command_parser(description, config, experts=True)
    parser.set_defaults(config=None, default_config=config)  # read from the checkpoint
    add_inference_options(parser)
    return parser


def make_predictor(
    args: argparse.Namespace, checkpoint: Path, tasks: Sequence[str], launch: Launch, alpha: float = ALPHA
) -> SegmentationPredictor:
    """Create the predictor of a command line; its weights are loaded later.

    Args:
        args: Arguments parsed by :func:`prediction_parser`, with `precision`.
        checkpoint: Weights of a full model.
        tasks: Names of the tasks; all if empty.
        launch: Device and processes.
        alpha: Weight of the colours in overlays, 0 to 1.

    Raises:
        CheckpointError: The file cannot be read.
        ConfigError: A task is unknown, the backbone is missing, a configuration is given but not needed, or
            the stride would leave gaps between windows.
    """
    config = trained.find_config(args.config, checkpoint, args.default_config)
    spec = trained.find_spec(checkpoint, args.backbone, config, args.cfg_options)
    refuse_configuration(spec, checkpoint, args.config, args.cfg_options)
    return SegmentationPredictor(
        spec.only(tasks),
        checkpoint,
        launch.device,
        args.precision,
        mode=args.mode,
        crop=args.crop,
        stride=args.stride,
        flip=args.tta == "flip",
        scales=args.scales,
        alpha=alpha,
    )
