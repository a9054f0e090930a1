"""Label tables: contents, conversions, and what is refused."""

import json

import numpy as np
import pytest

from s5.data.datasets import TABLES
from s5.data.label_table import IGNORE, LabelTable
from s5.data.labels import get_table
from s5.errors import LabelError

DUBAI = {"name": "dubai", "classes": ["building", "land", "road", "vegetation", "water"]}


def test_isaid_is_the_authors_table():
    table = get_table("isaid")
    assert table.num_classes == 16
    assert (table.background, table.classes[0]) == (0, "background")
    colors = dict(zip(table.classes, table.palette, strict=True))
    # The two colours that public code most often confuses.
    assert colors["storage_tank"] == (0, 63, 63)
    assert colors["roundabout"] == (0, 191, 127)
    assert table.classes.index("ship") == 1 and table.classes.index("harbor") == 15


def test_scenes_table():
    names = ("field", "forest", "water", "road", "building", "vehicle", "ship", "plane")
    assert get_table("scenes").classes == names
    assert get_table("scenes").background is None


ISPRS = ("impervious_surface", "building", "low_vegetation", "tree", "car")
ISPRS_COLORS = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0))


@pytest.mark.parametrize("name", ["vaihingen", "potsdam"])
def test_isprs_tables(name):
    """Ids 0 to 4 and 5 ignored, as published; the same masks with clutter; and one higher."""
    table, six = get_table(name), get_table(f"{name}_6")
    assert table.classes == ISPRS and six.classes == (*ISPRS, "clutter")
    assert table.palette == ISPRS_COLORS and six.palette == (*ISPRS_COLORS, (255, 0, 0))
    assert table.background is None and six.background is None
    raw = np.array([[0, 1, 2, 3, 4, 5, 255]], np.uint8)
    assert table.encode(raw, "x").tolist() == [[0, 1, 2, 3, 4, IGNORE, IGNORE]]
    assert six.encode(raw, "x").tolist() == [[0, 1, 2, 3, 4, 5, IGNORE]]
    shifted = np.array([[1, 2, 3, 4, 5, 6, 0]], np.uint8)
    assert np.array_equal(get_table(f"{name}_mmseg").encode(shifted, "x"), table.encode(raw, "x"))
    assert np.array_equal(get_table(f"{name}_mmseg_6").encode(shifted, "x"), six.encode(raw, "x"))
    black = np.array([[(0, 0, 0)]], np.uint8)
    for variant in ("", "_6", "_mmseg", "_mmseg_6"):
        boundary = get_table(name + variant)
        assert boundary.encode(boundary.from_colors(black, "x"), "x").tolist() == [[IGNORE]]


def test_loveda_table():
    table = get_table("loveda")
    assert table.classes == ("background", "building", "road", "water", "barren", "forest", "agricultural")
    raw = np.arange(8, dtype=np.uint8)[None]
    assert table.encode(raw, "x").tolist() == [[IGNORE, 0, 1, 2, 3, 4, 5, 6]]
    assert table.background == 0 and table.palette[3] == (0, 0, 255) and table.palette[6] == (255, 195, 128)
    with pytest.raises(LabelError, match="value 255"):
        table.encode(np.array([[255]], np.uint8), "x")
    shifted = get_table("loveda_train_ids")
    assert shifted.classes == table.classes and shifted.palette == table.palette
    assert shifted.encode(np.array([[0, 6, 255]], np.uint8), "x").tolist() == [[0, 6, IGNORE]]


def test_openearthmap_table():
    table = get_table("openearthmap")
    names = (
        "bareland",
        "rangeland",
        "developed_space",
        "road",
        "tree",
        "water",
        "agriculture_land",
        "building",
    )
    assert table.classes == ("background", *names) and table.values == tuple(range(9))
    assert table.background == 0
    assert table.palette[1] == (128, 0, 0) and table.palette[8] == (222, 31, 7)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_is_consistent(name):
    table = TABLES[name]
    assert table.name == name
    assert len(set(table.palette) | set(table.ignore_colors)) == table.num_classes + len(table.ignore_colors)
    raw = np.array([[*table.values, *table.ignore_values]], np.uint8)
    ids = table.encode(raw, "x")
    assert ids[0, : table.num_classes].tolist() == list(range(table.num_classes))
    assert (ids[0, table.num_classes :] == IGNORE).all()
    # Colours and values are the same labels.
    back = table.from_colors(table.colorize(ids[:, : table.num_classes]), "x")
    assert np.array_equal(back, raw[:, : table.num_classes])


