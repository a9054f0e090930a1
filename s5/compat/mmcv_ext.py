"""Replacement for `mmcv._ext`, mmcv's compiled extension, where that is missing.

`mmcv.ops` looks up 113 functions in its extension when it is imported and fails without them. The
replacement has every function: those listed in `IMPLEMENTED` run in PyTorch, any other one raises
an error that names it when it is called.

The environment variable `S5_MMCV_EXT` selects: `auto` (the default: the compiled extension if
there is one), `pure` (always the replacement), `compiled` (an error if there is none).
"""

import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from s5.errors import UserError

logger = logging.getLogger(__name__)

EXTENSION = "mmcv._ext"
VARIABLE = "S5_MMCV_EXT"
CHOICES = ("auto", "pure", "compiled")
HOW_TO_COMPILE = (
    "pip install --no-binary onedl-mmcv --no-build-isolation --no-deps --force-reinstall onedl-mmcv"
)

# Name in the extension -> "module:function". The module is imported when the function is first used.
IMPLEMENTED: dict[str, str] = {
    "get_compiler_version": "s5.compat.mmcv_ext:_build_info",
    "get_compiling_cuda_version": "s5.compat.mmcv_ext:_build_info",
    "box_iou_rotated": "s5.compat.mmcv_functions:box_iou_rotated",
    "nms": "s5.compat.mmcv_functions:nms",
    "nms_rotated": "s5.compat.mmcv_functions:nms_rotated",
    "roi_align_backward": "s5.compat.mmcv_functions:roi_align_backward",
    "roi_align_forward": "s5.compat.mmcv_functions:roi_align_forward",
    "roi_align_rotated_backward": "s5.compat.mmcv_functions:roi_align_rotated_backward",
    "roi_align_rotated_forward": "s5.compat.mmcv_functions:roi_align_rotated_forward",
}


class ExtensionError(UserError, ImportError):
    """The compiled extension cannot do what is asked of it."""


class PureExtension(ModuleType):
    """Module whose attributes are the extension's functions, created on first access."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the function `name`; private and dunder names do not exist, as in any module."""
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        function = _load(IMPLEMENTED[name]) if name in IMPLEMENTED else _missing(name)
        setattr(self, name, function)
        return function


class _Loader(Loader):
    """Creates the replacement for the import system, so that it has a regular `__spec__`."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return PureExtension(spec.name, __doc__)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the functions are created on demand."""


def install() -> str:
    """Register the replacement, unless the compiled extension is present and selected.

    Returns:
        The extension in use, `pure` or `compiled`.

    Raises:
        ValueError: `S5_MMCV_EXT` has an unknown value.
        ImportError: The compiled extension is required and missing, or the replacement is required
            after the compiled extension was imported.
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE}={choice!r}: must be one of {', '.join(CHOICES)}")
    loaded = sys.modules.get(EXTENSION)
    if not isinstance(loaded, PureExtension):
        compiled = loaded is not None or _find_compiled() is not None
        if choice == "compiled" and not compiled:
            raise ImportError(f"{VARIABLE}=compiled, but mmcv has none; build it with `{HOW_TO_COMPILE}`")
        if choice == "pure" and loaded is not None:
            raise ImportError(f"{VARIABLE}=pure, but {EXTENSION} is already imported; import s5 before mmcv")
        if choice == "pure" or not compiled:
            sys.modules[EXTENSION] = module_from_spec(ModuleSpec(EXTENSION, _Loader(), origin=__name__))
    logger.info("mmcv operators: %s", in_use())
    return in_use()


def in_use() -> str:
    """The extension that `mmcv.ops` uses: `pure` (the replacement) or `compiled`."""
    return "pure" if isinstance(sys.modules.get(EXTENSION), PureExtension) else "compiled"


def require_device(device: str) -> None:
    """Refuse a compiled extension without kernels for a device, before the first of them is missed.

    mmcv compiles without CUDA where no GPU is visible, as on the login node of a cluster.

    Args:
        device: `cuda` or `cpu`.

    Raises:
        ExtensionError: It has none.
    """
    if device == "cuda" and in_use() == "compiled":
        if import_module(EXTENSION).get_compiling_cuda_version() == "not available":
            raise ExtensionError(
                f"mmcv's compiled extension has no CUDA kernels: set {VARIABLE}=pure to use the operators of "
                f"S5, or build it with `FORCE_CUDA=1 {HOW_TO_COMPILE}`"
            )


def _find_compiled() -> ModuleSpec | None:
    mmcv = find_spec("mmcv")  # does not import mmcv, which takes seconds
    return PathFinder.find_spec(EXTENSION, mmcv.submodule_search_locations) if mmcv else None


def _load(target: str) -> Callable[..., Any]:
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)


def _missing(name: str) -> Callable[..., Any]:
    def operator(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(
            f"mmcv operator {name!r} needs mmcv's compiled extension, which is not in use here. "
            f"Build it with `{HOW_TO_COMPILE}` (needs a C++ compiler; leave {VARIABLE} unset or set it "
            f"to 'compiled'), or use a model without this operator."
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def _build_info() -> str:
    return "not compiled (PyTorch operators of S5)"
