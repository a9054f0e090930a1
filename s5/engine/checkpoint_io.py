"""Checkpoint files: safe reading and atomic writing.

Nothing in a checkpoint is ever executed: files are read with ``weights_only=True`` and a short list
of harmless types, unless the caller says otherwise.
"""

import argparse
import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray

from s5.models.adapt import CheckpointError, StateDict

logger = logging.getLogger(__name__)

# How torch words the refusal of a function or class in a pickle.
FORBIDDEN = re.compile(r"unsupported (?:global: )?GLOBAL ([\w.]+)", re.IGNORECASE)


def read_checkpoint(path: str | Path, allow_pickle: bool = False) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Args:
        path: The file; the suffix ``.pth`` may be left out. ``.safetensors`` files are read too.
        allow_pickle: Unpickle without restrictions, which lets the file execute any code in it.

    Raises:
        CheckpointError: The file is missing, damaged, no checkpoint, or holds more than data.
    """
    file = find_checkpoint(path)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            content = torch.load(file, map_location="cpu", weights_only=not allow_pickle)
    except PermissionError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(_reading_failed(file, error)) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of weights")
    return content


def save_atomic(obj: object, path: str | Path) -> None:
    """Write `obj` with `torch.save` so that `path` always is a whole file, the old or the new one.

    It is written beside `path` under a temporary name, flushed to the disk and renamed.

    Raises:
        CheckpointError: The folder is not writable or the disk is full; an older file at `path` is
            left as it was and nothing stays behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: how torch.save reports a failed write
        _discard(temporary)
        raise CheckpointError(
            f"cannot write {path}: {error}. Check that the disk has room and the folder is writable; "
            f"{'the file that was there is unchanged' if path.exists() else 'nothing was written'}"
        ) from error
    except BaseException:
        _discard(temporary)
        raise
    _sync_folder(path.parent)


def find_checkpoint(path: str | Path) -> Path:
    """The file of that name, with or without ``.pth``.

    Raises:
        CheckpointError: There is none; says where it was looked for.
    """
    path = Path(path).expanduser()
    candidates = [path, path.with_name(f"{path.name}.pth")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"no checkpoint {path}; looked for {' and '.join(str(c.absolute()) for c in candidates)}"
    )


def _read_safetensors(file: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error


def _safe_globals() -> list[Callable | tuple[Callable, str]]:
    """Types of plain data that mmengine's Runner and the scripts of MAE and timm store."""
    dtypes = {type(np.dtype(code)) for code in "?bBhHiIlLqQefdFDU"}
    numpy_functions = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")  # numpy 1 and 2 differ in `core`
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    return [
        np.ndarray,
        np.dtype,
        *dtypes,
        *numpy_functions,
        argparse.Namespace,
        HistoryBuffer,
        # A pickled HistoryBuffer refers to its methods through getattr, which must not be let in as such.
        (_statistics_method, "builtins.getattr"),
        (_statistics_method, "__builtin__.getattr"),
    ]


def _statistics_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"Unsupported global: GLOBAL builtins.getattr({owner!r}, {name!r})")
    return getattr(HistoryBuffer, name)


def _reading_failed(file: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and (match := FORBIDDEN.search(str(error))):
        return (
            f"{file} holds more than weights ({match[1].rstrip('.')}), which could execute code; it was not "
            f"run. If you trust where the file comes from, read it with allow_pickle=True (--allow-pickle)"
        )
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    size = file.stat().st_size
    return f"{file} ({size} bytes) is truncated or no checkpoint: {reason}. Copy or download it again"


def _discard(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("cannot remove %s: %s", temporary, error)


def _sync_folder(folder: Path) -> None:
    """Make the renaming survive a power failure, where the system lets folders be synchronised."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
