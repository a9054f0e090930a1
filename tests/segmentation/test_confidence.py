"""Formulas of distribution alignment and thresholds, written out on tensors small enough to follow."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from s5.segmentation.methods.confidence import (
    THRESHOLDS,
    DistributionAlignment,
    FlexMatch,
    FreeMatch,
    RunningMean,
    SoftMatch,
)
from s5.segmentation.methods.fixmatch import FixMatch
from tests.helpers.processes import start_ranks
from tests.segmentation.test_fixmatch import CLASSES, SIZE, make_batch, make_model, step, train

DONE, SKIPPED = torch.tensor(False), torch.tensor(True)
PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.98, 0.01, 0.01], [0.03, 0.96, 0.01], [0.3, 0.3, 0.4]])
VALID = torch.ones(1, 1, 4, dtype=torch.bool)


def commit(module: torch.nn.Module) -> None:
    """End a step that was not skipped."""
    for mean in module.children():
        mean.commit(DONE)


def pixels(probabilities: Tensor) -> Tensor:
    """Logits (1, K, 1, N) with these probabilities (N, K)."""
    return probabilities.log().T[None, :, None]


def test_running_mean_starts_with_the_first_step_and_then_moves_by_its_momentum() -> None:
    mean = RunningMean(torch.tensor([0.5]), 0.6)
    for value in (1.0, 0.0, 0.0):
        mean.observe(torch.tensor([3 * value]), torch.tensor(3))
        mean.commit(DONE)
    assert mean.value.item() == pytest.approx(0.6 * 0.5)  # 1, then the mean of 1 and 0, then the momentum


def test_running_mean_ignores_what_is_no_number_skipped_steps_and_steps_without_pixels() -> None:
    mean = RunningMean(torch.tensor([0.5]), 0.9)
    for value, count, skipped in ((torch.nan, 2, DONE), (4.0, 2, SKIPPED), (0.0, 0, DONE)):
        mean.observe(torch.tensor([value]), torch.tensor(count))
        mean.commit(skipped)
        assert mean.value.item() == 0.5 and mean.steps == 0
    mean.observe(torch.tensor([4.0]), torch.tensor(2))
    mean.commit(DONE)
    assert mean.value.item() == 2


def test_alignment_scales_by_labels_over_predictions_and_normalises() -> None:
    alignment = DistributionAlignment(3, momentum=0.9)
    labels = torch.tensor([10, 30, 60])
    alignment.observe(pixels(PROBABILITIES), VALID, labels)
    expected = PROBABILITIES * (labels / 100) / PROBABILITIES.mean(0)
    expected /= expected.sum(1, keepdim=True)
    aligned = alignment(pixels(PROBABILITIES)).softmax(1)[0, :, 0].T
    torch.testing.assert_close(aligned, expected)


OTHERS = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.85, 0.05], [0.25, 0.15, 0.6], [0.05, 0.05, 0.9]])


def test_alignment_divides_by_the_mean_of_all_steps() -> None:
    """Not the mean of the steps' ratios."""
    alignment = DistributionAlignment(3, momentum=0.9)
    for probabilities, labels in ((PROBABILITIES, [10, 30, 60]), (OTHERS, [50, 25, 25])):
        alignment.observe(pixels(probabilities), VALID, torch.tensor(labels))
        commit(alignment)
    labeled = torch.tensor([60, 55, 85]) / 200
    predicted = (PROBABILITIES.mean(0) + OTHERS.mean(0)) / 2
    expected = PROBABILITIES * labeled / predicted
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(alignment(pixels(PROBABILITIES)).softmax(1)[0, :, 0].T, expected)


def test_uniform_alignment_needs_no_labels() -> None:
    alignment = DistributionAlignment(3, momentum=0.9, uniform=True)
    alignment.observe(pixels(PROBABILITIES), VALID, torch.tensor([100, 0, 0]))
    expected = PROBABILITIES / PROBABILITIES.mean(0)
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(alignment(pixels(PROBABILITIES)).softmax(1)[0, :, 0].T, expected)


