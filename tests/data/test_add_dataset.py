"""What `docs/add_dataset.md` says: the module on the page is registered, prepared, checked and loaded."""

import importlib
import json
import re
import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import s5.datasets
from s5.data.check import main as check_main
from s5.data.check import require_clean
from s5.data.datasets import DATASETS, TABLES, register
from s5.data.datasets.prepared import code_digest
from s5.data.datasets.shipped import Shipped
from s5.data.image_io import read_mask, write_image, write_mask
from s5.data.label_table import build_table
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main
from s5.data.splits import Split
from s5.errors import DataError
from tests.helpers.datasets import DatasetContract
from tests.helpers.shipped_data import class_map, noise


def make(src):
    for part, count in (("train", 3), ("val", 2)):
        for i in range(count):
            write_image(src / f"Rivers/{part}/images/{i}.png", noise(80, 64, i))
            write_mask(src / f"Rivers/{part}/masks/{i}.png", class_map(80, 64, 2, i))


@pytest.fixture(scope="module")
def page(request):
    lines = (request.config.rootpath / "docs/add_dataset.md").read_text().splitlines()
    assert len(lines) <= 40
    return "\n".join(lines)


@pytest.fixture
def rivers(page):
    """The class on the page, for the number of images of the small copy, registered for one test."""
    code = page.split("```python\n")[1].split("```")[0].replace("400", "5")
    module = {"__name__": "rivers"}
    exec(compile(code, "docs/add_dataset.md", "exec"), module)
    before = [dict(known) for known in (DATASETS, TABLES)]
    yield register(module["Rivers"])
    for known, entries in zip((DATASETS, TABLES), before, strict=True):
        known.clear()
        known.update(entries)


class TestRivers(DatasetContract):
    """All checks that known datasets have to pass."""

    counts, options = {"train": 3, "val": 2}, ("--size", "32")
    make = staticmethod(make)

    @pytest.fixture(autouse=True)
    def register(self, rivers):
        type(self).dataset = rivers


@pytest.fixture
def prepared(rivers, tmp_path):
    make(tmp_path / "src")
    assert prepare(tmp_path) == 0
    return tmp_path


def prepare(folder, *options):
    arguments = ["--src", str(folder / "src"), "--out", str(folder / "root"), "--workers", "1", *options]
    return main(["rivers", *arguments])


def edit(rivers, *classes, **facts):
    """Register the dataset as if its module were edited."""
    tables = (build_table("rivers", *classes, background=0),) if classes else rivers.tables
    return register(type("Rivers", (rivers,), {"tables": tables, **facts}))


LAND, WATER = ("land", (90, 60, 30)), ("water", (0, 0, 255))


def test_page(rivers, page, tmp_path, capsys, monkeypatch):
    """The commands as they stand there."""
    make(tmp_path / "DOWNLOADS")
    monkeypatch.chdir(tmp_path)
    commands = {"s5.data.prepare": main, "s5.data.check": check_main}
    for module, words in re.findall(r"`python -m (\S+) ([^`]+)`", page):
        here = ["--workers", "1"]  # what was read from a page cannot be sent to other processes
        assert commands.pop(module)([*shlex.split(words), *here]) == 0, words
    assert not commands and "5 source files cut into" in capsys.readouterr().out
    exec(re.search(r'`python -c "(.*)"`', page)[1])
    assert (tmp_path / "rivers.png").is_file()
    table = get_table("rivers")
    assert table.classes == ("land", "water") and table.background == 0
    dataset = s5.datasets.Rivers("DATA_ROOT")
    assert len(dataset) == 3 and "Rivers" in dir(s5.datasets)
    assert np.array_equal(dataset[0]["mask"], class_map(80, 64, 2, 0))


