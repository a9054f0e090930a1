"""Contract tests that every loaded model must pass."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

import s5
from s5.data.image_io import write_image
from s5.errors import ImageError
from s5.prediction.predictor import Predictor
from tests.detection.predict.det_models import picture
from tests.helpers.tiff_files import write_tiff

PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500000, 0, -0.5, 5000000)}


class PredictorContract:
    """Subclasses name the tasks, write a checkpoint, and say how results compare and where the command is."""

    tasks: dict[str, tuple[str, ...]]
    backbone: str
    options: dict[str, Any] = {}
    formats: dict[str, str]  # of the command -> extension for `save`

    @pytest.fixture
    def image(self) -> np.ndarray:
        return picture(40, 90)

    @pytest.fixture
    def geotiff(self, tmp_path: Path, image: np.ndarray) -> Path:
        return write_tiff(tmp_path / "in/geo.tif", image.transpose(2, 0, 1), **PLACE)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()

    @property
    def task(self) -> str:
        return next(iter(self.tasks))

    def write(self, path: Path) -> None:
        raise NotImplementedError

    def values(self, result: Any) -> np.ndarray:
        """What is predicted, as one array."""
        raise NotImplementedError

    def run_command(self, checkpoint: Path, given: Path, out: Path) -> None:
        raise NotImplementedError

    def without_data(self, result: Any) -> np.ndarray:
        """Bools that are true where a result respects that the left 40 columns have no data."""
        raise NotImplementedError

    def test_says_what_it_is(self, model: Predictor) -> None:
        assert model.classes == self.tasks
        assert {task: len(colors) for task, colors in model.palette.items()} == {
            task: len(names) for task, names in self.tasks.items()
        }
        assert model.tasks[self.task].classes == self.tasks[self.task]
        assert (model.backbone, model.device.type) == (self.backbone, "cpu")
        assert all(word in repr(model) for word in (self.backbone, "cpu", "float32", *self.tasks))
        assert not model.model.training

    def test_array_pil_path_and_list_agree(
        self, model: Predictor, image: np.ndarray, geotiff: Path, tmp_path: Path
    ) -> None:
        write_image(tmp_path / "in/a.png", image)
        given = [image, Image.fromarray(image), tmp_path / "in/a.png", str(tmp_path / "in/a.png"), geotiff]
        alone = [model.predict(one, self.task) for one in given]
        assert self.values(alone[0]).size
        results = [*alone, *model.predict(given[1:3], self.task), *model.predict(iter(given[:1]), self.task)]
        for result in results[1:]:
            assert np.array_equal(self.values(result), self.values(results[0]))
        assert (results[0].height, results[0].width) == image.shape[:2]

    def test_views_of_arrays(self, model: Predictor, image: np.ndarray) -> None:
        swapped = self.values(model.predict(np.ascontiguousarray(image[..., ::-1]), self.task))
        assert np.array_equal(self.values(model.predict(image[..., ::-1], self.task)), swapped)
        image.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(image, self.task)

    def test_images_are_predicted_one_after_the_other(self, model: Predictor, image: np.ndarray) -> None:
        taken = []

        def images() -> Iterator[np.ndarray]:
            for i in range(3):
                taken.append(i)
                yield image

        results = model.predict_iter(images(), self.task)
        assert not taken
        next(results)
        assert taken == [0]

    def test_a_geotiff_keeps_its_location(self, model: Predictor, geotiff: Path, image: np.ndarray) -> None:
        result = model.predict(geotiff, self.task)
        assert result.georeference.crs.to_epsg() == 32633
        assert result.georeference.transform == PLACE["transform"]
        assert "georeferenced" in repr(result)
        assert model.predict(image, self.task).georeference is None

    def test_all_tasks_at_once(self, model: Predictor, image: np.ndarray) -> None:
        together = model.predict(image, "all")
        assert list(together) == list(self.tasks)
        for task, result in together.items():
            assert (result.task, result.classes) == (task, self.tasks[task])
            assert np.array_equal(self.values(result), self.values(model.predict(image, task)))
        if len(self.tasks) > 1:
            with pytest.raises(ValueError, match=f"name one of the tasks {', '.join(self.tasks)}, or 'all'"):
                model.predict(image)
        else:
            assert np.array_equal(self.values(model.predict(image)), self.values(together[self.task]))
        with pytest.raises(ValueError, match="unknown task 'pools'; this model has"):
            model.predict(image, "pools")

    def test_some_of_the_tasks_can_be_loaded(
        self, model: Predictor, checkpoint: Path, image: np.ndarray
    ) -> None:
        last = list(self.tasks)[-1]
        alone = s5.load(checkpoint, "cpu", "fp32", tasks=[last], **self.options)
        assert list(alone.tasks) == [last]
        assert np.array_equal(self.values(alone.predict(image)), self.values(model.predict(image, last)))

    def test_what_the_command_writes(
        self, model: Predictor, checkpoint: Path, geotiff: Path, image: np.ndarray, tmp_path: Path
    ) -> None:
        write_image(tmp_path / "in/a.png", image)
        self.run_command(checkpoint, tmp_path / "in", tmp_path / "out")
        for name in ("a.png", "geo.tif"):
            result = model.predict(tmp_path / "in" / name, self.task)
            for kind, suffix in self.formats.items():
                theirs = next((tmp_path / "out" / self.task / kind).glob(f"{Path(name).stem}.*"))
                suffix = ".tif" if theirs.suffix == ".tif" else suffix
                ours = tmp_path / f"saved/{kind}/{Path(name).stem}{suffix}"
                result.save(ours, kind)
                assert ours.read_bytes() == theirs.read_bytes(), (name, kind)

    def test_a_drawing_is_a_pil_image(self, model: Predictor, image: np.ndarray, geotiff: Path) -> None:
        for given in (image, geotiff):
            plot = model.predict(given, self.task).plot()
            assert isinstance(plot, Image.Image) and plot.mode == "RGB" and plot.width == image.shape[1]
        small = model.predict(image, self.task).plot(60)
        assert small.width == image.shape[1] // 2
        assert model.predict(image, self.task)._repr_png_().startswith(b"\x89PNG")

    def test_pixels_without_data_count_for_nothing(
        self, model: Predictor, image: np.ndarray, tmp_path: Path
    ) -> None:
        mask = np.where(np.arange(image.shape[1]) < 40, 0, 255) * np.ones((len(image), 1))
        write_tiff(tmp_path / "in/mask.tif", image.transpose(2, 0, 1), mask=mask.astype(np.uint8))
        rgba = Image.fromarray(np.dstack([image, mask.astype(np.uint8)]), "RGBA")
        rgba.save(tmp_path / "in/alpha.png")
        numbers = image.astype(np.float32)
        numbers[:, :40] = np.nan
        for given in (tmp_path / "in/mask.tif", tmp_path / "in/alpha.png", rgba, numbers):
            assert self.without_data(model.predict(given, self.task)).all()

    def test_bands_and_depths(self, model: Predictor, image: np.ndarray, tmp_path: Path) -> None:
        shown = self.values(model.predict(image, self.task))
        five = np.dstack([image[..., ::-1], image[..., :2]])
        path = write_tiff(tmp_path / "in/five.tif", five.transpose(2, 0, 1))
        for given in (five, path):
            assert np.array_equal(self.values(model.predict(given, self.task, bands=(3, 2, 1))), shown)
            with pytest.raises(ImageError, match=r"bands \(6,\): the image has 5"):
                model.predict(given, self.task, bands=[6])
        deep = image.astype(np.uint16) * 50
        path = write_tiff(tmp_path / "in/deep.tif", deep.transpose(2, 0, 1))
        array, file = (self.values(model.predict(given, self.task)) for given in (deep, path))
        assert np.array_equal(array, file)
        grey = self.values(model.predict(image[..., 0], self.task))
        assert np.array_equal(grey, self.values(model.predict(image, self.task, bands=[1])))

    def test_what_is_no_image(self, model: Predictor, image: np.ndarray, tmp_path: Path) -> None:
        (tmp_path / "in/text.png").write_text("no image")
        for given, error, message in (
            (3, TypeError, "int is not an image: give a NumPy array"),
            ([None], TypeError, "NoneType is not an image"),
            (image.transpose(2, 0, 1), TypeError, "has its channels first"),
            (image[None], TypeError, "give several images as a list"),
            (tmp_path / "in/none.png", ImageError, "none.png: file not found"),
            (tmp_path / "in/text.png", ImageError, "text.png: is not an image"),
        ):
            with pytest.raises(error, match=message):
                model.predict(given, self.task)

    def test_formats_that_do_not_exist(self, model: Predictor, image: np.ndarray, tmp_path: Path) -> None:
        result = model.predict(image, self.task)
        with pytest.raises(ValueError, match=r"a.bmp: the extension must be one of \."):
            result.save(tmp_path / "a.bmp")
        with pytest.raises(ValueError, match="format 'shape': must be one of"):
            result.save(tmp_path / f"a{next(iter(result.suffixes))}", "shape")

    def test_options_that_do_not_exist(self, checkpoint: Path) -> None:
        with pytest.raises(ValueError, match="option 'zoom': must be one of "):
            s5.load(checkpoint, "cpu", zoom=2)
        with pytest.raises(ValueError, match="unknown task 'pools'; this model's tasks"):
            s5.load(checkpoint, "cpu", tasks=["pools"])
        for device in ("tpu", "cuda:99"):
            with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
                s5.load(checkpoint, device)
        for wrong in ({"backbone": "vit_b"}, {"tasks": {"a": 2}}):
            with pytest.raises(ValueError, match=f"model.pth is self-describing: a {self.backbone} for"):
                s5.load(checkpoint, "cpu", **wrong)