def test_padding_counts_nowhere() -> None:
    valid = torch.tensor([[[True, True, False, False]]])
    alignment, free = DistributionAlignment(3, 0.9), FreeMatch(3, 0.95, 0.0)
    alignment.observe(pixels(PROBABILITIES), valid, torch.tensor([1, 1, 1]))
    torch.testing.assert_close(alignment.predicted.current, PROBABILITIES[:2].mean(0))
    free.observe(pixels(PROBABILITIES), valid)
    torch.testing.assert_close(free.means.current[-1], torch.tensor((0.7 + 0.98) / 2))


def test_flexmatch_lowers_the_threshold_of_classes_with_few_confident_pixels() -> None:
    flex = FlexMatch(3, 0.95, momentum=0.5)
    assert flex.by_class().tolist() == [0, 0, 0]
    many = torch.cat([PROBABILITIES[1:3], PROBABILITIES[1:2]])  # confident in classes 0, 1 and 0
    flex.observe(pixels(many), VALID[..., :3])
    beta = torch.tensor([1.0, 0.5, 0.0])
    torch.testing.assert_close(flex.by_class(), 0.95 * beta / (2 - beta))
    weights = flex.weights(torch.tensor([0, 1, 2]), torch.tensor([0.94, 0.4, 0.34]))
    assert weights.tolist() == [False, True, True]


def test_flexmatch_starts_low_while_few_pixels_are_confident() -> None:
    """The denominator is the share of pixels that are not confident as long as it is the larger one."""
    flex = FlexMatch(3, 0.95, momentum=0.0)
    flex.observe(pixels(PROBABILITIES), VALID)  # one of four confident in class 0, one in class 1
    beta = 0.25 / 0.5
    torch.testing.assert_close(flex.by_class(), 0.95 * torch.tensor([beta, beta, 0]) / (2 - beta))


def test_freematch_multiplies_global_and_local_thresholds() -> None:
    free = FreeMatch(3, 0.95, momentum=0.8)
    free.observe(pixels(PROBABILITIES), VALID)
    overall, local = PROBABILITIES.amax(1).mean(), PROBABILITIES.mean(0)
    expected = local / local.max() * overall
    torch.testing.assert_close(free.by_class(), expected)
    weights = free.weights(torch.tensor([0, 2]), expected[[0, 2]] + torch.tensor([0.0, -1e-3]))
    assert weights.tolist() == [True, False]


def test_softmatch_weights_are_a_truncated_gaussian() -> None:
    soft = SoftMatch(3, 0.95, momentum=0.75)
    confidence = PROBABILITIES.amax(1)
    soft.observe(pixels(PROBABILITIES), VALID)
    mean, variance = confidence.mean().item(), confidence.var(unbiased=False).item()
    weights = soft.weights(torch.zeros(3, dtype=torch.int64), torch.tensor([mean - 0.3, mean, 0.99]))
    expected = [math.exp(-(0.3**2) / (2 * variance)), 1, 1]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert soft.by_class().tolist() == pytest.approx([mean] * 3)


def test_thresholds_of_two_steps() -> None:
    """FreeMatch has a ratio of running means, SoftMatch a running mean of variances."""
    free, soft = FreeMatch(3, 0.95, momentum=0.9), SoftMatch(3, 0.95, momentum=0.9)
    for probabilities in (PROBABILITIES, OTHERS):
        for threshold in (free, soft):
            threshold.observe(pixels(probabilities), VALID)
            commit(threshold)
    local = (PROBABILITIES.mean(0) + OTHERS.mean(0)) / 2
    first, second = PROBABILITIES.amax(1), OTHERS.amax(1)
    mean = (first.mean() + second.mean()) / 2
    torch.testing.assert_close(free.by_class(), local / local.max() * mean)
    variance = (first.var(unbiased=False) + second.var(unbiased=False)) / 2
    (weight,) = soft.weights(torch.tensor([0]), mean.reshape(1) - 0.2)
    assert weight.item() == pytest.approx(math.exp(-(0.2**2) / (2 * variance.item())), rel=1e-4)


