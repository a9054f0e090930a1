"""python -m s5.doctor: the device, and training in small on it."""

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from s5.data import worker_pool as transport
from s5.doctor import device, training
from s5.segmentation.methods.fixmatch import FixMatch
from s5.training.guarded_step import GuardedOptimWrapper
from tests.helpers.doctor_checks import Usage, by_subject, only

# The device


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of an NVIDIA driver on a machine whose GPU PyTorch cannot use."""
    path = tmp_path / "version"
    path.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    monkeypatch.setattr(device, "DRIVER", path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def not_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 11040)", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", not_available)
    return path


def test_a_driver_that_is_too_old(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    finding = only(device.check_gpus, "auto")
    assert finding.level == "warning", "a CPU can train"
    assert "470.256.02" in finding.text and "CUDA 13.2" in finding.text and "too old" in finding.text
    assert finding.advice.startswith("update the driver, or install the PyTorch build")
    assert only(device.check_gpus, "cuda").level == "error"
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    finding = only(device.check_gpus, "auto")
    assert "built for CPUs only" in finding.text and finding.advice.startswith("install the PyTorch build")


def test_no_gpu_and_hidden_gpus(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = only(device.check_gpus, "auto")
    assert finding.level == "ok" and "CUDA_VISIBLE_DEVICES='' hides" in finding.text
    driver.unlink()
    monkeypatch.setenv("PATH", "")
    assert only(device.check_gpus, "cpu").level == "ok"
    assert "--device cpu" in only(device.check_gpus, "cuda").advice


def test_a_gpu_that_this_pytorch_has_no_kernels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    about = SimpleNamespace(name="Tesla K80", major=3, minor=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])

    def fails(_: int) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)
    finding = device._check_gpu(1)
    assert finding.level == "error" and finding.subject == "GPU 1"
    assert "Tesla K80, compute capability 3.7; this PyTorch is built for sm_75, sm_90" in finding.text
    assert "more" not in finding.text


def test_gradients_of_attention_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(device.check_attention, "cpu").level == "ok"
    attention = F.scaled_dot_product_attention

    def faulty(query: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return attention(query, *others) + (query - query.detach()).abs().sqrt()  # infinite slope, value 0

    monkeypatch.setattr(F, "scaled_dot_product_attention", faulty)
    finding = only(device.check_attention, "cpu")
    assert finding.level == "error" and "not finite" in finding.text and "fp32" in finding.advice


def test_operators_and_processes() -> None:
    assert only(device.check_operators, "cpu").level == "ok"
    assert by_subject(device.check_processes)["gloo (processes)"].level == "ok"
    assert not torch.distributed.is_initialized()


def test_processes_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to find interface for: [0.0.0.0]")

    monkeypatch.setattr(torch.distributed, "init_process_group", fails)
    finding = only(device.check_processes, "cpu")
    assert finding.level == "warning" and "GLOO_SOCKET_IFNAME" in finding.advice


# Training in small


def test_images_loader_programs_and_step() -> None:
    for check in (training.check_images, training.check_loader, training.check_programs, training.check_step):
        assert {finding.level for finding in check("cpu")} == {"ok"}, list(check("cpu"))


def test_a_step_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = FixMatch.loss
    monkeypatch.setattr(
        FixMatch, "loss", lambda *a, **k: {name: x * torch.nan for name, x in loss(*a, **k).items()}
    )
    finding = only(training.check_step, "cpu")
    assert finding.level == "error" and "not finite" in finding.text


def test_a_step_whose_gradients_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the optimizer skips, so that loss and weights stay finite."""
    backward = GuardedOptimWrapper.backward

    def spoiled(self: GuardedOptimWrapper, loss: torch.Tensor, **kwargs: object) -> None:
        backward(self, loss, **kwargs)
        for group in self.optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = weight.grad * torch.nan

    monkeypatch.setattr(GuardedOptimWrapper, "backward", spoiled)
    finding = only(training.check_step, "cpu")
    assert finding.level == "error" and "gradients are not finite" in finding.text


def test_a_wrong_choice_of_attention_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S5_CUDNN_ATTENTION", "yes")
    finding = only(device.check_attention, "cpu")
    assert finding.level == "error" and finding.advice == "unset S5_CUDNN_ATTENTION"


def test_batches_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(transport, "memfd_works", lambda: False)
    for module in (training, transport):
        monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 64 * 2**20))
    finding = only(training.check_loader, "cpu")
    assert finding.level == "warning" and "576 MiB" in finding.text and "--shm-size" in finding.advice
    monkeypatch.setattr(transport, "_folder", lambda: Path("/nowhere"))
    monkeypatch.setattr(transport, "SHARED_MEMORY", Path("/nowhere"))
    finding = only(training.check_loader, "cpu")
    assert finding.level == "error" and "data.workers=0" in finding.advice


@pytest.mark.gpu
def test_the_page_of_a_gpu() -> None:
    for check in (device.check_gpus, device.check_attention, device.check_operators, training.check_step):
        assert not [finding for finding in check("cuda") if finding.level == "error"]
    assert "allowed kernels: flash" in only(device.check_attention, "cuda").text
