"""Walks of folders, which leave out hidden and system files; folders paired by name; a part held out."""

import os

import pytest

from s5.data.folders import find_files, find_images, hold_out, is_system_name, pair_folders
from s5.data.oriented.samples import AnnotatedImages
from s5.data.splits import Split
from s5.errors import SplitError
from s5.prediction.sources import find_sources

LITTER = (
    "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    "a/@eaDir/1.png/SYNOPHOTO_THUMB_XL.jpg",
    "#recycle/old.png",
    "$Recycle.Bin/S-1-5/x.png",
    "System Volume Information/y.png",
    ".Trash-1000/files/z.png",
    "__MACOSX/a/1.png",
    "a/._1.png",
    "lost+found/5.png",
    "@Recycle/6.png",
)
NO_IMAGES = ("Thumbs.db", "a/.DS_Store", "a/@eaDir/1.png@SynoEAStream")


@pytest.fixture
def pool(tmp_path):
    for name in ("a/1.png", "a/b/2.png", ".hidden/3.png", *LITTER):
        write(tmp_path / "pool" / name)
    for name in NO_IMAGES:
        (tmp_path / "pool" / name).write_bytes(b"x")
    return tmp_path / "pool"


def write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no matter")


def below(folder, paths):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_images_without_litter(pool, caplog):
    caplog.set_level("INFO")
    assert below(pool, find_images(pool)) == ["a/1.png", "a/b/2.png"]
    assert f"{pool}: skipped {len(LITTER)} thumbnails, recycled files" in caplog.text
    assert "2 @eaDir, " in caplog.text and "1 #recycle" in caplog.text
    assert below(pool, find_files(pool)) == ["a/1.png", "a/b/2.png"], "of all kinds"
    assert below(pool, find_images(pool, leave_out=pool / "a/b")) == ["a/1.png"]


def test_nothing_is_said_of_a_clean_folder(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "a/1.png")
    write(tmp_path / "a/.2.png")
    assert below(tmp_path, find_images(tmp_path)) == ["a/1.png"] and find_images(tmp_path / "none") == []
    assert not caplog.text


@pytest.mark.parametrize(
    "name", ["eaDir", "recycle", "Trash", "thumbs.png", "lost", "MACOSX", "a@eaDir", "1._"]
)
def test_names_that_are_data(name):
    assert not is_system_name(name)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, caplog, monkeypatch):
    write(tmp_path / "a/1.png")
    write(tmp_path / "b/2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert below(tmp_path, find_images(tmp_path)) == ["a/1.png"]
    assert f"{tmp_path}/b: cannot be listed (Permission denied)" in caplog.text


@pytest.mark.parametrize("pattern", ["{}/**/*.png", "{}/**/*", "{}/*/**", "{}"])
def test_prediction_by_folder_and_by_pattern(pool, tmp_path, caplog, pattern):
    caplog.set_level("INFO")
    sources = find_sources([pattern.format(pool)], tmp_path / "out")
    assert below(pool, [source.path for source in sources]) == ["a/1.png", "a/b/2.png"]
    assert "skipped" in caplog.text and "#recycle" in caplog.text
    thumbnail = pool / LITTER[0]
    assert [source.path for source in find_sources([str(thumbnail)], tmp_path / "out")] == [thumbnail]


def test_pairs_and_annotated_images(pool, tmp_path):
    for name in ("a/1", "a/b/2"):
        write(tmp_path / f"masks/{name}.png")
        write(tmp_path / f"labels/{name}.txt")
        (tmp_path / f"labels/{name}.txt").write_text("10 10 20 10 20 20 10 20 ship 0")
    write(tmp_path / "labels/@eaDir/1.txt")
    assert len(pair_folders("pool", "masks", tmp_path)) == 2
    assert AnnotatedImages(pool, tmp_path / "labels", ["ship"]).names == ["a/1", "a/b/2"]


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path):
    touch(tmp_path, "images/b.jpg", "images/north/a 1.TIF", "images/notes.txt", "images/.hidden.png")
    touch(tmp_path, "masks/b.png", "masks/north/a 1.png", "masks/Thumbs.db")
    return tmp_path


def test_pairs_by_name(root):
    split = pair_folders("images", "masks", root)
    assert split.path == root / "images"
    assert [(s.name, s.mask) for s in split] == [
        ("images/b.jpg", root / "masks/b.png"),
        ("images/north/a 1.TIF", root / "masks/north/a 1.png"),
    ]


def test_folders_outside_the_root(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("root")
    sample = pair_folders(root / "images", root / "masks", other).sample(0)
    assert sample.name == str(root / "images/b.jpg") and sample.image == root / "images/b.jpg"


def test_what_is_refused(root):
    def fails(message):
        with pytest.raises(SplitError, match=message):
            pair_folders("images", "masks", root)

    touch(root, *(f"images/{i}.png" for i in range(5)), "masks/extra.png")
    fails(r"5 images in .*images have no partner in .*masks: 0.png, 1.*4.png; 1 masks in .*extra.png")
    with pytest.raises(SplitError, match=r"nowhere: no such folder"):
        pair_folders("images", "nowhere", root)
    (root / "empty").mkdir()
    with pytest.raises(SplitError, match=r"empty: no (images|masks) \(.jpg"):
        pair_folders("images", "empty", root)
    touch(root, "images/b.png")
    fails(r"images/b.jpg and .*images/b.png have the same name")


def split_of(tmp_path, names):
    return Split.from_lines([f"{name}.png m/{name}.png" for name in names], tmp_path, "s")


def names(split):
    return [sample.name for sample in split]


def test_hold_out(tmp_path):
    split = split_of(tmp_path, range(50))
    train, val = hold_out(split, 0.2)
    assert (len(train), len(val)) == (40, 10)
    assert sorted(names(train) + names(val)) == sorted(names(split))
    assert names(val) == [name for name in names(split) if name in names(val)], "order of the split"
    assert val.sample(0).mask == tmp_path / f"m/{val.sample(0).name}"
    shuffled = split_of(tmp_path, reversed(range(50)))
    assert sorted(names(hold_out(shuffled, 0.2)[1])) == sorted(names(val)), "whatever the order"
    assert set(names(val)) < set(names(hold_out(split, 0.3)[1])), "a larger share holds out more"


def test_an_image_that_is_listed_more_than_once_is_not_divided(tmp_path):
    train, val = hold_out(split_of(tmp_path, [*range(20)] * 3), 0.2)
    assert (len(train), len(val)) == (48, 12)
    assert not set(names(train)) & set(names(val))
    once = hold_out(split_of(tmp_path, range(20)), 0.2)[1]
    assert set(names(val)) == set(names(once)), "the same choice as when they are listed once"


def test_hold_out_leaves_one_at_least(tmp_path):
    for share in (0.01, 0.99):
        train, val = hold_out(split_of(tmp_path, range(3)), share)
        assert len(train) >= 1 and len(val) >= 1
    for same in ([1], [1, 1, 1]):
        with pytest.raises(SplitError, match="one image cannot be divided"):
            hold_out(split_of(tmp_path, same), 0.2)
    with pytest.raises(SplitError, match="between 0 and 1, got 1"):
        hold_out(split_of(tmp_path, range(3)), 1)
