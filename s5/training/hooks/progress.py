"""Progress of a run: a bar on a terminal, scalars and throughput in the log, the newest scores in a file."""

import json
import logging
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.runner import LogProcessor, Runner
from mmengine.visualization import TensorboardVisBackend, Visualizer
from mmengine.visualization.vis_backend import BaseVisBackend
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from s5.compat.memory import peak_memory
from s5.data.files import write_bytes
from s5.training.hooks.safety import SafetyHook
from s5.training.reports import SUMMARY_FILE

Scalar = Tensor | float
SCALARS_FILE = "log.jsonl"


class ProgressHook(Hook):
    """Shows a bar with iteration, rate, remaining time and loss of the main process on a terminal."""

    priority = "LOWEST"

    def __init__(self, safety: SafetyHook) -> None:
        self._safety = safety  # it has already read the loss; reading it here would synchronise the device
        self._bar: tqdm | None = None

    def before_train(self, runner: Runner) -> None:
        """Open the bar."""
        if runner.rank == 0 and sys.stdout.isatty():
            self._redirect = logging_redirect_tqdm(loggers=[runner.logger, logging.getLogger("s5")])
            self._redirect.__enter__()
            self._bar = tqdm(total=runner.max_iters, initial=runner.iter, unit="it", dynamic_ncols=True)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{self._safety.loss:.4f}", refresh=False)
            self._bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._redirect.__exit__(None, None, None)


class ThroughputHook(Hook):
    """Adds `images_per_s`, `data_wait` (share of the step) and `peak_memory_gib` to the log.

    Memory is the allocator's peak on a GPU and the process's peak resident size on a CPU.

    Args:
        world_size: Number of processes.
        window: Iterations to average over.
        device: Device of the model.
    """

    priority = "NORMAL"  # with IterTimerHook, which was registered first, and before LoggerHook

    def __init__(self, world_size: int, window: int, device: torch.device) -> None:
        self.world_size = world_size
        self.device = device
        self._peak = 0  # mmengine resets the allocator's peak at every log line
        self.window = window

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict[str, Any] | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Derive the figures from the scalars of mmengine's timer."""
        hub = runner.message_hub
        step = hub.get_scalar("train/time").mean(self.window)
        wait = hub.get_scalar("train/data_time").mean(self.window)
        hub.update_scalar("train/images_per_s", len((data_batch or {})["names"]) * self.world_size / step)
        hub.update_scalar("train/data_wait", wait / step)
        self._peak = max(self._peak, peak_memory(self.device))
        hub.update_scalar("train/peak_memory_gib", self._peak / 2**30)


class SummaryHook(Hook):
    """Writes the scores (percent) of the newest validation to a machine-readable file."""

    priority = "LOW"

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the scores of this validation."""
        if runner.rank == 0:
            path = Path(runner.work_dir) / SUMMARY_FILE
            known = {k: None if math.isnan(v) else v for k, v in (metrics or {}).items()}  # JSON has no NaN
            text = json.dumps({"iteration": runner.iter, **known}, indent=1)
            write_bytes(path, f"{text}\n".encode())


class StepScalarsHook(RuntimeInfoHook):
    """Collects every scalar that a model's loss returns; mmengine's hook would synchronise for each value.

    Values that are not finite, which are those of skipped steps, are left out of the means. Beside them
    `grad_norm` is logged, as it is.

    Attributes:
        names: Of the scalars so far, which a log line averages over its steps.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._steps: list[dict[str, Scalar]] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Keep the outputs of the step, on the device."""
        scalars = {name: value for name, value in (outputs or {}).items() if _is_scalar(value)}
        self.names |= scalars.keys()
        self._steps.append({"grad_norm": runner.optim_wrapper.grad_norm, **scalars})

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Complete the message hub, which is part of the checkpoint."""
        self.flush(runner)

    def flush(self, runner: Runner) -> None:
        """Move the values of all steps so far to the message hub."""
        named = [(name, value) for step in self._steps for name, value in step.items()]
        for name, value in zip((name for name, _ in named), _read(value for _, value in named), strict=True):
            if name in self.names and not math.isfinite(value):
                runner.message_hub.update_scalar(f"train/{name}", 0.0, count=0)
            else:
                runner.message_hub.update_scalar(f"train/{name}", value)
        self._steps.clear()


def _is_scalar(value: object) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, int | float)


def _read(values: Iterable[Scalar]) -> list[float]:
    """Values of tensors and numbers; those on a device come in one copy."""
    listed = list(values)
    tensors = [value.reshape(()).float() for value in listed if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else [])
    return [next(read) if isinstance(value, Tensor) else float(value) for value in listed]


class StepLogProcessor(LogProcessor):
    """Formats log lines from the values that a :class:`StepScalarsHook` collects.

    Args:
        scalars: The hook.
        interval: Steps between log lines, and the number of steps a line averages over.
    """

    def __init__(self, scalars: StepScalarsHook, interval: int) -> None:
        super().__init__(window_size=interval, by_epoch=False)
        self.scalars = scalars

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Scalars by name, and the log line."""
        self.scalars.flush(runner)
        self._set_mean_pattern()
        with np.errstate(invalid="ignore"):  # a mean is NaN where every step of the window was skipped
            return super().get_log_after_iter(runner, batch_idx, mode)

    def _set_mean_pattern(self) -> None:
        averaged = [".*time", *map(re.escape, self.scalars.names)]
        self.mean_pattern = re.compile(rf"^({'|'.join(averaged)})$")


def log_options(interval: int) -> dict[str, Any]:
    """Runner arguments: log every `interval` iterations the means over them; no mmengine checkpoints."""
    log = {"type": "LoggerHook", "interval": interval, "log_metric_by_epoch": False}
    scalars = StepScalarsHook()
    return {
        "default_hooks": {"runtime_info": scalars, "logger": log, "checkpoint": None},
        "log_processor": StepLogProcessor(scalars, interval),
    }


class JsonLinesBackend(BaseVisBackend):
    """Appends every record of scalars as one line to `log.jsonl`; a resumed run continues the file."""

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
        """Append the values; NaN (a class that does not occur) becomes null; `file_path` is not used."""
        values = {name: float(value) for name, value in scalar_dict.items()}
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        with self.experiment.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def build_visualizer(work_dir: Path, name: str) -> Visualizer:
    """A visualizer that writes `work_dir/log.jsonl` and `work_dir/tensorboard`."""
    backends = [JsonLinesBackend(str(work_dir)), TensorboardVisBackend(str(work_dir / "tensorboard"))]
    return Visualizer(name=name, vis_backends=backends, save_dir=str(work_dir))
