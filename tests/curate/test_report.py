import base64
import re
from collections import Counter
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

duckdb = pytest.importorskip("duckdb")
pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from s5.curate import report as report_module  # noqa: E402
from s5.curate.report import write_report  # noqa: E402
from s5.curate.select import REASONS  # noqa: E402
from s5.data.image_io import read_image  # noqa: E402
from s5.errors import DataError, ImageError  # noqa: E402
from tests.curate.runs import CLUSTERS, SCORES  # noqa: E402

VOID = {"img", "meta", "br", "link", "hr", "input"}
NASTY = 'a "b" <b>&\'$.png'
NARROW = [field for field in SCORES if field.name not in ("left", "top", "width", "height", "feature")]
SCHEMA = pa.schema([*NARROW, *list(CLUSTERS)[1:], ("reason", pa.string())])


class Page(HTMLParser):
    """Checks that tags are balanced, and collects attributes, ids and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.ids = [], [], "", Counter()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), tag  # no attribute twice
        self.tags.append((tag, dict(attrs)))
        self.ids.update(value for name, value in attrs if name == "id")

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def patch(number, reason, entropy=None, cluster=None, **more):
    return {
        "patch": number,
        "key": 1000 - number,
        "source": "b" if number % 3 else "a",
        "name": f"{number}.png",
        "valid": 1.0,
        "deviation": 20.0,
        "sharpness": 1.0,
        "phash": number << 20,
        "entropy": entropy,
        "classes": None if entropy is None else [300 * number, 100],
        "cluster": cluster,
        "similarity": None if entropy is None else 1 - number / 100,
        "reason": reason,
        **more,
    }


def pool():
    """Two clusters, and one patch for each other reason."""
    return [
        patch(0, "chosen", 0.1, 0, name=NASTY),
        patch(1, "chosen", 0.2, 0),
        patch(2, "quota", 0.25, 0),
        patch(3, "quota", 0.3, 0),
        patch(4, "chosen", 0.4, 1),
        patch(5, "entropy", 0.5, 1),
        patch(6, "entropy", 0.9, 1),
        patch(7, "duplicate", phash=(2 << 20) + 1),
        patch(8, "duplicate", phash=0xFFFF_FFFF_0000_0000),
        patch(9, "no data"),
        patch(10, "constant"),
        patch(11, "unreadable", error="truncated <PNG>"),
    ]


def summary(**more):
    return {
        "title": "A <pool> & more",
        "created": "2025-01-01",
        "config": {"select": {"target": 3, "fill": None}, "data_root": "/data/<x>"},
        "checkpoint": {"path": "best.pth", "sha256": "0f" * 32},
        "versions": {"s5": "0.1.0"},
        "counts": {"index": {"files": 12}},
        "classes": ["field", "road $x$ <i>"],
        "palette": [[0, 200, 0], [90, 90, 90]],
        "clusters": [
            {"cluster": 0, "labeled": 20, "quota": 2, "supply": 4, "chosen": 2, "given": 0},
            {"cluster": 1, "labeled": 10, "quota": 1, "supply": 3, "chosen": 1, "given": 0},
        ],
        "duplicates": {"within": 1, "across": 1},
        "cut": 0.4,
        **more,
    }


def write(root, rows, **more):
    """Write images, table and report; returns the page's text."""
    for row in rows:
        if row["reason"] != "unreadable" and not (root / row["name"]).exists():
            image = np.full((200, 400, 3), row["patch"] * 20, np.uint8)
            cv2.imwrite(str(root / row["name"]), image)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), root / "patches.parquet")
    path = write_report(root, root, more.pop("summary", summary()), **more)
    assert path == root / "report.html"
    assert not list(root.glob(".*"))  # nothing temporary remains
    return path.read_text("utf-8")


def part(text, name):
    return re.search(rf'<section id="{name}">.*?</section>', text, re.DOTALL)[0]


