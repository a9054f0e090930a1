"""Checkpoint files: safe reading and atomic writing.

Nothing in a checkpoint is ever imported or executed: files are read with `weights_only=True` and a short
list of harmless types. Files that also hold other objects are read by :mod:`s5.checkpoints.inert_pickle`,
which leaves those out.
"""

import argparse
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray

from s5.backbones import StateDict
from s5.checkpoints import inert_pickle
from s5.checkpoints.file_kinds import Kind, check_kind, explain_failure
from s5.errors import CheckpointError

logger = logging.getLogger(__name__)

NAMES_SHOWN = 5
ORDINARY = ("numpy.", "mmengine.logging.", "argparse.", "builtins.getattr")  # named last when left out
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # environment variable that forbids any reader but PyTorch's own
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")


def read_checkpoint(path: str | Path, *, whole: bool = False, lazy: bool = False) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Objects of classes other than tensors and plain data are left out: a placeholder stands for each, and the
    log names them.

    Args:
        path: The file; the suffix `.pth` may be left out. `.safetensors` files are read too.
        whole: Refuse a file that holds such objects, as resuming would miss them.
        lazy: Read tensors only when they are used, for callers that want the metadata. The file must not
            change in the meantime.

    Raises:
        CheckpointError: The file is missing, truncated, of another kind, or holds no weights.
    """
    file = find_checkpoint(path)
    try:
        safetensors = check_kind(file) is Kind.SAFETENSORS
        content, left_out = (_read_safetensors(file), set()) if safetensors else _read_pickled(file, lazy)
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(explain_failure(file, error)) from error
    if left_out:
        _report_left_out(file, content, left_out, whole)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of weights")
    return content


def save_atomic(obj: object, path: str | Path) -> None:
    """Write `obj` with `torch.save`; `path` is a complete file at any time, the old or the new one.

    The file is written beside `path` under a temporary name, flushed to the disk and renamed.

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
    """The file of that name, with or without `.pth`.

    Raises:
        CheckpointError: There is none; the message lists the paths tried.
    """
    path = Path(path).expanduser()
    candidates = [path, path.with_name(f"{path.name}.pth")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        raise CheckpointError(
            f"{path} is a folder: give the file in it{f', such as {shorten(inside)}' if inside else ''}"
        )
    raise CheckpointError(
        f"no checkpoint {path}; looked for {' and '.join(str(c.absolute()) for c in candidates)}"
    )


def shorten(names: Iterable[str], shown: int = NAMES_SHOWN) -> str:
    """The first of many names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _read_pickled(file: Path, lazy: bool) -> tuple[Any, set[str]]:
    """The content, and the names of classes and functions whose objects were left out."""
    mmap = lazy and zipfile.is_zipfile(file)  # what PyTorch wrote before 1.6 cannot be mapped
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap), set()
    except (MemoryError, OSError):
        raise
    except Exception:
        # The file holds other objects, or is damaged; then the next attempt fails as well.
        logger.debug("%s is not plain data", file, exc_info=True)
    if os.environ.get(FORCED, "0").lower() in ("1", "y", "yes", "true"):
        raise CheckpointError(
            f"{file} is damaged or holds other objects beside its weights, which {FORCED} forbids: unset it; "
            f"nothing in the file is executed, such objects are left out"
        )
    left_out: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
        reader = inert_pickle.pickle_module(left_out)
        try:
            content = torch.load(
                file, map_location="cpu", weights_only=False, pickle_module=reader, mmap=mmap
            )
            return content, left_out
        except MemoryError as error:  # which a damaged pickle causes, too: it names any length
            raise CheckpointError(f"{file} is damaged, or needs more memory than there is") from error


def _report_left_out(file: Path, content: object, left_out: set[str], whole: bool) -> None:
    names = shorten(sorted(left_out, key=lambda name: (name.startswith(ORDINARY), name)))
    if isinstance(content, inert_pickle.Placeholder) or not _has_tensor(content):
        raise CheckpointError(
            f"{file} holds no weights that can be read without running code, only objects ({names}). Of a "
            f"model that was saved as a whole, save the state_dict() instead"
        )
    if whole:
        raise CheckpointError(
            f"{file} holds objects that are not read ({names}): it was not written by this package, so it "
            f"cannot be resumed; start a new run from its weights (--init)"
        )
    logger.info("%s: read without the objects beside its weights (%s)", file, names)


def _has_tensor(content: object) -> bool:
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return any(map(_has_tensor, content))
    return isinstance(content, torch.Tensor)


def _read_safetensors(file: Path) -> StateDict:
    from safetensors.torch import load_file

    return load_file(file)


def _safe_globals() -> list[Callable | tuple[Callable, str]]:
    """Types of plain data in checkpoints of mmengine's Runner and the scripts of MAE and timm."""
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