def test_pseudo_labels_and_thresholds_are_those_of_aligned_predictions() -> None:
    model = make_model(threshold="freematch", alignment="labels", momentum=0.9).train()
    images = make_batch()["images"][2:].float() / 255
    valid, labels = torch.ones(3, SIZE, SIZE, dtype=torch.bool), torch.tensor([900, 5, 5, 90])
    plain = model.weak_logits(images).softmax(1)
    view = model.weak_view(images, valid, None, labels)
    aligned = plain * (labels / 1000)[:, None, None] / plain.mean((0, 2, 3))[:, None, None]
    aligned /= aligned.sum(1, keepdim=True)
    confidence, pseudo = aligned.max(1)
    assert (pseudo != plain.argmax(1)).float().mean() > 0.3
    local = aligned.mean((0, 2, 3))
    thresholds = local / local.max() * confidence.mean()
    torch.testing.assert_close(model.threshold.by_class(), thresholds, rtol=1e-4, atol=1e-6)
    decided = (confidence - thresholds[pseudo]).abs() > 1e-5  # not by rounding
    assert torch.equal(view.pseudo[decided], pseudo[decided])
    assert torch.equal(view.weights[decided], (confidence >= thresholds[pseudo])[decided])
    assert 0 < view.weights.float().mean() < 1


def test_what_is_logged() -> None:
    values = {}
    for name in THRESHOLDS:
        threshold = THRESHOLDS[name](3, 0.95, 0.9)
        threshold.observe(pixels(PROBABILITIES), VALID)
        values[name] = threshold.scalars(["a", "b", "c"])
        if name in ("flexmatch", "freematch"):
            expected = dict(zip("abc", threshold.by_class().tolist(), strict=True))
            assert values[name] == {f"threshold/{key}": value for key, value in expected.items()}
            assert len({*values[name].values()}) > 1
    assert values["fixed"] == {}
    mean = PROBABILITIES.amax(1).mean().item()
    assert values["softmatch"] == {"threshold/mean_confidence": pytest.approx(mean)}


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("alignment", ["none", "labels", "uniform"])
def test_options_train_together(threshold: str, alignment: str) -> None:
    model = make_model(
        threshold=threshold,
        alignment=alignment,
        conf_thresh=0.2,
        momentum=0.5,
        feature_dropout=0.5,
        pseudo_labels="ema",
    ).train()
    before = {name: mean.value.clone() for name, mean in means(model).items()}
    for _ in range(3):
        losses = step(model, make_batch(views=2))
        losses["loss"].backward()
        model.after_step(DONE)
    assert all(torch.isfinite(value) for value in losses.values()) and losses["loss_u"] > 0
    assert len(before) == (alignment != "none") + (alignment == "labels") + (threshold != "fixed")
    for name, mean in means(model).items():
        assert mean.steps == 3 and not torch.equal(mean.value, before[name])
    assert model.threshold.by_class().shape == (CLASSES,)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def means(model: FixMatch) -> dict[str, RunningMean]:
    return {name: module for name, module in model.named_modules() if isinstance(module, RunningMean)}


def test_weak_views_that_overflow_do_not_spoil_the_statistics() -> None:
    model = make_model(threshold="freematch", alignment="labels", momentum=0.5).train()
    model.weak_logits = lambda images: torch.full((3, CLASSES, SIZE, SIZE), torch.nan)
    step(model, make_batch())
    model.after_step(DONE)
    assert all(mean.value.isfinite().all() for mean in means(model).values())


