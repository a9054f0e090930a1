"""The index: which images are found, how they are cut, names that are hard."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from s5.data.image_io import write_image
from s5.errors import DataError, PrepareError
from tests.helpers.curation import noise

pytest.importorskip("pyarrow")

from s5.curate import index as module  # noqa: E402
from s5.curate.config import PatchConfig  # noqa: E402
from s5.curate.folder import Part, read_shard  # noqa: E402
from s5.curate.index import index, key  # noqa: E402

PATCH = PatchConfig(size=32, min_size=16)


def run(root: Path, sources: dict[str, str], patch: PatchConfig = PATCH) -> tuple[dict[str, int], list[dict]]:
    part = Part(root / "out")
    counts = index(part, {name: Path(path) for name, path in sources.items()}, root, patch, 1)
    return counts, [row for path in part.shards("index") for row in read_shard(path).to_pylist()]


def test_images_are_cut_into_windows(tmp_path: Path) -> None:
    write_image(tmp_path / "pool/large.png", noise(0, 48, 70))
    write_image(tmp_path / "pool/exact.png", noise(1))
    write_image(tmp_path / "pool/small.jpg", noise(2, 20, 32))
    write_image(tmp_path / "pool/tiny.jpg", noise(3, 8, 32))
    counts, rows = run(tmp_path, {"p": "pool"})
    assert len(counts.pop("digest")) == 32
    assert counts == {"images": 4, "unreadable": 0, "too_small": 1, "patches": 8, "shards": 1}
    assert [row["name"] for row in rows][:2] == ["pool/exact.png", "pool/large.png#xywh=0,0,32,32"]
    large = [(r["top"], r["left"], r["height"], r["width"]) for r in rows if r["file"] == "pool/large.png"]
    assert large == [(t, c, 32, 32) for t in (0, 16) for c in (0, 32, 38)]
    assert [row["patch"] for row in rows] == list(range(8))
    assert len({row["key"] for row in rows}) == 8


def test_hidden_and_system_files_are_left_out_and_links_do_not_loop(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.png", "a/.hidden.png", "@eaDir/thumb.png", ".git/x.png", "a/notes.txt"):
        write_image(tmp_path / "pool" / name, noise(0)) if name.endswith("png") else (
            tmp_path / "pool" / name
        ).write_text("x")
    (tmp_path / "pool/b/loop").symlink_to(tmp_path / "pool")
    _, rows = run(tmp_path, {"p": "pool"})
    assert [row["name"] for row in rows] == ["pool/a/1.png", "pool/b/2.png"]


def test_a_split_file_is_a_source_and_its_windows_are_cut_further(tmp_path: Path) -> None:
    write_image(tmp_path / "big.png", noise(0, 128, 128))
    (tmp_path / "list.txt").write_text("big.png#xywh=64,32,64,32\n")
    _, rows = run(tmp_path, {"p": "list.txt"})
    assert [row["name"] for row in rows] == ["big.png#xywh=64,32,32,32", "big.png#xywh=96,32,32,32"]
    assert {row["file"] for row in rows} == {"big.png"} and rows[1]["left"] == 96


@pytest.mark.parametrize("name", ["with space é 😀.png", "a#b.png", "semi;colon,.png", "ünï/[x]{y}.png"])
def test_names_that_are_hard(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "pool" / name, noise(0, 32, 64))
    _, rows = run(tmp_path, {"p": "pool"})
    assert [row["name"] for row in rows] == [f"pool/{name}#xywh={x},0,32,32" for x in (0, 32)]


def test_kinds_of_images(tmp_path: Path) -> None:
    for count, dtype in ((1, "uint8"), (3, "uint16"), (4, "float32")):
        profile = {"driver": "GTiff", "height": 32, "width": 32, "count": count, "dtype": dtype}
        with rasterio.open(tmp_path / f"{count}.tif", "w", **profile) as file:
            file.write(np.ones((count, 32, 32), dtype))
    write_image(tmp_path / "grey.png", noise(0)[..., 0])
    counts, _ = run(tmp_path, {"p": "."})
    assert counts["patches"] == 4 and counts["unreadable"] == 0


def test_members_that_cannot_be_read_are_rows_with_a_reason(tmp_path: Path) -> None:
    write_image(tmp_path / "one.png", noise(0))
    with zipfile.ZipFile(tmp_path / "pool.zip", "w") as archive:
        archive.write(tmp_path / "one.png", "1.png")
        archive.writestr("inner.zip", b"PK")
    (tmp_path / "other.tar.gz").write_bytes(b"\x1f\x8b")
    counts, rows = run(tmp_path, {"zip": "pool.zip", "gz": "other.tar.gz"})
    assert counts["patches"] == 1 and counts["unreadable"] == 2
    assert [bool(row["error"]) for row in rows] == [False, True, True]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    write_image(tmp_path / "pool/a.png", noise(0))
    (tmp_path / "pool/a.png").rename(tmp_path / "pool" / b"\xff.png".decode(errors="surrogateescape"))
    write_image(tmp_path / "pool/b.png", noise(0))
    counts, rows = run(tmp_path, {"p": "pool"})
    assert counts["unreadable"] == 1 and "not UTF-8" in next(row["error"] for row in rows if row["error"])


def test_no_usable_image_says_why(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/a.png").write_bytes(b"text")
    with pytest.raises(DataError, match="none of 1 images can be used.*1 unreadable .the first: .*a.png"):
        run(tmp_path, {"p": "pool"})


def test_an_interrupted_index_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    for i in range(10):
        write_image(tmp_path / f"pool/{i}.png", noise(i))
    whole = run(tmp_path, {"p": "pool"})
    part = Part(tmp_path / "out")
    written = {path: path.stat().st_mtime_ns for path in part.shards("files")}
    assert len(written) == 3
    part.shard("files", 1).unlink()
    part.state("index").write_text(part.state("index").read_text().split(',\n  "counts"')[0] + "}")
    part.shard("index", 0).unlink()
    assert run(tmp_path, {"p": "pool"}) == whole
    kept = {path: path.stat().st_mtime_ns for path in part.shards("files")}
    assert [path.stem for path in written if written[path] != kept[path]] == ["000001"]


def test_another_patch_size_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "pool/a.png", noise(0))
    run(tmp_path, {"p": "pool"})
    with pytest.raises(PrepareError, match="other settings.*patch was"):
        run(tmp_path, {"p": "pool"}, PatchConfig(size=64))


def test_the_key_ignores_where_a_member_is_in_its_archive() -> None:
    assert key("a.tar!/b.png#at=512,99&xywh=0,0,9,9") == key("a.tar!/b.png#xywh=0,0,9,9")
    assert key("a.tar!/b.png") != key("a.tar!/c.png")
