"""FixMatch on a tiny network: the objective, its corner cases, and what never gets a gradient."""

import numpy as np
import pytest
import torch

from s5.backbones.vit import Variant
from s5.data.loaders import FixMatchCollate
from s5.ops.losses import pixel_cross_entropy, pseudo_label_loss
from s5.ops.photometric import to_unit
from s5.segmentation.methods.fixmatch import FixMatch, FixMatchSettings, View, evaluating
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.windows import Inference

SIZE, CLASSES = 32, 4
NOT_SKIPPED = torch.tensor(False)
TINY = Variant("tiny", width=32, depth=4, heads=2, out_blocks=(0, 1, 2, 3))


def make_model(dtype: torch.dtype | None = None, **settings) -> FixMatch:
    torch.manual_seed(0)
    segmentor = build_segmentor(TINY, {"s4p": CLASSES}, SIZE, channels=16)
    return FixMatch(segmentor, {"s4p": Inference()}, dtype, FixMatchSettings(**settings))


def make_batch(labeled: int = 2, unlabeled: int = 3, views: int = 1, padding: bool = False) -> dict:
    rng = np.random.default_rng(0)
    samples = [
        {
            "image": rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
            "label": rng.integers(0, CLASSES, (SIZE, SIZE), dtype=np.uint8),
            "name": f"labeled{i}.png",
        }
        for i in range(labeled)
    ]
    samples += [
        {
            "image": rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8),
            "padding": np.full((SIZE, SIZE), 255 * padding, np.uint8),
            "photometric": np.tile(np.array([1.2, 0.9, 1.1, 0.05, 0, 0.5], np.float32), (views, 1)),
            "boxes": np.tile(np.array([4, 4, 20, 24]), (views, 1)),
            "name": f"unlabeled{i}.png",
            "source": 1,
            "position": i,
            "skipped": [],
        }
        for i in range(unlabeled)
    ]
    return FixMatchCollate(seed=0)(samples)


