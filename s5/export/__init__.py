"""Export of trained models to ONNX and `torch.export`, for use without this package.

    from s5.export import ExportOptions, export_model
    export_model(s5.load("vit_b_moe_mdf_best.pth"), "roads.onnx", ExportOptions(task="roads"))

`docs/export.md` describes the files and how QGIS opens them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s5.export.run import ExportOptions, export_model

__all__ = ["ExportOptions", "export_model"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - lazily, because the modules import torch
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("s5.export.run"), name)
