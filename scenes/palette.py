"""Colours of a scene, before light and atmosphere. They overlap between classes on purpose."""

from typing import NamedTuple

import numpy as np

RGB = tuple[int, int, int]


class Season(NamedTuple):
    """Colours of vegetation and of cultivated ground in one season."""

    grass: tuple[RGB, ...]
    trees: tuple[RGB, ...]
    crops: tuple[RGB, ...]


SEASONS: dict[str, Season] = {
    "spring": Season(
        ((92, 118, 62), (116, 134, 78), (78, 104, 60)),
        ((66, 94, 50), (88, 114, 60), (50, 76, 46)),
        ((86, 120, 58), (70, 104, 58), (178, 168, 64), (126, 100, 76), (152, 126, 98), (108, 128, 78)),
    ),
    "summer": Season(
        ((104, 114, 68), (130, 126, 84), (84, 102, 60)),
        ((48, 70, 40), (64, 86, 46), (38, 58, 40)),
        ((190, 168, 116), (172, 150, 106), (78, 104, 50), (56, 84, 46), (112, 122, 66), (140, 112, 86)),
    ),
    "autumn": Season(
        ((112, 112, 70), (136, 122, 82), (90, 98, 62)),
        ((112, 88, 46), (136, 96, 50), (76, 82, 44), (58, 68, 42), (96, 64, 44)),
        ((122, 96, 76), (146, 118, 94), (96, 76, 62), (166, 144, 108), (88, 102, 58)),
    ),
    "winter": Season(
        ((124, 116, 90), (142, 132, 106), (104, 106, 80)),
        ((80, 72, 60), (94, 84, 70), (50, 60, 46), (66, 62, 52)),
        ((128, 110, 94), (152, 138, 118), (104, 92, 80), (110, 114, 80), (92, 84, 72)),
    ),
}
WATERS: tuple[RGB, ...] = (
    (34, 56, 78), (26, 42, 54), (50, 74, 70), (62, 86, 60), (44, 64, 46), (110, 100, 78),
    (92, 88, 68), (64, 96, 104), (20, 30, 36), (86, 92, 96), (34, 88, 96), (72, 70, 58),
)  # fmt: skip
SANDS: tuple[RGB, ...] = ((188, 170, 134), (164, 146, 116), (132, 120, 96), (148, 140, 122))
ASPHALTS: tuple[RGB, ...] = (
    (94, 94, 96),
    (70, 72, 76),
    (118, 116, 112),
    (136, 130, 122),
    (58, 58, 62),
    (124, 108, 94),
)
CONCRETES: tuple[RGB, ...] = ((168, 164, 154), (184, 176, 162), (148, 146, 140), (130, 130, 128))
DIRTS: tuple[RGB, ...] = ((150, 128, 100), (168, 146, 118), (128, 108, 84))
ROOFS: tuple[RGB, ...] = (
    (146, 84, 66), (166, 104, 82), (118, 74, 60), (96, 92, 90), (70, 70, 76), (130, 126, 122),
    (186, 184, 178), (212, 210, 204), (116, 96, 78), (92, 110, 132), (62, 86, 118), (94, 112, 90),
    (74, 92, 66), (146, 124, 100),
)  # fmt: skip
CARS: tuple[RGB, ...] = (
    (224, 224, 222), (224, 224, 222), (228, 226, 218), (168, 170, 172), (168, 170, 172), (104, 106, 110),
    (40, 41, 44), (30, 31, 34), (146, 44, 42), (54, 76, 122), (60, 82, 64), (186, 162, 90), (118, 98, 80),
)  # fmt: skip
HULLS: tuple[RGB, ...] = (
    (84, 54, 48), (44, 52, 64), (116, 50, 44), (32, 36, 40), (204, 204, 200), (214, 214, 212), (96, 104, 108),
    (52, 80, 64),
)  # fmt: skip
DECKS: tuple[RGB, ...] = (
    (150, 140, 124),
    (110, 64, 54),
    (96, 104, 98),
    (184, 184, 178),
    (78, 92, 84),
    (120, 122, 124),
)
JETS: tuple[RGB, ...] = (
    (228, 230, 232),
    (228, 230, 232),
    (204, 208, 212),
    (176, 180, 184),
    (104, 112, 98),
    (122, 126, 130),
)


def mix(a: np.ndarray, b: np.ndarray, share: float | np.ndarray) -> np.ndarray:
    """Blend colour `a` towards `b`."""
    return a * (1 - share) + b * share


def pick(rng: np.random.Generator, colors: tuple[RGB, ...], jitter: float = 8.0) -> np.ndarray:
    """Draw a colour (3,): one of `colors` leaning to another one, with brightness and hue jitter."""
    (a, b), share = rng.integers(len(colors), size=2), rng.uniform(0, 0.35)
    shift = rng.standard_normal(4) * jitter
    return mix(np.array(colors[a]), np.array(colors[b]), share) + shift[0] + shift[1:] / 3


class Palette(NamedTuple):
    """The colours shared by all of a scene."""

    season: str
    grass: np.ndarray
    water: np.ndarray
    sand: np.ndarray
    asphalt: np.ndarray
    concrete: np.ndarray
    dirt: np.ndarray
    species: np.ndarray  # (2, 3) crown colours

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Palette":
        """Draw the season and the colours that depend on it."""
        season = str(rng.choice(list(SEASONS), p=(0.28, 0.36, 0.2, 0.16)))
        row = SEASONS[season]
        return cls(
            season=season,
            grass=pick(rng, row.grass),
            water=pick(rng, WATERS),
            sand=pick(rng, SANDS),
            asphalt=pick(rng, ASPHALTS),
            concrete=pick(rng, CONCRETES),
            dirt=pick(rng, DIRTS),
            species=np.stack([pick(rng, row.trees), pick(rng, row.trees)]),
        )

    def crop(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the colour of a cultivated parcel."""
        return pick(rng, SEASONS[self.season].crops)

    def meadow(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a colour near the grass of this scene."""
        return mix(self.grass, pick(rng, SEASONS[self.season].grass), rng.uniform(0.1, 0.6))

    def tree(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the colour of a single tree."""
        return self.species[rng.integers(2)] * rng.uniform(0.85, 1.15) + rng.normal(0, 3, 3)
