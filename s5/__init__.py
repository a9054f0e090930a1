"""S5: semi-supervised semantic segmentation pre-training and its fine-tuning for remote sensing.

    import s5
    model = s5.load("vit_b_moe_mdf_best.pth")
    model.predict("scene.tif", task="loveda").save("mask.tif")

Names are imported lazily on first use, so that `import s5` is fast.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from s5.compat import mmcv_ext

if TYPE_CHECKING:
    from s5.api import create_model, list_backbones, load

__version__ = "0.1.0"
__all__ = ["create_model", "list_backbones", "load"]

_MODULES = ("api", "datasets")

# At module level, so that spawned workers run it when they import anything from this package.
mmcv_ext.install()


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any attribute
    """Import a name of :mod:`s5.api` or a module on first use."""
    if name in __all__:
        return getattr(import_module("s5.api"), name)
    if name in _MODULES and find_spec(f"s5.{name}"):
        return import_module(f"s5.{name}")
    raise AttributeError(f"module 's5' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List public names, including those not imported yet."""
    modules = (name for name in _MODULES if find_spec(f"s5.{name}"))
    return sorted(["__version__", *__all__, *modules])
