"""Loaded models: segmentation, S4P and detection."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import s5
from s5.data.datasets.dior_r import CLASSES as DIOR_R
from s5.data.datasets.dota import DOTA_V2
from s5.detection.results import DetectionResult
from s5.prediction.predictor import Predictor
from s5.segmentation.results import SegmentationResult
from tests.api.contract import PredictorContract
from tests.detection.predict import det_models
from tests.helpers.mdf_runs import script
from tests.helpers.trained_models import table, to_published, write_checkpoint

COMMON = ["--device", "cpu", "--precision", "fp32"]


class SegmentationContract(PredictorContract):
    """Of models that predict masks."""

    formats = {"index": ".png", "color": ".png", "overlay": ".png"}

    def values(self, result: SegmentationResult) -> np.ndarray:
        return result.mask

    def run_command(self, checkpoint: Path, given: Path, out: Path) -> None:
        assert script("predict").main([str(checkpoint), str(given), "--out", str(out), *COMMON]) == 0

    def without_data(self, result: SegmentationResult) -> np.ndarray:
        assert (result.mask[:, 40:] < len(result.classes)).all()
        return result.mask[:, :40] == 255

    def test_probabilities_on_demand(self, model: Predictor, image: np.ndarray) -> None:
        result = model.predict(image, self.task, probabilities=True)
        assert result.probabilities.shape == (len(self.tasks[self.task]), *image.shape[:2])
        assert np.allclose(result.probabilities.sum(0), 1, atol=1e-5)
        assert np.array_equal(result.probabilities.argmax(0), result.mask)
        assert np.array_equal(result.confidence, result.probabilities.max(0))
        plain = model.predict(image, self.task)
        assert plain.probabilities is None and np.array_equal(plain.mask, result.mask)
        with pytest.raises(ValueError, match="predict with probabilities=True"):
            _ = plain.confidence

    def test_a_mask_is_not_written_with_losses(
        self, model: Predictor, image: np.ndarray, tmp_path: Path
    ) -> None:
        result = model.predict(image, self.task)
        result.save(tmp_path / "overlay.jpg")
        with pytest.raises(ValueError, match=r"mask.jpg: lossy formats would change the mask values"):
            result.save(tmp_path / "mask.jpg", "index")
        assert [path.name for path in tmp_path.glob("*.*")] == ["overlay.jpg"]

    def test_wide_images_are_predicted_by_strips(
        self, model: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        image = det_models.picture(40, 300)
        whole = model.predict(image, self.task, probabilities=True)
        monkeypatch.setattr("s5.segmentation.windows.SUMS_BYTES", 1 << 14)
        strips = model.predict(image, self.task, probabilities=True)
        assert np.array_equal(whole.mask, strips.mask)
        assert np.allclose(whole.probabilities, strips.probabilities, atol=1e-6)

    def test_windows_and_views_can_be_chosen(self, checkpoint: Path, image: np.ndarray) -> None:
        model = s5.load(checkpoint, "cpu", "fp32", crop=64, flip=True, scales=(0.5, 1))
        settings = model.settings(self.task)
        assert (settings["crop"], settings["stride"], settings["tta"]) == (64, 48, "flip")
        assert model.predict(image, self.task).mask.shape == image.shape[:2]
        for wrong, message in (
            ({"stride": 99}, "stride 99: must"),
            ({"scales": [0]}, r"scales \[0\]: must be one or more positive"),
            ({"mode": "tiles"}, "mode 'tiles': must be one of original, resize, slide_window"),
        ):
            with pytest.raises(ValueError, match=message):
                s5.load(checkpoint, "cpu", **wrong)


class TestMultiDataset(SegmentationContract):
    tasks = {"ponds": ("ground", "water"), "roofs": ("ground", "water", "roof")}
    backbone = "vit_t_moe"

    def write(self, path: Path) -> None:
        values = {"ponds": {"values": [10, 20]}, "roofs": {"values": [1, 2, 3], "ignore": [0]}}
        write_checkpoint(path, {t: table(t, [*names], **values[t]) for t, names in self.tasks.items()})


class TestS4P(SegmentationContract):
    tasks = {"s4p": ("ground", "water", "roof")}
    backbone = "vit_t"

    def write(self, path: Path) -> None:
        write_checkpoint(path, {"s4p": table("t", [*self.tasks["s4p"]])}, "vit_t")
        content = torch.load(path)
        del content["meta"]["expert_channels"]  # which pre-training does not write
        torch.save(content, path)


class TestDetection(PredictorContract):
    tasks = det_models.TASKS
    backbone = "vit_t_moe"
    options = {"score_thr": 0.0}
    formats = {"drawings": ".jpg", "dota": ".txt", "geojson": ".geojson"}

    def write(self, path: Path) -> None:
        det_models.write_detector(path)

    def values(self, result: DetectionResult) -> np.ndarray:
        return np.column_stack([result.boxes, result.scores, result.labels])

    def run_command(self, checkpoint: Path, given: Path, out: Path) -> None:
        assert det_models.predict(checkpoint, given, out) == 0

    def without_data(self, result: DetectionResult) -> np.ndarray:
        assert len(result)
        return result.boxes[:, 0] >= 40

    def test_boxes_scores_and_corners(self, model: Predictor, image: np.ndarray) -> None:
        result = model.predict(image, "harbour")
        assert result.boxes.shape == (len(result), 5) and result.corners.shape == (len(result), 4, 2)
        assert np.allclose(result.corners.mean(1), result.boxes[:, :2], atol=1e-3)
        assert ((result.scores >= 0) & (result.scores <= 1)).all()
        assert set(result.labels.tolist()) <= {0, 1}
        assert "ship" in repr(result)

    def test_threshold_and_windows_can_be_chosen(self, checkpoint: Path, image: np.ndarray) -> None:
        every = s5.load(checkpoint, "cpu", "fp32", score_thr=0.0, window=50, overlap=10)
        some = s5.load(checkpoint, "cpu", "fp32", score_thr=0.5, window=50, overlap=10)
        scores = every.predict(image, "roads").scores
        assert np.array_equal(some.predict(image, "roads").scores, scores[scores >= 0.5])
        for wrong, message in (
            ({"score_thr": 2}, "score_thr 2: must be from 0 to 1"),
            ({"window": 8}, "window 8: must be at least 32 pixels"),
            ({"overlap": 64}, "overlap 64: must be from 0 to less"),
        ):
            with pytest.raises(ValueError, match=message):
                s5.load(checkpoint, "cpu", **wrong)

    def test_a_detector_has_no_probabilities(self, model: Predictor, image: np.ndarray) -> None:
        with pytest.raises(ValueError, match="probabilities are available for segmentation only"):
            model.predict(image, "roads", probabilities=True)


class TestWithoutMetadata:
    """Files that do not say what they hold."""

    TABLES = {"vaihingen": ["low", "high"], "loveda": ["a", "b", "c"]}

    def test_the_published_layout_needs_backbone_and_tasks(self, tmp_path: Path) -> None:
        tables = {task: table(task, names) for task, names in self.TABLES.items()}
        truth = write_checkpoint(tmp_path / "published.pth", tables, published=True)
        for given in (
            {},
            {"backbone": "vit_t_moe"},
            {"tasks": self.TABLES},
            {"backbone": "vit_t_moe", "tasks": ["a"]},
        ):
            with pytest.raises(ValueError, match=r"published.pth has no metadata: .*backbone="):
                s5.load(tmp_path / "published.pth", "cpu", **given)
        model = s5.load(
            tmp_path / "published.pth",
            "cpu",
            "fp32",
            backbone="vit_t_moe",
            tasks=self.TABLES,
            crop=32,
            stride=24,
        )
        image = det_models.picture(50, 60)
        expected = truth.predict(torch.from_numpy(image).permute(2, 0, 1), "loveda").numpy()
        assert np.array_equal(model.predict(image, "loveda").mask, expected)
        assert model.classes == {task: tuple(names) for task, names in self.TABLES.items()}

    def test_a_detector_needs_them_too(self, tmp_path: Path) -> None:
        tasks = {"dior": DIOR_R, "dota": DOTA_V2}
        det_models.write_detector(tmp_path / "det.pth", tasks)
        state = torch.load(tmp_path / "det.pth")["state_dict"]
        torch.save(to_published(state), tmp_path / "published.pth")
        torch.save(state, tmp_path / "plain.pth")
        named = {"dior": "dior_r", "dota": "dota_v2"}
        for name in ("published.pth", "plain.pth"):
            with pytest.raises(ValueError, match=rf"{name} has no metadata"):
                s5.load(tmp_path / name, "cpu")
            model = s5.load(tmp_path / name, "cpu", "fp32", backbone="vit_t_moe", tasks=named)
            assert model.classes == tasks
            found = model.model.network.state_dict()
            assert all(torch.equal(found[key], value) for key, value in state.items())
        assert model.predict(det_models.picture(60, 90), "dota").boxes.shape[1] == 5

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"backbone": "vit_t"}, "backbone 'vit_t': the checkpoint has experts; use 'vit_t_moe'"),
            ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.*: vit_t, "),
            ({"tasks": {"lakes": 2}}, "no segmentation head 'lakes'; the file has ponds, roofs"),
            ({"tasks": {"ponds": "pools"}}, "unknown label table 'pools'"),
            ({"tasks": {"keys": 2}}, "'keys' cannot name a task"),
        ],
    )
    def test_arguments_that_do_not_fit(self, tmp_path: Path, given: dict[str, Any], message: str) -> None:
        write_checkpoint(tmp_path / "a.pth", {t: table(t, ["x", "y"]) for t in ("ponds", "roofs")})
        torch.save(torch.load(tmp_path / "a.pth")["state_dict"], tmp_path / "plain.pth")
        with pytest.raises(ValueError, match=message):
            s5.load(
                tmp_path / "plain.pth",
                "cpu",
                **{"backbone": "vit_t_moe", "tasks": {"ponds": 2, "roofs": 2}, **given},
            )

    def test_a_backbone_alone_is_no_model(self, tmp_path: Path) -> None:
        known, model = {"a": 2}, s5.create_model("vit_t", {"a": 2}, img_size=32)
        torch.save(model.backbone.state_dict(), tmp_path / "backbone.pth")
        with pytest.raises(
            ValueError, match=r"backbone.pth: holds a backbone only; give the weights of a full model"
        ):
            s5.load(tmp_path / "backbone.pth", "cpu", backbone="vit_t", tasks=known)