def test_incomplete(rivers, tmp_path, capsys):
    make(tmp_path / "src")
    (tmp_path / "src/Rivers/val/masks/1.png").unlink()
    assert prepare(tmp_path) == 1
    error = capsys.readouterr().err
    assert "4 pairs of 5" in error and "https://rivers.example" in error and "--partial" in error


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (
            (("water", LAND[1]), ("land", WATER[1])),
            "table classes was ['land', 'water'], is ['water', 'land']",
        ),
        ((("land", WATER[1]), ("water", LAND[1])), "table palette was [[90, 60, 30], [0, 0, 255]]"),
    ],
)
def test_an_edited_table_is_noticed(rivers, prepared, capsys, classes, said):
    edited = edit(rivers, *classes)
    assert prepare(prepared) == 1
    error = capsys.readouterr().err
    assert said in error and f"delete the folder {prepared / 'root/rivers'}" in error and "--name" in error
    with pytest.raises(DataError) as raised:
        edited(prepared / "root")
    assert said in str(raised.value) and str(prepared / "root/rivers") in str(raised.value)
    split = Split("rivers/splits/train.txt", prepared / "root")
    with pytest.raises(DataError, match="written with another label table 'rivers'"):
        require_clean(split, get_table("rivers"), prepared / "cache")
    with pytest.raises(SystemExit):
        check_main([str(split.path), "--root", str(prepared / "root"), "--labels", "rivers"])
    assert said in capsys.readouterr().err
    assert prepare(prepared, "--name", "second") == 0
    assert len(edited(prepared / "root/second")) == 3


def test_what_does_not_decide_the_masks_may_be_edited(rivers, prepared, capsys):
    edit(rivers, summary="Many rivers", tables=(replace(rivers.tables[0], background=None),))
    assert prepare(prepared) == 0 and "nothing to do: 5" in capsys.readouterr().out


def test_journals_of_earlier_versions_continue(rivers, prepared, capsys):
    journal = prepared / "root/rivers/prepare_journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        line.pop("facts", None), line.pop("files", None)
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    edited = edit(rivers, WATER, LAND)
    assert prepare(prepared) == 0 and "nothing to do: 5" in capsys.readouterr().out
    assert len(edited(prepared / "root")) == 3


def _turn(mask):
    return 1 - mask


def _read_turned(cls, file, path):
    """Values the other way round."""
    return _turn(read_mask(file)), ""


def test_an_edited_read_mask_is_noticed(rivers, prepared, capsys, monkeypatch):
    edit(rivers, read_mask=classmethod(_read_turned))
    assert prepare(prepared) == 1
    assert "read_mask was '', is '" in capsys.readouterr().err
    before = code_digest(_read_turned)
    monkeypatch.setattr(sys.modules[__name__], "_turn", len)
    assert before and code_digest(_read_turned) != before, "what it calls in its module counts"


def test_comments_and_docstrings_do_not_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    texts = [
        '    """One."""\n    return x + OFFSET',
        "    # Two.\n    return (x +\n        OFFSET)",
        "    return x - OFFSET",
    ]
    digests = []
    for i, text in enumerate(texts):
        (tmp_path / f"dataset_code_{i}.py").write_text(f"OFFSET = 1\ndef f(x):\n{text}\n")
        digests.append(code_digest(importlib.import_module(f"dataset_code_{i}").f))
    assert digests[0] == digests[1] != digests[2]
    assert code_digest(eval("lambda x: x")) == "", "without source"


def test_sources_that_find_pairs_with_other_files_are_cut_again(rivers, prepared, capsys):
    def find(cls, shipped):
        first, second, *others = rivers.find(shipped)
        return [replace(first, mask=second.mask), second, *others]

    write_mask(prepared / "src/Rivers/train/masks/0.png", class_map(80, 64, 2, 0))
    edited = edit(rivers, find=classmethod(find))
    assert prepare(prepared) == 0
    assert "1 source files cut into 1 patches, 4 finished before" in capsys.readouterr().out
    assert np.array_equal(edited(prepared / "root")[0]["mask"], class_map(80, 64, 2, 1))


def test_of_copies_the_best_is_taken_and_prepared_folders_are_skipped(rivers, tmp_path):
    """A copy in a deeper folder, a similar folder, and a dataset prepared beside the download."""
    make(tmp_path / "src")
    write_image(tmp_path / "src/copy/of/Rivers/train/images/0.png", noise(8, 8))
    write_image(tmp_path / "src/Rivers/constrain/images/9.png", noise(8, 8))
    for _ in range(2):
        assert prepare(tmp_path, "--out", str(tmp_path / "src")) == 0
    shipped = Shipped(tmp_path / "src", "Rivers", "{src}")
    found = shipped.match(r"(Train|val)/(images)/([^/]+)\.png")
    assert sorted(found) == [(p, "images", str(i)) for p, n in (("train", 3), ("val", 2)) for i in range(n)]
    assert found["train", "images", "0"] == tmp_path / "src/Rivers/train/images/0.png"
    assert [s.name for s in rivers(tmp_path / "src/Rivers").samples] == ["0", "1", "2"]


