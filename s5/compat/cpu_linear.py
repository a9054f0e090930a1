"""Compute linear layers with oneDNN on CPUs where PyTorch's default is slow.

PyTorch computes float32 linear layers with MKL, which uses slower kernels on processors other than
Intel's, and convolutions with oneDNN, which does not. There, linear layers are computed as 1x1 convolutions:
the same sums in a different order.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import noop_context_fn

MIN_WIDTH = 64  # channels; narrower layers gain nothing


class ConvolutionLinear(TorchFunctionMode):
    """Inside `with ConvolutionLinear():` every float32 `F.linear` on a CPU is a 1x1 convolution.

    Compiled code keeps the linear layer: Inductor of torch 2.9 fails on the strides of such a convolution.

    Attributes:
        depth: How many modes are active.
    """

    depth = 0

    def __enter__(self) -> "ConvolutionLinear":
        """Take over `F.linear`."""
        ConvolutionLinear.depth += 1
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        """Give it back."""
        ConvolutionLinear.depth -= 1
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        """Run `func`, or the convolution in its place."""
        if func is F.linear and not torch.compiler.is_compiling() and _suits(args[0], args[1]):
            return linear_by_convolution(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def checkpoint_contexts() -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    """`context_fn` for `torch.utils.checkpoint.checkpoint`: recompute linear layers as they were computed.

    The backward pass recomputes outside of the `with`. PyTorch restores autocast there, but not this mode.
    """
    if not ConvolutionLinear.depth:
        return noop_context_fn
    return lambda: (nullcontext(), ConvolutionLinear())


def linear_by_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear layer of `x` (..., C_in) with `weight` (C_out, C_in), computed as a 1x1 convolution."""
    rows = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C_in, rows, 1), channels last
    out = F.conv2d(rows, weight[:, :, None, None], bias)  # (1, C_out, rows, 1)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


@cache
def mkl_is_slow() -> bool:
    """Whether oneDNN is faster than MKL on this CPU, and PyTorch uses oneDNN for convolutions."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    info = Path("/proc/cpuinfo")
    return info.exists() and "AuthenticAMD" in info.read_text(encoding="utf-8")


def _suits(x: Tensor, weight: Tensor) -> bool:
    # With one thread PyTorch does not use oneDNN for convolutions of few images.
    wide = min(weight.shape) >= MIN_WIDTH and x.dtype == torch.float32 and x.device.type == "cpu"
    return wide and torch.get_num_threads() > 1
