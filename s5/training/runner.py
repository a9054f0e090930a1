"""mmengine's Runner and training loop with an explicit device and safe, exact resuming."""

import gc
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any, cast

import mmengine
import timm
import torch
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.utils import apply_to
from torch import nn

from s5.checkpoints.reading import read_checkpoint
from s5.compat import mmcv_ext
from s5.compat.attention import allowed_backends
from s5.errors import CheckpointError
from s5.launch import LOG_FILE, Launch
from s5.training.model import TaskModel
from s5.training.resume import ResumableHook, why_not


class S5Runner(Runner):
    """Runner of all three trees.

    Args:
        launch: Device and processes.
        kwargs: Arguments of mmengine's Runner.
    """

    model: nn.Module

    def __init__(self, launch: Launch, **kwargs: Any) -> None:
        self.launch = launch
        # mmengine keys global state by this name, and its own would be shared by runs of the same second
        name = f"{Path(kwargs['work_dir']).name}_{time.time_ns()}"
        super().__init__(launcher=launch.launcher, default_scope="mmengine", experiment_name=name, **kwargs)

    def get_hooks_info(self) -> str:
        """Names of the hooks; mmengine's list by stage takes a hundred lines of the log."""
        return ", ".join(type(hook).__name__ for hook in self.hooks)

    def _log_env(self, env_cfg: dict) -> None:
        """Log versions and device in one line."""
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
        """Only remove the folder for mmengine's copy; `ConfigFileHook` saves the configuration."""
        if self.launch.is_main:
            Path(self.log_dir).rmdir()
        self._log_dir = self.work_dir

    def build_logger(
        self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        """Use one log file per work folder, appended to by resumed runs."""
        return super().build_logger(log_level, os.path.join(self.work_dir, LOG_FILE), file_mode="a", **kwargs)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move the model to the device and, with several processes, wrap it in DistributedDataParallel."""
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
        """Re-create the DistributedDataParallel wrapper, which must know which parameters are frozen."""
        if is_model_wrapper(self.model):
            self.model = unwrap(self.model)
            gc.collect()  # the old wrapper's hooks on the gradients go with it
            self.model = self.wrap_model(None, self.model)

    def resumable_state(self, iteration: int) -> dict[str, Any] | None:
        """State needed to resume after `iteration` steps, see :mod:`s5.training.resume`.

        All processes must call this, because hooks check collectively that the weights are finite. Only the
        main process gets the result, others None: a copy in host memory is several times the size of the
        weights.
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
        checkpoint |= {hook.key: hook.state_dict(self, iteration) for hook in self._resumable_hooks()}
        if not self.launch.is_main:
            return None
        return {
            **checkpoint,
            "state_dict": _to_cpu(unwrap(self.model).state_dict()),
            "message_hub": self.message_hub.state_dict(),
            "optimizer": _to_cpu(self.optim_wrapper.state_dict()),
            "param_schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers],
        }

    def build_train_loop(self, loop: dict[str, Any]) -> "TrainLoop":
        """Build the training loop, the same for all trees."""
        return TrainLoop(self, self._train_dataloader, **loop)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a resumable checkpoint of this model, without executing anything in it.

        Raises:
            CheckpointError: The file is missing, truncated or not resumable, or belongs to another model or
                learning-rate schedule.
        """
        checkpoint = read_checkpoint(filename, whole=True)
        schedulers = [scheduler.state_dict() for scheduler in self.param_schedulers]
        groups = cast(OptimWrapper, self.optim_wrapper).optimizer.param_groups
        problem = why_not(checkpoint, unwrap(self.model).state_dict(), schedulers, self.max_iters, groups)
        if problem is not None:
            raise CheckpointError(f"cannot resume from {filename}: {problem}")
        for hook in self._resumable_hooks():
            if hook.key in checkpoint:  # checkpoints of earlier versions lack some
                hook.load_state_dict(self, checkpoint["meta"]["iter"], checkpoint[hook.key])
        unwrap(self.model).load_state_dict(checkpoint["state_dict"], strict=True)
        self._has_loaded = True
        logging.getLogger(__name__).info("resumed from %s", filename)
        return checkpoint

    def _resumable_hooks(self) -> list[ResumableHook]:
        return [hook for hook in self.hooks if isinstance(hook, ResumableHook)]

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume through host memory, so that the checkpoint takes no device memory."""
        super().resume(filename, *args, **{**kwargs, "map_location": "cpu"})


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, or the model itself."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def _to_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return apply_to(state, lambda value: isinstance(value, torch.Tensor), lambda tensor: tensor.cpu())


class TrainLoop(IterBasedTrainLoop):
    """The loop over training steps.

    A resumed run starts with a validation if one was due at the checkpoint's iteration: the checkpoint was
    written before it, without its scores and the resulting choice of best weights.
    """

    runner: S5Runner

    def run(self) -> nn.Module:
        """Train to the end, or until a hook sets `stop_training`."""
        runner = self.runner
        runner.call_hook("before_train")
        if self._iter:
            self._validate_if_due()
        runner.call_hook("before_train_epoch")
        if self._iter:
            self.dataloader_iterator.skip_iter(self._iter)  # in the sampler, without reading images
        while self._iter < self._max_iters and not self.stop_training:
            runner.model.train()
            batch = next(self.dataloader_iterator)
            self._seed_step()
            cast(TaskModel, unwrap(runner.model)).iteration = self._iter
            self.run_iter(batch)
            self._validate_if_due()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _validate_if_due(self) -> None:
        if self._iter % self.val_interval == 0 or self._iter == self._max_iters:
            self.runner.val_loop.run()

    def _seed_step(self) -> None:
        """Seed the random numbers of the step (dropout, drop path) from seed, step and rank.

        Checkpoints therefore store no random state, and a resumed run draws the same numbers as an
        uninterrupted one.
        """
        key = (self.runner.seed * 1_000_003 + self._iter) * 65_537 + self.runner.rank
        torch.manual_seed(key % 2**63)
