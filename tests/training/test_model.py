"""What the training loop, checkpoints and metrics expect of the models of all trees."""

from abc import ABC, abstractmethod
from typing import Any

import pytest
import torch
from torch import Tensor

from s5.detection.network import DetectionModel, Settings, build_detector
from s5.segmentation.methods.fixmatch import FixMatch, FixMatchSettings
from s5.segmentation.multi_dataset import MultiDataset, TaskLoss
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.windows import Inference
from s5.training.model import TaskModel
from tests.detection.test_detector import SIZE as DETECTOR_SIZE
from tests.detection.test_detector import batch as detection_batch
from tests.segmentation.test_fixmatch import TINY, make_batch


class TaskModelContract(ABC):
    """Inherit it and say how a model and its batches are made."""

    @abstractmethod
    def build(self, dtype: torch.dtype | None = None) -> TaskModel:
        """A model with random weights."""

    @abstractmethod
    def training_batch(self) -> dict[str, Any]:
        """Arguments of the model in mode `loss`."""

    @abstractmethod
    def prediction_batch(self) -> dict[str, Any]:
        """Arguments of the model in mode `predict`."""

    def made(self, seed: int, dtype: torch.dtype | None = None) -> TaskModel:
        torch.manual_seed(seed)
        return self.build(dtype)

    def losses(self, model: TaskModel) -> dict[str, Tensor]:
        torch.manual_seed(1)
        return model(**self.training_batch(), mode="loss")

    def predictions(self, model: TaskModel) -> list[Any]:
        with torch.inference_mode():
            return model.eval()(**self.prediction_batch(), mode="predict")

    @pytest.mark.parametrize("dtype", [None, torch.bfloat16])
    def test_losses_are_finite_float32_numbers(self, dtype: torch.dtype | None) -> None:
        losses = self.losses(self.made(0, dtype).train())
        total, logged = self.made(0).parse_losses(losses)
        assert total is losses["loss"] and logged.keys() == losses.keys()
        assert losses["loss"].requires_grad and losses["loss"].dtype == torch.float32
        for name, value in logged.items():
            assert value.numel() == 1 and value.isfinite() and not value.requires_grad, name

    def test_every_weight_gets_a_gradient(self) -> None:
        """So that no process of a distributed run waits for one."""
        model = self.made(0).train()
        self.losses(model)["loss"].backward()
        trained = {n: w.grad for n, w in model.network.named_parameters() if w.requires_grad}
        assert [name for name, gradient in trained.items() if gradient is None] == []

    def test_equal_seeds_give_equal_losses(self) -> None:
        one, other = (self.losses(self.made(0).train()) for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_a_result_for_every_image_in_order(self) -> None:
        model, batch = self.made(0), self.prediction_batch()
        results = self.predictions(model)
        assert len(results) == len(batch["images"])
        self.assert_equal(results, self.predictions(model))

    def test_predicting_changes_nothing(self) -> None:
        model = self.made(0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        self.predictions(model)
        after = model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_weights_of_the_network_are_all_that_predictions_need(self) -> None:
        ours, theirs = self.made(0), self.made(7)
        with pytest.raises(AssertionError):
            self.assert_equal(self.predictions(ours), self.predictions(theirs))
        theirs.network.load_state_dict(ours.network.state_dict())
        self.assert_equal(self.predictions(ours), self.predictions(theirs))

    def assert_equal(self, ours: list[Any], theirs: list[Any]) -> None:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def segmentation_images(tasks: list[str]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(40, 32), (32, 48), (20, 20)]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return {"images": images, "tasks": tasks}


class TestFixMatch(TaskModelContract):
    def build(self, dtype: torch.dtype | None = None) -> TaskModel:
        segmentor = build_segmentor(TINY, {"s4p": 4}, 32, channels=16)
        return FixMatch(segmentor, {"s4p": Inference()}, dtype, FixMatchSettings(conf_thresh=0.0))

    def training_batch(self) -> dict[str, Any]:
        return make_batch()

    def prediction_batch(self) -> dict[str, Any]:
        return segmentation_images(["s4p"] * 3)


class TestMultiDataset(TaskModelContract):
    def build(self, dtype: torch.dtype | None = None) -> TaskModel:
        segmentor = build_segmentor(TINY, {"a": 3, "b": 2}, 32, channels=8, expert_channels=8)
        inference = dict.fromkeys(segmentor.tasks, Inference())
        return MultiDataset(segmentor, inference, dict.fromkeys(segmentor.tasks, TaskLoss()), dtype)

    def training_batch(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(2)
        images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 2, (5, 32, 32), dtype=torch.uint8, generator=generator)
        return {"images": images, "labels": labels, "counts": {"a": 2, "b": 3}}

    def prediction_batch(self) -> dict[str, Any]:
        return segmentation_images(["a", "b", "a"])


class TestDetectionModel(TaskModelContract):
    def build(self, dtype: torch.dtype | None = None) -> TaskModel:
        settings = Settings(channels=32, fc_channels=64, proposals=30, max_per_img=10, score_thr=0.0)
        tasks = {"dior": 20, "dota": 18}
        return DetectionModel(build_detector(TINY, tasks, DETECTOR_SIZE, settings=settings), dtype)

    def training_batch(self) -> dict[str, Any]:
        return detection_batch() | {"counts": {"dior": 1, "dota": 2}}

    def prediction_batch(self) -> dict[str, Any]:
        batch = detection_batch()
        return {name: batch[name] for name in ("images", "shapes", "scales")} | {
            "counts": {"dior": 2, "dota": 1}
        }
