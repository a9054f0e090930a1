"""Split files: every form of line, memory of workers, speed, and what is refused."""

import gc
import multiprocessing
import os
import pickle
import re
import time
from pathlib import Path

import pytest

from s5.data.loaders import resolve_split
from s5.data.splits import Split, format_line, write_split
from s5.errors import SplitError, printable


def split_of(tmp_path, content):
    (tmp_path / "s.txt").write_bytes(content)
    return Split("s.txt", tmp_path)


def parts(split):
    return [(s.name, str(s.mask.relative_to(split.root)) if s.mask else None) for s in split]


def test_labeled_and_unlabeled_lines(tmp_path):
    split = split_of(tmp_path, b"labeled/a/images/P0_crop_0.png labeled/a/masks/P0_crop_0.png\nu/b.jpg\n")
    assert len(split) == 2
    sample = split.sample(0)
    assert sample.image == tmp_path / "labeled/a/images/P0_crop_0.png"
    assert sample.mask == tmp_path / "labeled/a/masks/P0_crop_0.png"
    assert sample.name == split.name(0) == "labeled/a/images/P0_crop_0.png"
    assert split.sample(1).mask is None
    assert split.sample(-1).name == "u/b.jpg"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_mark_line_ends_and_blank_lines(tmp_path, end):
    lines = [b"\xef\xbb\xbfa.png b.png", b"", b"   ", b"\t", b"  c.png d.png  ", b"e.png"]
    assert parts(split_of(tmp_path, end.join(lines))) == [
        ("a.png", "b.png"),
        ("c.png", "d.png"),
        ("e.png", None),
    ]
    assert len(split_of(tmp_path, end.join(lines) + end)) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("field one/a 1.png masks/a 1.png", ("field one/a 1.png", "masks/a 1.png")),
        ("field one/a 1.JPG", ("field one/a 1.JPG", None)),
        ("a b.TIF\tc d.png", ("a b.TIF", "c d.png")),
        ("a.png b.png\t", ("a.png b.png", None)),
        ("a.png    b.png", ("a.png", "b.png")),
        ("x.jpg.png y.png", ("x.jpg.png", "y.png")),
        ("grün/ä.png maske.png", ("grün/ä.png", "maske.png")),
        ("a.tif#xywh=0,0,512,512 masks/a.png", ("a.tif#xywh=0,0,512,512", "masks/a.png")),
        ("s 1/a b.tif#xywh=0,0,9,9 m a.png", ("s 1/a b.tif#xywh=0,0,9,9", "m a.png")),
        ("p q.zip!/a b.jpg", ("p q.zip!/a b.jpg", None)),
        ("p.TAR!/a.JPG#at=0,5&xywh=1,2,3,4 m.png", ("p.TAR!/a.JPG#at=0,5&xywh=1,2,3,4", "m.png")),
        ("a.tif#xywh=0,0,512,512", ("a.tif#xywh=0,0,512,512", None)),
        ("a.tif#1 m.png", ("a.tif#1 m.png", None)),
    ],
)
def test_spaces_and_tabs(tmp_path, line, expected):
    assert parts(split_of(tmp_path, line.encode())) == [expected]


def test_absolute_paths_stay(tmp_path):
    assert str(split_of(tmp_path, b"/data/a.png").sample(0).image) == "/data/a.png"


def test_written_lines_read_back(tmp_path):
    pairs = [
        ("a.png", "m.png"),
        ("a b.png", "m n.png"),
        ("x.png", None),
        ("x.png y.png", None),
        ("p q", "r.png"),
        ("p q.tar!/a b.jpg#at=10,20&xywh=0,0,5,5", "m.png"),
        ("a b.tif#xywh=0,0,5,5", None),
        ("a.tif#xywh=0,0,5,5 b.png", None),
        ("a.tif#xywh=0,0,5,5", "b.png"),
    ]
    write_split(tmp_path / "new" / "s.txt", [format_line(*pair) for pair in pairs])
    assert parts(Split("new/s.txt", tmp_path)) == pairs
    assert format_line("a.png", "m.png") == "a.png m.png"
    with pytest.raises(SplitError, match="TAB"):
        format_line("a\tb.png")


def test_split_without_a_file(tmp_path):
    pairs = [("a b.png", "m.png"), ("x.png y.png", None), ("c.png", "n.png")]
    split = Split.from_lines([format_line(*pair) for pair in pairs], tmp_path, tmp_path / "images")
    assert parts(split) == pairs and split.path == tmp_path / "images"
    again = Split.from_lines([split.line(i) for i in range(len(split))], tmp_path, "again")
    assert parts(again) == pairs and list(again) == list(split)
    with pytest.raises(SplitError, match="images: no samples"):
        Split.from_lines([], tmp_path, "images")


def test_missing_split_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SplitError, match=rf"no.txt not found; looked for {tmp_path}/root/no.txt and {tmp_path}/no.txt"
    ):
        Split("no.txt", tmp_path / "root")


def test_root_comes_before_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "s.txt").write_text("here.png\n")
    assert Split("s.txt", "root").sample(0).image == tmp_path / "root" / "here.png"
    (tmp_path / "root" / "s.txt").write_text("there.png\n")
    assert Split("s.txt", "root").name(0) == "there.png"


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf \n\t\n"])
def test_empty_split(tmp_path, content):
    with pytest.raises(SplitError, match="s.txt: no samples"):
        split_of(tmp_path, content)


