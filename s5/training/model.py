"""What the models of all trees share: a network with a backbone and heads, its arithmetic and its losses."""

from abc import abstractmethod
from contextlib import AbstractContextManager

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn

from s5.compat.precision import autocast
from s5.ops.photometric import normalize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class TaskModel(BaseModel):
    """mmengine model around a network that has a ``backbone`` and ``heads`` by task.

    Args:
        dtype: autocast type of the matrix work (see :func:`s5.compat.precision.resolve_precision`);
            None is float32.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__(BaseDataPreprocessor(non_blocking=True))
        self.dtype = dtype

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What is saved and loaded as weights."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.get_parameter("backbone.pos_embed").device

    def autocast(self) -> AbstractContextManager:
        """The arithmetic of the network; around many passes it casts the weights only once."""
        return autocast(self.device, self.dtype)

    def after_step(self, skipped: Tensor) -> None:
        """Update what follows the weights, after every optimizer step; nothing by default.

        Args:
            skipped: bool scalar on the device. If true, the step was skipped and nothing may change.
        """

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, which is ``loss`` alone, and all values to log.

        mmengine would add up everything whose name contains "loss".
        """
        values = {n: v.detach() if isinstance(v, Tensor) else v for n, v in losses.items()}
        return losses["loss"], values

    def _prepare(self, images: Tensor) -> Tensor:
        return normalize(images, IMAGENET_MEAN, IMAGENET_STD)
