"""Prediction of one and of several tasks by the model around the network."""

from functools import partial

import pytest
import torch

from s5.backbones.vit import Variant
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.tta import Tta, augmented
from s5.segmentation.windows import Inference, predict_bands, rows_of

TINY = Variant("tiny", 32, 4, 4, (0, 1, 2, 3))
TASKS = {"a": 3, "b": 4, "c": 2}
SLIDE = Inference("slide_window", 64, 48)


def tiny_model(expert_channels=8, inference=None, **options):
    segmentor = build_segmentor(TINY, TASKS, 64, channels=8, expert_channels=expert_channels).eval()
    logits = segmentor.forward_all(torch.randn(1, 3, 64, 64))
    for task, head in segmentor.heads.items():  # so that no class wins everywhere
        head.classifier.bias.data = -logits[task].mean((0, 2, 3))
    return SegmentationModel(segmentor, inference or dict.fromkeys(TASKS, SLIDE), **options)


def assert_nearly_equal(labels, expected):
    """Equal but for pixels whose classes are equally probable to float32 rounding."""
    assert labels.shape == expected.shape
    assert (labels != expected).float().mean() < 0.002


def image(height=100, width=75):
    return torch.randint(256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize("expert_channels", [0, 8])
@torch.no_grad()
def test_all_tasks_at_once_equal_one_after_the_other(expert_channels):
    segmentor = tiny_model(expert_channels).segmentor
    images = torch.randn(2, 3, 40, 56)
    together = segmentor.forward_all(images)
    assert list(together) == list(TASKS)
    for task in TASKS:
        torch.testing.assert_close(together[task], segmentor(images, task), atol=1e-5, rtol=1e-5)
    assert list(segmentor.forward_all(images, ["c", "a"])) == ["a", "c"]
    with pytest.raises(ValueError, match="'d'.*tasks: a, b, c"):
        segmentor.forward_all(images, ["a", "d"])


@pytest.mark.parametrize(("expert_channels", "expected"), [(0, [2]), (8, [6])])
def test_the_encoder_runs_once_for_all_tasks(expert_channels, expected):
    segmentor = tiny_model(expert_channels).segmentor
    batches = []
    segmentor.backbone.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    segmentor.forward_all(torch.randn(2, 3, 64, 64))
    assert batches == expected  # experts: one pass with the images repeated


@pytest.mark.parametrize("tta", [None, Tta(flip=True, scales=(0.75, 1.0))])
@pytest.mark.parametrize(("height", "width"), [(100, 75), (20, 130), (7, 9)])
def test_tasks_predicted_together_equal_tasks_predicted_alone(height, width, tta):
    how = {"a": SLIDE, "b": Inference("original"), "c": Inference("resize", 48)}
    model = tiny_model(inference=how, tta=tta)
    picture = image(height, width)
    together = model.predict_tasks(picture, ["c", "a", "b"])
    assert list(together) == ["c", "a", "b"]
    for task, labels in together.items():
        assert labels.dtype == torch.uint8 and labels.shape == (height, width)
        assert int(labels.max()) < TASKS[task]
        assert_nearly_equal(labels, model.predict(picture, task))


@pytest.mark.parametrize("how", [SLIDE, Inference("original"), Inference("resize", 48)])
@pytest.mark.parametrize("tta", [None, Tta(flip=True, scales=(0.75, 1.0))])
def test_probabilities_of_tasks_together_equal_those_alone(how, tta):
    model = tiny_model(tta=tta)
    rows = rows_of(image(70, 90))

    def predicted(tasks):
        network = augmented(partial(model.probabilities, tasks=tasks), tta)
        return torch.cat([band.clone() for _, band in predict_bands(network, rows, how)], dim=1)

    alone = torch.cat([predicted([task]) for task in ("c", "a")])
    torch.testing.assert_close(predicted(["c", "a"]), alone, atol=1e-5, rtol=1e-5)
    assert alone.std(dim=(1, 2)).min() > 0.001


def test_tasks_predicted_alike_share_the_passes():
    model = tiny_model(0, inference={"a": SLIDE, "b": SLIDE, "c": Inference("original")})
    batches = []
    model.segmentor.backbone.register_forward_pre_hook(lambda module, args: batches.append(args[0].shape))
    model.predict_tasks(image(64, 112), ["a", "b", "c"])
    assert batches == [(1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 112)]


def test_one_window_equals_the_whole_image():
    picture = image(50, 61)
    whole = tiny_model(inference={"b": Inference("original")})
    windows = tiny_model()
    windows.segmentor.load_state_dict(whole.segmentor.state_dict())
    assert_nearly_equal(whole.predict(picture, "b"), windows.predict(picture, "b"))


def test_probabilities_of_tasks_follow_each_other():
    model = tiny_model()
    images = image()[None]
    joined = model.probabilities(images, ["c", "a"])
    assert joined.shape == (1, 5, 100, 75)
    torch.testing.assert_close(joined[:, 2:], model.probabilities(images, ["a"]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(joined[:, :2].sum(1), torch.ones(1, 100, 75))


def test_a_batch_is_predicted_image_by_image_for_its_task():
    model = tiny_model()
    pictures = [image(), image(40, 90)]
    found = model(pictures, mode="predict", tasks=["b", "a"], labels=[], names=["x", "y"])
    expected = [model.predict(pictures[0], "b"), model.predict(pictures[1], "a")]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with pytest.raises(NotImplementedError, match="SegmentationModel cannot be trained"):
        model(pictures, mode="loss", tasks=["b", "a"])


def test_low_precision_and_float32_nearly_agree():
    exact, low = tiny_model(), tiny_model(dtype=torch.bfloat16)
    low.segmentor.load_state_dict(exact.segmentor.state_dict())
    images = image()[None]
    difference = exact.probabilities(images, ["a"]) - low.probabilities(images, ["a"])
    assert 0 < difference.abs().mean() < 0.05
    assert low.probabilities(images, ["a"]).dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("expert_channels", [0, 8])
def test_the_gpu_predicts_as_the_cpu(expert_channels):
    model, picture = tiny_model(expert_channels), image(300, 200)
    expected = model.predict_tasks(picture, list(TASKS))
    found = model.cuda().predict_tasks(picture, list(TASKS))
    for task in TASKS:
        assert found[task].is_cuda
        assert_nearly_equal(found[task].cpu(), expected[task])
