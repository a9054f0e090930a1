"""The optimizer step: equal to a plain one where all is finite, and without effect where anything is not."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from s5.segmentation.methods.fixmatch import FixMatch
from s5.training.guarded_step import GuardedOptimWrapper
from s5.training.optim import build_optim_wrapper, param_groups
from tests.segmentation.test_fixmatch import make_batch, make_model, step

LR, DECAY, BETAS = 1e-3, 0.01, (0.9, 0.999)
Break = Callable[[FixMatch, Tensor], Tensor]


def parts(clip_grad: float | None = None, scaler: bool = False) -> tuple[FixMatch, GuardedOptimWrapper]:
    model = make_model(conf_thresh=0.3, pseudo_labels="ema", ema_decay=0.6).train()
    wrapper = build_optim_wrapper(param_groups(model.segmentor, LR, DECAY), LR, BETAS, None, clip_grad)
    if scaler:
        wrapper.loss_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    return model, wrapper


def train(model: FixMatch, wrapper: OptimWrapper, number: int, breaking: Break | None = None) -> None:
    """One step; its data depends on ``number`` alone."""
    batch = make_batch()
    batch["images"] = (batch["images"].int() + 29 * number).to(torch.uint8)
    with wrapper.optim_context(model):
        loss = step(model, batch)["loss"]
        if breaking is not None:
            loss = breaking(model, loss)
    wrapper.update_params(loss)


def state(model: FixMatch, wrapper: OptimWrapper) -> dict[str, Tensor]:
    """Everything that the next step depends on."""
    tensors = dict(model.state_dict())
    for i, of_weight in wrapper.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in of_weight.items()}
    if model.class_counts is not None:
        tensors["counts"] = model.class_counts
    return copy.deepcopy(tensors)


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def nan_loss(model: FixMatch, loss: Tensor) -> Tensor:
    return loss * torch.nan


def infinite_loss_of_finite_gradient(model: FixMatch, loss: Tensor) -> Tensor:
    return loss + torch.inf


def nan_gradient_of_finite_loss(model: FixMatch, loss: Tensor) -> Tensor:
    return loss + (model.segmentor.backbone.pos_embed * 0).sum().sqrt()


def infinite_gradient_of_one_weight(model: FixMatch, loss: Tensor) -> Tensor:
    bias = model.segmentor.heads["s4p"].classifier.bias
    bias.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    return loss


def infinite_statistics(model: FixMatch, loss: Tensor) -> Tensor:
    next(b for n, b in model.segmentor.named_buffers() if n.endswith("running_var")).data.fill_(torch.inf)
    return loss


FAULTS = [
    nan_loss,
    infinite_loss_of_finite_gradient,
    nan_gradient_of_finite_loss,
    infinite_gradient_of_one_weight,
    infinite_statistics,
]


@pytest.mark.parametrize("clip_grad", [None, 0.05])
def test_finite_steps_equal_plain_ones_bit_for_bit(clip_grad: float | None) -> None:
    """Those of mmengine's wrapper, with a teacher whose decay is computed on the host."""
    ours, wrapper = parts(clip_grad)
    theirs, _ = parts()
    groups = param_groups(theirs.segmentor, LR, DECAY)
    clip = None if clip_grad is None else {"max_norm": clip_grad}
    plain = OptimWrapper(torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True), clip_grad=clip)
    teacher = theirs.teacher.network
    for number in range(1, 5):
        train(ours, wrapper, number)
        train(theirs, plain, number)
        weight = 1 - min(1 - 1 / (number + 1), 0.6)
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(theirs.segmentor.parameters()), weight)
            for buffer, other in zip(teacher.buffers(), theirs.segmentor.buffers(), strict=True):
                buffer.copy_(other)
        theirs.teacher.step += 1
        found = state(ours, wrapper)
        assert found.pop("counts").sum() > 0
        assert_equal(found, state(theirs, plain))


@pytest.mark.parametrize("clip_grad", [None, 0.05])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_leaves_everything_as_it_was(fault: Break, clip_grad: float | None) -> None:
    model, wrapper = parts(clip_grad)
    train(model, wrapper, 1)
    before = state(model, wrapper)
    for number in (2, 3):
        train(model, wrapper, number, fault)
        assert_equal(state(model, wrapper), before)
        outcome = wrapper.report.read()
        assert outcome.fault
        assert outcome.own_fault == (
            fault not in (nan_gradient_of_finite_loss, infinite_gradient_of_one_weight)
        )


def test_training_after_a_fault_is_as_if_it_had_never_been() -> None:
    (model, wrapper), (other, undisturbed) = parts(), parts()
    for number, fault in ((1, None), (8, nan_loss), (2, None), (9, nan_gradient_of_finite_loss), (3, None)):
        train(model, wrapper, number, fault)
        assert wrapper.report.read().fault == (fault is not None)
    for number in (1, 2, 3):
        train(other, undisturbed, number)
    assert_equal(state(model, wrapper), state(other, undisturbed))


