"""Charts of the curation report as SVG text for an HTML page.

Text and axes take the colour of the page (`currentColor`), so that the charts suit light and dark pages, and
labels stay text. Equal input gives equal bytes.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

CHOSEN = "#3584d6"
OTHER = "#a3acb6"
MARK = "#e07b00"

MOST_CLUSTERS = 40
MOST_BARS = 40  # rows of a chart of sources or classes

_TEXT = "#123456"  # stands for the text colour of the page until the chart is written
_WIDTH = 9.0  # inches
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.2,
    "grid.color": _TEXT,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "s5",
    "text.color": _TEXT,
    "text.parse_math": False,  # a $ in the name of a source or class is a $
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


def entropy_histogram(edges: np.ndarray, chosen: np.ndarray, others: np.ndarray, cut: float | None) -> str:
    """Draw how many patches have which entropy, the chosen below the others.

    Args:
        edges: float (bins + 1,), bounds of the bins in nats.
        chosen: int (bins,), chosen patches.
        others: int (bins,), patches that have an entropy and were not chosen.
        cut: Highest entropy chosen in nats; None if nothing was chosen.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(3.6)
        width = np.diff(edges)
        axes.bar(edges[:-1], chosen, width, align="edge", color=CHOSEN, label="chosen")
        axes.bar(edges[:-1], others, width, chosen, align="edge", color=OTHER, label="not chosen")
        if cut is not None:
            axes.axvline(cut, color=MARK, linewidth=2, label=f"highest entropy chosen: {cut:.4g} nats")
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("mean entropy of a patch (nats per pixel)")
        axes.set_ylabel("patches per bin")
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=3)
        return _svg(figure, "entropy", "Histogram of the entropies of the chosen and the other patches")


def cluster_bars(clusters: Sequence[Mapping[str, Any]]) -> str:
    """Draw quota, supply and chosen patches of clusters, at most `MOST_CLUSTERS`, in the given order.

    Args:
        clusters: `cluster`, `quota`, `supply` and `chosen` of each. Bars of a supply far above all quotas
            are cut off and carry their number, so that the quotas stay readable.
    """
    quota, supply, chosen = (
        np.array([cluster[key] for cluster in clusters]) for key in ("quota", "supply", "chosen")
    )
    places = np.arange(len(clusters))
    top = min(supply.max(), 3 * max(quota.max(), chosen.max(), 1))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(3.8)
        axes.bar(places, np.minimum(supply, top), 0.8, color=OTHER, label="supply")
        axes.bar(places, chosen, 0.5, color=CHOSEN, label="chosen")
        axes.hlines(quota, places - 0.45, places + 0.45, color=MARK, linewidth=2.5, label="quota")
        for place in np.flatnonzero(supply > top).tolist():
            axes.text(place, top * 1.02, f"↑ {supply[place]:,}", rotation=90, ha="center", fontsize=8)
        axes.set_ylim(0, max(quota.max(), top, 1) * (1.3 if (supply > top).any() else 1.06))
        axes.set_xlim(-0.7, len(clusters) - 0.3)
        names = [str(cluster["cluster"]) for cluster in clusters]
        crowded = len(names) > 20
        axes.set_xticks(places, names, fontsize=8 if crowded else 10, rotation=90 if crowded else 0)
        axes.set_xlabel("cluster")
        axes.set_ylabel("patches")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(axis="y")
        figure.legend(loc="outside upper center", ncols=3)
        return _svg(figure, "clusters", "Quota, supply and chosen patches of each cluster")


def share_bars(
    prefix: str,
    names: Sequence[str],
    pool: np.ndarray,
    chosen: np.ndarray,
    unit: str,
    colors: np.ndarray | None = None,
) -> str:
    """Draw the shares of sources or classes in the pool (pale) and among the chosen patches.

    Args:
        prefix: What the bars are, `sources` or `classes`; begins the ids in the SVG.
        names: Names, from top to bottom.
        pool: float (n,), shares in the pool, 0..1.
        chosen: float (n,), shares among the chosen patches, 0..1.
        unit: What the shares are of: `patches` or `pixels`.
        colors: float (n, 3), RGB 0..1 of the bars; None for one colour.
    """
    places = np.arange(len(names))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(0.9 + 0.42 * len(names))
        edge: dict[str, Any] = {"edgecolor": _TEXT, "linewidth": 0.4}
        faces = matplotlib.colors.to_rgba_array(CHOSEN if colors is None else colors)
        pale = faces.copy()
        pale[:, 3] = 0.35
        axes.barh(places - 0.2, 100 * pool, 0.38, color=pale, **edge)
        axes.barh(places + 0.2, 100 * chosen, 0.38, color=faces, **edge)
        for shares, offset in ((pool, -0.2), (chosen, 0.2)):
            for place, share in zip(places, shares, strict=True):
                axes.annotate(
                    f"{100 * share:.3g} %",
                    (100 * share, place + offset),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                )
        axes.set_yticks(places, [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, 112 * max(pool.max(), chosen.max(), 0.01))
        axes.set_xlabel(f"share of the {unit} (%)")
        axes.grid(axis="x")
        sample = faces[0, :3] if colors is None else (0.5, 0.5, 0.5)
        bars = [Patch(facecolor=(*sample, alpha), **edge) for alpha in (0.35, 1.0)]
        figure.legend(bars, ["pool", "chosen"], loc="outside upper center", ncols=2)
        return _svg(figure, prefix, f"Shares of the {prefix} in the pool and among the chosen patches")


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _thousands(value: float, _: int) -> str:
    return f"{value:,.0f}" if value == int(value) else ""


def _short(name: str, limit: int = 30) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """Write a figure as an `svg` element whose ids begin with `prefix`, as all charts share one page."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the characters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(stream, format="svg", transparent=True, metadata=_NO_METADATA)
    text = stream.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)

    def adapt(tag: re.Match[str]) -> str:
        written = tag[0].replace(' id="', f' id="{prefix}-').replace('href="#', f'href="#{prefix}-')
        return written.replace("url(#", f"url(#{prefix}-").replace(_TEXT, "currentColor")

    text = re.sub(r"<[^>]+>", adapt, text)  # tags alone: a label may contain the same characters
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1).strip()
