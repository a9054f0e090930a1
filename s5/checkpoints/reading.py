"""Checkpoint files: safe reading and atomic writing.

Nothing in a checkpoint is ever imported or executed: files are read with `weights_only=True` and a short
list of safe types. Files that also contain other objects are read by :mod:`s5.checkpoints.inert_pickle`,
which skips these objects.
"""

import argparse
import json
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray
from safetensors import safe_open
from safetensors.torch import save

from s5.backbones import StateDict
from s5.checkpoints import inert_pickle
from s5.checkpoints.file_kinds import explain_failure, explain_folder, is_pickled
from s5.errors import CheckpointError, shorten

logger = logging.getLogger(__name__)

ORDINARY = ("numpy.", "mmengine.logging.", "argparse.", "builtins.getattr")  # listed last in messages
META = "s5.meta"  # in the header of a safetensors file: metadata of this package as JSON
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # environment variable that forbids any other reader than PyTorch's
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")


def read_checkpoint(path: str | Path, *, whole: bool = False, lazy: bool = False) -> dict[str, Any]:
    """Read a checkpoint file to the CPU.

    Objects other than tensors and plain data are replaced by placeholders and listed in the log.

    Args:
        path: The file; the suffix `.pth` may be omitted. `.safetensors` files are supported too.
        whole: Reject a file with such objects, because resuming would need them.
        lazy: Read tensors only when they are used, for callers that want the metadata. The file must not
            change in the meantime.

    Raises:
        CheckpointError: The file is missing, truncated or of another kind, or contains no weights.
    """
    file = find_checkpoint(path)
    try:
        pickled = is_pickled(file)
        content, left_out = _read_pickled(file, lazy) if pickled else (_read_safetensors(file), set())
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(explain_failure(file, error)) from error
    if left_out:
        _report_left_out(file, content, left_out, whole)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} contains a {type(content).__name__}, not a dict of weights")
    return content


def save_atomic(obj: object, path: str | Path) -> None:
    """Write `obj` with `torch.save` atomically: at any time, `path` is the complete old or new file.

    The file is written beside `path` under a temporary name, flushed to disk and renamed. Bytes are written
    as they are.

    Raises:
        CheckpointError: The folder is not writable or the disk is full; an older file at `path` is unchanged
            and no temporary file is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(obj) if isinstance(obj, bytes) else torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports failed writes as RuntimeError
        _discard(temporary)
        raise CheckpointError(
            f"cannot write {path}: {error}. Check that the disk has free space and the folder is writable; "
            f"{'the existing file is unchanged' if path.exists() else 'nothing was written'}"
        ) from error
    except BaseException:
        _discard(temporary)
        raise
    _sync_folder(path.parent)


def find_checkpoint(path: str | Path) -> Path:
    """Find the file of that name, with or without `.pth`.

    Raises:
        CheckpointError: There is no such file; the message lists the paths tried.
    """
    path = Path(path).expanduser()
    candidates = [path, path.with_name(f"{path.name}.pth")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
        hint = f"give a file in it{f', such as {shorten(inside)}' if inside else ''}"
        raise CheckpointError(f"{path} is a folder: {explain_folder(path) or hint}")
    raise CheckpointError(
        f"no checkpoint {path}; tried {' and '.join(str(c.absolute()) for c in candidates)}"
    )


def _read_pickled(file: Path, lazy: bool) -> tuple[Any, set[str]]:
    """Return the content, and the names of classes and functions whose objects were skipped."""
    mmap = lazy and zipfile.is_zipfile(file)  # what PyTorch wrote before 1.6 cannot be mapped
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap), set()
    except (MemoryError, OSError):
        raise
    except Exception:
        # The file contains other objects, or is damaged, in which case the next attempt fails as well.
        logger.debug("%s is not plain data", file, exc_info=True)
    if os.environ.get(FORCED, "0").lower() in ("1", "y", "yes", "true"):
        raise CheckpointError(
            f"{file} is damaged or contains objects other than weights, which {FORCED} forbids: unset it; "
            f"nothing in the file is executed, such objects are skipped"
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
        except MemoryError as error:  # also caused by wrong lengths in a damaged pickle
            raise CheckpointError(f"{file} is damaged, or needs more memory than is available") from error


def _report_left_out(file: Path, content: object, left_out: set[str], whole: bool) -> None:
    names = shorten(sorted(left_out, key=lambda name: (name.startswith(ORDINARY), name)))
    if isinstance(content, inert_pickle.Placeholder) or not _has_tensor(content):
        raise CheckpointError(
            f"{file} contains no weights that can be read without running code, only objects ({names}). If "
            f"it is a pickled model, save its state_dict() instead"
        )
    if whole:
        raise CheckpointError(
            f"{file} contains objects that are not read ({names}): it was not written by this package, so a "
            f"run cannot resume from it; start a new run from its weights (--init)"
        )
    logger.info("%s: skipped objects other than weights (%s)", file, names)


def _has_tensor(content: object) -> bool:
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, list | tuple):
        return any(map(_has_tensor, content))
    return isinstance(content, torch.Tensor)


def _read_safetensors(file: Path) -> dict[str, Any]:
    """Return the tensors, in a file of this package as it was before `as_safetensors`."""
    with safe_open(file, framework="pt") as opened:
        meta = (opened.metadata() or {}).get(META)
        state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - it is no mapping
    return state if meta is None else {"state_dict": state, "meta": json.loads(meta)}


def as_safetensors(state: StateDict, meta: Mapping[str, Any] | None) -> bytes:
    """Return the content of a safetensors file with metadata, which `read_checkpoint` restores.

    Args:
        state: The weights.
        meta: Plain data; tuples become lists.
    """
    # The format has no shared memory and no strides.
    own = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}
    return save(own, {"format": "pt", **({META: json.dumps(dict(meta))} if meta else {})})


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
        # A pickled HistoryBuffer refers to its methods through getattr, which must not be allowed in general.
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
    """Make the rename durable across a power failure, on systems that can synchronise folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
