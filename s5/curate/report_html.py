"""Parts of the page of the curation report: style sheet, tables, and thumbnails with captions."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from s5.curate.report_data import Patch
from s5.errors import UserError, printable

NONE = '<p class="none">None.</p>'
"""Stands for an empty table, chart or sheet."""

SIDE = 160  # pixels of the longer side of a thumbnail

_QUALITY = 72  # of JPEG, 1..100
_LONGEST = 56  # characters of a name in a caption

STYLE = """
:root { --text: #1c2530; --soft: #5b6673; --page: #fff; --box: #f2f4f7; --line: #d5dae0; --link: #1f66b0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ed; --soft: #a0abb8; --page: #14181d; --box: #1f252c; --line: #39424d;
    --link: #7db8f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 1140px; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .2rem; padding-top: .5rem; border-top: 1px solid var(--line); font-size: 1.35rem; }
h3 { margin: 1.4rem 0 .5rem; font-size: 1.05rem; }
small, header p, .lead, .note, .none, dd, figcaption { color: var(--soft); }
h3 small { margin-left: .5rem; font-weight: normal; }
header p { margin: .3rem 0 1.2rem; }
.lead { margin: 0 0 1rem; max-width: 46rem; }
a { color: var(--link); }
nav { padding: .8rem 1rem; border-radius: 8px; background: var(--box); }
nav ol { margin: 0; padding-left: 1.6rem; columns: 3 15rem; column-gap: 2rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; margin: 0;
  padding: 0; list-style: none; }
.facts li { padding: .7rem .9rem; border-radius: 8px; background: var(--box); line-height: 1.35; }
.facts strong { display: block; font-size: 1.6rem; line-height: 1.3; }
.wide { margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td small { display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .875rem; }
dt { font-weight: 600; }
dd { margin: 0; }
.chart svg { display: block; max-width: 100%; height: auto; }
.chart svg * { stroke-linejoin: round; stroke-linecap: butt; }
.sheet, .pairs { display: flex; flex-wrap: wrap; gap: .9rem; }
.pair { display: flex; gap: .6rem; padding: .6rem; border-radius: 8px; background: var(--box); }
.patch { margin: 0; width: min-content; min-width: 160px; font-size: .75rem; line-height: 1.35; }
.images { display: flex; gap: 2px; }
.images img { display: block; border-radius: 3px; outline: 1px solid var(--line); outline-offset: -1px; }
.pair .images { flex-direction: column; }
.missing { display: grid; place-items: center; width: 160px; height: 160px; border: 1px dashed var(--soft);
  border-radius: 3px; color: var(--soft); text-align: center; }
figcaption { margin-top: .25rem; }
.name { display: block; color: var(--text); overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .8rem; padding: 0; font-size: .8125rem;
  list-style: none; }
.swatch { display: inline-block; width: .85em; height: .85em; margin-right: .35em; vertical-align: -.08em;
  border: 1px solid var(--soft); border-radius: 2px; }
.swatch, .chart { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@media print {
  :root { --text: #000; --soft: #444; --page: #fff; --box: #fff; --line: #bbb; --link: #000; }
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2, h3, .lead, .legend { break-after: avoid; }
  .chart, .patch, .pair, tr, .facts li { break-inside: avoid; }
  .facts li, .pair, nav { border: 1px solid var(--line); }
  .wide { overflow: visible; }
}
"""


def escape(text: object) -> str:
    """Text for HTML; bytes of file names that are not UTF-8 are written as escapes."""
    return html.escape(printable(str(text)))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Write a table; numbers are aligned right, a pair is a number with its share."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str | int | tuple[int, str]) -> str:
    if isinstance(value, tuple):
        return f'<td class="number">{number(value[0])} <small>{escape(value[1])}</small></td>'
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{number(value)}</td>'


def chart(svg: str) -> str:
    """Place a chart."""
    return f'<div class="chart">{svg}</div>'


def excerpt(shown: int, total: int, of: str) -> str:
    """Say that not all are shown; nothing if all are."""
    return f'<p class="note">Shown: {number(shown)} {of} of {number(total)}.</p>' if shown < total else ""


def number(value: int) -> str:
    """Write a number with separators of thousands."""
    return f"{value:,}"


def plural(value: int, one: str, many: str) -> str:
    """Write a number of things."""
    return f"{number(value)} {one if value == 1 else many}"


def percent(part: int, whole: int) -> str:
    """Write a share; a dash for a share of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


class Pictures:
    """Writes patches as figures.

    Args:
        data_root: Folder that the names of the images are relative to.
        read: Reads an image, uint8 (H, W, 3) RGB.
        mask_of: Pseudo-label of a patch, uint8 (H, W) of class ids, or None if it has none.
        classes: Names of the classes.
        palette: Colour of each class, RGB 0..255.
    """

    def __init__(
        self,
        data_root: Path,
        read: Callable[[Path], np.ndarray],
        mask_of: Callable[[int], np.ndarray | None] | None,
        classes: Sequence[str],
        palette: Sequence[Sequence[int]],
    ) -> None:
        self._root, self._read, self._mask_of = data_root, read, mask_of
        self._classes, self._palette = classes, palette
        self._images = cache(self._draw)  # a patch may be in several sheets

    def legend(self) -> str:
        """Colours of the classes; empty if no pseudo-labels are shown."""
        if self._mask_of is None:
            return ""
        items = "".join(
            f'<li><span class="swatch" style="background:rgb({r},{g},{b})"></span>{escape(name)}</li>'
            for name, (r, g, b) in zip(self._classes, self._palette, strict=True)
        )
        items += '<li><span class="swatch"></span>no label</li>'
        return f'<ul class="legend" aria-label="Colours of the pseudo-labels">{items}</ul>'

    def sheet(self, patches: Sequence[Patch], notes: Mapping[int, str] | None = None) -> str:
        """Figures in a grid.

        Args:
            patches: The patches.
            notes: What to add to the caption of a patch.
        """
        figures = "".join(self.figure(patch, (notes or {}).get(patch.patch, "")) for patch in patches)
        return f'<div class="sheet">{figures}</div>'

    def pairs(self, pairs: Sequence[Sequence[Patch]], labels: bool = True) -> str:
        """Pairs side by side in a grid; a pair may lack its second patch.

        Args:
            pairs: The pairs.
            labels: Whether to show the pseudo-labels, below the pictures.
        """
        boxes = "".join(
            f'<div class="pair">{"".join(self.figure(patch, labels=labels) for patch in pair)}</div>'
            for pair in pairs
        )
        return f'<div class="pairs">{boxes}</div>'

    def figure(self, patch: Patch, note: str = "", labels: bool = True) -> str:
        """One patch: picture, pseudo-label if there is one, and caption, which ends with a note."""
        name = escape(patch.name)
        short = escape(patch.name if len(patch.name) <= _LONGEST else f"…\u2060{patch.name[1 - _LONGEST :]}")
        facts = [] if patch.entropy is None else [f"{patch.entropy:.4g} nats"]
        facts += [] if patch.cluster is None else [f"cluster {patch.cluster}"]
        facts += [note or patch.reason]
        caption = f'<span class="name" title="{name}">{short}</span> {escape(" · ".join(facts))}'
        images = self._images(patch.patch, patch.name, labels)
        return f'<figure class="patch">{images}<figcaption>{caption}</figcaption></figure>'

    def _draw(self, patch: int, name: str, labels: bool) -> str:
        label = escape(name)
        try:
            image = self._read(self._root / name)
        except (UserError, OSError) as error:
            height = width = SIDE
            images = f'<div class="missing" title="{escape(error)}">cannot be read any more</div>'
        else:
            height, width = _size(image)
            picture = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            images = _img(_jpeg(picture), "jpeg", width, height, f"Patch {label}")
        mask = self._mask_of(patch) if labels and self._mask_of else None
        if mask is not None:
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
            images += _img(self._png(mask), "png", width, height, f"Pseudo-label of {label}")
        return f'<div class="images">{images}</div>'

    def _png(self, mask: np.ndarray) -> bytes:
        """Encode class ids (H, W) in their colours; others, which stand for no label, are transparent."""
        count = len(self._palette)
        image = Image.fromarray(np.minimum(mask, count).astype(np.uint8))
        image.putpalette([*np.ravel(self._palette).tolist(), 0, 0, 0])
        stream = io.BytesIO()
        image.save(stream, "PNG", optimize=True, transparency=b"\xff" * count + b"\0")
        return stream.getvalue()


def _size(image: np.ndarray) -> tuple[int, int]:
    """Height and width of a thumbnail; smaller images keep their size."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def _jpeg(image: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()


def _img(data: bytes, kind: str, width: int, height: int, alt: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
    return f'<img src="{source}" width="{width}" height="{height}" alt="{alt}">'
