"""Report of a curation: one HTML page without external files and scripts, for people to judge the choice.

The page shows the outcome of all patches, the entropy with its cut, quota against supply per cluster, the mix
of sources and classes, and sheets of pictures; all settings stand at its end. Equal input gives equal bytes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s5.curate import charts
from s5.curate import report_html as html
from s5.curate.report_data import RANKED, Patch, PatchTable, open_table
from s5.curate.report_html import Pictures, escape
from s5.curate.select import TABLE
from s5.data.files import write_bytes
from s5.data.image_io import read_image

NAME = "report.html"

_REASONS = {
    "chosen": "chosen",
    "quota": "not chosen: the quota of its cluster was full",
    "entropy": "dropped: entropy above select.max_entropy",
    "duplicate": "dropped: nearly the same as another patch",
    "foreign": "dropped: unlike all labeled images",
    "noise": "dropped: as sharp as noise",
    "blurred": "dropped: blurred",
    "constant": "dropped: almost one colour",
    "no data": "dropped: mostly without data",
    "unreadable": "cannot be read",
}
_DROPPED = {  # sheets by reason, and the order that shows the clearest cases first
    "no data": "valid",
    "constant": "deviation",
    "blurred": "sharpness",
    "noise": "sharpness DESC",
    "foreign": "similarity",
}
_LARGE, _SMALL = 24, 12  # pictures in a sheet
_PAIRS = 8
_NEAREST = 8  # pictures of a cluster
_MOST_SHEETS = 24  # clusters with pictures
_MOST_SOURCES = 40  # rows of tables and charts
_MOST_ROWS = 500  # of the table of clusters
_MOST_ERRORS = 20


class Section(NamedTuple):
    """A section of the page; `lead` says how to read it."""

    id: str
    title: str
    lead: str
    body: str


class _Run(NamedTuple):
    """What the sections are written from."""

    table: PatchTable
    summary: Mapping[str, Any]
    reasons: Mapping[str, Mapping[str, int]]  # patches by source and reason
    pictures: Pictures

    def total(self, reason: str | None = None) -> int:
        counts = self.reasons.values()
        return sum(sum(count.values()) if reason is None else count.get(reason, 0) for count in counts)

    def patches(self, numbers: Sequence[int]) -> list[Patch]:
        details = self.table.details(numbers)
        return [details[number] for number in numbers]

    def pick(self, reasons: Sequence[str], order: str, limit: int) -> str:
        """Write a sheet of the first patches in an order."""
        found = self.patches(self.table.pick(reasons, order, limit))
        return self.pictures.sheet(found) if found else html.NONE


def write_report(
    run: Path,
    data_root: Path,
    summary: Mapping[str, Any],
    read: Callable[[Path], np.ndarray] = read_image,
    mask_of: Callable[[int], np.ndarray | None] | None = None,
) -> Path:
    """Write `report.html` of a run, atomically.

    Args:
        run: Folder of the run, with `patches.parquet`; its size does not matter, it is never loaded whole.
        data_root: Folder that the names of the images are relative to.
        summary: `title`, `created`, `config` (all settings, nested), `checkpoint` (`path`, `sha256`),
            `versions`, `counts` (of each step), `classes` (names), `palette` (RGB 0..255 of each class),
            `clusters` (`cluster`, `labeled`, `quota`, `supply`, `chosen`, `given` of each), `duplicates`
            (`within`, `across` sources) and `cut` (highest entropy chosen in nats, or None).
        read: Reads an image, uint8 (H, W, 3) RGB, from `data_root / name`. Where it raises a `UserError` or
            an `OSError`, the page has a placeholder.
        mask_of: Pseudo-label of a patch by its number, uint8 (H, W) of class ids, or None if it has none.
            Without it the pictures stand alone.

    Returns:
        Path of the page.

    Raises:
        DataError: The table is missing, damaged, or counts more classes than `summary` names.
    """
    pictures = Pictures(data_root, read, mask_of, summary["classes"], summary["palette"])
    with open_table(run / TABLE) as table:
        state = _Run(table, summary, table.reasons(), pictures)
        page = _page(summary, list(_sections(state)))
    path = run / NAME
    write_bytes(path, page.encode("utf-8"))
    return path


def _sections(run: _Run) -> Iterator[Section]:
    yield _headline(run)
    yield _outcomes(run)
    yield _entropy(run)
    yield _clusters(run)
    yield _sources(run)
    yield _classes(run)
    yield from _sheets(run)
    yield _duplicates(run)
    yield _unreadable(run)
    yield _prototypes(run)
    yield _settings(run)


def _headline(run: _Run) -> Section:
    total, chosen = run.total(), run.total("chosen")
    cut, clusters, duplicates = (run.summary[key] for key in ("cut", "clusters", "duplicates"))
    lacking = sum(max(0, cluster["quota"] - cluster["chosen"]) for cluster in clusters)
    facts = [
        (html.number(chosen), f"patches chosen, {html.percent(chosen, total)} of the pool"),
        (
            html.number(total),
            f"patches in the pool, from {html.plural(len(run.reasons), 'source', 'sources')}",
        ),
        ("–" if cut is None else f"{cut:.4g}", "nats per pixel: the highest entropy chosen"),
        (
            html.number(len(clusters)),
            f"clusters of {html.number(sum(c['labeled'] for c in clusters))} labeled images",
        ),
        (html.number(lacking), "patches that clusters lack to fill their quotas"),
        (html.number(duplicates["within"]), "near-duplicates within a source"),
        (html.number(duplicates["across"]), "near-duplicates across sources"),
        (html.number(run.total("unreadable")), "patches that cannot be read"),
    ]
    body = "".join(f"<li><strong>{number}</strong> {escape(text)}</li>" for number, text in facts)
    lead = "The choice in figures; everything below explains one of them."
    return Section("glance", "At a glance", lead, f'<ul class="facts">{body}</ul>')


def _outcomes(run: _Run) -> Section:
    seen = {reason for counts in run.reasons.values() for reason in counts}
    reasons = [*(reason for reason in _REASONS if reason in seen), *sorted(seen - set(_REASONS))]
    shown = list(run.reasons.items())[:_MOST_SOURCES]
    totals = {reason: run.total(reason) for reason in reasons}
    rest = {reason: totals[reason] - sum(counts.get(reason, 0) for _, counts in shown) for reason in reasons}
    rows = [(source, counts) for source, counts in shown]
    rows += [(f"{len(run.reasons) - len(shown)} other sources", rest)] if any(rest.values()) else []
    rows += [("all", totals)]
    cells = []
    for source, counts in rows:
        size = sum(counts.values())
        shares = [(counts.get(reason, 0), html.percent(counts.get(reason, 0), size)) for reason in reasons]
        cells.append([source, size, *shares])
    meaning = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in _REASONS.items() if key in seen
    )
    table = html.table(["source", "patches", *reasons], cells)
    lead = "Each row adds up to the patches of a source; the share is of that source."
    return Section("outcomes", "Outcome of all patches", lead, f"{table}<dl>{meaning}</dl>")


def _entropy(run: _Run) -> Section:
    lead = (
        "Left of the line the segmentor is confident enough. Patches left of it that were not chosen belong "
        "to clusters whose quota was full."
    )
    histogram = run.table.entropies()
    if histogram is None:
        return Section("entropy", "Entropy and the cut", lead, html.NONE)
    chart = charts.entropy_histogram(*histogram, run.summary["cut"])
    return Section("entropy", "Entropy and the cut", lead, html.chart(chart))


def _clusters(run: _Run) -> Section:
    clusters = _largest(run)
    shown = clusters[: charts.MOST_CLUSTERS]
    lead = (
        "The orange line is what a cluster should give, the grey bar what it has, the blue bar what was "
        "taken. Grey below the line: the pool lacks this type of scene. Grey far above: it abounds in it."
    )
    note = html.excerpt(len(shown), len(clusters), "clusters of the highest quota")
    keys = ["cluster", "labeled", "quota", "supply", "chosen", "given"]
    rows = [[str(cluster[keys[0]]), *(cluster[key] for key in keys[1:])] for cluster in clusters[:_MOST_ROWS]]
    table = html.table(keys, rows) + html.excerpt(len(rows), len(clusters), "clusters of the highest quota")
    given = '<p class="note">given: patches beyond the quota, in place of those that other clusters lack.</p>'
    body = f"{html.chart(charts.cluster_bars(shown))}{note}{table}{given}" if clusters else html.NONE
    return Section("clusters", "Quota, supply and choice per cluster", lead, body)


def _sources(run: _Run) -> Section:
    names = list(run.reasons)[:_MOST_SOURCES]
    pool = np.array([sum(run.reasons[name].values()) for name in names], float) / max(run.total(), 1)
    chosen = np.array([run.reasons[name].get("chosen", 0) for name in names]) / max(run.total("chosen"), 1)
    lead = "A source whose blue bar is longer than its pale one suits the labeled images better than others."
    body = html.chart(charts.share_bars("sources", names, pool, chosen, "patches")) if names else html.NONE
    return Section(
        "sources", "Source mix", lead, body + html.excerpt(len(names), len(run.reasons), "largest sources")
    )


def _classes(run: _Run) -> Section:
    names = run.summary["classes"]
    pixels = run.table.class_pixels(len(names))
    shares = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-shares[0], kind="stable")[: charts.MOST_BARS]
    lead = (
        "Shares of the pixels that the segmentor gave to each class, in the pool (pale) and among the chosen "
        "patches. Classes that nearly vanish from the choice will be learned from few examples."
    )
    colors = np.array(run.summary["palette"])[order] / 255
    body = html.NONE
    if pixels[0].any():
        labels = [names[index] for index in order]
        body = html.chart(
            charts.share_bars("classes", labels, shares[0, order], shares[1, order], "pixels", colors)
        )
        body += html.excerpt(len(order), len(names), "largest classes")
    return Section("classes", "Class mix of the pseudo-labels", lead, body)


def _sheets(run: _Run) -> Iterator[Section]:
    legend = run.pictures.legend()
    yield Section(
        "lowest",
        "Lowest entropy",
        "Where the segmentor is most confident. Many alike: a type of scene repeats. Noise, blurred images "
        "or other domains here: set min_sharpness, max_sharpness or min_similarity in the section select.",
        legend + run.pick(RANKED, "entropy", _LARGE),
    )
    pairs = [run.patches(pair) for pair in run.table.quota_borders(_PAIRS)]
    body = (
        f"<h3>Last chosen: the highest entropies</h3>{run.pick(['chosen'], 'entropy DESC', _SMALL)}"
        "<h3>Border of the quotas: the last chosen and the first refused of a cluster</h3>"
        f"{run.pictures.pairs(pairs) if pairs else html.NONE}"
    )
    yield Section(
        "border",
        "Border line",
        "The last that were taken and the first that were not; they should look much alike. If the last "
        "chosen are poor, choose fewer patches; if the first refused are good, choose more.",
        legend + body,
    )
    yield Section(
        "highest",
        "Rejected: highest entropy",
        "Where the segmentor is least confident. Good scenes here mean that it is too weak for the pool.",
        legend + run.pick(["quota", "entropy"], "entropy DESC", _LARGE),
    )
    yield Section(
        "empty",
        "Dropped for what they show",
        "A sample of the patches that were left out before the choice, by the limits of the section select.",
        "".join(
            f"<h3>{reason.capitalize()}</h3>{run.pick([reason], order, _SMALL // 2)}"
            for reason, order in _DROPPED.items()
        ),
    )


def _duplicates(run: _Run) -> Section:
    pairs = run.table.duplicates(_SMALL)
    details = {
        patch.patch: patch
        for patch in run.patches([number for pair in pairs for number in pair if number is not None])
    }
    rows = [[details[number] for number in pair if number is not None] for pair in pairs]
    lead = (
        "A sample of the dropped patches, each beside the remaining patch that it resembles most, if one "
        "does. Pairs that differ mean that the allowed distance of the hashes is too large."
    )
    body = run.pictures.pairs(rows, labels=False) if rows else html.NONE
    return Section("duplicates", "Near-duplicates", lead, body)


def _unreadable(run: _Run) -> Section:
    count = run.total("unreadable")
    patches = run.patches(run.table.pick(["unreadable"], "name", _MOST_ERRORS))
    rows = [[patch.name, patch.error or ""] for patch in patches]
    body = html.table(["name", "error"], rows) if rows else html.NONE
    lead = f"{html.plural(count, 'patch', 'patches')} could not be read and took no part."
    return Section(
        "unreadable", "Unreadable patches", lead, body + html.excerpt(len(rows), count, "unreadable patches")
    )


def _prototypes(run: _Run) -> Section:
    clusters = _largest(run)[:_MOST_SHEETS]
    nearest = run.table.nearest([cluster["cluster"] for cluster in clusters], _NEAREST)
    parts = []
    for cluster in clusters:
        patches = run.patches(nearest[cluster["cluster"]])
        notes = {patch.patch: f"cosine {patch.similarity:.3f}, {patch.reason}" for patch in patches}
        title = f"Cluster {cluster['cluster']}"
        facts = f"quota {html.number(cluster['quota'])}, supply {html.number(cluster['supply'])}"
        sheet = run.pictures.sheet(patches, notes) if patches else html.NONE
        parts.append(f"<h3>{escape(title)} <small>{escape(facts)}</small></h3>{sheet}")
    lead = (
        f"The {_NEAREST} patches of the pool most similar to each prototype. A sheet should show one type of "
        "scene, and different sheets different types."
    )
    note = html.excerpt(len(clusters), len(run.summary["clusters"]), "clusters of the highest quota")
    note += '<p class="note">Figures of all clusters: <a href="#clusters">table</a>.</p>' if parts else ""
    legend = run.pictures.legend() if parts else html.NONE
    return Section("prototypes", "Nearest to each prototype", lead, f"{legend}{''.join(parts)}{note}")


def _settings(run: _Run) -> Section:
    parts = [
        ("Settings", run.summary["config"]),
        ("Checkpoint", run.summary["checkpoint"]),
        ("Versions", run.summary["versions"]),
        ("Counts per step", run.summary["counts"]),
    ]
    body = "".join(
        f"<h3>{title}</h3>{html.table(['key', 'value'], [list(row) for row in _flat(values)])}"
        for title, values in parts
    )
    lead = "What another run needs to give the same result."
    return Section("settings", "Settings, checkpoint and versions", lead, body)


def _largest(run: _Run) -> list[Mapping[str, Any]]:
    """Clusters by falling quota."""
    clusters = run.summary["clusters"]
    return sorted(clusters, key=lambda cluster: (-cluster["quota"], -cluster["supply"], cluster["cluster"]))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and JSON values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{prefix}{key}", text


def _page(summary: Mapping[str, Any], sections: Sequence[Section]) -> str:
    contents = "".join(f'<li><a href="#{part.id}">{escape(part.title)}</a></li>' for part in sections)
    body = "\n".join(
        f'<section id="{part.id}"><h2>{escape(part.title)}</h2><p class="lead">{escape(part.lead)}</p>'
        f"{part.body}</section>"
        for part in sections
    )
    title = escape(summary["title"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{html.STYLE}</style>
</head>
<body>
<header><h1>{title}</h1><p>Curation of unlabeled images, {escape(summary["created"])}</p></header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{body}
</main>
</body>
</html>
"""