def test_encode_with_own_values():
    table = get_table({"name": "own", "classes": ["a", "b"], "values": [10, 3], "ignore": [0, 255]})
    assert table.encode(np.array([[10, 3], [0, 255]], np.uint8), "m.png").tolist() == [[0, 1], [255, 255]]


def test_encode_names_file_value_and_count():
    mask = np.zeros((4, 4), np.uint8)
    mask[0, :3] = 16
    with pytest.raises(LabelError, match=r"dir/m.png: value 16 \(3 pixels\).*'isaid'.*0\.\.15; ignored 255"):
        get_table("isaid").encode(mask, "dir/m.png")


def test_from_colors_on_more_than_one_block():
    table = get_table("isaid")
    ids = np.random.default_rng(0).integers(0, 16, (1100, 1000), np.uint8)
    assert np.array_equal(table.from_colors(table.colorize(ids), "x"), ids)


def test_from_colors_gives_raw_values():
    table = LabelTable(
        name="own",
        classes=("a", "b"),
        values=(10, 3),
        palette=((255, 0, 0), (0, 0, 255)),
        ignore_values=(7,),
        ignore_colors=((0, 0, 0),),
    )
    rgb = np.array([[(0, 0, 255), (255, 0, 0), (0, 0, 0)]], np.uint8)
    raw = table.from_colors(rgb, "x")
    assert raw.tolist() == [[3, 10, 7]]
    assert table.encode(raw, "x").tolist() == [[1, 0, IGNORE]]


def test_from_colors_names_file_color_and_count():
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[1, :2] = (1, 2, 3)
    with pytest.raises(LabelError, match=r"m.png: colour RGB \(1, 2, 3\) \(2 pixels\).*'isaid'"):
        get_table("isaid").from_colors(rgb, "m.png")


def test_colorize_paints_ignored_black():
    colors = get_table(DUBAI).colorize(np.array([[0, 4, IGNORE]], np.uint8))
    assert colors.shape == (1, 3, 3)
    assert colors[0, 2].tolist() == [0, 0, 0] and colors[0, 0].any() and colors[0, 1].any()


def test_inline_table_defaults():
    table = get_table(DUBAI)
    assert table.values == (0, 1, 2, 3, 4) and table.ignore_values == (255,) and table.background is None
    assert len(set(table.palette)) == 5
    assert get_table(table) is table


@pytest.mark.parametrize(
    ("spec", "values", "ignore"),
    [
        ({"classes": ["roof"]}, (0, 1), (255,)),
        ({"classes": ["roof"], "values": [7]}, (0, 7), (255,)),
        ({"classes": ["roof"], "values": [255], "ignore": []}, (0, 255), ()),
        ({"classes": ["roof"], "values": [255]}, (0, 255), ()),
        ({"classes": ["roof"], "ignore": 7}, (0, 1), (7,)),
    ],
)
def test_single_class_is_binary(spec, values, ignore):
    table = get_table(spec, default_name="roofs")
    assert (table.name, table.classes) == ("roofs", ("background", "roof"))
    assert (table.values, table.ignore_values, table.background) == (values, ignore, 0)
    assert table.palette[0] == (0, 0, 0)
    own = get_table({**spec, "palette": [[1, 2, 3]]}, default_name="roofs")
    assert own.palette == ((0, 0, 0), (1, 2, 3))


def test_mapping_reads_back_equal():
    own = [
        {"name": "own", "classes": ["a", "b"], "values": [10, 3], "ignore": [0], "background": 1},
        {
            "name": "own",
            "classes": ["a", "b"],
            "palette": [[1, 1, 1], [2, 2, 2]],
            "ignore_colors": [[3, 3, 3]],
        },
        {"name": "one", "classes": ["a"], "values": [255], "ignore": []},
        {"name": "own", "classes": ["a", "b"], "palette": [[1, 1, 1], [2, 2, 2]], "color_code": False},
    ]
    for table in (*TABLES.values(), *map(get_table, own)):
        mapping = table.as_mapping()
        assert get_table(mapping) == table
        assert get_table(json.loads(json.dumps(mapping))) == table, "plain data"


def test_a_palette_that_is_given_is_the_colour_code():
    spec = {"name": "own", "classes": ["a", "b"]}
    palette = {"palette": [[0, 0, 0], [255, 255, 255]]}
    assert not get_table(spec).color_code and not get_table(spec).color_ids
    assert get_table(spec | palette).color_ids == {(0, 0, 0): 0, (255, 255, 255): 1}
    off = get_table(spec | palette | {"color_code": False})
    assert not off.color_code and off.palette == ((0, 0, 0), (255, 255, 255))
    assert not get_table({"name": "one", "classes": ["a"]}).color_code, "its black background is not given"
    ignored = get_table(spec | palette | {"ignore_colors": [[9, 9, 9]], "ignore": [7, 255]})
    assert ignored.color_ids[9, 9, 9] == IGNORE and ignored.ignored_value == 255
    assert ignored.from_colors(np.full((1, 1, 3), 9, np.uint8), "x").tolist() == [[255]]


