"""Archives read as folders: inside one another, from Windows and Mac, damaged, in several processes."""

import os
import zipfile

import pytest

from s5.data.datasets.archives import Archives
from s5.errors import ImageError
from tests.helpers.shipped_data import pack


@pytest.fixture
def src(tmp_path):
    """One plain file, one archive, and one archive inside another that holds a Windows archive."""
    src = tmp_path / "src"
    for name in ("plain.txt", "a/deep/one.txt", "b/inner/two.txt", "b/other/three.txt"):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(name)
    pack(src / "a", src / "a.ZIP")
    pack(src / "b/inner", src / "b/Inner.zip", inside="in", separator="\\")
    pack(src / "b/other", src / "b/other.zip")
    pack(src / "b", src / "b.zip")
    return src


def names(paths, src):
    return [path.relative_to(src).as_posix() for path in paths]


def text(archives, path):
    with archives.local(path) as file:
        return file.read_text()


def test_files_sizes_and_content(src, tmp_path):
    archives = Archives(tmp_path / "store", inner=r"inner\.zip")
    files = archives.files(src)
    inside = [name for name in names(files, src) if not name.lower().endswith(".zip")]
    assert inside == ["a.ZIP/deep/one.txt", "b.zip/Inner.zip/in/two.txt", "plain.txt"]
    for name, content in zip(inside, ("a/deep/one.txt", "b/inner/two.txt", "plain.txt"), strict=True):
        assert text(archives, src / name) == content
        assert archives.size(src / name) == len(content)
    assert archives.size(src / "a.ZIP/deep/none.txt") == 0
    with pytest.raises(ImageError, match=r"a.ZIP/deep/none.txt: file not found"):
        text(archives, src / "a.ZIP/deep/none.txt")
    assert names(archives.files(src / "b.zip"), src)[-1] == "b.zip/Inner.zip/in/two.txt"


def test_inner_archives_are_copied_out_only_while_needed(src, tmp_path):
    store = tmp_path / "store"
    archives = Archives(store)
    files = archives.files(src)
    assert len(list(store.glob("*.zip"))) == 2, "their tables of contents can be read only so"
    (store / "copy-of-a-killed-run").mkdir()
    archives.clear()
    assert {path.suffix for path in store.iterdir()} == {".json"}
    assert Archives(store).files(src) == files
    two = src / "b.zip/Inner.zip/in/two.txt"
    assert Archives(store).size(two) == len("b/inner/two.txt")
    assert not list(store.glob("*.zip")), "remembered tables of contents are enough to look around"
    archives.provide([two, src / "plain.txt"])
    assert [path.name.partition("-")[0] for path in store.glob("*.zip")] == ["Inner"]
    assert text(archives, two) == "b/inner/two.txt"
    assert not [path for path in store.iterdir() if path.is_dir()], "copies of files do not stay"


def test_changed_archive_is_read_again(src, tmp_path):
    archives = Archives(tmp_path / "store")
    archives.files(src)
    (src / "b/new").mkdir(parents=True)
    (src / "b/new/four.txt").write_text("4")
    pack(src / "b/new", src / "b/Inner.zip")
    pack(src / "b", src / "b.zip")
    assert names(archives.files(src / "b.zip"), src)[1:] == ["b.zip/Inner.zip/four.txt"]


def test_side_files_of_a_mac_are_left_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as file:
        for name in ("x/1.png", "__MACOSX/x/._1.png", "x/.DS_Store"):
            file.writestr(name, "x")
    archives = Archives(tmp_path / "store")
    assert names(archives.files(tmp_path), tmp_path) == ["mac.zip", "mac.zip/x/1.png"]


def test_damaged_archives(src, tmp_path, caplog):
    (src / "half.zip").write_bytes((src / "b.zip").read_bytes()[:-40])
    archives = Archives(tmp_path / "store")
    assert src / "a.ZIP/deep/one.txt" in archives.files(src)
    assert "half.zip: damaged or incomplete archive" in caplog.text and "Download it again" in caplog.text
    data = bytearray((src / "a.ZIP").read_bytes())
    data[45] ^= 255  # in the packed data of the one file
    (src / "a.ZIP").write_bytes(data)
    with pytest.raises(ImageError, match=r"a.ZIP/deep/one.txt: damaged archive"):
        text(archives, src / "a.ZIP/deep/one.txt")


def test_processes_do_not_disturb_each_other(src, tmp_path):
    """An open archive must not be shared by forked processes, which share its position."""
    content = {f"{i}.txt": os.urandom(300_000) for i in range(6)}
    with zipfile.ZipFile(src / "many.zip", "w") as file:
        for name, data in content.items():
            file.writestr(name, data)
    archives = Archives(tmp_path / "store")

    def same(name):
        with archives.local(src / "many.zip" / name) as copy:
            return copy.read_bytes() == content[name]

    assert same("0.txt")  # the parent has it open now
    children = []
    for name in content:
        child = os.fork()
        if child == 0:
            os._exit(0 if all(same(name) for _ in range(20)) else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(children)
