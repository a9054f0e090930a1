"""Prediction with a trained model, for segmentation and detection: from images to results or files."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic

import numpy as np
import torch
from PIL import Image

from s5.compat.precision import resolve_precision
from s5.data.gdal_files import Georeference
from s5.data.label_table import RGB
from s5.errors import ImageError
from s5.prediction.images import LARGEST, ImageLike, Picture
from s5.prediction.plan import Target
from s5.prediction.sources import Source
from s5.prediction.spec import M, ModelSpec, TaskClasses

NOTEBOOK = 1024  # maximum longer side of a picture in a notebook, pixels
ALL = "all"


@dataclass(frozen=True, eq=False, repr=False)
class Result(ABC):
    """Prediction of one image for one task.

    Attributes:
        task: Name of the task.
        classes: Names of the classes.
        palette: Colours of the classes, RGB, 0..255.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        georeference: Georeference of a GeoTIFF; None for other images.
        picture: The image, which is read again for drawings.
    """

    suffixes: ClassVar[Mapping[str, str]]
    """Format by file extension, for :meth:`save`."""

    task: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    height: int
    width: int
    georeference: Georeference | None
    picture: Picture

    @abstractmethod
    def draw(self, largest: int = LARGEST) -> np.ndarray:
        """Draw the prediction on the image, uint8 (h, w, 3) RGB, with a longer side of at most `largest`."""

    @abstractmethod
    def _write(self, path: Path, kind: str) -> None:
        """Write one of the formats."""

    def plot(self, largest: int = LARGEST) -> Image.Image:
        """Draw the prediction on the image, with class names, as a PIL image.

        Args:
            largest: Maximum longer side in pixels; larger images are reduced by an integer factor.

        Raises:
            ImageError: The image file is no longer readable.
        """
        return Image.fromarray(self.draw(largest))

    def save(self, path: str | Path, kind: str | None = None) -> None:
        """Write the result atomically; missing folders are created.

        Args:
            path: The file, whose extension selects the format, see `suffixes`.
            kind: Format if the extension allows several, such as `color`.

        Raises:
            ValueError: The extension or format is unknown.
            ImageError: The image, which is read again for a drawing, is no longer readable.
            OSError: The file cannot be written.
        """
        path = Path(path).expanduser()
        default = self.suffixes.get(path.suffix.lower())
        if default is None:
            raise ValueError(f"{path}: the extension must be one of {', '.join(self.suffixes)}")
        self._write(path, kind or default)

    def _repr_png_(self) -> bytes:
        """Picture displayed by notebooks."""
        png = io.BytesIO()
        self.plot(NOTEBOOK).save(png, "PNG")
        return png.getvalue()


class Predictor(ABC, Generic[M]):
    """A trained model that predicts images; base class for segmentation and detection.

    Args:
        spec: Description of the model.
        checkpoint: Weights of the model, read by :meth:`load` or before the first prediction.
        device: Device to predict on.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
    """

    formats: ClassVar[Mapping[str, tuple[str, str]]]
    """File formats: the extensions for other images and for TIFF input."""

    def __init__(
        self, spec: ModelSpec[M], checkpoint: Path, device: torch.device, precision: str = "auto"
    ) -> None:
        self.spec, self.checkpoint, self.device = spec, checkpoint, device
        self.dtype = resolve_precision(precision, device)

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return self.spec.backbone

    @property
    def tasks(self) -> Mapping[str, TaskClasses]:
        """Names and colours of the classes of each task."""
        return self.spec.tasks

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of each task."""
        return {task: entry.classes for task, entry in self.tasks.items()}

    @property
    def palette(self) -> dict[str, tuple[RGB, ...]]:
        """Colours of the classes of each task."""
        return {task: entry.palette for task, entry in self.tasks.items()}

    @cached_property
    def model(self) -> M:
        """The mmengine model with its weights, in evaluation mode; its `network` is the module."""
        return self.spec.build(self.checkpoint, self.device, self.dtype)

    def load(self) -> "Predictor[M]":
        """Load the weights now.

        Raises:
            CheckpointError: The weights do not fit, or part of a head is missing.
        """
        _ = self.model
        return self

    def __repr__(self) -> str:
        """Show backbone, device, precision and a line per task."""
        precision = str(self.dtype or torch.float32).removeprefix("torch.")
        lines = [f"{type(self).__name__}: {self.backbone} on {self.device}, {precision}"]
        lines += [f"  {task}: {', '.join(entry.classes)}" for task, entry in self.tasks.items()]
        return "\n".join(lines)

    def predict(
        self,
        image: ImageLike | Iterable[ImageLike],
        task: str | None = None,
        *,
        bands: Sequence[int] | None = None,
        probabilities: bool = False,
    ) -> Any:  # noqa: ANN401 - depends on the arguments
        """Predict one or several images.

        Args:
            image: A NumPy array (H, W, C), stretched to 0..255 unless it is uint8; a PIL image; the path of a
                file of any format, size, depth and number of bands; or an iterable of these.
            task: Name of the task; required if the model has several. `all` predicts all tasks together.
            bands: 1-based numbers of the red, green and blue bands; by default the first three.
            probabilities: Keep the probabilities of all classes, 4 bytes per pixel and class; segmentation
                only.

        Returns:
            A :class:`Result`, or a dict of results by task with `task="all"`; for several images, a list of
            these. All are held in memory; :meth:`predict_iter` yields them one by one.

        Raises:
            ImageError: An image cannot be read, or lacks a band.
            TypeError: An item is not an image.
            ValueError: The task is unknown or missing, or probabilities are requested from a detector.
        """
        if isinstance(image, ImageLike):
            (result,) = self.predict_iter([image], task, bands=bands, probabilities=probabilities)
            return result
        images = image if isinstance(image, Iterable) else [image]  # raises a TypeError that names its type
        return list(self.predict_iter(images, task, bands=bands, probabilities=probabilities))

    def predict_iter(
        self,
        images: Iterable[ImageLike],
        task: str | None = None,
        *,
        bands: Sequence[int] | None = None,
        probabilities: bool = False,
    ) -> Iterator[Any]:
        """Predict images one after the other; arguments as for :meth:`predict`.

        Yields:
            A result, or a dict of results by task, per image. One image at a time is in memory.
        """
        tasks = self._chosen(task)
        for image in images:
            picture = Picture(image, None if bands is None else tuple(bands))
            results = self._predict(picture, tasks, probabilities)
            yield results if task == ALL else results[tasks[0]]

    def _chosen(self, task: str | None) -> list[str]:
        known = list(self.tasks)
        if task == ALL:
            return known
        if task is None and len(known) == 1:
            return known
        if task not in known:
            problem = "name one of the tasks" if task is None else f"unknown task {task!r}; this model has"
            raise ValueError(f"{problem} {', '.join(known)}, or 'all'")
        return [task]

    @abstractmethod
    def _predict(self, picture: Picture, tasks: Sequence[str], probabilities: bool) -> dict[str, Any]:
        """Predict an image for some of the tasks; results by task."""

    @abstractmethod
    def predict_files(self, sources: Sequence[Source], target: Target) -> list[ImageError]:
        """Predict image files and write the results; reading, the network and writing overlap.

        Args:
            sources: The images.
            target: Output folder, tasks and formats.

        Returns:
            Errors of images that could not be read; all others have been predicted.

        Raises:
            OSError: A result cannot be written.
        """

    @abstractmethod
    def settings(self, task: str) -> dict[str, Any]:
        """Settings that the results of a task depend on, apart from weights and precision, as plain data."""
