"""Quadrilaterals and rotated boxes as numpy arrays.

A box is (x, y, w, h, theta), le90: centre and sides in pixels, w >= h, and the angle in radians from the
x axis to the long side, in [-pi/2, pi/2). As y points down, positive angles turn clockwise on the
screen. Integer coordinates are pixel edges: an image with W columns extends from x = 0 to x = W.
"""

import numpy as np

CORNERS = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])  # clockwise on the screen
PAIRS = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
RELATIVE_TIE = 1e-6


def to_boxes(polygons: np.ndarray) -> np.ndarray:
    """Minimum-area rectangle of each quadrilateral.

    One of its sides lies along an edge of the convex hull (Freeman and Shapira, 1975), so on a line through
    two of the four corners: all six are tried. Among rectangles of equal area, as for a square, the one along
    the earlier edge is chosen.

    Args:
        polygons: (n, 4, 2) corners in any order.

    Returns:
        float32 (n, 5) boxes, le90.
    """
    corners = polygons.reshape(-1, 4, 2).astype(np.float64)
    edges = corners[:, PAIRS[:, 1]] - corners[:, PAIRS[:, 0]]  # (n, 6, 2)
    angles = np.arctan2(edges[..., 1], edges[..., 0])
    axes = np.stack([np.cos(angles), np.sin(angles)], -1)
    normals = np.stack([-axes[..., 1], axes[..., 0]], -1)
    offsets = corners - corners[:, :1]  # products far from the origin would lose precision
    along, across = (np.einsum("nkc,npc->nkp", directions, offsets) for directions in (axes, normals))
    low = np.stack([along.min(-1), across.min(-1)], -1)  # (n, 6, 2)
    high = np.stack([along.max(-1), across.max(-1)], -1)
    areas = (high - low).prod(-1)
    best = (areas <= areas.min(1, keepdims=True) * (1 + RELATIVE_TIE)).argmax(1)
    each = np.arange(len(corners))
    sides, middle = (high - low)[each, best], ((high + low) / 2)[each, best]
    centers = corners[:, 0] + middle[:, :1] * axes[each, best] + middle[:, 1:] * normals[each, best]
    return regular_boxes(np.concatenate([centers, sides, angles[each, best, None]], 1))


def regular_boxes(boxes: np.ndarray) -> np.ndarray:
    """Convert boxes to le90: w >= h and theta in [-pi/2, pi/2), float32 (n, 5)."""
    boxes = boxes.astype(np.float64)
    turned = boxes[:, 2] < boxes[:, 3]
    boxes[turned, 2:4] = boxes[turned, 3:1:-1]
    angles = boxes[:, 4] + np.where(turned, np.pi / 2, 0)
    boxes[:, 4] = (angles + np.pi / 2) % np.pi - np.pi / 2
    result = boxes.astype(np.float32)
    right_angle = np.float32(np.pi / 2)
    result[result[:, 4] >= right_angle, 4] = -right_angle  # rounding may reach pi/2
    return result


def to_polygons(boxes: np.ndarray) -> np.ndarray:
    """Corners (n, 4, 2) of boxes (n, 5), clockwise on the screen, with the type of `boxes`."""
    wide = boxes.astype(np.float64)
    cos, sin = np.cos(wide[:, 4]), np.sin(wide[:, 4])
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1)  # rows: the box's own axes
    corners = (CORNERS * wide[:, None, 2:4]) @ turn + wide[:, None, :2]
    return corners.astype(boxes.dtype)


def enclosing_boxes(polygons: np.ndarray) -> np.ndarray:
    """Upright bounding boxes (n, 4), x1, y1, x2, y2, of quadrilaterals (n, 4, 2)."""
    return np.concatenate([polygons.min(1), polygons.max(1)], 1)


def flip_polygons(
    polygons: np.ndarray, height: float, width: float, horizontal: bool, vertical: bool
) -> np.ndarray:
    """Flip quadrilaterals (n, 4, 2) with their image of `height` x `width` pixels."""
    flipped = polygons.copy()
    if horizontal:
        flipped[..., 0] = width - flipped[..., 0]
    if vertical:
        flipped[..., 1] = height - flipped[..., 1]
    return flipped


def share_inside(polygons: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray:
    """Share of the area of each quadrilateral inside an upright window.

    By Green's theorem the shared area is the integral of k(x) dk(y) along the boundary, where k clamps a
    coordinate to the window: see `s5.ops.rotated_iou`.

    Args:
        polygons: (n, 4, 2) corners in any order; sorted around their centre if they cross.
        window: x1, y1, x2, y2.

    Returns:
        float64 (n,) in [0, 1]; 0 without area.
    """
    corners = _sorted_around(polygons.reshape(-1, 4, 2).astype(np.float64))
    x1, y1, x2, y2 = window
    inside = np.abs(_boundary_integral(corners - [x1, y1], x2 - x1, y2 - y1))
    extent = enclosing_boxes(corners)
    whole = np.abs(_boundary_integral(corners - extent[:, None, :2], np.inf, np.inf))
    return np.divide(inside, whole, out=np.zeros_like(whole), where=whole > 0).clip(0, 1)


def _sorted_around(corners: np.ndarray) -> np.ndarray:
    spokes = corners - corners.mean(1, keepdims=True)
    order = np.arctan2(spokes[..., 1], spokes[..., 0]).argsort(1)
    return np.take_along_axis(corners, order[..., None], 1)


def _boundary_integral(corners: np.ndarray, width: float, height: float) -> np.ndarray:
    """Signed area (n,) shared by polygons (n, 4, 2) and the window from (0, 0) to (width, height)."""
    start, edge = corners, np.roll(corners, -1, 1) - corners
    t0, t1 = _times(start[..., 1], edge[..., 1], height, 0.0, 1.0)
    s0, s1 = _times(start[..., 0], edge[..., 0], width, t0, t1)
    bend = (s0 + s1) / 2
    k0, k1 = ((start[..., 0] + t * edge[..., 0]).clip(0, width) for t in (t0, t1))
    return (edge[..., 1] * (k0 * (bend - t0) + k1 * (t1 - bend))).sum(1)


def _times(
    start: np.ndarray, edge: np.ndarray, limit: float, first: np.ndarray | float, last: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of t within [first, last] where start + t * edge is between 0 and `limit`."""
    safe = np.where(np.abs(edge) > 1e-12, edge, 1e-12)
    times = np.stack([-start / safe, (limit - start) / safe])
    return np.clip(times.min(0), first, last), np.clip(times.max(0), first, last)
