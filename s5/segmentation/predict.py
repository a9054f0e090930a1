"""Prediction of image files to files: index masks, colour masks and overlays for every task."""

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from s5.compat.precision import PRECISIONS, resolve_precision
from s5.data.errors import ImageError
from s5.data.label_table import LabelTable
from s5.data.labels import IGNORE
from s5.data.prepare.patches import Readable
from s5.data.progress import Progress
from s5.data.rasters import Georeference, read_georeference
from s5.launch import Launch
from s5.prediction.pipeline import Lanes, Reading, columns, open_pixels, read_ahead
from s5.prediction.plan import Request, Settings, Work, carry_out, identify
from s5.prediction.sources import Source
from s5.prediction.writers import BandWriter, PngWriter, TiffWriter
from s5.segmentation import trained
from s5.segmentation.model import SegmentationModel
from s5.segmentation.trained import Recipe
from s5.segmentation.tta import add_inference_options, changed_inference, chosen_tta
from s5.segmentation.windows import Inference, Strip, column_strips
from s5.training.command import command_parser
from s5.training.config import ConfigError

logger = logging.getLogger(__name__)

KINDS = ("index", "color", "overlay")
WRITERS = 4  # threads
WAITING = 6  # bands or images that wait to be written


@dataclass(frozen=True)
class Target:
    """Where results go and which.

    Attributes:
        folder: results are ``<folder>/<task>/<kind>/<name>.png``, ``.tif`` for a TIFF.
        tables: classes of the tasks to predict.
        kinds: of :data:`KINDS`. An index mask holds the raw values of the task's label table, and
            :attr:`~s5.data.label_table.LabelTable.no_data` where the image has no data; the others are black
            and transparent there.
        alpha: weight of the colours in overlays, 0 to 1.
    """

    folder: Path
    tables: Mapping[str, LabelTable]
    kinds: Sequence[str] = KINDS
    alpha: float = 0.5

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.tables)

    def all_of(self, tasks: Sequence[str]) -> "Target":
        """The same with every kind of result for some of the tasks."""
        return replace(self, tables={task: self.tables[task] for task in tasks}, kinds=KINDS)

    def path(self, task: str, kind: str, source: Source) -> Path:
        """One result of an image: TIFF of a TIFF, otherwise PNG."""
        return self.folder / task / kind / f"{source.name}{'.tif' if source.is_tiff else '.png'}"

    def paths(self, source: Source) -> list[Path]:
        """All results of an image."""
        return [self.path(task, kind, source) for task in self.tables for kind in self.kinds]


@dataclass
class _Band:
    """A part of an image as it is written.

    Attributes:
        top: first row.
        left: first column.
        ids: train ids uint8 (rows, columns) by task.
        photo: the image, uint8 (rows, columns, 3); None where nothing needs it.
        valid: bool (rows, columns), false where the image has no data; None if it has data everywhere.
    """

    top: int
    left: int
    ids: Mapping[str, np.ndarray]
    photo: np.ndarray | None = None
    valid: np.ndarray | None = None