def test_too_many_parts(tmp_path):
    with pytest.raises(SplitError, match=r"s.txt, line 1: .*a.png.*c.png"):
        split_of(tmp_path, b"a.png\tb.png\tc.png").sample(0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("line", ["a/0.png m/0.png\r\n", "grün/ä.png\n"])
def test_lists_in_other_encodings_say_so(tmp_path, encoding, line):
    name = encoding[:6].upper()
    with pytest.raises(SplitError, match=rf"s.txt: is encoded in {name}.*UTF-8.*iconv -f {name}.*PowerShell"):
        split_of(tmp_path, line.encode(encoding))


def test_a_list_that_is_no_text(tmp_path):
    with pytest.raises(SplitError, match="s.txt: not a text file"):
        split_of(tmp_path, b"\x80\x02}q\0a.png\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (rb"images\0.png masks\0.png", r"no file images\\0.png in .*backslashes, write / between"),
        (rb"images/0.png masks\0.png", r"no file masks\\0.png in .*backslashes"),
        (b"images/0.png,masks/0.png", "commas or semicolons, write a space or a TAB"),
        (b"images/0.png;masks/0.png", "commas or semicolons"),
        (b"image,mask", "commas or semicolons"),
        (b'"images/0.png" "masks/0.png"', "quotes, write paths without them"),
        (b"'images/0.png'\t'masks/0.png'", "quotes"),
        ("影像/0.png".encode("gbk"), r"\\xcf\\xf1/0.png.*not UTF-8; convert the list"),
    ],
)
def test_lines_as_other_programs_write_them_say_what_is_wrong(tmp_path, line, reason):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").touch()
    split = split_of(tmp_path, b"images/0.png\r\n\r\n" + line + b"\r\n")
    assert split.misread(0) == ""
    problem = printable(split.misread(1))
    assert problem.startswith(f"{tmp_path}/s.txt, line 3: ") and re.search(reason, problem), problem
    split.check_first_line()
    with pytest.raises(SplitError, match="line 1: "):
        split_of(tmp_path, line).check_first_line()
    with pytest.raises(SplitError, match="line 1: "):  # as for training
        resolve_split(tmp_path, Path("s.txt"))


@pytest.mark.parametrize("name", [r"a\0.png", "a.png,b.png", '"a.png"', "image,mask", "\udccf.png"])
def test_a_file_may_really_have_such_a_name(tmp_path, name):
    (tmp_path / name).touch()
    assert split_of(tmp_path, os.fsencode(name)).misread(0) == ""
    (tmp_path / name).unlink()
    assert split_of(tmp_path, os.fsencode(name)).misread(0)


@pytest.mark.parametrize("name", ["a.png", "a b.png m.png", "o'brien/a.png", "a, b/c.png"])
def test_other_files_that_are_missing_are_no_matter_of_the_form(tmp_path, name):
    assert split_of(tmp_path, name.encode()).misread(0) == ""


def test_index_out_of_range(tmp_path):
    with pytest.raises(IndexError):
        split_of(tmp_path, b"a.png").sample(1)


def test_a_million_lines_load_quickly(tmp_path):
    line = "unlabeled/RS4P-1M/part_{:03d}/images/P{:07d}.jpg\r\n"
    (tmp_path / "s.txt").write_bytes("".join(line.format(i % 100, i) for i in range(1_000_000)).encode())
    start = time.process_time()
    split = Split("s.txt", tmp_path)
    assert time.process_time() - start < 3.0  # 0.3 s of processor time on an idle core
    assert len(split) == 1_000_000
    assert split.name(999_999) == "unlabeled/RS4P-1M/part_099/images/P0999999.jpg"


def private_memory() -> int:
    """Bytes of this process that no other has."""
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines())
    return 1024 * sum(int(row[1]) for row in rows if row[0].startswith("Private_"))


def growth_in_a_worker(split: Split, grown: multiprocessing.SimpleQueue) -> None:
    split.name(0)
    gc.freeze()
    before = private_memory()
    for index in range(0, len(split), 40):  # a line of every page
        split.sample(index)
    grown.put(private_memory() - before)


def in_dev_shm():
    """Memory of this process that lies there, such as semaphores of earlier tests."""
    return [row for row in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in row]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc")
def test_forked_workers_share_the_lines_without_dev_shm(tmp_path):
    before = in_dev_shm()
    split = split_of(tmp_path, b"unlabeled/RS4P-1M/part_007/images/P1234567.jpg\n" * 1_000_000)
    assert in_dev_shm() == before
    context = multiprocessing.get_context("fork")
    grown = context.SimpleQueue()
    process = context.Process(target=growth_in_a_worker, args=(split, grown))
    process.start()
    # Reference counts make a worker copy pages of the interpreter, more of a process that has run for long.
    assert grown.get() < 32e6, "of 63 MB of text and offsets"
    process.join()


def test_spawned_workers_get_it_by_pickle(tmp_path):
    split = pickle.loads(pickle.dumps(split_of(tmp_path, b"a.png b.png\nc.png\n")))
    assert parts(split) == [("a.png", "b.png"), ("c.png", None)]


def test_a_reference_into_a_file_of_any_name_is_no_format_error(tmp_path):
    (tmp_path / "a\\b.tif").touch()
    lines = ["a\\b.tif#xywh=0,0,5,5", "c\\d.tif#xywh=0,0,5,5"]
    split = Split.from_lines(lines, tmp_path, "s")
    assert not split.misread(0) and "backslashes" in split.misread(1)
