"""References: their form, and that a window or a member has the pixels of the image it comes from."""

import multiprocessing
import os
import re
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from s5.data import gdal_files, rasters, references
from s5.data.check import check_split, require_clean
from s5.data.image_io import image_size, open_stored_mask, read_file, read_image, read_image_with_valid
from s5.data.labels import get_table
from s5.data.prepare.patches import open_image, plain_file
from s5.data.references import Member, Reference, Window, find, members, parse
from s5.data.sampler import Draw
from s5.data.sources import (
    LabeledImages,
    MultiSourceDataset,
    StrongAugmentation,
    UnlabeledImages,
    WeakAugmentation,
)
from s5.data.splits import Split, format_line
from s5.errors import ImageError
from tests.helpers.archive_files import H, W, jpeg, write_every_kind, write_streamed_zip, write_tar, write_zip
from tests.helpers.tiff_files import write_tiff

WINDOW = Window(3, 17, 30, 21)
TABLE = get_table({"name": "two", "classes": ["land", "water"]})


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Images of every kind, alone and in archives of every kind."""
    folder = tmp_path_factory.mktemp("every kind é")
    (folder / "alone").mkdir()
    paths = write_every_kind(folder / "alone")
    files = {f"a b/ü#{path.name}": path.read_bytes() for path in paths}
    write_tar(folder / "pool.tar", files)
    write_zip(folder / "stored.zip", files)
    write_zip(folder / "deflated.ZIP", files, zipfile.ZIP_DEFLATED)
    write_streamed_zip(folder / "streamed.zip", files)
    return folder


def crop(path, window=WINDOW):
    image, valid = read_image_with_valid(path)
    valid = None if valid is None or window.of(valid).all() else window.of(valid)
    return window.of(image), valid


def same(one, other):
    (image, valid), (image_2, valid_2) = one, other
    return np.array_equal(image, image_2) and (
        valid is valid_2 is None
        or (None not in (valid is None, valid_2 is None) and np.array_equal(valid, valid_2))
    )


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a.tif", Reference("a.tif")),
        ("s/a b.tif#xywh=512,0,64,32", Reference("s/a b.tif", window=Window(0, 512, 32, 64))),
        ("pool.zip!/a/b.jpg", Reference("pool.zip", "a/b.jpg")),
        ("p ü/pool.TAR!/ä/b.jpg#at=1024,5", Reference("p ü/pool.TAR", "ä/b.jpg", (1024, 5))),
        ("p.tar!/b#1!.jpg#at=0,5&xywh=1,2,3,4", Reference("p.tar", "b#1!.jpg", (0, 5), Window(2, 1, 4, 3))),
        ("wow!/#1/p.zip!/!/#.jpg", Reference("wow!/#1/p.zip", "!/#.jpg")),
        ("pool.zip!/../b.jpg", Reference("pool.zip", "../b.jpg")),
        ("pool.zip!//abs/b.jpg", Reference("pool.zip", "/abs/b.jpg")),
        ("a.zip!/b.zip!/c.jpg", Reference("a.zip", "b.zip!/c.jpg")),
        ("a%20b.tif#xywh=0,0,1,1", Reference("a%20b.tif", window=Window(0, 0, 1, 1))),
        ("a#xywh=0,0,1,1.tif", Reference("a#xywh=0,0,1,1.tif")),
        ("a\udccf.tif#xywh=0,0,1,1", Reference("a\udccf.tif", window=Window(0, 0, 1, 1))),
    ],
)
def test_texts_are_parsed_and_written_back(text, reference):
    assert parse(text) == reference and str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "a.tif#at=1,2",  # without an archive
        "a.tif#xywh=0,0,1",
        "a.tif#xywh=0,0,-1,1",
        "a.tif#xywh=٣,0,1,1",
        "a.tif#&xywh=0,0,1,1",
        "a.tif#",
        "a.rar!/b.jpg",
        "pool.zip!/",
        "tile#1.png",
    ],
)
def test_other_texts_are_names_of_files(text):
    assert parse(text) == Reference(text) and find(text) is None


def test_a_file_of_the_full_name_is_that_file(tmp_path):
    for name in ("a.jpg#xywh=0,0,5,5", "x.zip!/a.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg())
        assert find(path) is None and read_image(path).shape == (H, W, 3)


@pytest.mark.parametrize("archive", ["pool.tar", "stored.zip", "deflated.ZIP", "streamed.zip", ""])
def test_windows_and_members_have_the_pixels_of_the_file(kinds, archive):
    path = kinds / archive if archive else None
    found = {} if path is None else {m.name.rpartition("#")[2]: m for m in members(path)}
    for file in sorted((kinds / "alone").iterdir()):
        base = Reference(str(file))
        if path is not None:
            _, *place = found[file.name]
            base = Reference(str(path), found[file.name].name, tuple(place))
            for hint in (base, base._replace(at=None)):
                assert same(read_image_with_valid(str(hint)), read_image_with_valid(file)), str(hint)
            assert image_size(str(base)) == image_size(file) == (H, W)
        for hint in {base, base._replace(at=None)}:
            text = str(hint._replace(window=WINDOW))
            for _ in range(2):  # the second time, a TIFF is open
                assert same(read_image_with_valid(Path(text)), crop(file)), text
            assert image_size(text) == (WINDOW.height, WINDOW.width)


def test_a_file_opened_once_gives_windows(kinds):
    inner = Window(2, 1, 9, 8)
    for file in sorted((kinds / "alone").iterdir()):
        for text in (str(file), f"{kinds}/pool.tar!/a b/ü#{file.name}"):
            whole = str(parse(text)._replace(window=Window(3, 2, 20, 30)))
            with open_image(text) as image, open_image(Path(whole)) as part:
                assert (image.height, image.width, part.height, part.width) == (H, W, 20, 30)
                assert same(image.read_with_valid(*inner), crop(file, inner))
                shifted = inner._replace(top=inner.top + 3, left=inner.left + 2)
                assert same(part.read_with_valid(*inner), crop(file, shifted))


@pytest.mark.parametrize("xywh", ["0,0,57,1", "50,0,7,10", "0,0,0,5", "0,99999,1,1", "0,0,1,41"])
@pytest.mark.parametrize("name", ["rgb.tif", "deep.png", "plain.jpg"])
def test_a_window_outside_of_the_image(kinds, name, xywh):
    path = f"{kinds}/alone/{name}#xywh={xywh}"
    for read in (read_image, image_size, lambda path: open_image(path).__enter__()):
        with pytest.raises(ImageError, match=rf"{name}#xywh={xywh}: the window is not inside .* 40x56"):
            read(path)


def test_a_window_is_no_mask_and_is_not_copied_as_a_file(kinds):
    path = f"{kinds}/alone/plain.png#xywh=0,0,5,5"
    with pytest.raises(ImageError, match="a mask cannot be a window"), open_stored_mask(path):
        pass
    assert plain_file(path) is None and plain_file(kinds / "alone/plain.png") is not None
    assert read_file(path) == read_file(kinds / "alone/plain.png")


def test_missing_files_are_named(kinds, tmp_path):
    with pytest.raises(ImageError, match=r"no\.tar: cannot be opened \(No such file.*split file"):
        read_image(tmp_path / "no.tar!/a.jpg")
    with pytest.raises(ImageError, match=r"no\.tif.*(not found|cannot be opened)"):
        read_image(tmp_path / "no.tif#xywh=0,0,5,5")
    with pytest.raises(ImageError, match=r"pool.tar!/no.jpg: the archive has no such member"):
        read_image(kinds / "pool.tar!/no.jpg")


def test_damage_is_reported_under_the_name_of_the_window(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 256, 256), np.uint8)
    path = write_tiff(tmp_path / "cut.tif", noise, tiled=True, blockxsize=64, blockysize=64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert np.array_equal(
        read_image(f"{path}#xywh=0,0,64,64"), noise[:, :64, :64].transpose(1, 2, 0)
    )  # this part is there
    with pytest.raises(ImageError, match=r"cut.tif#xywh=192,192,64,64: damaged"):
        read_image(f"{path}#xywh=192,192,64,64")


def test_a_file_that_was_replaced_is_read_again(tmp_path):
    for value in (10, 200):
        write_tiff(tmp_path / "new.tif", np.full((3, 32, 32), value, np.uint8))
        os.utime(tmp_path / "new.tif", ns=(value, value))
        shutil.copy2(tmp_path / "new.tif", tmp_path / "a.tif")
        assert (read_image(tmp_path / "a.tif#xywh=1,1,5,5") == value).all()


def test_few_files_stay_open_and_the_limits_of_the_stretch_are_remembered(tmp_path, monkeypatch):
    rasters.OPEN.clear()
    measured = []
    monkeypatch.setattr(rasters, "stretch_limits", lambda *args: measured.append(1) or (0.0, 9000.0))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(40):
            path = tmp_path / f"{number}.tif"
            if not path.exists():
                write_tiff(path, np.full((1, 8, 8), number, np.uint16))
            read_image(f"{path}#xywh=0,0,4,4")
    assert len(measured) == 40 and len(rasters.OPEN) == 32
    assert len(os.listdir("/proc/self/fd")) <= before + 33
    rasters.OPEN.clear()
    assert len(os.listdir("/proc/self/fd")) <= before


def _read_many(path, queue):
    queue.put([int(read_image(f"{path}#xywh={x},0,16,16").sum()) for x in range(0, 240, 3)])


def test_forked_processes_and_threads_read_at_the_same_time(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (3, 16, 256), np.uint8)
    path = write_tiff(tmp_path / "a.tif", noise, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    paths = (path, f"{write_tar(tmp_path / 'p.tar', {'a.tif': path.read_bytes()})}!/a.tif")
    expected = [int(noise[:, :, x : x + 16].sum()) for x in range(0, 240, 3)]
    for each in paths:
        assert (read_image(f"{each}#xywh=0,0,16,16") == noise[:, :, :16].transpose(1, 2, 0)).all()
        fork, queue = multiprocessing.get_context("fork"), multiprocessing.get_context("fork").SimpleQueue()
        workers = [fork.Process(target=_read_many, args=(each, queue)) for _ in range(2)]
        workers += [threading.Thread(target=_read_many, args=(each, queue)) for _ in range(2)]
        for worker in workers:
            worker.start()
        assert [queue.get() for _ in workers] == [expected] * 4
        for worker in workers:
            worker.join()


def test_the_directory_is_read_once_and_not_at_all_with_at(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "p.tar", {f"{i}.jpg": jpeg(i) for i in range(3)})
    reads = []
    entries = references.entries
    monkeypatch.setattr(references, "entries", lambda archive: reads.append(archive) or entries(archive))
    for member in members(path):
        assert isinstance(member, Member)
        read_image(f"{path}!/{member.name}#at={member.at},{member.size}")
    assert not reads
    for i in range(3):
        read_image(f"{path}!/{i}.jpg")
    assert reads == [str(path)]


def test_a_georeference_is_that_of_the_window(tmp_path):
    from rasterio import Affine
    from rasterio.control import GroundControlPoint

    image = np.zeros((3, 32, 32), np.uint8)
    path = write_tiff(tmp_path / "t.tif", image, transform=Affine(2, 0, 100, 0, -2, 500), crs="EPSG:32632")
    found = gdal_files.read_georeference(f"{path}#xywh=3,5,8,8")
    assert found.transform == Affine(2, 0, 106, 0, -2, 490) and found.crs.to_epsg() == 32632
    points = [GroundControlPoint(10, 20, 7.0, 50.0), GroundControlPoint(30, 2, 7.1, 50.1)]
    points += [GroundControlPoint(5, 5, 7.2, 50.3)]
    path = write_tiff(tmp_path / "g.tif", image, gcps=points, crs="EPSG:4326")
    found = gdal_files.read_georeference(f"{path}#xywh=3,5,8,8")
    assert [(p.row, p.col) for p in found.gcps] == [(5, 17), (25, -1), (0, 2)]


@pytest.mark.parametrize(
    ("reference", "stem"),
    [
        ("s/b.tif#xywh=512,0,512,256", "b_0_256_512_1024"),
        ("s/pool.zip!/a/b.c.jpg", "pool/a/b.c"),
        ("s/pool.tar!/../../b.jpg#at=1,2&xywh=0,0,5,5", "pool/b_0_5_0_5"),
    ],
)
def test_results_are_named_by_file_member_and_window(reference, stem):
    assert parse(reference).stem() == stem


def split_of(root):
    """Three lines that refer to the same two pictures, and their masks."""
    from s5.data.image_io import write_mask

    bands = np.random.default_rng(0).integers(0, 256, (3, 64, 96), np.uint8)
    write_tiff(root / "big one.tif", bands, tiled=True, blockxsize=32, blockysize=32)
    write_tar(root / "pool.tar", {"a/b c.jpg": jpeg(), "x.jpg": jpeg(1)})
    write_mask(root / "m.png", np.zeros((32, 32), np.uint8))
    write_mask(root / "n.png", np.ones((H, W), np.uint8))
    [first, _] = members(root / "pool.tar")
    hint = f"pool.tar!/{first.name}#at={first.at},{first.size}"
    lines = [
        format_line("big one.tif#xywh=32,16,32,32", "m.png"),
        "big one.tif#xywh=0,0,32,32 m.png",  # by hand, without a TAB
        format_line(hint, "n.png"),
        format_line("pool.tar!/x.jpg", "n.png"),
    ]
    return Split.from_lines(lines, root, root / "s.txt")


def test_training_and_check_read_references(tmp_path):
    split = split_of(tmp_path)
    assert [split.sample(i).mask.name for i in range(4)] == ["m.png", "m.png", "n.png", "n.png"]
    weak, strong = WeakAugmentation(32), StrongAugmentation()
    sources = [LabeledImages(split, TABLE, weak), UnlabeledImages(split, weak, strong)]
    data = MultiSourceDataset([*sources, UnlabeledImages(split, weak, strong, TABLE)], seed=0)
    for index in range(4):
        for source in range(3):
            item = data[Draw(source, index, index)]
            assert item["image"].shape == (32, 32, 3) and item["name"] == split.name(index)
            assert not item.get("skipped")
    report = check_split(split, TABLE, workers=2)
    assert report.ok and report.sizes == {(32, 32): 2, (H, W): 2}


def test_a_clean_check_is_remembered_until_the_archive_changes(tmp_path, caplog):
    split = split_of(tmp_path)
    for _ in range(2):
        require_clean(split, TABLE, tmp_path / "cache")
    assert "found clean before" in caplog.text or len(list((tmp_path / "cache").iterdir())) == 1
    write_tar(tmp_path / "pool.tar", {"a/b c.jpg": jpeg()})
    report = check_split(split, TABLE)
    assert [problem.kind for problem in report.problems] == ["corrupt"]
    (tmp_path / "pool.tar").unlink()
    assert [problem.kind for problem in check_split(split, TABLE).problems] == ["missing"] * 2


def test_unreadable_references_are_replaced_in_training(tmp_path):
    split = split_of(tmp_path)
    bad = ["pool.tar!/gone.jpg", "big one.tif#xywh=90,60,32,32"]
    mixed = Split.from_lines([*bad, *(split.name(i) for i in range(4))], tmp_path, "s.txt")
    item = UnlabeledImages(mixed, WeakAugmentation(32), StrongAugmentation()).load(
        0, np.random.default_rng(3)
    )
    assert [name for name, _ in item["skipped"]][0] == bad[0]


def test_the_snippet_of_the_page_reads_the_same(kinds, repository):
    page = (repository / "docs/references.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    for name in ("rgb.tif", "plain.png", "plain.bmp"):
        member = f"a b/ü#{name}"
        for base in (
            f"{kinds}/alone/{name}",
            f"{kinds}/deflated.ZIP!/{member}",
            f"{kinds}/pool.tar!/{member}",
        ):
            for text in (base, f"{base}#xywh=17,3,21,30"):
                assert np.array_equal(names["read"](text).transpose(1, 2, 0), read_image(text)), text
    [found] = [each for each in members(kinds / "pool.tar") if each.name.endswith("rgb.tif")]
    text = str(Reference(f"{kinds}/pool.tar", found.name, (found.at, found.size), WINDOW))
    assert np.array_equal(names["read"](text).transpose(1, 2, 0), read_image(text))
