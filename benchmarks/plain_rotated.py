"""Plain reference operators on rotated boxes in PyTorch: straightforward, but vectorised."""

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS = 1 << 14  # pairs intersected at once
NEAR = 1e-9


def plain_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (N, M) of all pairs of boxes, through the corners of each intersection."""
    i, j = (index.flatten() for index in _every_pair(len(boxes1), len(boxes2), boxes1.device))
    parts = zip(i.split(PAIRS), j.split(PAIRS), strict=True)
    return torch.cat([plain_iou_of_pairs(boxes1[a], boxes2[b]) for a, b in parts]).view(len(boxes1), -1)


def plain_iou_of_pairs(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (P,) of boxes (P, 5), from corners inside the other box and crossings of edges, sorted by angle."""
    boxes1, boxes2 = boxes1.double(), boxes2.double()
    corners1, corners2 = _corners(boxes1), _corners(boxes2)
    crossings, crossed = _crossings(corners1, corners2)
    points = torch.cat((corners1, corners2, crossings), dim=1)
    valid = torch.cat((_inside(corners1, boxes2), _inside(corners2, boxes1), crossed), dim=1)
    shared = _area(points, valid)
    return shared / (boxes1[:, 2] * boxes1[:, 3] + boxes2[:, 2] * boxes2[:, 3] - shared)


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float, labels: Tensor) -> Tensor:
    """Indices of the kept boxes: take the best, remove those of its class that it overlaps, repeat."""
    order = scores.argsort(descending=True)
    kept = []
    while len(order):
        kept.append(order[0])
        rivals = labels[order] == labels[order[0]]
        pairs = boxes[order[:1]].expand(int(rivals.sum()), 5), boxes[order[rivals]]
        rivals[rivals.clone()] = plain_iou_of_pairs(*pairs) > threshold
        rivals[0] = True
        order = order[~rivals]
    return torch.stack(kept)


def plain_roi_align(features: Tensor, rois: Tensor, bins: int, scale: float, ratio: int) -> Tensor:
    """Pool regions of the first image: one `grid_sample` for all, then the mean in each bin."""
    count, samples = len(rois), bins * ratio
    x, y, w, h = (rois[:, 1:5] * scale).T[..., None, None]
    x, y, cos, sin = x - 0.5, y - 0.5, rois[:, 5, None, None].cos(), rois[:, 5, None, None].sin()
    steps = (torch.arange(samples, device=rois.device) + 0.5) / samples - 0.5
    u, v = w * steps, h * steps[:, None]
    size = torch.tensor([features.shape[3], features.shape[2]], device=rois.device)
    grid = torch.stack((x + u * cos - v * sin, y + u * sin + v * cos), dim=-1) / (size - 1) * 2 - 1
    sampled = F.grid_sample(
        features, grid.view(1, count * samples, samples, 2), padding_mode="border", align_corners=True
    )
    return F.avg_pool2d(sampled, ratio)[0].view(-1, count, bins, bins).transpose(0, 1)


def _every_pair(rows: int, columns: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.meshgrid(
        torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij"
    )


def _axes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    return torch.stack((cos, sin), dim=-1), torch.stack((-sin, cos), dim=-1)


def _corners(boxes: Tensor) -> Tensor:
    first, second = _axes(boxes)
    first, second = first * boxes[:, 2:3] / 2, second * boxes[:, 3:4] / 2
    corners = (-first - second, first - second, first + second, second - first)
    return boxes[:, None, :2] + torch.stack(corners, dim=1)


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    offset = points - boxes[:, None, :2]
    first, second = _axes(boxes)
    along, across = (offset * first[:, None]).sum(-1).abs(), (offset * second[:, None]).sum(-1).abs()
    return (along <= boxes[:, 2:3] / 2 + NEAR) & (across <= boxes[:, 3:4] / 2 + NEAR)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _crossings(corners1: Tensor, corners2: Tensor) -> tuple[Tensor, Tensor]:
    """Points (P, 16, 2) where edges cross and whether they do."""
    start1, start2 = corners1[:, :, None], corners2[:, None]
    edge1, edge2 = (corners.roll(-1, 1) - corners for corners in (corners1, corners2))
    edge1, edge2 = edge1[:, :, None], edge2[:, None]
    parallel = _cross(edge1, edge2)
    safe = torch.where(parallel.abs() < NEAR, 1, parallel)
    t, s = _cross(start2 - start1, edge2) / safe, _cross(start2 - start1, edge1) / safe
    crossed = (parallel.abs() >= NEAR) & (t >= 0) & (t <= 1) & (s >= 0) & (s <= 1)
    return (start1 + t[..., None] * edge1).flatten(1, 2), crossed.flatten(1)


def _area(points: Tensor, valid: Tensor) -> Tensor:
    """Area of the convex polygons of the valid points (P, 24, 2), by the shoelace formula."""
    weight = valid[..., None].double()
    centre = (points * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    offset = points - centre
    angle = torch.atan2(offset[..., 1], offset[..., 0]).masked_fill(~valid, torch.inf)
    order = angle.argsort(dim=1)
    offset = offset.gather(1, order[..., None].expand(-1, -1, 2))
    in_order = valid.gather(1, order)[..., None]
    offset = torch.where(in_order, offset, offset[:, :1])  # unused points close the polygon at its first
    return _cross(offset, offset.roll(-1, 1)).sum(1).abs() / 2
