"""Curation: choose reliable and diverse patches from a pile of unlabeled images, for S4P.

    from s5.curate import CurateConfig, curate
    run = curate(load_config(CurateConfig, "curate.yaml"), start("auto"))

`docs/curation.md` describes the steps.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from s5.errors import ConfigError

if TYPE_CHECKING:
    from s5.curate.config import CurateConfig
    from s5.curate.run import STEPS, curate

__all__ = ["STEPS", "CurateConfig", "curate"]

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which instruction sets it tries

_PACKAGES = {"faiss": "faiss-cpu"}  # where pip knows a module under another name
_HOMES = {"CurateConfig": "s5.curate.config", "STEPS": "s5.curate.run", "curate": "s5.curate.run"}


def require(module: str) -> Any:  # noqa: ANN401 - a module
    """Import a module of the optional packages of curation, or a part of one such as `pyarrow.parquet`.

    Raises:
        ConfigError: The package is not installed.
    """
    name = module.partition(".")[0]
    try:
        import_module(name)
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (name, module):
            raise
        raise ConfigError(
            f"curation needs {_PACKAGES.get(name, name)}: pip install -e '.[curate]' (or bash scripts/env.sh)"
        ) from error


def __getattr__(name: str) -> Any:  # noqa: ANN401 - lazily, because the steps import torch
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