def test_255_is_ignored_unless_it_is_a_class():
    assert get_table({"name": "own", "classes": ["a", "b"], "values": [0, 255]}).ignore_values == ()
    assert get_table({"name": "own", "classes": ["a", "b"], "ignore": 255}).ignore_values == (255,)


def test_default_name():
    assert get_table({"classes": ["a", "b"]}, default_name="task").name == "task"
    assert get_table(DUBAI, default_name="task").name == "dubai"
    assert get_table("isaid", default_name="task").name == "isaid"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"valuse": [1]}, "unknown key valuse; keys are name, classes"),
        ({"values": [0, 1]}, "5 classes but 2 values"),
        ({"values": [0, 1, 2, 3, 300]}, "0..255"),
        ({"values": [0, 1, 2, 3, 255], "ignore": [255]}, "255 is used twice"),
        ({"palette": [[0, 0, 0]]}, "5 classes but 1 palette"),
        ({"palette": [[0, 0, 999]] * 5}, "three numbers"),
        ({"name": None}, "label table None: name is None; expected a string"),
        ({"classes": None}, r"'dubai': classes is None; expected a list of names such as \[road, field\]"),
        ({"classes": 3}, "classes is 3; expected a list of names"),
        ({"classes": {"a": 0, "b": 1}}, r"classes is {'a': 0, 'b': 1}; .* mask values go to values"),
        ({"classes": ["a", True]}, r"classes is \['a', True\]; expected names; .*in quotes"),
        ({"values": [0, "x", 2]}, r"values is \[0, 'x', 2\]; expected a list of whole numbers"),
        ({"values": 255}, "values is 255; expected a list"),
        ({"values": None}, "values is None; expected a list"),
        ({"values": [0, 1, 2, 3, 4.5]}, "expected a list of whole numbers"),
        ({"ignore": "255"}, r"ignore is '255'; expected a list of mask values in 0..255 such as \[255\]"),
        ({"ignore": [None]}, r"ignore is \[None\]; expected"),
        ({"palette": ["red", "blue"]}, r"palette is \['red', 'blue'\]; expected a list of colours"),
        ({"palette": [[1, 2], [3, 4]]}, r"palette is \[\[1, 2\], \[3, 4\]\]; .*three numbers in 0..255"),
        ({"palette": 3}, "palette is 3; expected a list of colours"),
        ({"ignore_colors": [1, 2, 3]}, r"ignore_colors is \[1, 2, 3\]; expected a list of colours"),
        ({"color_code": 1}, "color_code is 1; expected true or false"),
        ({"color_code": True}, "color_code is True; expected false, or a palette"),
        ({"ignore_colors": [[1, 2, 3]]}, "ignore_colors are colours of .* need a palette"),
        (
            {"palette": [[i, 0, 0] for i in range(5)], "ignore_colors": [[1, 2, 3]], "ignore": []},
            "ignore_colors need a value that such pixels get: add a free one to ignore, such as 254",
        ),
        ({"classes": ["road"], "palette": [[0, 0, 0]]}, r"same colour, RGB \(0, 0, 0\) .*name both classes"),
        ({"background": "building"}, "background is 'building'; expected the number of a class"),
        ({1: 2}, "unknown key 1; keys are name, classes"),
        ({"palette": [[1, 2, 3]] * 5}, r"same colour, RGB \(1, 2, 3\)$"),
        ({"background": 5}, "background 5"),
        ({"classes": []}, "needs 2 to"),
        ({"classes": ["a", "a"]}, "same name"),
        ({"classes": "roof"}, r"classes is 'roof'; expected a list, \[roof\] for one class"),
        ({"classes": ["roof"], "values": [0]}, "value 0 is used twice"),
        ({"classes": ["background"]}, "same name"),
    ],
)
def test_bad_inline_tables(change, message):
    with pytest.raises(LabelError, match=message):
        get_table(DUBAI | change)


def test_unknown_and_incomplete_tables():
    with pytest.raises(LabelError, match="'isiad'; known: .*isaid"):
        get_table("isiad")
    with pytest.raises(LabelError, match="missing key classes"):
        get_table({"name": "x"})
    with pytest.raises(LabelError, match=r"unknown label table None; .*a mapping with name and classes"):
        get_table(None)