def shown(section):
    """Names of the pictures of a section, in their order."""
    return [image["alt"].removeprefix("Patch ") for image in Page(section).all("img")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of `pool`, without pseudo-labels."""
    return write(tmp_path_factory.mktemp("run"), pool())


def test_page_is_valid_and_self_contained(tmp_path):
    text = write(tmp_path, pool(), mask_of=lambda number: np.zeros((200, 400), np.uint8))
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert set(page.ids.values()) == {1}
    assert not page.all("script") and not page.all("link") and "@import" not in text
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name.endswith("href")]
    assert links and all(link[0] == "#" and link[1:] in page.ids for link in links)
    images = page.all("img")
    assert images and all(image["src"].startswith("data:image/") and image["alt"] for image in images)
    assert all(reference[0] == "#" for reference in re.findall(r"url\((.*?)\)", text))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.all("svg"))
    contents = [a["href"] for a in Page(re.search("<nav.*?</nav>", text)[0]).all("a")]
    assert [f"#{section['id']}" for section in page.all("section")] == contents
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_names_are_escaped(report):
    page = Page(report)
    assert not page.all("b") and not page.all("i") and not page.all("pool")
    assert NASTY in page.text and "road $x$ <i>" in page.text and "truncated <PNG>" in page.text
    assert f"Patch {NASTY}" in [image["alt"] for image in page.all("img")]


def test_equal_input_in_another_order_gives_equal_bytes(tmp_path, report):
    assert write(tmp_path, pool()[::-1]) == report


def test_sheets_show_the_right_patches(report):
    assert shown(part(report, "lowest")) == [NASTY, *(f"{n}.png" for n in (1, 2, 3, 4, 5, 6))]
    last, pair = ["4.png", "1.png", NASTY], ["1.png", "2.png"]
    assert shown(part(report, "border")) == last + pair
    assert shown(part(report, "highest")) == ["6.png", "5.png", "3.png", "2.png"]
    assert shown(part(report, "empty")) == ["9.png", "10.png"]
    # 8 resembles no patch
    assert shown(part(report, "duplicates")) == ["8.png", "7.png", "2.png"]
    nearest = [NASTY, "1.png", "2.png", "3.png", "4.png", "5.png", "6.png"]
    assert shown(part(report, "prototypes")) == nearest
    assert "0.25 nats · cluster 0 · quota" in part(report, "border")
    assert "cosine 0.980, quota" in part(report, "prototypes")


def test_every_reason_is_explained():
    assert set(report_module._REASONS) == set(REASONS)


def test_tables(report):
    cells = [Page(cell).text for cell in re.findall("<td.*?</td>", part(report, "outcomes"))]
    assert [cells[start : start + 4] for start in (0, 9, 18)] == [
        ["b", "8", "2 25.0 %", "1 12.5 %"],
        ["a", "4", "1 25.0 %", "1 25.0 %"],
        ["all", "12", "3 25.0 %", "2 16.7 %"],
    ]
    assert "<td>11.png</td><td>truncated &lt;PNG&gt;</td>" in part(report, "unreadable")
    settings = Page(part(report, "settings")).text
    for value in ("select.fillnull", "data_root/data/<x>", "0f" * 32, "s50.1.0", "index.files12"):
        assert value in settings


@pytest.mark.usefixtures("empty_charts")
def test_thumbnails_are_small_and_drawn_once(tmp_path):
    read = Counter()

    def counting(path):
        read[path.name] += 1
        return read_image(path)

    text = write(tmp_path, pool()[:2], read=counting)
    image = Page(text).all("img")[0]
    data = base64.b64decode(image["src"].partition(",")[2])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (80, 160, 3)
    assert (image["width"], image["height"]) == ("160", "80")
    assert set(read.values()) == {1}


@pytest.mark.usefixtures("empty_charts")
def test_pseudo_labels_have_the_colours_of_their_classes(tmp_path, report):
    mask = np.repeat(np.array([0, 1, 255], np.uint8), 100)[None].repeat(150, 0)
    masks = {1: mask}
    text = write(tmp_path, pool(), mask_of=masks.get)
    assert "rgb(90,90,90)" in part(text, "lowest") and "no label" in part(text, "lowest")
    labels = [image for image in Page(text).all("img") if image["alt"] == "Pseudo-label of 1.png"]
    data = np.frombuffer(base64.b64decode(labels[0]["src"].partition(",")[2]), np.uint8)
    pixels = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
    assert pixels.shape == (80, 160, 4)
    assert pixels[40, [10, 80]].tolist() == [[0, 200, 0, 255], [90, 90, 90, 255]]
    assert pixels[40, 150, 3] == 0
    assert "no label" not in report


@pytest.mark.usefixtures("empty_charts")
@pytest.mark.parametrize("error", [ImageError("4.png", "is <gone>"), OSError("no disk")])
def test_image_that_cannot_be_read_any_more(tmp_path, error):
    def read(path):
        if path.name == "4.png":
            raise error
        return read_image(path)

    page = Page(write(tmp_path, pool(), read=read))
    titles = {attrs["title"] for attrs in page.all("div") if attrs.get("class") == "missing"}
    assert titles == {str(error)}
    assert "4.png" in page.text and "Patch 4.png" not in [image["alt"] for image in page.all("img")]


def test_nothing_chosen_and_nothing_scored(tmp_path):
    rows = [patch(9, "no data"), patch(11, "unreadable", error="empty")]
    text = write(tmp_path, rows, summary=summary(clusters=[], cut=None))
    Page(text)
    for name in ("entropy", "clusters", "classes", "lowest", "highest", "duplicates", "prototypes"):
        assert "None." in part(text, name), name


def test_one_patch_of_one_source(tmp_path):
    page = Page(write(tmp_path, [patch(1, "chosen", 0.0, 0)], summary=summary(cut=0.0)))
    assert "100.0 %" in page.text


def test_many_clusters_and_unreadable_patches(tmp_path):
    clusters = [
        {"cluster": n, "labeled": 1, "quota": n, "supply": 10000, "chosen": 0, "given": 0} for n in range(60)
    ]
    rows = [*pool(), *(patch(n, "unreadable", error="gone") for n in range(20, 50))]
    text = write(tmp_path, rows, summary=summary(clusters=clusters))
    assert "Shown: 40 clusters of the highest quota of 60." in part(text, "clusters")
    assert "↑ 10,000" in part(text, "clusters")
    assert len(re.findall("<tr>", part(text, "clusters"))) == 61
    assert "Shown: 24 clusters" in part(text, "prototypes") and 'href="#clusters"' in part(text, "prototypes")
    assert "Shown: 20 unreadable patches of 31." in part(text, "unreadable")


@pytest.mark.usefixtures("empty_charts")
def test_folder_with_pattern_characters(tmp_path):
    folder = tmp_path / "run [a-b]* 影像 'x'"
    folder.mkdir()
    assert "12" in write(folder, pool())


@pytest.mark.usefixtures("empty_charts")
def test_more_classes_than_named_keeps_the_old_report(tmp_path):
    old = write(tmp_path, pool())
    rows = [*pool(), patch(12, "chosen", 0.3, 1, classes=[1, 2, 3])]
    with pytest.raises(
        DataError, match=r"patches.parquet: counts the pixels of 3 classes, but the run has 2"
    ):
        write(tmp_path, rows)
    assert (tmp_path / "report.html").read_text("utf-8") == old


def test_missing_table(tmp_path):
    with pytest.raises(DataError, match=r"patches.parquet: the table of all patches is missing"):
        write_report(tmp_path, tmp_path, summary())


@pytest.mark.usefixtures("empty_charts")
def test_damaged_table(tmp_path):
    write(tmp_path, pool())
    path = tmp_path / "patches.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"patches.parquet: cannot be read"):
        write_report(tmp_path, tmp_path, summary())


@pytest.mark.usefixtures("empty_charts")
def test_table_without_a_column(tmp_path):
    table = pa.Table.from_pylist(pool(), schema=SCHEMA).drop_columns("similarity")
    pq.write_table(table, tmp_path / "patches.parquet")
    with pytest.raises(DataError, match=r"patches.parquet: cannot be queried .*similarity"):
        write_report(tmp_path, tmp_path, summary())