def test_a_fault_in_the_very_first_step() -> None:
    model, wrapper = parts()
    before = copy.deepcopy(model.state_dict())
    train(model, wrapper, 1, nan_loss)
    assert_equal(dict(model.state_dict()), before)
    assert model.class_counts.sum() == 0
    train(model, wrapper, 1)
    other, undisturbed = parts()
    train(other, undisturbed, 1)
    assert_equal(state(model, wrapper), state(other, undisturbed))


def test_report_carries_loss_norm_and_signal() -> None:
    model, wrapper = parts()
    wrapper.stop_request = lambda: 15
    with wrapper.optim_context(model):
        loss = step(model, make_batch())["loss"]
    wrapper.update_params(loss)
    outcome = wrapper.report.read()
    assert outcome == (False, 15, False, loss.item(), 1.0)
    assert wrapper.grad_norm > 0


# With a loss scaler


def scale_of(wrapper: GuardedOptimWrapper) -> float:
    assert wrapper.loss_scaler is not None
    assert wrapper.report.read().scale == wrapper.loss_scaler.get_scale()
    return wrapper.loss_scaler.get_scale()


def test_overflow_of_scaled_gradients_is_no_fault() -> None:
    """The step is skipped, the scale halved; then it grows after two steps."""
    model, wrapper = parts(scaler=True)
    train(model, wrapper, 1)
    before = state(model, wrapper)
    train(model, wrapper, 2, nan_gradient_of_finite_loss)
    assert not wrapper.report.read().fault
    assert_equal(state(model, wrapper), before)
    assert scale_of(wrapper) == 2.0**9
    for number in (2, 3):
        train(model, wrapper, number)
    assert scale_of(wrapper) == 2.0**10
    assert not torch.equal(
        state(model, wrapper)["segmentor.backbone.pos_embed"], before["segmentor.backbone.pos_embed"]
    )


@pytest.mark.parametrize("fault", [nan_loss, infinite_loss_of_finite_gradient])
def test_a_loss_that_is_not_finite_does_not_touch_the_scale(fault: Break) -> None:
    model, wrapper = parts(scaler=True)
    train(model, wrapper, 1)  # the next one lets the scale grow
    before, scaler = state(model, wrapper), wrapper.loss_scaler.state_dict()
    train(model, wrapper, 2, fault)
    assert wrapper.report.read().fault
    assert_equal(state(model, wrapper), before)
    assert wrapper.loss_scaler.state_dict() == scaler


@pytest.mark.parametrize("clip_grad", [None, 0.05])
def test_scaled_steps_equal_those_of_the_scaler_alone(clip_grad: float | None) -> None:
    model, wrapper = parts(clip_grad, scaler=True)
    other, _ = parts()
    optimizer = torch.optim.AdamW(param_groups(other.segmentor, LR, DECAY), lr=LR, betas=BETAS, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for number in range(1, 4):
        train(model, wrapper, number)
        batch = make_batch()
        batch["images"] = (batch["images"].int() + 29 * number).to(torch.uint8)
        scaler.scale(step(other, batch)["loss"]).backward()
        if clip_grad is not None:
            scaler.unscale_(optimizer)
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, clip_grad)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        other.after_step(torch.tensor(False))
        assert_equal(dict(model.segmentor.state_dict()), dict(other.segmentor.state_dict()))
        assert scale_of(wrapper) == scaler.get_scale()


def test_state_of_the_scaler_is_saved() -> None:
    _, wrapper = parts(scaler=True)
    wrapper.loss_scaler.scale(torch.ones(1))
    wrapper.loss_scaler.update(8.0)
    saved = wrapper.state_dict()
    _, again = parts(scaler=True)
    again.load_state_dict(copy.deepcopy(saved))
    assert again.loss_scaler.get_scale() == 8.0
    _, unscaled = parts()
    unscaled.load_state_dict(copy.deepcopy(saved))
    assert "loss_scaler" not in unscaled.state_dict()


# Device synchronisation


def on_gpu(batch: dict) -> dict:
    return {
        k: on_gpu(v) if isinstance(v, dict) else v.to("cuda") if torch.is_tensor(v) else v
        for k, v in batch.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("clip_grad", [None, 0.05])
@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_step_on_a_gpu_reads_nothing_back(clip_grad: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of a GPU without contents: anything that needs a value on the host raises an error.

    Backward passes need a real device; random gradients take their part.
    """
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda: None))
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    model = make_model(torch.bfloat16, conf_thresh=0.3, pseudo_labels="ema", ema_decay=0.6).train()
    batch = make_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to("cuda")
        wrapper = build_optim_wrapper(param_groups(model.segmentor, LR, DECAY), LR, BETAS, None, clip_grad)

        def backward(loss: Tensor) -> None:
            for weight in model.parameters():
                weight.grad = torch.empty_like(weight) if weight.requires_grad else None

        monkeypatch.setattr(wrapper, "backward", backward)
        for _ in range(2):
            with wrapper.optim_context(model):
                loss = model(**on_gpu(batch), mode="loss")["loss"]
            wrapper.update_params(loss)
        assert loss.is_cuda and wrapper.grad_norm.is_cuda
        assert wrapper.report._values.device.type == "cpu"
        with pytest.raises(DataDependentOutputException):
            bool(wrapper.grad_norm.isfinite())
