"""Record which source files are finished, so that a killed run continues where it stopped."""

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from s5.data.datasets.prepared import differences
from s5.errors import PrepareError

_VERSION = 1
_LOCK_SECONDS = 5.0  # workers notice within a second that their main process was killed


@dataclass(frozen=True)
class Patch:
    """A written patch: paths of the image and of the mask, if any, relative to the data root."""

    image: str
    mask: str | None = None


@dataclass(frozen=True)
class Entry:
    """One finished source file.

    Attributes:
        source: Key of the source file.
        group: Group of the source; determines the split file of its patches.
        size: Size in bytes; a file of a different size is cut again.
        patches: The written patches.
        note: Remark for the user; may be empty.
        files: Image and labels of the source; if they differ, it is cut again. Empty in journals of earlier
            versions.
    """

    source: str
    group: str
    size: int
    patches: tuple[Patch, ...]
    note: str = ""
    files: tuple[str, ...] = ()


class Journal:
    """A JSON-lines file: first the parameters, then an entry for each finished source file.

    Only one process at a time may open it. A line truncated by a kill is dropped on opening.

    Args:
        path: The file; its folder is created.
        parameters: Arguments of the command that the patches depend on (patch size, format ...).
        facts: Other facts that the patches depend on; missing in journals of earlier versions.

    Raises:
        PrepareError: The file was started with other parameters or facts, or another run has it open.
    """

    def __init__(
        self, path: Path, parameters: Mapping[str, Any], facts: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            self._lock()
            self.entries = self._load(dict(parameters), dict(facts or {}))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, entry: Entry) -> None:
        """Record a finished source file; its patches must have been written."""
        self.entries[entry.source] = entry
        self._append(asdict(entry))

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def _lock(self) -> None:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise PrepareError(
                        f"{self.path}: another run is writing here; wait for it or stop it"
                    ) from None
                time.sleep(0.1)

    def _load(self, parameters: dict[str, Any], facts: dict[str, Any]) -> dict[str, Entry]:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        os.ftruncate(self._file.fileno(), whole)
        header, *lines = [json.loads(line) for line in content[:whole].splitlines()] or [None]
        if header is None:
            self._append({"version": _VERSION, "parameters": parameters, "facts": facts})
        else:
            self._require_same(header, parameters)
            changes = differences(header["facts"], facts) if "facts" in header else ""
            if changes and not lines:  # nothing was finished: a table that matched no mask may be corrected
                os.ftruncate(self._file.fileno(), 0)
                self._append({**header, "facts": facts})
            elif changes:
                raise PrepareError(
                    f"{self.path}: the dataset has changed since patches were cut here ({changes}). Choose "
                    f"another --name or --out, or delete the folder {self.path.parent} to start from scratch"
                )
        return {line["source"]: _entry(line) for line in lines}

    def _require_same(self, header: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
        before = header.get("parameters", {})
        if header.get("version") != _VERSION or before != parameters:
            changes = differences(before, parameters)
            raise PrepareError(
                f"{self.path}: patches here were cut with other parameters ({changes or 'another version'}). "
                "Run with the same ones to continue, choose another --out or --name, or delete the folder "
                f"{self.path.parent} to start from scratch"
            )


def _entry(line: Mapping[str, Any]) -> Entry:
    patches: Sequence[Mapping[str, Any]] = line["patches"]
    written = tuple(Patch(**patch) for patch in patches)
    files = tuple(line.get("files", ()))
    return Entry(line["source"], line["group"], line["size"], written, line.get("note", ""), files)
