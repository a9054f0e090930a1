"""Where logged values go besides the console: one JSON-lines file and TensorBoard."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend, Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend

SCALARS_FILE = "log.jsonl"


class JsonLinesBackend(BaseVisBackend):
    """Appends every record of scalars as one line to ``log.jsonl``; a resumed run continues the file."""

    def _init_env(self) -> None:
        Path(self._save_dir).mkdir(parents=True, exist_ok=True)

    @property
    def experiment(self) -> Path:
        """The file."""
        return Path(self._save_dir) / SCALARS_FILE

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """The configuration has a file of its own."""

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Pictures are written by their hook."""

    def add_scalar(self, name: str, value: float, step: int = 0, **kwargs: Any) -> None:
        """Append one value."""
        self.add_scalars({name: value}, step)

    def add_scalars(
        self, scalar_dict: dict[str, Any], step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Append the values; NaN (a class that does not occur) becomes null; ``file_path`` is not used."""
        values = {name: float(value) for name, value in scalar_dict.items()}
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        with self.experiment.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def build_visualizer(work_dir: Path, name: str) -> Visualizer:
    """A visualizer that writes ``work_dir/log.jsonl`` and ``work_dir/tensorboard``."""
    backends = [JsonLinesBackend(str(work_dir)), TensorboardVisBackend(str(work_dir / "tensorboard"))]
    return Visualizer(name=name, vis_backends=backends, save_dir=str(work_dir))
