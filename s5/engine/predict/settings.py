"""How the results in a folder of predictions were made: the file that says so, and what has changed since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from s5.data.image_io import write_bytes
from s5.data.submission import SETTINGS_FILE

Settings = Mapping[str, Mapping[str, Any]]
"""What the results of each task depend on, and what their values mean."""


def identify(checkpoint: Path) -> dict[str, str | int]:
    """What distinguishes a readable checkpoint from others, and from itself before it was overwritten."""
    file = checkpoint.expanduser()
    file = (file if file.is_file() else file.with_name(f"{file.name}.pth")).resolve()
    stat = file.stat()
    return {
        "checkpoint": str(file),
        "checkpoint_bytes": stat.st_size,
        "checkpoint_modified_ns": stat.st_mtime_ns,
    }


def changes(folder: Path, settings: Settings) -> dict[str, str]:
    """In what the results in a folder differ from what would be made now, by task; not of equal ones."""
    found = {}
    for task, values in settings.items():
        path = folder / task / SETTINGS_FILE
        if path.exists():
            there = yaml.safe_load(path.read_text(encoding="utf-8"))
            changed = [key for key, value in values.items() if there.get(key) != value]
            if changed:
                found[task] = f"{path}: the results there were made {_difference(changed[0], there, values)}"
    return found


def write_settings(folder: Path, settings: Settings) -> None:
    """Write the file of each task.

    Raises:
        OSError: it cannot be written.
    """
    for task, values in settings.items():
        text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, default_flow_style=None)
        write_bytes(folder / task / SETTINGS_FILE, text.encode())


def _difference(key: str, there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if key in ("checkpoint_bytes", "checkpoint_modified_ns"):
        return f"before {now['checkpoint']} was overwritten"
    return f"with {key} {there.get(key)}, now it is {now[key]}"
