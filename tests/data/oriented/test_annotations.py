"""Annotation files: DOTA's text and DIOR-R's XML, and what can be wrong with them."""

import numpy as np
import pytest

from s5.data.datasets import CLASS_LISTS as TABLES
from s5.data.datasets.dior_r import CLASSES as DIOR_R
from s5.data.datasets.dota import DOTA_V1, DOTA_V2
from s5.data.labels import get_classes
from s5.data.oriented.annotations import AnnotationError, AnnotationReader, write_objects
from s5.errors import DataError
from tests.helpers.oriented_data import CLASSES, rectangles, xml

READER = AnnotationReader(CLASSES)
SQUARE = "10 10 20 10 20 20 10 20"
CORNERS = [10, 10, 20, 10, 20, 20, 10, 20]


def read(tmp_path, content, name="a.txt", reader=READER, **options):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return reader.read(path, **options)


def message(tmp_path, content, name="a.txt"):
    with pytest.raises(AnnotationError) as error:
        read(tmp_path, content, name)
    assert str(tmp_path / name) in str(error.value)
    return str(error.value)


def test_dota_text_with_header_and_flags(tmp_path):
    lines = [
        "imagesource:GoogleEarth",
        "gsd:0.12",
        "937.0 913.0 921.5 912.0 923.0 874.0 940.0 875.0 Ship 0",
        "",
        f"{SQUARE} plane 1",
        f"{SQUARE} storage-tank 2",
        f"{SQUARE} plane",
    ]
    for text in ("\n".join(lines), "\r\n".join(lines) + "\r\n", "\ufeff" + "\n".join(lines[2:])):
        objects = read(tmp_path, text)
        assert objects.labels.tolist() == [0, 1, 2, 1]
        assert objects.difficult.tolist() == [False, True, False, False], "2 is truncated, not difficult"
        assert objects.polygons[0].tolist() == [[937, 913], [921.5, 912], [923, 874], [940, 875]]
        assert objects.polygons.dtype == np.float32 and objects.labels.dtype == np.int64


def test_empty_file_is_an_image_without_objects(tmp_path):
    for text in ("", "\n", "imagesource:GoogleEarth\ngsd:null\n"):
        assert len(read(tmp_path, text)) == 0


def test_dior_xml(tmp_path):
    objects = read(tmp_path, xml([("Plane", CORNERS), ("ship", CORNERS)]), "a.xml")
    assert objects.labels.tolist() == [1, 0] and not objects.difficult.any(), "truncated is not difficult"
    assert objects.polygons[0].ravel().tolist() == CORNERS
    assert read(tmp_path, xml([("ship", CORNERS)], difficult=1), "a.xml").difficult.all()
    assert len(read(tmp_path, xml([]), "a.xml")) == 0


def rotated_xml(width):
    box = f"<cx>50</cx><cy>40</cy><w>{width}</w><h>10</h><angle>0.5</angle>"
    return f"<annotation><object><name>ship</name><robndbox>{box}</robndbox></object></annotation>"


def test_xml_with_centre_sides_and_angle(tmp_path):
    objects = read(tmp_path, rotated_xml(30), "a.xml")
    assert objects.boxes[0] == pytest.approx([50, 40, 30, 10, 0.5], abs=1e-4)


UPRIGHT = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>60</xmax><ymax>40</ymax></bndbox>"


def mixed_xml(*objects):
    nodes = [f"<object><name>ship</name><difficult>0</difficult>{content}</object>" for content in objects]
    return f"<annotation>{''.join(nodes)}</annotation>"


def test_an_upright_box_among_rotated_ones_has_the_angle_0(tmp_path):
    """As roLabelImg writes them; the same box read as a rotated one is the same object."""
    rotated = "<robndbox><cx>35</cx><cy>30</cy><w>50</w><h>20</h><angle>0</angle></robndbox>"
    objects = read(tmp_path, mixed_xml(UPRIGHT, rotated), "a.xml")
    assert objects.polygons[0].tolist() == objects.polygons[1].tolist()
    assert sorted(map(tuple, objects.polygons[0].tolist())) == [(10, 20), (10, 40), (60, 20), (60, 40)]
    assert len(read(tmp_path, mixed_xml(f"<type>bndbox</type>{UPRIGHT}"), "a.xml")) == 1
    both = read(tmp_path, mixed_xml(UPRIGHT + rotated.replace("35", "36")), "a.xml")
    assert both.boxes[0, 0] == pytest.approx(36), "the rotated one counts"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("<xmin>10</xmin>", "", ["object 1 (ship)", "<bndbox> has no <xmin>"]),
        ("<xmax>60", "<xmax>6", ["object 1 (ship)", "-4 x 20", "cannot be negative"]),
        ("<ymax>40", "<ymax>low", ["object 1 (ship)", "'low'"]),
    ],
)
def test_bad_upright_box(tmp_path, before, after, words):
    text = message(tmp_path, mixed_xml(f"<type>bndbox</type>{UPRIGHT.replace(before, after)}"), "a.xml")
    assert all(word in text for word in words), text


