"""A segmentor as one graph: from RGB images in [0, 1] to the class probabilities of every pixel."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import Segmentor
from s5.training.model import Features

Side = int | torch.SymInt


class SegmentorGraph(nn.Module):
    """Normalisation, network and softmax, in operators that `torch.export` records for symbolic sizes.

    A size is symbolic if the graph is for images of any size. Such images are padded to at least four
    patches, others to the two that the network needs: a coarsest map of a single row would need a graph of
    its own.

    Args:
        model: The trained model; its pooling layers are replaced.
    """

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model
        _replace_pooling(model.segmentor)

    @property
    def network(self) -> Segmentor:
        """The network."""
        return self.model.segmentor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute probabilities (B, K, H, W) of every task from images (B, 3, H, W), RGB in [0, 1]."""
        height, width = image.shape[-2:]
        size = self._padded(height), self._padded(width)
        normalised = pad(self.model._prepare(image), size)
        return tuple(
            self._probabilities(task, maps, (height, width), size)
            for task, maps in self._features(normalised).items()
        )

    def _padded(self, side: Side) -> Side:
        architecture = self.network.backbone.architecture
        if isinstance(side, int):
            return architecture.padded(side)
        step = architecture.divisor
        return torch.sym_max((side + step - 1) // step * step, 2 * architecture.min_size)

    def _features(self, images: Tensor) -> dict[str, Features]:
        """Feature maps by task, as `MultiTaskNetwork.features_of_all`, whose checks cannot be recorded."""
        tasks, batch, backbone = self.network.tasks, images.shape[0], self.network.backbone
        if not backbone.tasks:
            return dict.fromkeys(tasks, backbone(images))
        counts = dict.fromkeys(tasks, batch)
        levels = [
            level.split([batch] * len(tasks)) for level in backbone(torch.cat([images] * len(tasks)), counts)
        ]
        return dict(zip(tasks, zip(*levels, strict=True), strict=True))

    def _probabilities(
        self, task: str, maps: Features, shown: tuple[Side, Side], size: tuple[Side, Side]
    ) -> Tensor:
        """Decode maps of images padded from the size `shown` to `size`, as `Segmentor.decode`."""
        logits = self.network.heads[task](maps)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)  # type: ignore[arg-type]
        return take(take(logits, 2, shown[0], size[0]), 3, shown[1], size[1]).softmax(1)


def pad(images: Tensor, size: tuple[Side, Side]) -> Tensor:
    """Pad images (B, C, H, W) with zeros on the right and at the bottom to `size`.

    `F.pad` would need one graph for sizes that are padded and one for the others.
    """
    for dim, wanted in zip((2, 3), size, strict=True):
        side = images.shape[dim]
        if isinstance(wanted, int) and wanted == side:
            continue
        index = torch.arange(wanted, device=images.device)
        shape = (-1, 1) if dim == 2 else (-1,)
        inside = (index < side).to(images.dtype).view(shape)
        images = images.index_select(dim, index.clamp(max=side - 1)) * inside
    return images


def take(maps: Tensor, dim: int, count: Side, side: Side) -> Tensor:
    """The first `count` of `side` rows or columns; a slice would compare the two sizes."""
    if isinstance(side, int) and side == count:
        return maps
    return maps.index_select(dim, torch.arange(count, device=maps.device))


class AveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products with matrices, whose size may be symbolic.

    Args:
        bins: Rows and columns of the result.
    """

    def __init__(self, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = tuple(bins)

    def forward(self, maps: Tensor) -> Tensor:
        """Average maps (B, C, H, W) to (B, C, *bins)."""
        rows, columns = (averages(b, n, maps) for b, n in zip(self.bins, maps.shape[-2:], strict=True))
        return rows @ maps @ columns.T


def averages(bins: int, length: Side, like: Tensor) -> Tensor:
    """Matrix (bins, length) whose row i averages the elements from floor(i n / b) to ceil((i + 1) n / b)."""
    row, element = torch.arange(bins, device=like.device)[:, None], torch.arange(length, device=like.device)
    first = row.mul(length) // bins
    end = ((row + 1).mul(length) + bins - 1) // bins
    return ((element >= first) & (element < end)).to(like.dtype) / (end - first).to(like.dtype)


def _replace_pooling(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            bins = cast(int, child.output_size)  # UPerHead has square bins
            setattr(module, name, AveragePool((bins, bins)))
        else:
            _replace_pooling(child)
