"""Built-up areas: a bent street grid whose blocks hold houses, flats, halls or parks."""

import numpy as np

from scenes.buildings import Look, hall, house, roof
from scenes.canvas import Canvas
from scenes.classes import Material
from scenes.geometry import Frame, length, span, walk
from scenes.ground import grass_cover
from scenes.palette import ROOFS, mix, pick
from scenes.roads import car_park, kerb_parking, markings, square, surface, traffic, zebra

Rect = tuple[float, float, float, float]


class Town:
    """Lays out one built-up area.

    Args:
        canvas: Canvas to draw on; the ground must be painted.
        frame: The street grid's frame.
        bounds: Area in the frame, (u0, v0, u1, v1) metres.
    """

    def __init__(self, canvas: Canvas, frame: Frame, bounds: Rect) -> None:
        self.canvas, self.frame = canvas, frame
        self.rng, self.palette = canvas.rng, canvas.palette
        rng = self.rng
        self.width = rng.uniform(6.0, 9.5)
        self.walk = rng.choice([0.0, rng.uniform(1.4, 2.6)], p=(0.3, 0.7))
        u0, v0, u1, v1 = bounds
        self.us = self._cuts(u0, u1, rng.uniform(75, 140))
        self.vs = self._cuts(v0, v1, rng.uniform(44, 66))

    def _cuts(self, low: float, high: float, pitch: float) -> np.ndarray:
        cuts = np.arange(low + self.rng.uniform(0, 0.6) * pitch, high, pitch)
        return cuts + self.rng.uniform(-0.12, 0.12, len(cuts)) * pitch

    def build(self, mixture: tuple[float, float, float, float] = (0.62, 0.14, 0.14, 0.10)) -> None:
        """Draw the streets and blocks; `mixture` are the shares of houses, flats, halls and parks."""
        self._streets()
        margin = self.width / 2 + self.walk - 0.3
        for u0, u1 in zip(self.us[:-1], self.us[1:], strict=True):
            for v0, v1 in zip(self.vs[:-1], self.vs[1:], strict=True):
                rect = (u0 + margin, v0 + margin, u1 - margin, v1 - margin)
                if self.canvas.visible(self.frame.world(span(*rect, 4))):
                    fill = self.rng.choice(4, p=mixture)
                    (self._houses, self._flats, self._halls, self._park)[fill](rect)

    def _streets(self) -> None:
        lines = []
        if len(self.vs) > 1:  # streets between the first and the last cross street
            lines += [self.frame.world(np.linspace((u, self.vs[0]), (u, self.vs[-1]), 48)) for u in self.us]
        if len(self.us) > 1:
            lines += [self.frame.world(np.linspace((self.us[0], v), (self.us[-1], v), 48)) for v in self.vs]
        lines = [self._near(line) for line in lines if self.canvas.visible(line, 8)]
        color = self.palette.asphalt
        if self.walk:
            for line in lines:
                self.canvas.stroke(line, self.width + 2 * self.walk, Material.CONCRETE, self.palette.concrete)
        share = self.rng.uniform(0.0, 0.5)
        for line in lines:
            surface(self.canvas, line, self.width, color)
        for line in lines:
            if self.rng.random() < 0.6:
                markings(self.canvas, line, self.width, color, edges=False)
            kerb_parking(self.canvas, line, self.width, share)
            traffic(self.canvas, line, self.width, spacing=45)
            self._street_trees(line)
        self._crossings(color)

    def _near(self, line: np.ndarray) -> np.ndarray:
        """Cut a polyline to the part around the scene."""
        inside = np.flatnonzero((np.abs(line) < self.canvas.half + 15).all(1))
        first, last = (inside[0], inside[-1]) if len(inside) else (1, len(line) - 2)
        return line[max(0, first - 1) : last + 2]

    def _crossings(self, color: np.ndarray) -> None:
        striped = self.rng.random() < 0.5
        for u in self.us:
            for v in self.vs:
                if not self.canvas.visible(self.frame.world(np.array([(u, v)])), 12):
                    continue
                self.canvas.fill(square(self.frame, u, v, self.width - 0.4), Material.ASPHALT, color)
                if striped:
                    away = self.width / 2 + 2.2
                    for du, dv, angle in (
                        (away, 0, 0.0),
                        (-away, 0, 0.0),
                        (0, away, np.pi / 2),
                        (0, -away, np.pi / 2),
                    ):
                        zebra(self.canvas, self.frame, u + du, v + dv, angle, self.width, color)

    def _street_trees(self, line: np.ndarray) -> None:
        if self.rng.random() < 0.5:
            return
        radius = self.rng.uniform(1.6, 3.0)
        for side in (-1, 1):
            points, headings = walk(line, np.arange(5, length(line), self.rng.uniform(8, 16)))
            shift = self.width / 2 + self.walk + 0.75 * radius
            points = points + side * shift * np.stack([-np.sin(headings), np.cos(headings)], 1)
            for x, y in points:
                if self.rng.random() < 0.7:
                    self._tree(x, y, radius * self.rng.uniform(0.7, 1.2))

    def _tree(self, x: float, y: float, radius: float) -> None:
        self.canvas.grow(x, y, radius, 2 * radius + 1, self.palette.tree(self.rng))

    def _lawn(self, rect: Rect) -> None:
        cover = grass_cover(self.rng, self.palette, 0.0)
        color = mix(cover.light, cover.dark, self.rng.uniform(0, 1))
        self.canvas.fill(self.frame.world(span(*rect, 4)), Material.GRASS, color)

    def _houses(self, rect: Rect) -> None:
        """Two rows of lots back to back, each house facing its street."""
        u0, v0, u1, v1 = rect
        middle = (v0 + v1) / 2
        pitch = self.rng.uniform(13, 24)
        uniform = self.rng.random() < 0.5
        depth, setback = self.rng.uniform(8.5, 12.5), self.rng.uniform(3, 6)
        for front, back in ((v0, middle), (v1, middle)):
            count = max(1, round((u1 - u0) / pitch))
            edges = np.linspace(u0, u1, count + 1)
            for a, b in zip(edges[:-1], edges[1:], strict=True):
                style = (depth, setback) if uniform else (self.rng.uniform(7.5, 13), self.rng.uniform(2.5, 7))
                self._lot((a, front, b, back), *style)

    def _lot(self, rect: Rect, depth: float, setback: float) -> None:
        u0, front, u1, back = rect
        side = np.sign(back - front)
        if not self.canvas.visible(self.frame.world(span(*rect, 2)), 4):
            return
        self._lawn((u0, front, u1, back))
        wide = min((u1 - u0) * self.rng.uniform(0.56, 0.82), 18)
        u = (u0 + u1) / 2 + self.rng.uniform(-0.1, 0.1) * (u1 - u0)
        v = front + side * (setback + depth / 2)
        if self.rng.random() < 0.75:
            self._driveway(u0 + 2.2, front - side * 1.0, v, side)
        turn = np.pi / 2 if self.rng.random() < 0.2 and depth > wide * 0.6 else 0.0
        house(self.canvas, self.frame.pose(u + 1, v, turn), (wide, depth))
        if self.rng.random() < 0.3:
            shed = self.frame.pose(u1 - 3, back - side * 3, self.rng.normal(0, 0.1))
            roof(self.canvas, shed, (4, 3), Look("gable", pick(self.rng, ROOFS), 0.3, 2.4))
        for _ in range(self.rng.poisson(2.2)):
            x, y = self.frame.world(self.rng.uniform((u0, min(v, back)), (u1, max(v, back)), (1, 2)))[0]
            self._tree(x, y, self.rng.uniform(1.0, 3.4))

    def _driveway(self, u: float, front: float, v: float, side: float) -> None:
        color = self.palette.concrete if self.rng.random() < 0.6 else self.palette.asphalt
        outline = self.frame.world(span(u - 1.5, front, u + 1.5, v + side * 2))
        self.canvas.fill(outline, Material.CONCRETE, color * self.rng.uniform(0.9, 1.08))
        if self.rng.random() < 0.6:
            turn = np.pi / 2 + self.rng.choice([0, np.pi]) + self.rng.normal(0, 0.04)
            self.canvas.park(*self.frame.pose(u, front + side * self.rng.uniform(4.5, 6), turn), "car")

    def _flats(self, rect: Rect) -> None:
        """Long slabs beside a car park."""
        u0, v0, u1, v1 = rect
        self._lawn(rect)
        lane = v0 + 17.5
        car_park(self.canvas, self.frame, (u0 + 2, v0 + 0.5, u1 - 2, lane), self.rng.uniform(0.3, 0.9))
        count = max(1, int((u1 - u0) / self.rng.uniform(26, 48)))
        pitch, storey = (u1 - u0) / count, self.rng.uniform(9, 18)
        style, color = self.rng.choice(["flat", "hip", "gable"]), pick(self.rng, ROOFS)
        for index in range(count):
            pose = self.frame.pose(u0 + (index + 0.5) * pitch, (lane + v1) / 2 + 1)
            size = (0.78 * pitch, min(14.0, 0.7 * (v1 - lane)))
            roof(self.canvas, pose, size, Look(style, color, 0.45, storey))
        self._garden(rect, 14)

    def _halls(self, rect: Rect) -> None:
        """Halls on a paved yard with lorries and parked cars."""
        u0, v0, u1, v1 = rect
        yard = self.palette.concrete if self.rng.random() < 0.5 else self.palette.asphalt
        self.canvas.fill(
            self.frame.world(span(*rect, 6)), Material.CONCRETE, yard * self.rng.uniform(0.9, 1.1)
        )
        cut = u0 + (u1 - u0) * self.rng.uniform(0.55, 0.85)
        depth = (v1 - v0) * self.rng.uniform(0.55, 0.85)
        pose = self.frame.pose((u0 + cut) / 2, v1 - depth / 2 - 2)
        hall(self.canvas, pose, (cut - u0 - 5, depth))
        car_park(self.canvas, self.frame, (cut + 2, v0 + 2, u1 - 2, v1 - 2), self.rng.uniform(0.2, 0.9))
        for u in np.arange(u0 + 6, cut - 6, 4.2):
            if self.rng.random() < 0.4:
                spot = self.frame.pose(u, v1 - depth - 11, np.pi / 2 + self.rng.normal(0, 0.03))
                self.canvas.park(*spot, "truck")

    def _park(self, rect: Rect) -> None:
        """Grass with a path and groups of trees."""
        u0, v0, u1, v1 = rect
        self._lawn(rect)
        path = self.frame.world(
            np.linspace((u0, self.rng.uniform(v0, v1)), (u1, self.rng.uniform(v0, v1)), 24)
        )
        self.canvas.stroke(path, 2.2, Material.DIRT, self.palette.dirt)
        self._garden(rect, 45)

    def _garden(self, rect: Rect, count: int) -> None:
        u0, v0, u1, v1 = rect
        points = self.frame.world(self.rng.uniform((u0, v0), (u1, v1), (count, 2)))
        for x, y in points:
            self._tree(x, y, self.rng.uniform(1.4, 4.2))