def test_a_preview_does_not_change_the_statistics() -> None:
    model = make_model(threshold="freematch", alignment="labels", momentum=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.preview(make_batch())
    model.after_step(DONE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_soft_weights_scale_the_loss_and_are_counted() -> None:
    model = make_model(threshold="softmatch", momentum=0.0).eval()
    batch = make_batch()
    batch["views"]["boxes"][:] = 0
    batch["views"]["photometric"][:] = torch.tensor([1.0, 1, 1, 0, 0, 0])
    losses = step(model, batch)
    logits = model.logits(batch["images"][2:].float() / 255)
    confidence, pseudo = logits.softmax(1).max(1)
    mean, variance = confidence.mean(), confidence.var(unbiased=False)
    weights = torch.exp(-((confidence - mean).clamp(max=0) ** 2) / (2 * variance))
    nll = torch.nn.functional.cross_entropy(logits, pseudo, reduction="none")
    torch.testing.assert_close(losses["loss_u"], (weights * nll).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["confident"].float(), weights.mean(), rtol=1e-4, atol=1e-6)
    model.after_step(DONE)
    assert model.class_counts is not None
    assert model.class_counts[0].sum().item() == pytest.approx(weights.sum().item(), rel=1e-4)
    assert model.class_counts[1].sum() == 2 * SIZE * SIZE


def test_warm_up_is_supervised_training_and_the_ramp_is_linear() -> None:
    model = make_model(conf_thresh=0.0, warmup_iters=2, ramp_iters=4, lambda_u=2.0)
    weights = []
    for model.iteration in range(8):
        weights.append(model.lambda_u)
    assert weights == [0, 0, 0.5, 1, 1.5, 2, 2, 2]
    model.iteration = 1
    alone = step(make_model().train(), make_batch(unlabeled=0))
    assert torch.equal(step(model.train(), make_batch())["loss"], alone["loss"])
    model.iteration = 2
    losses = step(model, make_batch())
    assert torch.equal(losses["loss"], (losses["loss_s"] + 0.5 * losses["loss_u"]) / 1.5)


def test_no_weight_is_supervised_training() -> None:
    """λ = 0 leaves the unlabeled images out of batch norm, too."""
    found = train(make_model(lambda_u=0.0).train(), 3 * [make_batch()]).segmentor.state_dict()
    alone = train(make_model().train(), 3 * [make_batch(unlabeled=0)]).segmentor.state_dict()
    assert all(torch.equal(found[name], alone[name]) for name in alone)


RANKS = """
import os, torch, torch.distributed as dist
from s5.segmentation.methods.confidence import THRESHOLDS, DistributionAlignment
from tests.segmentation.test_confidence import PROBABILITIES, VALID, pixels
dist.init_process_group("gloo")
part = slice(1) if os.environ["RANK"] == "0" else slice(1, None)
for name in ("flexmatch", "freematch", "softmatch"):
    whole, own = (THRESHOLDS[name](3, 0.95, 0.5) for _ in range(2))
    own.observe(pixels(PROBABILITIES[part]), VALID[..., part])
    initialized, dist.is_initialized = dist.is_initialized, lambda: False
    whole.observe(pixels(PROBABILITIES), VALID)
    dist.is_initialized = initialized
    for ours, theirs in zip(own.children(), whole.children(), strict=True):
        torch.testing.assert_close(ours.current, theirs.current)
logits, labels = pixels(PROBABILITIES), torch.tensor([5.0, 1.0, 2.0])
whole, own = (DistributionAlignment(3, 0.5) for _ in range(2))
own.observe(logits[..., part], VALID[..., part], labels if os.environ["RANK"] == "0" else 2 * labels.flip(0))
initialized, dist.is_initialized = dist.is_initialized, lambda: False
whole.observe(logits, VALID, labels + 2 * labels.flip(0))
dist.is_initialized = initialized
torch.testing.assert_close(own(logits), whole(logits))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_statistics_are_those_of_all_processes(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    for process in start_ranks(tmp_path / "ranks.py", [], tmp_path, 2):
        assert process.wait() == 0, process.text()