def test_names_keep_their_case_and_are_alike(rivers, tmp_path):
    make(tmp_path / "src")
    for kind in ("images", "masks"):
        path = tmp_path / f"src/Rivers/train/{kind}/0.png"
        path.rename(path.with_name("A_0.png"))
    assert prepare(tmp_path) == 0
    for root in ("src", "root"):
        names = [sample["name"].removesuffix("_0_80_0_64") for sample in rivers(tmp_path / root)]
        assert names == ["1", "2", "A_0"]


@pytest.mark.parametrize("channels", [3, 4])
def test_masks_in_colours_need_no_code(rivers, tmp_path, channels):
    """In the colours of the table, with a colour to ignore."""
    make(tmp_path / "src")
    edited = edit(rivers, tables=(build_table("rivers", LAND, WATER, ignore_colors=((255, 255, 255),)),))
    truth = class_map(80, 64, 2, 0)
    truth[:5] = 255
    colors = edited.tables[0].colorize(truth, (255, 255, 255))
    alpha = np.full((80, 64, 1), 255, np.uint8)
    Image.fromarray(np.concatenate([colors, alpha], 2)[..., :channels]).save(
        tmp_path / "src/Rivers/train/masks/0.png"
    )
    assert prepare(tmp_path) == 0
    for root in ("src", "root"):
        assert np.array_equal(edited(tmp_path / root)[0]["mask"], truth)


def test_an_unknown_colour_is_not_answered_with_a_palette(rivers, tmp_path, capsys):
    make(tmp_path / "src")
    write_image(tmp_path / "src/Rivers/train/masks/0.png", np.full((80, 64, 3), (1, 2, 3), np.uint8))
    assert prepare(tmp_path) == 0
    text = capsys.readouterr().out
    assert "RGB (1, 2, 3) (5120 pixels) is not in label table 'rivers'" in text
    assert "add the colour to palette or ignore_colors" in text and "Add a palette" not in text


def test_no_file_can_be_used(rivers, tmp_path, capsys):
    """Said once, without lists; a table that is mended afterwards needs no new folder."""
    make(tmp_path / "src")
    edit(rivers, tables=(build_table("rivers", LAND, WATER, values=(7, 8)),))
    assert prepare(tmp_path) == 1
    printed = capsys.readouterr()
    assert "error: no file could be used: all 5 source files failed, the first:\n" in printed.err
    assert (printed.out + printed.err).count("train/masks/0.png") == 1 and "nothing to do" not in printed.out
    assert not (tmp_path / "root/rivers/splits").exists()
    register(rivers)
    assert prepare(tmp_path) == 0 and "5 source files cut" in capsys.readouterr().out


def test_the_shipped_folder_is_not_written_into(rivers, tmp_path, capsys):
    make(tmp_path / "rivers")
    assert main(["rivers", "--src", str(tmp_path / "rivers"), "--out", str(tmp_path)]) == 1
    assert "would be written into it; choose another --out or --name" in capsys.readouterr().err


def test_ignored_pixels_are_drawn_in_a_colour_of_their_own(rivers, prepared):
    """Black may be a class."""
    edited = edit(rivers, tables=(replace(rivers.tables[0], palette=((0, 0, 0), (255, 255, 255))),))
    before = np.asarray(edited(prepared / "src").plot(0))
    mask = class_map(80, 64, 2, 0)
    mask[:10] = 255
    write_mask(prepared / "src/Rivers/train/masks/0.png", mask)
    drawn = np.asarray(edited(prepared / "src").plot(0))
    colour = drawn[0, 64].tolist()
    assert colour not in ([0, 0, 0], [255, 255, 255])
    in_legend = (drawn[80:] == colour).all(2).any()
    assert in_legend and not (before[80:] == colour).all(2).any()


@pytest.mark.parametrize("given", ["rivers", "rivers/splits"])
def test_check_of_a_dataset_says_which_lists_there_are(rivers, prepared, capsys, given):
    with pytest.raises(SystemExit):
        check_main([given, "--root", str(prepared / "root"), "--labels", "rivers"])
    error = capsys.readouterr().err
    if given == "rivers":
        assert "rivers has the lists rivers/splits/train.txt, rivers/splits/val.txt" in error
    else:
        assert "rivers/splits is a folder; for a folder of images, give that of their masks" in error
    with pytest.raises(SystemExit):
        check_main(["rivers", "--root", str(prepared)])
    assert "first prepare it: python -m s5.data.prepare rivers --src DIR" in capsys.readouterr().err