def test_written_text_reads_back_equal(tmp_path):
    objects = rectangles(40, 500, 500)
    write_objects(tmp_path / "a.txt", objects, CLASSES, truncated=np.arange(40) % 4 == 0)
    again = READER.read(tmp_path / "a.txt")
    for name in ("polygons", "labels", "difficult"):
        assert np.array_equal(getattr(objects, name), getattr(again, name))
    flags = [line.split()[9] for line in (tmp_path / "a.txt").read_text().splitlines()]
    assert flags[0] == "2" and flags[1] == "0" and flags[5] == "1"
    assert not list(tmp_path.glob(".*"))


def test_left_out_classes_are_not_read(tmp_path):
    reader = AnnotationReader(CLASSES, leave_out=["Bridge"])
    assert read(tmp_path, f"{SQUARE} bridge 0\n{SQUARE} ship 0", reader=reader).labels.tolist() == [0]


def test_class_tables():
    assert [len(TABLES[name]) for name in ("dota_v1", "dota_v1_5", "dota_v2", "dior_r")] == [15, 16, 18, 20]
    assert get_classes("dota_v2") == DOTA_V2 and DOTA_V2[:15] == DOTA_V1
    assert get_classes(["car", "van"]) == ("car", "van")
    datasets = pytest.importorskip("mmrotate.datasets")
    assert datasets.DOTAv2Dataset.METAINFO["classes"] == DOTA_V2
    assert datasets.DIORDataset.METAINFO["classes"] == DIOR_R


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ("dota3", ["'dota3'", "dota_v2", "dior_r"]),
        (["car", "Car"], ["'car'", "twice"]),
        (["storage tank"], ["'storage tank'", "white space"]),
        ([], ["at least one class"]),
    ],
)
def test_bad_class_names(classes, words):
    with pytest.raises(DataError) as error:
        get_classes(classes)
    assert all(word in str(error.value) for word in words)


# Bad input


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 2 3 4 5 6 7 ship 0", ["line 2", "could not convert", "'ship'"]),
        ("1 2 3 4 5 6 7 8", ["line 2", "8 fields", "x1 y1 x2 y2", "1 2 3 4 5 6 7 8"]),
        ("1 2 3", ["line 2", "3 fields"]),
        (f"{SQUARE} storage tank 0", ["line 2", "11 fields", "white space"]),
        (f"{SQUARE} ship maybe", ["line 2", "'maybe'"]),
        (f"{SQUARE} shop 0", ["line 2", "unknown class 'shop'", "ship, plane, storage-tank", "leave_out"]),
        ("nan 10 20 10 20 20 10 20 ship 0", ["line 2", "not a finite number"]),
        ("10 10 20 10 20 inf 10 20 ship 0", ["line 2", "not a finite number"]),
        ("0 0.1 0.2 0.5 0.2 0.5 0.445238 0.1 0.445238", ["line 2", "YOLO-OBB", "multiply x by the image's"]),
        ("3 0.1 0.2 0.5 0.2 0.5 0.4 0.1 0.4 0.912", ["line 2", "YOLO-OBB"]),
        ("0 0.5 0.5 0.25 0.125", ["line 2", "an upright box of YOLO", "data.yaml or classes.txt"]),
    ],
)
def test_bad_line(tmp_path, line, words):
    text = message(tmp_path, f"{SQUARE} ship 0\n{line}\n{SQUARE} ship 0")
    assert all(word in text for word in words), text


def test_classes_named_by_numbers_are_no_yolo(tmp_path):
    reader = AnnotationReader(["0", "1"])
    objects = read(tmp_path, "1 0.5 2 0.5 2 1.5 1 1.5 1 0\n0 0 2 0 2 2 0 2 0\n", reader=reader)
    assert objects.labels.tolist() == [1, 0]


