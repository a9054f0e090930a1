import re
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

from s5.curate import charts

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars(svg, color):
    return [element for element in ElementTree.fromstring(svg).iter() if color in element.get("style", "")]


def histogram(chosen=(3, 1, 0), cut=0.15):
    edges = np.array([0.0, 0.1, 0.2, 0.3])
    return charts.entropy_histogram(edges, np.array(chosen), np.array([0, 4, 5000]), cut)


def clusters(*supplies):
    return [{"cluster": n, "quota": 10, "supply": supply, "chosen": 8} for n, supply in enumerate(supplies)]


def test_histogram_names_axes_units_and_cut():
    written = texts(histogram())
    assert "mean entropy of a patch (nats per pixel)" in written and "patches per bin" in written
    assert "highest entropy chosen: 0.15 nats" in written
    assert "5,000" in written
    assert not any("highest" in text for text in texts(histogram(cut=None)))


def test_equal_input_gives_equal_bytes():
    assert histogram() == histogram()
    assert histogram() != histogram(chosen=(2, 1, 0))


def test_charts_take_the_colours_of_the_page_and_have_their_own_ids():
    svg = histogram()
    assert svg.startswith('<svg role="img" aria-label=') and svg.endswith("</svg>")
    assert "currentColor" in svg and charts._TEXT not in svg and "#000000" not in svg
    assert "<style" not in svg and "<metadata" not in svg
    ids = re.findall(r' id="(.*?)"', svg)
    assert len(set(ids)) == len(ids) and all(name.startswith("entropy-") for name in ids)
    references = re.findall(r"url\(#(.*?)\)", svg) + re.findall(r'href="#(.*?)"', svg)
    assert references and set(references) <= set(ids)


def test_supply_far_above_the_quotas_is_cut_off_with_its_number():
    assert "↑ 12,345" in texts(charts.cluster_bars(clusters(12345, 20)))
    assert not any("↑" in text for text in texts(charts.cluster_bars(clusters(25, 20))))


def test_bars_of_classes_have_their_colours():
    colors = np.array([[1, 0, 0], [0, 1, 0]])
    shares = np.array([0.75, 0.25]), np.array([0.5, 0.5])
    svg = charts.share_bars("classes", ["field", "road"], *shares, "pixels", colors)
    assert len(bars(svg, "#ff0000")) == len(bars(svg, "#00ff00")) == 2
    assert {"75 %", "25 %", "50 %", "share of the pixels (%)"} <= set(texts(svg))


@pytest.mark.parametrize("name", ["$\\frac$", 'a <b> & "c"', ' id="x" #123456', "影像"])
def test_names_are_written_as_they_are(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = charts.share_bars("sources", [name], np.ones(1), np.ones(1), "patches")
    assert name.strip() in [text.strip() for text in texts(svg)]


def test_long_names_are_cut():
    svg = charts.share_bars("sources", ["n" * 99], np.ones(1), np.ones(1), "patches")
    assert "n" * 29 + "…" in texts(svg)
