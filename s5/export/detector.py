"""A detector as one graph: from an RGB image in [0, 1] to rotated boxes and scores, before the final NMS.

Oriented R-CNN selects a number of proposals that depends on the image. In the graph their number is fixed:
proposals that non-maximum suppression removes keep their place with scores of 0.
"""

from typing import Any, NamedTuple, cast

import torch
from mmdet.structures.bbox import get_box_tensor
from mmrotate.structures.bbox import rbox2hbox
from torch import Tensor, nn
from torchvision.ops import nms

from s5.detection.network import DetectionModel
from s5.detection.network.oriented_rcnn import OrientedRCNN

REMOVED = -1.0  # score of a proposal that does not count


class DetectorGraph(nn.Module):
    """Normalisation, network and decoding for one image of a fixed size and one task.

    The layout is that of oriented boxes of Ultralytics' YOLO: a column per box with centre x and y, width and
    height in pixels, the scores of the classes, and the angle in radians, positive from the x axis to the y
    axis.

    Args:
        model: The trained model, with a single task.
    """

    def __init__(self, model: DetectionModel) -> None:
        super().__init__()
        self.model = model

    @property
    def head(self) -> OrientedRCNN:
        """FPN, RPN and RoI head of the task."""
        return cast(OrientedRCNN, self.model.detector.heads[self.model.detector.tasks[0]])

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Compute boxes (1, 4 + classes + 1, N) from an image (1, 3, H, W), RGB in [0, 1]."""
        network, head = self.model.detector, self.head
        maps = head.neck(network.encode(self.model._prepare(image), {network.tasks[0]: 1}))
        proposals = select_proposals(head.rpn_head, maps)
        logits, offsets = head.roi_head.bbox_head(
            pool(head.roi_head.bbox_roi_extractor, maps, proposals.boxes)
        )
        boxes = get_box_tensor(head.roi_head.bbox_head.bbox_coder.decode(proposals.boxes, offsets))
        scores = logits.softmax(1)[:, :-1] * proposals.counts[:, None]  # background is last
        return (torch.cat([boxes[:, :4], scores, boxes[:, 4:]], dim=1).T[None],)


class Proposals(NamedTuple):
    """Rotated boxes (N, 5) in pixels, and 1 for those that count and 0 for the others, (N,)."""

    boxes: Tensor
    counts: Tensor


def select_proposals(rpn: Any, maps: tuple[Tensor, ...]) -> Proposals:  # noqa: ANN401 - mmdet has no types
    """Select the best proposals of one image, as `Float32OrientedRPNHead.predict`.

    Args:
        rpn: The RPN head.
        maps: Maps (1, C, h, w) of the neck.
    """
    levels = [(scores[0], offsets[0]) for scores, offsets in zip(*rpn(maps), strict=True)]
    grids = rpn.prior_generator.grid_priors(
        [scores.shape[-2:] for scores, _ in levels], device=maps[0].device
    )
    wanted, boxes, ranks = rpn.test_cfg, [], []
    for (scores, offsets), anchors in zip(levels, grids, strict=True):
        score = scores.permute(1, 2, 0).flatten().sigmoid()
        score, best = score.topk(min(wanted.nms_pre, score.shape[0]))
        coded = offsets.permute(1, 2, 0).reshape(-1, rpn.bbox_coder.encode_size)[best]
        found = get_box_tensor(rpn.bbox_coder.decode(get_box_tensor(anchors)[best], coded))
        boxes.append(found)
        ranks.append(_suppressed(found, score, wanted.nms.iou_threshold, wanted.min_bbox_size))
    found, rank = torch.cat(boxes), torch.cat(ranks)
    rank, best = rank.topk(min(wanted.max_per_img, rank.shape[0]))
    return Proposals(found[best], (rank != REMOVED).to(rank.dtype))


def _suppressed(boxes: Tensor, scores: Tensor, threshold: float, smallest: float) -> Tensor:
    """Scores (N,) of one level, `REMOVED` where a better box covers the same place or the box is empty."""
    sized = (boxes[:, 2:4] > smallest).all(1)
    # A box without area suppresses none.
    upright = torch.where(sized[:, None], rbox2hbox(boxes), torch.zeros_like(boxes[:, :4]))
    kept = torch.zeros_like(scores).index_fill(0, nms(upright, scores, threshold), 1.0)
    return torch.where((kept > 0) & sized, scores, REMOVED)


def pool(extractor: Any, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:  # noqa: ANN401
    """Pool the features (N, C, h, w) of rotated boxes (N, 5), as `EnlargingRoIExtractor`.

    Each bin is a weighted sum of pixels of one level. All levels stand in one table, so that the level of a
    box only changes which rows of the table are summed. One sample of all bins is in memory at a time.

    Args:
        extractor: The RoI extractor, with a fixed number of samples per bin.
        maps: Maps (1, C, h, w) of the neck.
        boxes: Boxes in pixels of the input.
    """
    layers, enlarge = extractor.roi_layers, extractor.enlarge
    used = maps[: len(layers)]
    x, y, width, height, angle = boxes.unbind(1)
    width, height = width * enlarge[1], height * enlarge[0]
    level = extractor.map_roi_levels(torch.stack([x, x, y, width, height, angle], 1), len(layers))
    table = torch.cat([one[0].flatten(1).T for one in used])  # (pixels of all levels, C)
    heights, widths = ([one.shape[dim] for one in used] for dim in (2, 3))
    starts = [sum(h * w for h, w in list(zip(heights, widths, strict=True))[:i]) for i in range(len(used))]
    tall, wide, start = (torch.tensor(values)[level][:, None] for values in (heights, widths, starts))
    scale = torch.tensor([layer.spatial_scale for layer in layers])[level]
    shift = 0.5 if layers[0].aligned else 0.0
    region = _Region(
        x * scale - shift, y * scale - shift, width * scale, height * scale, angle, tall, wide, start
    )
    (rows, columns), samples = layers[0].output_size, layers[0].sampling_ratio
    steps = [(i + 0.5) / samples for i in range(samples)]
    total = sum(
        weight[..., None] * table[pixel]
        for v in steps
        for u in steps
        for pixel, weight in _taps(region, (rows, columns), v, u)
    )
    pooled = cast(Tensor, total) / samples**2  # (N, bins, C)
    return pooled.transpose(1, 2).unflatten(2, (rows, columns))


class _Region(NamedTuple):
    """Boxes (N,) in pixels of their level, and height, width and first row of the level (N, 1)."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    angle: Tensor
    tall: Tensor
    wide: Tensor
    start: Tensor