def predict_files(model: SegmentationModel, sources: Sequence[Source], target: Target) -> list[ImageError]:
    """Predict images and write the results; reading, the network and writing overlap.

    Images are held whole, TIFFs by bands of rows; what is computed of them by bands of rows, and of wide
    images by strips of columns (in the mode ``slide_window``). Every result appears whole or not at all.

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
        closing(read_ahead(sources)) as images,
        Progress(len(sources), "predicting", "images", logger) as progress,
    ):
        for number, (source, image) in enumerate(images):
            try:
                _predict_image(model, source, image, target, lanes, number)
            except ImageError as error:
                problems.append(error)
            progress.update()
        lanes.wait()
    return problems


def _predict_image(
    model: SegmentationModel, source: Source, image: Reading | None, target: Target, lanes: Lanes, lane: int
) -> None:
    """Predict one image, which is in memory no longer than this."""
    with open_pixels(source, image) as pixels:
        _predict(model, pixels, source, target, lanes, lane)


def _predict(
    model: SegmentationModel, pixels: Readable, source: Source, target: Target, lanes: Lanes, lane: int
) -> None:
    """Predict one image; what is computed is handed to the lane of the image, which writes it."""
    place = read_georeference(source.path) if source.is_tiff else None
    writers = {
        (task, kind): _writer(target.path(task, kind, source), source, table, kind, pixels, place)
        for task, table in target.tables.items()
        for kind in target.kinds
    }
    jobs: list[Future] = []
    try:
        with model.autocast():
            for top, left, ids in _bands(model, pixels, target.tables):
                height, width = next(iter(ids.values())).shape
                band = _Band(top, left, ids)
                if "overlay" in target.kinds or pixels.may_lack_data:
                    photo, band.valid = pixels.read_with_valid(top, left, height, width)
                    band.photo = np.ascontiguousarray(photo) if "overlay" in target.kinds else None
                jobs.append(lanes.submit(lane, _write_band, writers, band, target))
    except BaseException:
        wait(jobs)
        for writer in writers.values():
            writer.discard()
        raise
    lanes.submit(lane, _finish, writers)


def _bands(
    model: SegmentationModel, pixels: Readable, tables: Mapping[str, LabelTable]
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """First row, first column and train ids by task of the bands of an image."""
    for tasks, strip in _strips(model.inference, pixels.width, tables):
        own = slice(strip.start - strip.left, strip.stop - strip.left)
        for top, bands in model.predict_rows(columns(pixels, strip.left, strip.right), tasks):
            yield top, strip.start, {task: band[:, own].cpu().numpy() for task, band in bands.items()}


def _strips(
    inference: Mapping[str, Inference], width: int, tables: Mapping[str, LabelTable]
) -> Iterator[tuple[list[str], Strip]]:
    """The strips of an image, and the tasks that are predicted alike and therefore in the same strips."""
    for how in dict.fromkeys(inference[task] for task in tables):
        tasks = [task for task in tables if inference[task] == how]
        for strip in column_strips(width, how, sum(tables[task].num_classes for task in tasks)):
            yield tasks, strip


def _writer(
    path: Path, source: Source, table: LabelTable, kind: str, pixels: Readable, place: Georeference | None
) -> BandWriter:
    if not source.is_tiff:
        return PngWriter(path, pixels.height, pixels.width)
    if kind != "index":
        return TiffWriter(path, pixels.height, pixels.width, 3, place)
    return TiffWriter(path, pixels.height, pixels.width, 1, place, table.no_data, pixels.declares_no_data)


def _write_band(writers: Mapping[tuple[str, str], BandWriter], band: _Band, target: Target) -> None:
    for task, ids in band.ids.items():
        if band.valid is not None:
            ids = np.where(band.valid, ids, np.uint8(IGNORE))
        for kind in target.kinds:
            painted = _painted(kind, ids, target.tables[task], band.photo, target.alpha)
            writers[task, kind].write(band.top, band.left, painted, band.valid)


def _painted(
    kind: str, ids: np.ndarray, table: LabelTable, photo: np.ndarray | None, alpha: float
) -> np.ndarray:
    if kind == "index":
        raw = np.full(256, table.no_data, np.uint8)
        raw[: table.num_classes] = table.values
        return raw[ids]
    colors = table.colorize(ids)
    if photo is None or kind == "color":
        return colors
    overlay = cv2.addWeighted(photo, 1 - alpha, colors, alpha, 0)
    if table.background is not None:  # its colour, often black, would only darken the picture
        overlay = np.where((ids == table.background)[..., None], photo, overlay)
    return overlay


def _finish(writers: Mapping[tuple[str, str], BandWriter]) -> None:
    for writer in writers.values():
        writer.finish()


def prediction_parser(description: str, config: Path) -> argparse.ArgumentParser:
    """A parser with the options of how images are predicted.

    Args:
        description: the module's docstring.
        config: configuration that is read for checkpoints which do not say what they are.
    """
    parser = command_parser(description, config, experts=True)
    parser.set_defaults(config=None, backbone=None, default_config=config)  # the checkpoint knows
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    add_inference_options(parser)
    return parser


def predict(
    args: argparse.Namespace,
    place: Launch,
    given: str,
    tasks: Sequence[str],
    target: Target,
    renew: bool = False,
) -> list[ImageError]:
    """Predict images to files with the checkpoint of the command line, see :func:`carry_out`.

    Args:
        args: of :func:`prediction_parser`, with ``checkpoint`` and ``resume``.
        place: this process.
        given: folder, file or pattern.
        tasks: names; all if empty.
        target: where to; its tables are filled in.
        renew: whether ``resume`` overwrites results that were made with other settings.

    Returns:
        Errors of images that could not be read; of all processes, in the main one.

    Raises:
        ConfigError: unknown task, no backbone, a configuration that is not needed, or other settings than
            the results that are there.
        DataError: no images.
    """
    recipe = _find_recipe(args, tasks)
    target = replace(target, tables=recipe.tables)
    dtype = resolve_precision(args.precision, place.device)
    request = Request([given], target, settings_of(args, recipe, dtype), args.resume, renew)

    def build() -> Work:
        model = trained.build_trained(recipe, args.checkpoint, place.device, dtype, chosen_tta(args))
        return partial(predict_files, model, target=target)

    return carry_out(request, build, place)


def settings_of(args: argparse.Namespace, recipe: Recipe, dtype: torch.dtype | None) -> Settings:
    """What the results of each task depend on, and what their values mean.

    Args:
        args: of :func:`prediction_parser`, with ``checkpoint``.
        recipe: the model.
        dtype: of the matrix work, None for float32.
    """
    return {
        task: {
            **identify(args.checkpoint),
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            **asdict(recipe.inference[task]),
            "tta": args.tta,
            "scales": args.scales,
            "labels": table.as_mapping(),
            "no_data": table.no_data,
        }
        for task, table in recipe.tables.items()
    }


def _find_recipe(args: argparse.Namespace, tasks: Sequence[str]) -> Recipe:
    """The model of the checkpoint with the tasks and windows of the command line."""
    config = trained.find_config(args.config, args.checkpoint, args.default_config)
    recipe = trained.find_recipe(args.checkpoint, args.backbone, config, args.cfg_options)
    given = [option for option in ("config", "cfg_options") if getattr(args, option)]
    if given and not recipe.configured:
        option = given[0].replace("_", "-")
        raise ConfigError(
            f"--{option}: {args.checkpoint} says itself what it holds, no configuration is read; leave the "
            f"option out. How images are predicted is changed with --mode, --crop and --stride"
        )
    recipe = recipe.only(tasks)
    return replace(recipe, inference=changed_inference(recipe.inference, args))
