"""Tiny multi-dataset runs for tests: generated datasets, a configuration, the entry scripts."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import yaml

from s5.data.image_io import write_image
from tests.helpers.s4p_runs import REPO, learnable_pair, load_script, records

SIZE = 32
TASKS = {"ponds": ["ground", "water"], "roofs": ["ground", "water", "roof"]}


def write_datasets(root: Path, train: int = 6, val: int = 3) -> Path:
    """Images of coloured noise with a mask that can be learned, in the folders of `configuration`."""
    rng = np.random.default_rng(0)
    for task, classes in TASKS.items():
        for part, count in (("train", train), ("val", val)):
            for i in range(count):
                image, mask = learnable_pair(rng, len(classes), 40, 48)
                for kind, pixels in (("images", image), ("masks", mask)):
                    write_image(root / task / part / kind / f"{i:03d}.png", pixels)
    return root


def configuration(root: Path) -> dict:
    """The shipped configuration's sections, of a size for seconds."""
    tasks = {
        task: {
            "labels": {"classes": classes},
            **{part: {k: f"{task}/{part}/{k}" for k in ("images", "masks")} for part in ("train", "val")},
            "batch_size": 2,
            "evaluation": {"mode": "slide_window", "crop": SIZE, "stride": 24},
        }
        for task, classes in TASKS.items()
    }
    return {
        "data_root": str(root),
        "tasks": tasks,
        "crop": SIZE,
        "workers": 0,
        "model": {"decoder_channels": 8, "expert_channels": 48},
        "optim": {"lr": 1e-4},
        "schedule": {"epochs": 2, "val_interval": 2, "log_interval": 1, "keep_checkpoints": 9},
    }


def arguments(
    root: Path, work_dir: Path, *extra: str, backbone: str = "vit_t_moe", **changes: object
) -> list[str]:
    """Command-line arguments of a tiny run; `changes` override the configuration, with `__` for a dot."""
    config = work_dir.parent / f"{work_dir.name}.yaml"
    config.write_text(yaml.safe_dump(configuration(root), sort_keys=False))
    base = ["--config", str(config), "--backbone", backbone, "--device", "cpu", "--work-dir", str(work_dir)]
    return [*base, *extra, *overrides(changes)]


def overrides(changes: Mapping[str, object]) -> list[str]:
    """`--cfg-options` for changed values."""
    return [
        part
        for key, value in changes.items()
        for part in ("--cfg-options", f"{key.replace('__', '.')}={json.dumps(value)}")
    ]


def script(name: str = "md_finetune") -> ModuleType:
    """An entry script of the tree as a module."""
    return load_script(REPO / "Semantic_Segmentation" / f"{name}.py")


def losses(work_dir: Path) -> dict[int, tuple]:
    """Logged losses by step; a later record of a step replaces an earlier one."""
    found = [record for record in records(work_dir) if "loss" in record]
    return {r["step"]: tuple((k, v) for k, v in r.items() if "loss" in k) for r in found}
