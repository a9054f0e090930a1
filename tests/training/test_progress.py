"""Which scalars of a step are logged, and how they are averaged."""

import math
from types import SimpleNamespace

import torch
from mmengine.logging import MessageHub

from s5.training.hooks.progress import StepLogProcessor, StepScalarsHook


def log_of(steps: list[dict], grad_norms: list[float]) -> dict[str, float]:
    """The record that is written after some steps."""
    hook = StepScalarsHook()
    hub = MessageHub(f"test_{id(hook)}")
    runner = SimpleNamespace(message_hub=hub, optim_wrapper=SimpleNamespace(), rank=0)
    for outputs, norm in zip(steps, grad_norms, strict=True):
        runner.optim_wrapper.grad_norm = torch.tensor(norm)
        hook.after_train_iter(runner, 0, None, outputs)
    processor = StepLogProcessor(hook, len(steps))
    hook.flush(runner)
    processor._set_mean_pattern()
    return processor._collect_scalars([], runner, "train")


def test_every_scalar_is_averaged_and_the_norm_is_not() -> None:
    steps = [
        {
            "loss": torch.tensor(1.0),
            "mask_ratio": torch.tensor([0.25]),
            "views": 2,
            "maps": torch.zeros(2, 2),
        },
        {
            "loss": torch.tensor(3.0),
            "mask_ratio": torch.tensor([0.75]),
            "views": 4,
            "maps": torch.zeros(2, 2),
        },
    ]
    expected = {"loss": 2.0, "mask_ratio": 0.5, "views": 3.0, "grad_norm": 7.0}
    assert log_of(steps, [5.0, 7.0]) == expected


def test_a_skipped_step_is_left_out_of_the_means() -> None:
    steps = [{"loss": torch.tensor(2.0), "share": 0.5}, {"loss": torch.tensor(math.nan), "share": math.inf}]
    log = log_of(steps, [1.0, math.inf])
    assert (log["loss"], log["share"], log["grad_norm"]) == (2.0, 0.5, math.inf)


def test_a_name_within_another_is_not_mistaken_for_it() -> None:
    log = log_of([{"lo.s": 1.0}, {"lo.s": 3.0}], [1.0, 2.0])
    assert log == {"lo.s": 2.0, "grad_norm": 2.0}
