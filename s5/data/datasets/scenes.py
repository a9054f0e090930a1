"""The embedded synthetic scenes, which `python -m scenes` writes."""

from s5.data.label_table import build_table

SCENES = build_table(
    "scenes",
    ("field", (190, 200, 110)),
    ("forest", (40, 110, 50)),
    ("water", (50, 110, 200)),
    ("road", (150, 150, 150)),
    ("building", (220, 90, 60)),
    ("vehicle", (250, 220, 50)),
    ("ship", (240, 240, 250)),
    ("plane", (200, 70, 200)),
)
