"""How the results in a folder of predictions were made: the file that says so, and what has changed since."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from s5.data.image_io import write_bytes
from s5.data.submission import SETTINGS_FILE
from s5.engine import trained
from s5.engine.trained import Recipe

Settings = Mapping[str, Mapping[str, Any]]
"""What the results of each task depend on, and what their values mean."""


def settings_of(args: argparse.Namespace, recipe: Recipe, dtype: torch.dtype | None) -> Settings:
    """The settings of a prediction.

    Args:
        args: of :func:`s5.engine.predict_command.prediction_parser`, with ``checkpoint``.
        recipe: the model.
        dtype: of the matrix work, None for float32.
    """
    return {
        task: {
            **trained.identify(args.checkpoint),
            "precision": str(dtype or torch.float32).removeprefix("torch."),
            **asdict(recipe.inference[task]),
            "tta": args.tta,
            "scales": args.scales,
            "labels": table.as_mapping(),
        }
        for task, table in recipe.tables.items()
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
        return f"before {now['checkpoint']} was written anew"
    return f"with {key} {there.get(key)}, now it is {now[key]}"
