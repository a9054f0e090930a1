"""Checks of the training device: GPUs and their driver, attention, operators, process groups."""

import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from s5.doctor import Finding, describe, ok
from s5.doctor.environment import GIB, SHARED_MEMORY

if TYPE_CHECKING:
    import torch

DRIVER = Path("/proc/driver/nvidia/version")
LITTLE_GPU_MEMORY = 4 * GIB
NCCL_SHARED_MEMORY = GIB  # what NVIDIA recommends for containers
ANOTHER_BUILD = "install the PyTorch build that fits, see https://pytorch.org/get-started/locally/"


def choose(chosen: str) -> "torch.device":
    """The device of a command with `--device chosen`."""
    import torch

    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(chosen)


def check_gpus(chosen: str) -> Iterator[Finding]:
    """Every GPU that PyTorch sees, or why it sees none."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if not torch.version.cuda and not torch.version.hip:
        build = "CPUs only"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if not available:
        yield _no_gpu(build, "; ".join(str(warning.message).splitlines()[0] for warning in said), chosen)
        return
    driver, cudnn = driver_version() or "unknown", torch.backends.cudnn.version()
    yield ok("driver", f"{driver}; torch is built for {build}, cuDNN {cudnn}")
    for index in range(torch.cuda.device_count()):
        yield _check_gpu(index)


def check_attention(chosen: str) -> Iterator[Finding]:
    """Allowed attention kernels, and their gradients where cuDNN's are wrong: 64 keys, low scores."""
    import torch
    import torch.nn.functional as F

    from s5.compat.attention import VARIABLE, BackendError, allowed_backends, choose_backends
    from s5.compat.precision import resolve_precision

    device = choose(chosen)
    try:
        choose_backends()  # as in every backbone
    except BackendError as error:
        yield Finding("error", "attention", str(error), f"unset {VARIABLE}")
        return
    allowed = allowed_backends()
    dtype = resolve_precision("auto", device) or torch.float32
    query = torch.full((2, 3, 64, 64), 4.0, device=device, dtype=dtype, requires_grad=True)
    key = torch.full_like(query, -4.0, requires_grad=True)  # a score is -4 * 4 * 64 / 8 = -128
    value = torch.ones_like(query, requires_grad=True)
    F.scaled_dot_product_attention(query, key, value).float().square().sum().backward()
    gradients = [tensor.grad for tensor in (query, key, value)]
    text = f"{str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        text += f"; allowed kernels: {', '.join(allowed)}"
    if all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
        yield ok("attention", text)
    else:
        advice = "training would end in NaN: report this page, and train with precision=fp32 until then"
        if "cuDNN" in allowed:
            advice = f"training would end in NaN: unset {VARIABLE}, which allows cuDNN's attention"
        yield Finding("error", "attention", f"{text}; gradients are not finite", advice)


def check_operators(chosen: str) -> Iterator[Finding]:
    """The operators for oriented boxes, forward and backward."""
    import torch
    from mmcv.ops import RoIAlignRotated, nms_rotated

    from s5.compat import mmcv_ext

    device = choose(chosen)
    in_use = mmcv_ext.in_use()
    text = {"pure": "of S5, in PyTorch", "compiled": "compiled, of mmcv"}[in_use]
    try:
        mmcv_ext.require_device(device.type)
        boxes = torch.tensor([[8.0, 8, 6, 3, 0.5], [8, 8, 6, 3, 0.6], [20, 20, 4, 2, 0.1]], device=device)
        _, kept = nms_rotated(boxes, torch.tensor([0.5, 0.9, 0.1], device=device), 0.5)
        features = torch.ones(1, 2, 32, 32, device=device, requires_grad=True)
        rois = torch.cat((torch.zeros(3, 1, device=device), boxes), dim=1)
        RoIAlignRotated(2, 1.0)(features, rois).sum().backward()
    except Exception as error:
        advice = f"set {mmcv_ext.VARIABLE}=pure; only detection uses them"
        yield Finding("error", "operators", f"{text}: {describe(error)}", advice)
        return
    right = kept.tolist() == [1, 2] and features.grad is not None and float(features.grad.sum()) > 0
    if right:
        yield ok("operators", text)
    else:
        advice = f"set {mmcv_ext.VARIABLE}=pure, and report this page"
        yield Finding("error", "operators", f"{text}: wrong results for three boxes", advice)


def check_processes(chosen: str) -> Iterator[Finding]:
    """Communication between processes: gloo and NCCL."""
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding("warning", "processes", "this PyTorch supports a single process only", ANOTHER_BUILD)
        return
    device = choose(chosen)
    for backend, target in (("gloo", torch.device("cpu")), ("nccl", device)):
        if backend == "gloo" or (device.type == "cuda" and torch.cuda.is_available()):
            yield _check_backend(backend, target)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus > 1 and SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        if size < NCCL_SHARED_MEMORY:
            text = f"{size / 2**20:.0f} MiB, too little for NCCL between {gpus} GPUs"
            yield Finding("warning", "/dev/shm", text, "docker run --shm-size=1g or more, or --ipc=host")


def driver_version() -> str | None:
    """Version of the NVIDIA driver, or None."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text())
    except OSError:
        found = None
    if found:
        return found[1]
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def _no_gpu(build: str, said: str, chosen: str) -> Finding:
    driver = driver_version()
    text = f"none that PyTorch can use; torch is built for {build}, NVIDIA driver: {driver or 'none'}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        text += f"; CUDA_VISIBLE_DEVICES={hidden!r} hides GPUs"
    elif said and driver:
        text += f"; {said}"
    advice = ANOTHER_BUILD if build == "CPUs only" else f"update the driver, or {ANOTHER_BUILD}"
    if not driver:
        advice = "use --device cpu (GPUS=0 for the launchers), or a machine with a GPU and its driver"
    if chosen == "cuda":
        return Finding("error", "GPU", text, advice)
    return Finding("warning", "GPU", text, advice) if driver and hidden not in ("", "-1") else ok("GPU", text)


def _check_gpu(index: int) -> Finding:
    import torch

    name = f"GPU {index}"
    about = torch.cuda.get_device_properties(index)
    text = f"{about.name}, compute capability {about.major}.{about.minor}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        float(torch.ones(8, 8, device=f"cuda:{index}").matmul(torch.ones(8, 8, device=f"cuda:{index}")).sum())
    except RuntimeError as error:
        architectures = ", ".join(torch.cuda.get_arch_list())
        advice = "end the processes on the GPU (see nvidia-smi) or choose others with CUDA_VISIBLE_DEVICES"
        if "no kernel image" in str(error):
            text, advice = f"{text}; this PyTorch is built for {architectures}", ANOTHER_BUILD
        return Finding("error", name, f"{text}: {describe(error)}", advice)
    text += f", {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < LITTLE_GPU_MEMORY:
        advice = (
            "another process may use it (see nvidia-smi); use smaller batches, model.activation_checkpointing"
        )
        return Finding("warning", name, text, advice)
    return ok(name, text)


def _check_backend(backend: str, device: "torch.device") -> Finding:
    import torch
    import torch.distributed as dist

    name, text = f"{backend} (processes)", ""
    try:
        if backend == "nccl":
            text = ".".join(map(str, torch.cuda.nccl.version()))
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60)
        )
        try:
            dist.all_reduce(torch.ones(1, device=device))
        finally:
            dist.destroy_process_group()
    except Exception as error:
        variable = f"{backend.upper()}_SOCKET_IFNAME"
        advice = f"one process can train; for several, set {variable} to the network interface (lo: locally)"
        return Finding("warning", name, describe(error), advice)
    return ok(name, text or "works")
