"""Which kernels PyTorch may use for scaled dot-product attention on a GPU.

cuDNN's is disabled: on Hopper GPUs its backward pass returns NaN for finite inputs. The kernel reads keys in
tiles of 128. If their number is 64 modulo 128, it fails to mask the 64 empty rows of the last tile and
weights them with exp(0 - LSE), which overflows for queries whose log-sum-exp (LSE) of the scores is below
-88.7; infinity times zero is NaN. A crop of 128 x 128 pixels has 64 tokens, and training at a high learning
rate drives the LSE that low. Gradient clipping by norm then spreads a single NaN to all weights. See
`docs/gpu.md`.

Versions: PyTorch prefers cuDNN on GPUs of compute capability 9 and 10 with cuDNN above 9.15.0, which its
wheels include since torch 2.11; elsewhere it prefers its own kernels. cuDNN 9.26 (torch 2.15) is said to fix
the case of 64 modulo 128, but cudnn-frontend#1072 reports NaN for a single query of it: no version is exempt.
PyTorch's flash, memory-efficient and math kernels mask correctly. Reports: pytorch#196678;
cudnn-frontend#160, #628, #1072.

The environment variable `S5_CUDNN_ATTENTION` is `off` by default; `on` leaves the choice to PyTorch.
"""

import os

import torch

from s5.errors import UserError


class BackendError(UserError, ValueError):
    """The environment variable that chooses attention kernels has an unknown value."""


VARIABLE = "S5_CUDNN_ATTENTION"
CHOICES = ("off", "on")


def choose_backends() -> None:
    """Disable cuDNN's attention in this process, unless the environment variable is `on`.

    Every backbone calls this when it is built. The backward pass uses the kernel of the forward
    pass, and a compiled graph keeps the kernel it was compiled with.

    Raises:
        BackendError: The variable has another value.
    """
    choice = os.environ.get(VARIABLE, "off")
    if choice not in CHOICES:
        raise BackendError(f"{VARIABLE}={choice!r}: set it to {' or '.join(CHOICES)}, or unset it")
    if choice == "off":
        torch.backends.cuda.enable_cudnn_sdp(False)


def allowed_backends() -> list[str]:
    """Names of the kernels that PyTorch may choose from on a GPU."""
    cuda = torch.backends.cuda
    allowed = {
        "cuDNN": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "memory-efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return [name for name, enabled in allowed.items() if enabled]
