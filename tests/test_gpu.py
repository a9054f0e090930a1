"""What only a GPU can show: equal results on both devices, and no waiting for the device inside a step."""

import pytest
import torch
from test_fixmatch import make_batch, make_model, step

from s5.engine.optim import build_optim_wrapper, param_groups

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


def test_bf16_step_is_close_to_float32() -> None:
    batch = on_gpu(make_batch())
    exact = step(make_model(conf_thresh=0.0).eval().cuda(), batch)
    rounded = step(make_model(conf_thresh=0.0, dtype=torch.bfloat16).eval().cuda(), batch)
    torch.testing.assert_close(rounded["loss_s"], exact["loss_s"], rtol=0.05, atol=0.05)


def test_views_and_losses_do_not_wait_for_the_device() -> None:
    model = make_model(conf_thresh=0.3, dtype=torch.bfloat16).train().cuda()
    batch = on_gpu(make_batch())
    step(model, batch)["loss"].backward()  # first use of kernels may synchronise
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch)["loss"].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_fp16_step_with_loss_scaling_gives_every_parameter_a_gradient() -> None:
    model = make_model(conf_thresh=0.0, dtype=torch.float16).train().cuda()
    wrapper = build_optim_wrapper(
        param_groups(model.segmentor, 1e-4, 0.01), 1e-4, (0.9, 0.999), torch.float16
    )
    with wrapper.optim_context(model):
        loss = step(model, on_gpu(make_batch()))["loss"]
    assert loss.dtype == torch.float32
    wrapper.loss_scaler.scale(loss).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
