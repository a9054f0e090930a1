"""mmengine's Runner with safe checkpoint reading, atomic writing and the device that was asked for."""

import gc
import logging
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import mmengine
import timm
import torch
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from mmengine.utils import apply_to
from torch import nn

from s5.checkpoints.loading import read_checkpoint
from s5.compat import mmcv_ext
from s5.compat.attention import allowed_backends
from s5.errors import CheckpointError
from s5.launch import LOG_FILE, Launch
from s5.training.step_scalars import StepLogProcessor, StepScalarsHook

RESUMABLE_PARTS = {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers"}


class S5Runner(Runner):
    """Runner of all three trees.

    Args:
        launch: device and processes.
        kwargs: as for mmengine's Runner.
    """

    model: nn.Module

    def __init__(self, launch: Launch, **kwargs: Any) -> None:
        self.launch = launch
        # mmengine keeps global state by this name, and would share it between runs started within a second
        name = f"{Path(kwargs['work_dir']).name}_{time.time_ns()}"
        super().__init__(launcher=launch.launcher, default_scope="mmengine", experiment_name=name, **kwargs)

    def get_hooks_info(self) -> str:
        """The hooks by name; mmengine's list by moment takes a hundred lines of the log."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)

    def _log_env(self, env_cfg: dict) -> None:
        """Versions and device, in one line."""
        device = self.launch.device
        if device.type == "cuda":
            kernels = ", ".join(allowed_backends())
            hardware = f"{torch.cuda.get_device_name(device)}, attention kernels: {kernels}"
        else:
            hardware = f"{torch.get_num_threads()} threads"
        self.logger.info(
            f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"mmengine {mmengine.__version__}, timm {timm.__version__}; {device.type} ({hardware}), "
            f"{self.launch.world_size} processes, seed {self.seed}; mmcv operators: {mmcv_ext.in_use()}"
        )

    def dump_config(self) -> None:
        """Nothing: entry scripts save the configuration. The folder made for mmengine's own is removed."""
        if self.launch.is_main:
            Path(self.log_dir).rmdir()
        self._log_dir = self.work_dir

    def build_logger(
        self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        """One log file per work folder, continued when a run is resumed."""
        return super().build_logger(log_level, os.path.join(self.work_dir, LOG_FILE), file_mode="a", **kwargs)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move the model to the device, and under several processes into DistributedDataParallel."""
        model = model.to(self.launch.device).to(memory_format=torch.channels_last)
        if self.launch.world_size == 1:
            return model
        on_gpu = self.launch.device.type == "cuda"
        if on_gpu and self.cfg.get("sync_bn"):
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return MMDistributedDataParallel(
            model,
            device_ids=[self.launch.device.index] if on_gpu else None,
            broadcast_buffers=not on_gpu or not self.cfg.get("sync_bn"),
            find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            gradient_as_bucket_view=True,
        )

    def rewrap_model(self) -> None:
        """Wrap the model again, after weights were frozen or released: DistributedDataParallel must know."""
        if is_model_wrapper(self.model):
            self.model = unwrap(self.model)
            gc.collect()  # the old wrapper's hooks on the gradients go with it
            self.model = self.wrap_model(None, self.model)

    def resumable_state(self, iteration: int) -> dict[str, Any] | None:
        """Everything that ``resume`` needs to go on after ``iteration`` steps, as the hooks complete it.

        All processes have to call it: hooks agree here on refusing weights that are not finite. But only the
        main one gets the result; copies of it in the memory of the host take several times the weights.
        """
        checkpoint: dict[str, Any] = {
            "meta": {
                "epoch": 0,
                "iter": iteration,
                "max_iters": self.max_iters,
                "seed": self.seed,
                "dataset_meta": self.train_dataloader.dataset.metainfo,
            }
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        if not self.launch.is_main:
            return None
        return {
            **checkpoint,
            "state_dict": _to_cpu(unwrap(self.model).state_dict()),
            "message_hub": self.message_hub.state_dict(),
            "optimizer": _to_cpu(self.optim_wrapper.state_dict()),
            "param_schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers],
        }

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a resumable checkpoint of this very model, without executing anything in it.

        Raises:
            CheckpointError: missing, truncated, not resumable, of another model or learning-rate schedule.
        """
        checkpoint = read_checkpoint(filename, whole=True)
        problem = self._why_not(checkpoint)
        if problem is not None:
            raise CheckpointError(f"cannot resume from {filename}: {problem}")
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        unwrap(self.model).load_state_dict(checkpoint["state_dict"], strict=True)
        self._has_loaded = True
        logging.getLogger(__name__).info("resumed from %s", filename)
        return checkpoint

    def _why_not(self, checkpoint: dict[str, Any]) -> str | None:
        """What speaks against resuming from a checkpoint."""
        lacking = RESUMABLE_PARTS - checkpoint.keys()
        if lacking:
            return (
                f"it has no {', '.join(sorted(lacking))}. Checkpoints to resume from are named "
                "iter_<number>.pth; from weights alone, start a new run (--init, --checkpoint, --load-from)"
            )
        ours, theirs = unwrap(self.model).state_dict(), checkpoint["state_dict"]
        shapes = {
            name: tuple(
                tuple(tensors[name].shape) if name in tensors else "absent" for tensors in (theirs, ours)
            )
            for name in {**ours, **theirs}
        }
        different = [name for name, (there, here) in shapes.items() if there != here]
        if different:
            there, here = shapes[different[0]]
            return (
                f"it is of another model: {len(different)} tensors differ, the first {different[0]} "
                f"({there}, here {here}). Use the backbone, classes and options that it was written with"
            )
        if _schedules(checkpoint["param_schedulers"]) != _schedules(
            s.state_dict() for s in self.param_schedulers
        ):
            return _other_schedule(checkpoint["meta"].get("max_iters"), self.max_iters)
        return None

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume through host memory, so that a checkpoint never takes the device's."""
        super().resume(filename, *args, **{**kwargs, "map_location": "cpu"})


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model itself."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def log_options(interval: int) -> dict[str, Any]:
    """Runner arguments: log every ``interval`` iterations the means over them; no mmengine checkpoints."""
    log = {"type": "LoggerHook", "interval": interval, "log_metric_by_epoch": False}
    scalars = StepScalarsHook()
    return {
        "default_hooks": {"runtime_info": scalars, "logger": log, "checkpoint": None},
        "log_processor": StepLogProcessor(scalars, interval),
    }


def _other_schedule(theirs: int | None, ours: int) -> str:
    """What to say of a checkpoint with another learning-rate schedule."""
    if theirs not in (None, ours):
        return (
            f"its run was to end at iteration {theirs}, this one at {ours}. Set the length as it was; where "
            f"it is counted in epochs, their length depends on the images and the number of processes, and "
            f"schedule.steps_per_epoch fixes it. For another length, start a new run from its weights"
        )
    return (
        "it has another learning-rate schedule. To go on, set learning rate, layer decay and warm-up as they "
        "were; for another one, start a new run from its weights"
    )


def _schedules(states: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of learning-rate schedulers, without how far they have come."""
    progress = ("last_step", "_global_step", "_last_value")
    return [{key: value for key, value in state.items() if key not in progress} for state in states]


def _to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return apply_to(state, lambda value: isinstance(value, torch.Tensor), lambda tensor: tensor.cpu())
