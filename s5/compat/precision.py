"""Precision of matrix products: bfloat16 or float16 under autocast, or float32."""

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from s5.compat.cpu_linear import ConvolutionLinear, mkl_is_slow

logger = logging.getLogger(__name__)

CPU_BF16 = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def resolve_precision(name: str, device: torch.device | str) -> torch.dtype | None:
    """Choose the autocast type for a device.

    Args:
        name: `auto` is bfloat16 where the device supports it (CUDA GPUs from Ampere on, CPUs
            with AMX or AVX512-BF16), else float16 on CUDA, else float32; `bf16`, `fp16` and `fp32` are
            explicit.
        device: Where the model runs.

    Returns:
        The type for `autocast`, or None for float32. Training in float16 needs a gradient scaler.

    Raises:
        ValueError: Unknown name.
    """
    device = torch.device(device)
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}; must be one of {', '.join(PRECISIONS)}")
    if name == "fp32":
        return None
    if name == "auto":
        if has_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    if name == "bf16" and not has_bf16(device):
        logger.warning("bf16 on %s is emulated and slower than fp32", device)
    return torch.bfloat16 if name == "bf16" else torch.float16


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Private in torch, which has no public function for it; without them a CPU counts as one without bf16.
    tells = [getattr(torch.cpu, name, None) for name in CPU_BF16]
    return device.type == "cpu" and any(tell is not None and tell() for tell in tells)


def autocast(device: torch.device | str, dtype: torch.dtype | None) -> AbstractContextManager:
    """Context for a forward pass in the type chosen by `resolve_precision`."""
    device = torch.device(device)
    if dtype is not None:
        return torch.autocast(device.type, dtype)
    return ConvolutionLinear() if device.type == "cpu" and mkl_is_slow() else nullcontext()
