"""Walks of folders leave out what is hidden, and thumbnails, recycle bins and the like, which they count."""

import os

import pytest

from s5.data.folders import find_files, find_images, is_system_name, pair_folders
from s5.data.oriented.samples import AnnotatedImages
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