def step(model: FixMatch, batch: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return model(**batch, mode="loss")


def test_loss_is_the_weighted_mean_of_both() -> None:
    batch = make_batch()
    for lambda_u in (1.0, 0.25):
        losses = step(make_model(conf_thresh=0.0, lambda_u=lambda_u).train(), batch)
        expected = (losses["loss_s"] + lambda_u * losses["loss_u"]) / (1 + lambda_u)
        assert torch.equal(losses["loss"], expected)
        assert losses["loss_u"] > 0
        assert losses["confident"] == 1


def test_unlabeled_loss_equals_the_objective_written_out() -> None:
    """Eq. 5-7 with plain operations: eval-mode pseudo-labels, CutMix by slicing, mean over valid pixels."""
    model = make_model(
        conf_thresh=0.3
    ).eval()  # eval: no dropout, so that both computations see the same network
    batch = make_batch()
    batch["views"]["photometric"][:] = torch.tensor([1.0, 1, 1, 0, 0, 0])
    losses = step(model, batch)
    weak = batch["images"][2:].float() / 255
    probability, pseudo = model.logits(weak).softmax(1).max(1)
    partner = batch["views"]["partner"][0]
    assert (partner != torch.arange(3)).all()
    strong = weak.clone()
    strong[:, :, 4:24, 4:20] = weak[partner][:, :, 4:24, 4:20]
    pseudo, probability = pseudo.clone(), probability.clone()
    pseudo[:, 4:24, 4:20] = pseudo[partner][:, 4:24, 4:20]
    probability[:, 4:24, 4:20] = probability[partner][:, 4:24, 4:20]
    cross_entropy = torch.nn.functional.cross_entropy(model.logits(strong), pseudo, reduction="none")
    confident = probability >= 0.3
    assert 0 < confident.float().mean() < 1
    torch.testing.assert_close(losses["loss_u"], (cross_entropy * confident).mean(), rtol=1e-4, atol=1e-6)


def test_pixels_without_data_count_nowhere_also_when_they_are_pasted() -> None:
    """The loss is a mean over the valid pixels of the mixed images; what a class gets there has no effect."""
    model = make_model(conf_thresh=0.0).eval()
    batch = make_batch()
    batch["views"]["photometric"][:] = torch.tensor([1.0, 1, 1, 0, 0, 0])
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    batch["padding"][0] = rows + columns > 40  # reaches into the box that another image gets
    batch["padding"][1] = columns < 6
    losses = step(model, batch)
    weak = batch["images"][2:].float() / 255
    pseudo = model.logits(weak).argmax(1)
    partner, valid = batch["views"]["partner"][0], ~batch["padding"]
    box = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    box[4:24, 4:20] = True
    mixed = torch.where(box, weak[partner], weak)
    pseudo, mixed_valid = torch.where(box, pseudo[partner], pseudo), torch.where(box, valid[partner], valid)
    assert not torch.equal(mixed_valid, valid)
    cross_entropy = torch.nn.functional.cross_entropy(model.logits(mixed), pseudo, reduction="none")
    torch.testing.assert_close(losses["loss_u"], cross_entropy[mixed_valid].mean(), rtol=1e-4, atol=1e-6)
    model.after_step(skipped=torch.tensor(False))
    assert model.class_counts is not None and model.class_counts[0].sum() == valid.sum()


def test_a_pixel_at_the_threshold_is_confident() -> None:
    confidence = torch.tensor([[[0.25, 0.75, 1.0]]])
    confident = make_model(conf_thresh=0.75).weights(torch.zeros(1, 1, 3), confidence)
    assert confident.tolist() == [[[False, True, True]]]


def test_no_confident_and_no_valid_pixel_give_zero_not_nan() -> None:
    for batch, tau in ((make_batch(), 1.0), (make_batch(padding=True), 0.0)):
        model = make_model(conf_thresh=tau).train()
        losses = step(model, batch)
        assert losses["loss_u"] == 0
        assert losses["confident"] == 0
        losses["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_batch_with_only_ignored_labels_gives_zero() -> None:
    batch = make_batch()
    batch["labels"][:] = 255
    assert step(make_model().train(), batch)["loss_s"] == 0


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = make_model(conf_thresh=0.0).train()
    step(model, make_batch())["loss"].backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_pseudo_labels_do_not_touch_normalisation_statistics() -> None:
    model = make_model().train()
    before = {n: b.clone() for n, b in model.segmentor.named_buffers()}
    weak = make_batch()["images"][2:].float() / 255
    first = model.pseudo_labels(model.weak_logits(weak))
    second = model.pseudo_labels(model.weak_logits(weak))
    assert torch.equal(first[0], second[0])  # evaluation mode: no dropout
    assert all(torch.equal(before[n], b) for n, b in model.segmentor.named_buffers())
    assert all(module.training for module in model.segmentor.heads.modules())


def test_weak_pass_stores_nothing_for_backward() -> None:
    model = make_model()
    pseudo, conf = model.pseudo_labels(model.weak_logits(make_batch()["images"][2:].float() / 255))
    assert not conf.requires_grad and not pseudo.requires_grad
    assert conf.min() >= 1 / CLASSES - 1e-6 and conf.max() <= 1


def test_two_strong_views_average() -> None:
    model = make_model(conf_thresh=0.0).eval()
    batch = make_batch(views=2)
    batch["views"]["photometric"][1, :, 0] = 0.3  # the second view is much darker
    both = step(model, batch)["loss_u"]
    single = [
        step(model, batch | {"views": {name: draws[i : i + 1] for name, draws in batch["views"].items()}})
        for i in range(2)
    ]
    first, second = single[0]["loss_u"], single[1]["loss_u"]
    assert first != second
    torch.testing.assert_close(both, (first + second) / 2)


@pytest.mark.parametrize("settings", [{}, {"conf_thresh": 0.0}])
def test_stored_pseudo_labels_replace_predictions(settings: dict) -> None:
    model = make_model(pseudo_labels="stored", **settings).eval()
    batch = make_batch()
    batch["views"]["boxes"][:] = 0
    batch["stored"] = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    assert step(model, batch)["loss_u"] == 0
    batch["stored"][:, :16] = 2
    losses = step(model, batch)
    assert losses["loss_u"] > 0
    assert losses["confident"] == 0.5


def train(model: FixMatch, batches: list[dict]) -> FixMatch:
    """Take a step of plain gradient descent on each batch."""
    optimizer = torch.optim.SGD(model.segmentor.parameters(), 0.1)
    for model.iteration, batch in enumerate(batches):
        optimizer.zero_grad()
        step(model, batch)["loss"].backward()
        optimizer.step()
        model.after_step(NOT_SKIPPED)
    return model


def without_augmentation(batch: dict) -> dict:
    """The strong views are the weak ones."""
    batch["views"]["photometric"][:] = torch.tensor([1.0, 1, 1, 0, 0, 0])
    batch["views"]["boxes"][:] = 0
    return batch


def test_true_labels_as_pseudo_labels_are_supervised_training() -> None:
    """Of the unlabeled images, too: the bound of what pseudo-labels can give."""
    batch = without_augmentation(make_batch(labeled=2, unlabeled=2))
    truth = make_batch(labeled=4, unlabeled=0)["labels"][2:]
    supervised = {"images": batch["images"], "labels": torch.cat([batch["labels"], truth])}
    stored = train(make_model(pseudo_labels="stored").train(), 3 * [batch | {"stored": truth}])
    expected = train(make_model().train(), 3 * [supervised])
    assert_same_state(stored.segmentor, expected.segmentor)


def test_statistics_of_batch_norm_are_those_of_labeled_images_and_strong_views() -> None:
    batch = make_batch()
    labeled, weak = (batch["images"].float() / 255).tensor_split([2])
    model, expected, other = (make_model(conf_thresh=0.0).train() for _ in range(3))
    strong = model.strong_views(model.weak_view(weak, ~batch["padding"], None), batch["views"])[0].images
    for network, images in ((expected, strong), (other, weak)):
        torch.manual_seed(1)
        network.logits(torch.cat([labeled, images]))
    found, strong_ones, weak_ones = (
        {name: buffer for name, buffer in each.segmentor.named_buffers() if name.endswith("running_mean")}
        for each in (train(model, [batch]), expected, other)
    )
    assert found
    for name in found:
        torch.testing.assert_close(found[name], strong_ones[name], msg=name)
        assert not torch.allclose(found[name], weak_ones[name])


def test_channels_are_dropped_in_strong_views_alone() -> None:
    plain, dropped = (
        step(make_model(conf_thresh=0.0, feature_dropout=share).eval(), make_batch(views=2))
        for share in (0.0, 1.0)
    )
    assert torch.equal(plain["loss_s"], dropped["loss_s"])
    assert plain["loss_u"] != dropped["loss_u"]


def test_the_features_of_strong_views_are_dropped_in_complementary_pairs() -> None:
    """The first view of an image keeps the channels that its second view loses."""
    model = make_model(conf_thresh=0.0, feature_dropout=1.0).eval()
    batch = make_batch(views=2)
    batch["views"]["photometric"][:] = torch.tensor([1.0, 1, 1, 0, 0, 0])
    batch["views"]["boxes"][:] = 0  # so that both views of an image are equal
    seen = []
    head = model.segmentor.heads["s4p"]
    handle = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(model, batch)
    handle.remove()
    for level in seen[-1]:
        assert len(level) == 2 + 2 * 3
        first, second = level[2:5], level[5:8]
        used = first.abs().sum((2, 3)) > 0, second.abs().sum((2, 3)) > 0
        assert not (used[0] & used[1]).any() and used[0].any() and used[1].any()


def test_published_fixmatch_is_computed_bit_for_bit() -> None:
    """The defaults, written out without the options: the same losses, gradients and random numbers."""
    batch = make_batch()
    ours, plain = (make_model(conf_thresh=0.3).train() for _ in range(2))
    losses = step(ours, batch)
    losses["loss"].backward()
    after = torch.rand(())
    torch.manual_seed(1)
    labeled, weak = to_unit(batch["images"]).tensor_split([2])
    with torch.no_grad(), evaluating(plain.segmentor):
        logits = plain.logits(weak)
        best, pseudo = logits.max(1)
        confident = torch.exp(best - logits.logsumexp(1)) >= 0.3
    view = View(weak, pseudo, confident, ~batch["padding"])
    (strong,) = plain.strong_views(view, batch["views"])
    predicted, student = plain.logits(torch.cat([labeled, strong.images])).tensor_split([2])
    loss_s = pixel_cross_entropy(predicted, batch["labels"].long())
    loss_u = pseudo_label_loss(student, strong.pseudo, strong.weights, strong.valid)
    loss = (loss_s + loss_u) / 2
    loss.backward()
    assert torch.equal(losses["loss"], loss) and torch.equal(losses["loss_u"], loss_u) and loss_u > 0
    assert torch.equal(after, torch.rand(()))
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def assert_same_state(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, msg=name)


def test_ema_teacher_labels_and_follows() -> None:
    model = make_model(pseudo_labels="ema", ema_decay=0.6).train()
    network = model.teacher.network
    expected = network.heads["s4p"].classifier.weight.clone()
    for decay in (1 - 1 / 2, 0.6, 0.6):  # min(1 - 1 / (step + 1), 0.6)
        with torch.no_grad():
            for tensor in (*model.segmentor.parameters(), *model.segmentor.buffers()):
                tensor.add_(1)
        model.after_step(NOT_SKIPPED)
        expected = decay * expected + (1 - decay) * model.segmentor.heads["s4p"].classifier.weight
        torch.testing.assert_close(network.heads["s4p"].classifier.weight, expected)
    for copied, buffer in zip(network.buffers(), model.segmentor.buffers(), strict=True):
        assert torch.equal(copied, buffer)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())


def test_histogram_counts_confident_valid_pixels() -> None:
    model = make_model(conf_thresh=0.0).eval()
    batch = make_batch()
    batch["labels"][0] = 255
    batch["labels"][1] = 2
    for _ in range(2):
        step(model, batch)
        model.after_step(NOT_SKIPPED)
    assert model.class_counts[0].sum() == 2 * 3 * SIZE * SIZE
    assert model.class_counts[1].tolist() == [0, 0, 2 * SIZE * SIZE, 0]
    step(model, batch)
    model.after_step(~NOT_SKIPPED)
    assert model.class_counts[0].sum() == 2 * 3 * SIZE * SIZE


def test_supervised_steps_have_no_histogram() -> None:
    model = make_model()
    step(model, make_batch(unlabeled=0))
    model.after_step(NOT_SKIPPED)
    assert model.class_counts is None


def test_supervised_only_batch() -> None:
    batch = make_batch(unlabeled=0)
    losses = step(make_model().train(), batch)
    assert set(losses) == {"loss", "loss_s"}
    assert torch.equal(losses["loss"], losses["loss_s"])


def test_single_unlabeled_image_is_not_pasted_into_itself() -> None:
    assert make_batch(unlabeled=1)["views"]["boxes"].sum() == 0


def test_pseudo_labels_in_float32_beside_bf16() -> None:
    """Those of a model in float32 to the bit, while the trained pass stays in bf16."""
    weak = make_batch()["images"][2:].float() / 255
    model = make_model()
    exact = model.pseudo_labels(model.weak_logits(weak))
    for option, equal in ((True, True), (False, False)):
        model = make_model(dtype=torch.bfloat16, float32_labels=option)
        pseudo, conf = model.pseudo_labels(model.weak_logits(weak))
        assert torch.equal(conf, exact[1]) == equal
        assert not equal or torch.equal(pseudo, exact[0])
    strong = make_model(conf_thresh=0.0, dtype=torch.bfloat16, float32_labels=True).eval()
    plain = make_model(conf_thresh=0.0).eval()
    assert step(strong, make_batch())["loss_s"] != step(plain, make_batch())["loss_s"]


def test_bf16_autocast_keeps_losses_in_float32() -> None:
    losses = step(make_model(conf_thresh=0.0, dtype=torch.bfloat16).train(), make_batch())
    assert losses["loss"].dtype == torch.float32
    assert torch.isfinite(losses["loss"])
