"""Prediction with a trained model, the same for all products: images in, results or files out."""

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

NOTEBOOK = 1024  # pixels of the longer side of a picture in a notebook
ALL = "all"


@dataclass(frozen=True, eq=False, repr=False)
class Result(ABC):
    """What a model predicts of one image for one task.

    Attributes:
        task: Name of the task.
        classes: Names of its classes.
        palette: Their colours, RGB, 0..255.
        height: Rows of the image.
        width: Columns of the image.
        georeference: Location of a GeoTIFF; None for other images.
        picture: The image, which is read again when it is drawn.
    """

    suffixes: ClassVar[Mapping[str, str]]
    """Format by the extension of a file, for :meth:`save`."""

    task: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    height: int
    width: int
    georeference: Georeference | None
    picture: Picture

    @abstractmethod
    def draw(self, largest: int = LARGEST) -> np.ndarray:
        """The prediction on the image, uint8 (h, w, 3) RGB, its longer side at most `largest` pixels."""

    @abstractmethod
    def _write(self, path: Path, kind: str) -> None:
        """Write one of the formats."""

    def plot(self, largest: int = LARGEST) -> Image.Image:
        """The prediction on the image as a PIL image, with names of the classes.

        Args:
            largest: Pixels of the longer side; larger images are reduced by a whole number.

        Raises:
            ImageError: The file of the image is gone.
        """
        return Image.fromarray(self.draw(largest))

    def save(self, path: str | Path, kind: str | None = None) -> None:
        """Write the result, whole or not at all; missing folders are made.

        Args:
            path: The file, whose extension tells the format, see `suffixes`.
            kind: Format where the extension leaves a choice, such as `color`.

        Raises:
            ValueError: Unknown extension or format.
            ImageError: The image, read again for a drawing, is gone.
            OSError: The file cannot be written.
        """
        path = Path(path).expanduser()
        usual = self.suffixes.get(path.suffix.lower())
        if usual is None:
            raise ValueError(f"{path}: the extension must be one of {', '.join(self.suffixes)}")
        self._write(path, kind or usual)

    def _repr_png_(self) -> bytes:
        """The picture that notebooks show."""
        png = io.BytesIO()
        self.plot(NOTEBOOK).save(png, "PNG")
        return png.getvalue()


class Predictor(ABC, Generic[M]):
    """A trained model that predicts images; each product has a subclass.

    Args:
        spec: How to rebuild the model.
        checkpoint: Its weights, read by :meth:`load` or before the first prediction.
        device: Where it runs.
        precision: `auto`, `bf16`, `fp16` or `fp32`.
    """

    formats: ClassVar[Mapping[str, tuple[str, str]]]
    """Formats of files: the extension, and that for a TIFF."""

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
        return {task: found.classes for task, found in self.tasks.items()}

    @property
    def palette(self) -> dict[str, tuple[RGB, ...]]:
        """Colours of the classes of each task."""
        return {task: found.palette for task, found in self.tasks.items()}

    @cached_property
    def model(self) -> M:
        """The mmengine model with its weights, in evaluation mode; its `network` is the module."""
        return self.spec.build(self.checkpoint, self.device, self.dtype)

    def load(self) -> "Predictor[M]":
        """Read the weights now.

        Raises:
            CheckpointError: They do not fit, or part of a head is missing.
        """
        _ = self.model
        return self

    def __repr__(self) -> str:
        """Backbone, device, precision and a line per task."""
        precision = str(self.dtype or torch.float32).removeprefix("torch.")
        lines = [f"{type(self).__name__}: {self.backbone} on {self.device}, {precision}"]
        lines += [f"  {task}: {', '.join(found.classes)}" for task, found in self.tasks.items()]
        return "\n".join(lines)

    def predict(
        self,
        image: ImageLike | Iterable[ImageLike],
        task: str | None = None,
        *,
        bands: Sequence[int] | None = None,
        probabilities: bool = False,
    ) -> Any:  # noqa: ANN401 - what it is depends on the arguments
        """Predict an image or several.

        Args:
            image: NumPy array (H, W, C) of uint8, other types being stretched to 0..255 as in files; PIL
                image; path of a file of any format, size, depth and number of bands; or an iterable of these.
            task: Whose classes; needed if the model has several. `all` predicts them together.
            bands: Red, green and blue band, counted from 1; by default the first three.
            probabilities: Keep those of all classes, 4 bytes per pixel and class; segmentation only.

        Returns:
            A :class:`Result`; a dict of them by task with `task="all"`; for several images a list of either,
            all in memory: :meth:`predict_iter` yields one after the other.

        Raises:
            ImageError: An image cannot be read, or lacks a band.
            TypeError: Something is no image.
            ValueError: Unknown task, or none given where there are several; probabilities of a detector.
        """
        if isinstance(image, ImageLike):
            (result,) = self.predict_iter([image], task, bands=bands, probabilities=probabilities)
            return result
        images = image if isinstance(image, Iterable) else [image]  # refused with its type
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
            A result, or a dict of them, per image. Only this image is in memory.
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
            target: Where to, and which formats.

        Returns:
            Errors of images that could not be read; the others are done.

        Raises:
            OSError: A result cannot be written.
        """

    @abstractmethod
    def settings(self, task: str) -> dict[str, Any]:
        """What the results of a task depend on beside weights and precision, as plain data."""
