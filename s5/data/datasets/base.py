"""Base class of known datasets: facts, how to find the files, and the samples with their labels."""

import inspect
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from s5.data.datasets.prepared import code_digest, prepared_folder, require_same_table, table_facts
from s5.data.datasets.shipped import Shipped, Source
from s5.data.image_io import open_stored_mask, read_image_with_valid
from s5.data.label_table import IGNORE, RGB, LabelTable, distinct_colors, spare_color
from s5.data.masks import Mask, read_ids, require_same_size
from s5.data.oriented.annotations import AnnotationReader
from s5.data.oriented.drawing import draw_legend, draw_objects
from s5.data.splits import Sample, Split
from s5.errors import DataError

TRAIN, VAL, TEST = "train", "val", "test"


class Dataset:
    """A known dataset: facts as class attributes, samples by index.

    `root` is a data root written by `python -m s5.data.prepare`, the folder of the dataset below it, or the
    unpacked folder as its provider ships it (only the prepare command reads archives). Samples of prepared
    data are the patches of the split, those of shipped data are full images.

    A sample is a dict of `image` uint8 (H, W, 3) RGB, `name` (without folder and extension; that of a
    patch includes its window), `path`, and the labels if the split has any:
    `mask` uint8 (H, W) of train ids, 255 ignored; or, of oriented objects, `boxes` float32 (N, 5) (centre,
    long side, short side, angle), `polygons` float32 (N, 4, 2), `labels` int64 (N,) and `difficult`
    bool (N,), in pixels.

    Args:
        root: Folder of the data.
        split: A key of `splits`.
        labels: Name of the label table, or of the list of classes; the first of the dataset by default.
        options: Options of the prepare command for variants of the shipped data, such as `bands="irrg"`.

    Attributes:
        classes: Class names in the order of the train ids.
        palette: RGB colour of each class.
        ignore: Train id that is excluded from loss and scores.
        samples: Paths of image and labels of each sample.

    Raises:
        DataError: Unknown split, labels or option, or no such data in `root`.
    """

    # Description
    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    """Help text of the prepare command."""
    url: ClassVar[str]
    """Where to download it."""
    licence: ClassVar[str]
    citation: ClassVar[str]
    layout: ClassVar[str]
    """Expected contents of the shipped folder `{src}`."""

    # Labels: label tables of masks, or lists of object classes, by name
    tables: ClassVar[tuple[LabelTable, ...]] = ()
    """The first one reads masks as shipped and prepared."""
    class_lists: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    twins: ClassVar[Mapping[str, str]] = {}
    """Table that counts from 0 -> table of the same masks one higher."""
    zero: ClassVar[str] = ""
    """What 0 means in masks that count from 1: "boundary" between objects, or "no data" outside a scene."""
    common_class: ClassVar[bool] = False
    """Whether the first class is in every sizable area."""

    # Parts and published protocol
    counts: ClassVar[Mapping[str, int]] = {}
    """Number of images of each part."""
    splits: ClassVar[Mapping[str, tuple[str, ...]]] = {TRAIN: (TRAIN,), VAL: (VAL,)}
    """Parts that each split consists of."""
    optional: ClassVar[tuple[str, ...]] = (TEST,)
    """Splits without a list if they have no samples."""
    patch: ClassVar[int] = 512
    """Side of the patches in pixels; 0 does not cut the images."""
    overlap: ClassVar[int | None] = None
    """Pixels that neighbouring patches share; None for half of their side."""
    cut_parts: ClassVar[tuple[str, ...]] = (TRAIN,)
    """Parts that are cut into patches; images of other parts are not cut."""

    # Preparation
    folder: ClassVar[str] = ""
    """Folder below the data root; empty if the user chooses its name."""
    keep_lost: ClassVar[bool] = False
    """Whether to keep listing the patches of images that are no longer in the shipped folder."""
    inner_archives: ClassVar[str | None] = ".*"
    """Regular expression for the nested archives to search; None: archives must be unpacked first."""
    options: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Arguments of `find` on the command line, as `argparse` takes them."""
    not_remembered: ClassVar[tuple[str, ...]] = ()
    """Options that may differ when a preparation is continued."""
    usage: ClassVar[str] = ""
    """Configuration entries for the dataset."""

    @classmethod
    def find(cls, shipped: Shipped, *args: Any, **options: Any) -> list[Source]:
        """The images of all parts with their labels.

        Raises:
            PrepareError: The dataset is missing; the message says what is expected and where to download it.
        """
        raise NotImplementedError

    @classmethod
    def read_mask(cls, file: Path, path: Path) -> tuple[np.ndarray, str]:
        """Read a shipped mask in raw values of the first table, uint8 (H, W), with a note for the user.

        Masks of three channels and palette images hold the colours of the table, see `s5.data.masks`; with
        `color_code=False` in the table, palette images hold values.

        Args:
            file: The mask on disk.
            path: Path of the mask in messages.

        Raises:
            DataError: The mask cannot be read, or a value or colour is outside the table.
        """
        with open_stored_mask(file) as stored:
            mask = Mask(stored, cls.tables[0], path).all_values()
        cls.tables[0].encode(mask, path)
        return mask, ""

    @classmethod
    def mask_facts(cls) -> dict[str, Any]:
        """What determines the prepared masks besides the command's arguments, as plain data."""
        own = cls.read_mask.__func__ is not Dataset.read_mask.__func__  # type: ignore[attr-defined]
        return {
            **table_facts(cls.tables[0]),
            "read_mask": code_digest(cls.read_mask) if own else "",
            "cut_parts": list(cls.cut_parts),
        }

    @classmethod
    def class_list(cls, **options: Any) -> str:
        """Name of the class list selected by these options."""
        return next(iter(cls.class_lists))

    @classmethod
    def split_file(cls, split: str, folder: str) -> str:
        """Path of a prepared split file, relative to the data root."""
        return f"{folder}/splits/{split}.txt"

    @classmethod
    def describe(cls) -> str:
        """The facts as text, which is appended to the docstring of the class."""
        table = cls.tables[0].classes if cls.tables else cls.class_lists[cls.class_list()]
        parts = [
            f"{s} ({', '.join(str(cls.counts[p]) for p in ps if p in cls.counts)})"
            for s, ps in cls.splits.items()
        ]
        names = ", ".join([t.name for t in cls.tables] or cls.class_lists)
        return "\n".join(
            [
                f"Classes ({len(table)}): {', '.join(table)}",
                f"Labels: {names}",
                f"Splits: {', '.join(part.replace(' ()', '') for part in parts)}",
                f"Download: {cls.url}",
                f"Licence: {cls.licence}",
                f"Citation: {cls.citation}",
            ]
        )

    def __init_subclass__(cls) -> None:
        """Append the facts to the docstring."""
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\n{cls.describe()}"

    def __init__(
        self, root: str | Path, split: str = TRAIN, labels: str | None = None, **options: Any
    ) -> None:
        self.root, self.split = Path(root).absolute(), split
        self._require_known("split", split, self.splits)
        self._options = self._complete(options)
        self.table: LabelTable | None = None
        self.classes: tuple[str, ...]
        self.palette: tuple[RGB, ...]
        self.ignore = IGNORE
        if self.tables:
            tables = {table.name: table for table in self.tables}
            labels = labels or self.tables[0].name
            self._require_known("labels", labels, tables)
            self.table = tables[labels]
            self.classes, self.palette = self.table.classes, self.table.palette
        else:
            labels = labels or self.class_list(**self._options)
            self._require_known("labels", labels, self.class_lists)
            self.classes = self.class_lists[labels]
            self.palette = tuple(distinct_colors(len(self.classes)))
        lists = list(self._lists())
        found = next(((file, data_root) for file, data_root in lists if file.is_file()), None)
        self.prepared = found is not None
        if found and options and self.tables:
            raise DataError(
                f"{self.title} in {self.root} is prepared, and {', '.join(options)} chooses among shipped "
                "files. Prepare a variant with --name, and give its folder"
            )
        self.samples = self._prepared(*found) if found else self._shipped([file for file, _ in lists])

    def __len__(self) -> int:
        return len(self.samples)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r}, {self.split!r}): {len(self)} samples"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read a sample.

        Raises:
            DataError: A file is missing or damaged, or a label is unknown.
        """
        sample = self.samples[index]
        image, valid = read_image_with_valid(sample.image)
        item: dict[str, Any] = {"image": image, "name": sample.name, "path": str(sample.image)}
        if sample.mask is None:
            return item
        if self.table is None:
            found = AnnotationReader(self.classes).read(sample.mask)
            labels = {"labels": found.labels, "difficult": found.difficult}
            return {**item, "boxes": found.boxes, "polygons": found.polygons, **labels}
        mask = self._read_ids(sample.mask, self.table)
        require_same_size(sample.mask, mask.shape, sample.image, image.shape[:2])
        return {**item, "mask": mask if valid is None else np.where(valid, mask, np.uint8(IGNORE))}

    def plot(self, index: int) -> Image.Image:
        """Draw a sample: the mask beside the image, or the objects on it, with a legend of the classes."""
        item = self[index]
        image: np.ndarray = item["image"]
        if self.table is not None and "mask" in item:
            ignored = spare_color(self.palette)
            image = np.concatenate([image, self.table.colorize(item["mask"], ignored)], axis=1)
            named = [*zip(self.classes, self.palette, strict=True)]
            entries = [("ignored", ignored) if i == IGNORE else named[i] for i in np.unique(item["mask"])]
            image = np.concatenate([image, draw_legend(entries, image.shape[1], 1)])
        elif "polygons" in item:
            image = draw_objects(image, item["polygons"], item["labels"], self.classes)
        return Image.fromarray(image)

    def _complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of `find`, validated like those of the command line."""
        complete = {name: keywords.get("default", False) for name, keywords in self.options.items()}
        for name, value in options.items():
            self._require_known("option", name, self.options)
            keywords = self.options[name]
            self._require_known(name, value, keywords.get("choices", (value,)))
            convert = keywords.get("type") if value is not None else None
            complete[name] = convert(value) if convert else value
        return complete

    def _read_ids(self, path: Path, table: LabelTable) -> np.ndarray:
        if self.prepared:
            return read_ids(path, table)
        return table.encode(self.read_mask(path, path)[0], path)

    def _lists(self) -> Iterator[tuple[Path, Path]]:
        """Possible paths of a prepared split file, each with the data root that its lines are relative to."""
        yield self.root / self.split_file(self.split, self.folder or self.name), self.root
        if not self.folder:
            yield self.root / self.split_file(self.split, self.root.name).partition("/")[2], self.root.parent

    def _prepared(self, file: Path, root: Path) -> list[Sample]:
        """The samples of a prepared split, named by their paths below the image folder."""
        split = Split(file, root)
        if self.tables and (folder := prepared_folder(split)):
            require_same_table(folder, self.tables[0])
        return [s._replace(name=s.name.rpartition(".")[0].partition("/images/")[2] or s.name) for s in split]

    def _shipped(self, lists: list[Path]) -> list[Sample]:
        """The samples in a folder as shipped."""
        shipped = Shipped(self.root, self.title, self.layout, partial=True)
        problem = f"it has no images of the split {self.split!r}"
        sources: list[Source] = []
        try:
            sources = self.find(shipped, **self._options)
        except DataError as error:
            problem = str(error)
        samples = [
            Sample(source.image, source.mask, source.stem)
            for source in sources
            if source.group in self.splits[self.split] and not source.problem
            if source.image.is_file() and (source.mask is None or source.mask.is_file())
        ]
        if not samples:
            raise DataError(
                f"{self.title} is not in {self.root}. Looked for a prepared one ("
                f"{' or '.join(map(str, lists))}) and for the folder as shipped: {problem}\n"
                f"Download it from {self.url}, then prepare it: python -m s5.data.prepare {self.name} "
                f"--src DOWNLOADS --out {self.root}"
            )
        return samples

    def _require_known(self, what: str, value: str, known: Collection[str]) -> None:
        if value not in known:
            raise DataError(f"{self.title}: unknown {what} {value!r}; known: {', '.join(known) or 'none'}")
