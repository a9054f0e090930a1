"""Lets all processes validate the same network."""

import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from s5.engine.runner import unwrap


class SharedBuffersHook(Hook):
    """Gives all processes the normalisation statistics of the main one, which are those it saves.

    DistributedDataParallel does so before a step; the step itself then changes them in every process on its
    own, unless batch norm is synchronised.
    """

    priority = "VERY_HIGH"

    def before_val(self, runner: Runner) -> None:
        """Share them."""
        if dist.is_initialized():
            for buffer in unwrap(runner.model).buffers():
                dist.broadcast(buffer, src=0)