def _taps(region: _Region, bins: tuple[int, int], v: float, u: float) -> list[tuple[Tensor, Tensor]]:
    """Rows of the table and weights, (N, bins) each, of the four pixels around one point of every bin.

    Args:
        region: The boxes.
        bins: Rows and columns of bins.
        v: Place of the point along a bin's height, 0..1.
        u: Place of the point along its width.
    """
    rows, columns = bins
    down = ((torch.arange(rows) + v) / rows - 0.5).repeat_interleave(columns)  # (bins,)
    along = ((torch.arange(columns) + u) / columns - 0.5).repeat(rows)
    cos, sin = region.angle.cos()[:, None], region.angle.sin()[:, None]
    down, along = region.height[:, None] * down, region.width[:, None] * along
    x = region.x[:, None] + along * cos - down * sin  # (N, bins)
    y = region.y[:, None] + along * sin + down * cos
    tall, wide = region.tall, region.wide
    inside = ((x >= -1) & (x <= wide) & (y >= -1) & (y <= tall)).to(x.dtype)
    x, y = torch.minimum(x.clamp(min=0), wide - 1.0), torch.minimum(y.clamp(min=0), tall - 1.0)
    left, top = x.floor(), y.floor()
    part_x, part_y = x - left, y - top
    left, top = left.long(), top.long()
    right, bottom = torch.minimum(left + 1, wide - 1), torch.minimum(top + 1, tall - 1)
    return [
        (region.start + row * wide + column, inside * share_y * share_x)
        for row, share_y in ((top, 1 - part_y), (bottom, part_y))
        for column, share_x in ((left, 1 - part_x), (right, part_x))
    ]
