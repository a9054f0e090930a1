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
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray
from torch.serialization import MAGIC_NUMBER

from s5.backbones import StateDict
from s5.checkpoints import inert_pickle
from s5.errors import CheckpointError, shorten

logger = logging.getLogger(__name__)

ORDINARY = ("numpy.", "mmengine.logging.", "argparse.", "builtins.getattr")  # listed last in messages
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # environment variable that forbids any other reader than PyTorch's
WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")

ZIP, PICKLE, TAR = b"PK\x03\x04", b"\x80", b"ustar"
TAR_MAGIC_AT = 257
HEAD_BYTES = 4096
SAFETENSORS_LENGTH = 8  # bytes of the number before the header
SAFETENSORS_LARGEST_HEADER = 100_000_000
PARTIAL = "Copy or download it again"
# First bytes of other kinds of files, and their descriptions.
OTHERS = (
    (ZIP, "a zip archive: if torch.save wrote it, rename it to .pth"),
    (b"\x89HDF\r\n", "an HDF5 file, such as from Keras; save the weights with PyTorch"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"BZh", "a bzip2 archive: unpack it"),
    (b"\xfd7zXZ", "an xz archive: unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file of a language model"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: fetch it with git lfs pull"),
)
WEB_PAGE = re.compile(rb"\s*<(?:!doctype|html|\?xml|head|script)", re.IGNORECASE)
# Messages of Python and PyTorch about a truncated pickle or storage, whose exception types are ambiguous.
ENDS_EARLY = re.compile(r"pickle data was truncated|unexpected EOF|incomplete metadata", re.IGNORECASE)


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
        pickled = _is_pickled(file)
        content, left_out = _read_pickled(file, lazy) if pickled else (_read_safetensors(file), set())
    except (CheckpointError, MemoryError):
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(_explain_failure(file, error)) from error
    if left_out:
        _report_left_out(file, content, left_out, whole)
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} contains a {type(content).__name__}, not a dict of weights")
    return content


def save_atomic(obj: object, path: str | Path) -> None:
    """Write `obj` with `torch.save` atomically: at any time, `path` is the complete old or new file.

    The file is written beside `path` under a temporary name, flushed to disk and renamed.

    Raises:
        CheckpointError: The folder is not writable or the disk is full; an older file at `path` is unchanged
            and no temporary file is left.
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
        raise CheckpointError(
            f"{path} is a folder: give a file in it{f', such as {shorten(inside)}' if inside else ''}"
        )
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


def _is_pickled(file: Path) -> bool:
    """Whether `torch.save` wrote a file; otherwise it is a safetensors file.

    Raises:
        CheckpointError: The file is empty, truncated, or of a kind that cannot be read.
    """
    size = file.stat().st_size
    with open(file, "rb") as opened:
        head = opened.read(HEAD_BYTES)
    if not head:
        raise CheckpointError(f"{file} is empty (0 bytes). {PARTIAL}")
    if _is_safetensors(head) or file.suffix == ".safetensors":
        _check_safetensors(file, head, size)
        return False
    if head.startswith(ZIP):
        _check_zip(file, size)
    elif head[TAR_MAGIC_AT:].startswith(TAR):
        _check_tar(file, size)
    elif head.startswith(PICKLE):
        _check_pickle(file, size)
    elif ZIP.startswith(head):
        raise CheckpointError(_truncated(file, size))
    else:
        raise CheckpointError(f"{file} ({size} bytes) is not a checkpoint but {_describe(head)}")
    return True


def _explain_failure(file: Path, error: Exception) -> str:
    """Message for a file of a known kind that could not be read."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        is_zip = opened.read(len(ZIP)) == ZIP  # `_is_pickled` has found its end
    if not is_zip and (isinstance(error, EOFError) or ENDS_EARLY.search(str(error))):
        return _truncated(file, size)
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    return f"{file} ({size} bytes) is damaged: {reason}. {PARTIAL}"


def _truncated(file: Path, size: int) -> str:
    return f"{file} ({size} bytes) is truncated: its end is missing. {PARTIAL}"


def _describe(head: bytes) -> str:
    for magic, kind in OTHERS:
        if head.startswith(magic):
            return kind
    if WEB_PAGE.match(head):
        return "a web page: the download needs a login or a different URL"
    if _is_text(head):
        return f"a text file that starts with {head[:40].decode('ascii').splitlines()[0]!r}"
    return f"a file of unknown kind that starts with {head[:8].hex(' ')}"


def _is_text(head: bytes) -> bool:
    return all(byte >= ord(" ") or byte in b"\t\r\n" for byte in head[:64]) and head[:64].isascii()


def _check_zip(file: Path, size: int) -> None:
    if not zipfile.is_zipfile(file):  # the central directory at the end is missing
        raise CheckpointError(_truncated(file, size))
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise CheckpointError(_explain_failure(file, error)) from error
    inside = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in inside:
        raise CheckpointError(
            f"{file} is a TorchScript archive, which is code: load it with torch.jit.load if you trust it, "
            f"and save its state_dict()"
        )
    if "data.pkl" not in inside:
        raise CheckpointError(
            f"{file} is not a checkpoint but a zip archive of {', '.join(names[:3]) or 'nothing'}: if it "
            f"contains the checkpoint, unpack it"
        )


def _check_tar(file: Path, size: int) -> None:
    try:
        with tarfile.open(file, "r:") as archive:
            names = archive.getnames()
    except tarfile.TarError:
        raise CheckpointError(_truncated(file, size)) from None
    if not {"storages", "tensors", "pickle"} <= set(names):  # what torch.save wrote before 2017
        raise CheckpointError(
            f"{file} is not a checkpoint but a tar archive of {', '.join(names[:3]) or 'nothing'}: if it "
            f"contains the checkpoint, unpack it"
        )


def _check_pickle(file: Path, size: int) -> None:
    """Reject pickles that do not begin with the magic number of PyTorch's format before version 1.6."""
    try:
        with open(file, "rb") as opened:
            first = inert_pickle.pickle_module(set()).load(opened)
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(_explain_failure(file, error)) from error
    if first != MAGIC_NUMBER:
        raise CheckpointError(
            f"{file} is a pickle that was not written by torch.save: read it with Python if you trust it, "
            f"and save its weights with torch.save"
        )


def _is_safetensors(head: bytes) -> bool:
    length = int.from_bytes(head[:SAFETENSORS_LENGTH], "little")
    return head[SAFETENSORS_LENGTH:].startswith(b'{"') and length <= SAFETENSORS_LARGEST_HEADER


def _check_safetensors(file: Path, head: bytes, size: int) -> None:
    """Reject a file that ends before the last tensor listed in its header."""
    if len(head) < SAFETENSORS_LENGTH + 2 and not _is_text(head):
        raise CheckpointError(_truncated(file, size))
    if not _is_safetensors(head):
        raise CheckpointError(f"{file} ({size} bytes) is not a safetensors file but {_describe(head)}")
    length = int.from_bytes(head[:SAFETENSORS_LENGTH], "little")
    with open(file, "rb") as opened:
        opened.seek(SAFETENSORS_LENGTH)
        header = opened.read(length)
    if len(header) < length:
        raise CheckpointError(_truncated(file, size))
    try:
        ends = [
            entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"
        ]
        end = SAFETENSORS_LENGTH + length + max(ends, default=0)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file} ({size} bytes) is damaged: its header cannot be read. {PARTIAL}"
        ) from error
    if size < end:
        raise CheckpointError(_truncated(file, size))
