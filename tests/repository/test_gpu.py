"""What only a GPU can show: equal results on both devices, and no waiting for the device inside a step."""

import pytest
import torch

from s5.detection.network import DetectionModel, build_detector
from s5.segmentation.methods.fixmatch import FixMatch
from s5.training.guarded_step import GuardedOptimWrapper
from s5.training.optim import build_optim_wrapper, param_groups
from tests.backbones.test_compile import build as build_vit
from tests.backbones.test_compile import run as run_vit
from tests.compat.test_attention import check_attention
from tests.detection.test_detector import SETTINGS, SIZE
from tests.detection.test_detector import batch as det_batch
from tests.helpers.detector_stages import build_images, build_model, compare, run_stages
from tests.segmentation.test_fixmatch import make_batch, make_model, step

pytestmark = pytest.mark.gpu


def on_gpu(batch: dict) -> dict:
    return {
        name: on_gpu(value) if isinstance(value, dict) else value.cuda() if torch.is_tensor(value) else value
        for name, value in batch.items()
    }


def test_step_equals_the_cpu_step() -> None:
    batch = make_batch()
    on_cpu = step(make_model(conf_thresh=0.0).eval(), batch)
    ours = step(make_model(conf_thresh=0.0).eval().cuda(), on_gpu(batch))
    for name, value in on_cpu.items():
        torch.testing.assert_close(ours[name].cpu(), value, rtol=1e-3, atol=1e-4)


def test_bf16_is_close_to_float32() -> None:
    """Logits as well: the loss of a new network is nearly the same whatever it computes."""
    batch = on_gpu(make_batch())
    logits, losses = [], []
    for dtype in (None, torch.bfloat16):
        model = make_model(conf_thresh=0.0, dtype=dtype).eval().cuda()
        model.segmentor.heads["s4p"].classifier.weight.data *= 30
        logits.append(model.logits(batch["images"].float() / 255))
        losses.append(step(model, batch))
    exact, rounded = logits
    assert (rounded - exact).abs().max() < 0.05 * exact.std()
    for name in ("loss_s", "loss_u"):
        torch.testing.assert_close(losses[1][name], losses[0][name], rtol=0.05, atol=0.05)


def test_views_and_losses_do_not_synchronise_the_device() -> None:
    model = make_model(conf_thresh=0.3, dtype=torch.bfloat16).train().cuda()
    batch = on_gpu(make_batch())
    step(model, batch)["loss"].backward()  # first use of kernels may synchronise
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [64, 128, 192, 1024])
def test_attention_has_the_right_gradients_where_all_scores_are_very_low(
    length: int, dtype: torch.dtype
) -> None:
    """cuDNN gives NaN for 64 and 192 tokens; ``S5_CUDNN_ATTENTION=on`` shows whether it still does."""
    check_attention("cuda", length, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_give_the_results_of_eager(dtype: torch.dtype) -> None:
    """Feature maps and gradients; the same paths are dropped."""
    results = []
    for backend in (None, "inductor"):
        vit = build_vit(moe=True, backend=backend).train().cuda()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
            results.append([part.float() for part in run_vit(vit, (2, 3, 2))])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).norm() < 0.1 * expected.norm()
    eager, compiled = (torch.cat([part.flatten() for part in parts]) for parts in results)
    assert (compiled - eager).norm() < (0.05 if dtype == torch.bfloat16 else 0.001) * eager.norm()


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_fp16_with_loss_scaling_trains(clip_grad: float | None) -> None:
    """Steps are skipped until the scale of the loss fits; it is part of what is resumed from."""
    model = make_model(conf_thresh=0.0, dtype=torch.float16).train().cuda()
    batch, parameters = on_gpu(make_batch()), [p for p in model.parameters() if p.requires_grad]
    wrapper = fp16_wrapper(model, clip_grad)
    before = [parameter.detach().clone() for parameter in parameters]
    for _ in range(12):
        with wrapper.optim_context(model):
            loss = step(model, batch)["loss"]
        assert loss.dtype == torch.float32
        wrapper.update_params(loss)
    assert all(parameter.isfinite().all() for parameter in parameters)
    changed = [bool((new != old).any()) for new, old in zip(parameters, before, strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    wrapper.loss_scaler.update(2.0**9)
    again = fp16_wrapper(model, clip_grad)
    again.load_state_dict(wrapper.state_dict())
    assert again.loss_scaler.get_scale() == 2.0**9


def fp16_wrapper(model: FixMatch, clip_grad: float | None) -> GuardedOptimWrapper:
    groups = param_groups(model.segmentor, 1e-3, 0.01)
    return build_optim_wrapper(groups, 1e-3, (0.9, 0.999), torch.float16, clip_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_whole_steps_do_not_wait_and_faults_leave_no_trace(
    dtype: torch.dtype, clip_grad: float | None
) -> None:
    """With a teacher; a skipped step does not wait either."""
    model = make_model(conf_thresh=0.3, pseudo_labels="ema", ema_decay=0.9, dtype=dtype).train().cuda()
    groups = param_groups(model.segmentor, 1e-3, 0.01)
    wrapper, batch = build_optim_wrapper(groups, 1e-3, (0.9, 0.999), dtype, clip_grad), on_gpu(make_batch())

    def train(factor: float) -> None:
        with wrapper.optim_context(model):
            loss = step(model, batch)["loss"]
        wrapper.update_params(loss * factor)

    for _ in range(12):  # first use of kernels may synchronise, and the loss scaler finds its scale
        train(1.0)
    assert not wrapper.report.read().fault
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(float("nan"))
        after = {name: value.clone() for name, value in model.state_dict().items()}
        faulty = wrapper.report
        train(1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert faulty.read().fault and not wrapper.report.read().fault
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(after[name], value) for name, value in model.state_dict().items())


# Detection


def detector(dtype: torch.dtype | None = None) -> DetectionModel:
    torch.manual_seed(0)
    network = build_detector("vit_t", {"one": 3, "other": 2}, SIZE, expert_channels=48, settings=SETTINGS)
    for head in network.heads.values():  # so that scores differ between places
        head.roi_head.bbox_head.fc_cls.weight.data *= 30
        head.rpn_head.rpn_cls.weight.data *= 30
    return DetectionModel(network, dtype).to(memory_format=torch.channels_last)


def objects() -> dict:
    given = det_batch()
    return {**given, "labels": [torch.zeros(len(boxes), dtype=torch.long) for boxes in given["boxes"]]}


def test_the_detector_computes_what_it_computes_on_the_cpu() -> None:
    model, images = build_model(), build_images()
    expected = run_stages(model, images)
    compare(run_stages(model.cuda(), images.cuda(), expected), expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_detector_trains(dtype: torch.dtype | None) -> None:
    """Every weight gets a finite gradient, also with an image without objects and ignored ones."""
    model = detector(dtype).train().cuda()
    given = objects()
    losses = model(counts={"one": 1, "other": 2}, mode="loss", **{**given, "images": given["images"].cuda()})
    assert losses["loss"].dtype == torch.float32 and losses["loss"].isfinite()
    losses["loss"].backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained)
