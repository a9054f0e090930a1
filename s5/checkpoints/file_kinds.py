"""Kinds of files and folders: what `torch.save` or safetensors wrote, and what anything else is."""

import json
import re
import tarfile
import zipfile
from pathlib import Path

from torch.serialization import MAGIC_NUMBER

from s5.checkpoints import inert_pickle
from s5.errors import CheckpointError

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
SHARDS = re.compile(rb'\s*\{\s*"(?:metadata|weight_map)"')
WEB_PAGE = re.compile(rb"\s*<(?:!doctype|html|\?xml|head|script)", re.IGNORECASE)
# Messages of Python and PyTorch about a truncated pickle or storage, whose exception types are ambiguous.
ENDS_EARLY = re.compile(r"pickle data was truncated|unexpected EOF|incomplete metadata", re.IGNORECASE)
# Files in the folder of a checkpoint that has no file with all weights, and what to do.
FOLDERS = (
    (
        "zero_to_fp32.py",
        "a checkpoint of DeepSpeed, in parts; run `python zero_to_fp32.py . weights` in it and give the "
        "result",
    ),
    (
        "**/*_model_states.pt",
        "a checkpoint of DeepSpeed; give its mp_rank_00_model_states.pt, or, for ZeRO stage 3, the result of "
        "zero_to_fp32.py",
    ),
    (
        "*.distcp",
        "a distributed checkpoint of PyTorch; run `python -m torch.distributed.checkpoint.format_utils "
        "dcp_to_torch FOLDER FILE` and give the result",
    ),
    ("*.index.json", "weights in several files; join them in one file, and give that"),
)


def is_pickled(file: Path) -> bool:
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


def explain_folder(folder: Path) -> str | None:
    """Return how to get one file from a checkpoint that is a folder; None if it is of no known kind."""
    return next((how for pattern, how in FOLDERS if any(folder.glob(pattern))), None)


def explain_failure(file: Path, error: Exception) -> str:
    """Message for a file of a known kind that could not be read."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        is_zip = opened.read(len(ZIP)) == ZIP  # `is_pickled` has found its end
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
    if SHARDS.match(head):
        return "the index of weights in several files beside it: join them in one file, and give that"
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
        raise CheckpointError(explain_failure(file, error)) from error
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
        raise CheckpointError(explain_failure(file, error)) from error
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