def test_xml_in_an_encoding_that_cannot_be_read(tmp_path):
    for encoding in ("gb2312", "none"):
        content = f"<?xml version='1.0' encoding='{encoding}'?>{xml([('ship', CORNERS)])}"
        assert "save it as UTF-8" in message(tmp_path, content, "a.xml")


def test_text_that_is_none(tmp_path):
    assert "is not text" in message(tmp_path, b"\xff\xfe\x00\x01")


@pytest.mark.parametrize("corners", ["5 5 5 5 5 5 5 5", "5 5 30 5 30 5 5 5", "0 0 10 10 20 20 30 30"])
def test_object_of_zero_size_is_left_out_with_file_and_line(tmp_path, corners):
    left_out = []
    objects = read(tmp_path, f"{SQUARE} ship 0\n{corners} plane 0\n{SQUARE} plane 0", left_out=left_out)
    assert objects.labels.tolist() == [0, 1]
    assert len(left_out) == 1 and f"{tmp_path / 'a.txt'}, line 2" in left_out[0]
    assert "has no area" in left_out[0]


def test_negative_size(tmp_path):
    text = message(tmp_path, rotated_xml(-30), "a.xml")
    assert "object 1 (ship)" in text and "-30 x 10" in text


def test_mirrored_corners_are_the_same_object(tmp_path):
    """x_right < x_left: a negative width in corners describes the same rectangle."""
    mirrored = [20, 10, 10, 10, 10, 20, 20, 20]
    objects = read(tmp_path, xml([("ship", mirrored), ("ship", CORNERS)]), "a.xml")
    first, second = objects.boxes
    assert first[:4] == pytest.approx(second[:4])


@pytest.mark.parametrize("end", [60, -20])
def test_malformed_xml(tmp_path, end):
    assert "malformed XML" in message(tmp_path, xml([("ship", CORNERS)])[:end], "a.xml")


def test_xml_of_another_kind(tmp_path):
    assert "<gpx>" in message(tmp_path, "<gpx></gpx>", "a.xml")


def test_missing_robndbox(tmp_path):
    content = xml([("ship", CORNERS)]).replace("robndbox", "bndbox")
    text = message(tmp_path, content, "a.xml")
    assert "object 1 (ship)" in text and "<robndbox>" in text and "<bndbox>" in text
    assert "Oriented Bounding Boxes" in text


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("<name>plane</name>", "", ["object 2 (without a name)", "<name>"]),
        ("<name>plane</name>", "<name>kite</name>", ["object 2 (kite)", "unknown class 'kite'"]),
        ("<x_left_top>11</x_left_top>", "", ["object 2 (plane)", "<x_left_top>"]),
        ("<x_left_top>11<", "<x_left_top>wide<", ["object 2 (plane)", "'wide'"]),
        ("<x_left_top>11<", "<x_left_top>NaN<", ["object 2 (plane)", "not a finite number"]),
    ],
)
def test_bad_xml_object(tmp_path, before, after, words):
    content = xml([("ship", CORNERS), ("plane", [11, *CORNERS[1:]])])
    assert before in content
    text = message(tmp_path, content.replace(before, after), "a.xml")
    assert all(word in text for word in words), text


def test_missing_file(tmp_path):
    with pytest.raises(AnnotationError, match=r"b\.txt: cannot be read"):
        READER.read(tmp_path / "b.txt")


def test_real_annotations(shared):
    rot = shared / "data/rot"
    reader, left_out = AnnotationReader(DOTA_V1), []
    parts = [reader.read(path, left_out) for path in sorted((rot / "dota14/labelTxt").iterdir())]
    counts = np.bincount(np.concatenate([part.labels for part in parts]), minlength=15)
    assert counts[DOTA_V1.index("ship")] == 636 and counts[DOTA_V1.index("small-vehicle")] == 345
    assert len(left_out) == 2 and "P1478__1__853___962.txt, line 2" in left_out[0]
    assert sum(part.difficult.sum() for part in parts) == 77
    sample = AnnotationReader(DIOR_R).read(rot / "dior_r_sample1/Annotations/00001.xml")
    assert sample.labels.tolist() == [DIOR_R.index("golffield")]
    assert sample.boxes[0] == pytest.approx([408.5, 454.5, 551, 435, 0])
