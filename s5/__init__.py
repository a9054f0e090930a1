"""S5: semi-supervised semantic segmentation pre-training and its fine-tuning for remote sensing.

    import s5
    model = s5.load("vit_b_moe_mdf_best.pth")
    model.predict("scene.tif", task="loveda").save("mask.tif")

Names are imported when they are first used, so that `import s5` takes no time.
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

# Here and not in a function, so that spawned workers get it with whatever they import from this package.
mmcv_ext.install()


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any attribute
    """Import what is asked for: a name of :mod:`s5.api`, or a module."""
    if name in __all__:
        return getattr(import_module("s5.api"), name)
    if name in _MODULES and find_spec(f"s5.{name}"):
        return import_module(f"s5.{name}")
    raise AttributeError(f"module 's5' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Also what is not imported yet."""
    modules = (name for name in _MODULES if find_spec(f"s5.{name}"))
    return sorted(["__version__", *__all__, *modules])
