"""Preparing data: windows, journal, workers, unlabeled pools, and runs that are killed half-way."""

import errno
import os
import signal

import numpy as np
import pytest
import rasterio
from PIL import Image

from s5.data.check import check_split
from s5.data.image_io import read_image, read_image_with_valid, write_image
from s5.data.prepare.__main__ import main
from s5.data.prepare.journal import Entry, Journal, Patch
from s5.data.prepare.patches import Window, tiles, windows
from s5.data.prepare.pipeline import Outcome, run_parallel
from s5.data.splits import Split
from s5.errors import PrepareError
from tests.helpers.shipped_data import noise, start_and_wait_for, tree

# --- windows


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (65, 64), (100, 200), (30, 100), (10, 20), (128, 128)]
)
@pytest.mark.parametrize("overlap", [0, 16, 63])
def test_windows_cover_the_image_once_over(height, width, overlap):
    covered = np.zeros((height, width), int)
    found = windows(height, width, 64, overlap)
    for window in found:
        assert (window.height, window.width) == (min(64, height), min(64, width))
        assert min(window.top, window.left) >= 0
        assert window.top + window.height <= height and window.left + window.width <= width
        window.of(covered)[...] += 1
    assert covered.min() >= 1
    assert len(set(found)) == len(found)


def test_windows_in_detail():
    assert [w.left for w in windows(64, 130, 64)] == [0, 64, 66]
    assert [w.left for w in windows(64, 130, 64, 32)] == [0, 32, 64, 66]
    assert list(windows(10, 20, 64)) == [Window(0, 0, 10, 20)]
    found = windows(100, 130, 64)
    assert len(found) == 6 and found[-1] == found[5] == (36, 66, 64, 64) and found[4:] == [found[4], found[5]]
    assert len(windows(2**31 - 1, 50, 64)) == 2**25, "none of them is made before it is asked for"
    assert Window(512, 0, 512, 300).name("P0000") == "P0000_512_1024_0_300"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 129), (10, 20), (6000, 5999)])
def test_tiles_cover_every_pixel_once(height, width):
    covered = np.zeros((height, width), np.uint8)
    found = tiles(height, width, 64)
    for tile in found:
        tile.of(covered)[...] += 1
    assert (covered == 1).all()
    for sides in ({tile.height for tile in found}, {tile.width for tile in found}):
        assert max(sides) <= 64 and max(sides) - min(sides) <= 1


# --- journal and workers


def test_journal_survives_a_cut_off_line(tmp_path):
    path = tmp_path / "pool" / "journal.jsonl"
    entry = Entry("a.png", "all", 12, (Patch("x.png"), Patch("y.png", "m.png")))
    with Journal(path, {"size": 64}) as journal:
        journal.add(entry)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"source": "b.png", "gro')
    with Journal(path, {"size": 64}) as journal:
        assert journal.entries == {"a.png": entry}
    assert path.read_bytes() == whole
    path.write_bytes(whole[:10])  # killed while writing the first line
    with Journal(path, {"size": 64}) as journal:
        assert journal.entries == {}


def test_journal_refuses_other_parameters(tmp_path):
    with Journal(tmp_path / "journal.jsonl", {"size": 64, "overlap": 0}):
        pass
    with pytest.raises(PrepareError, match=r"size was 64, is 32.*--name, or delete the folder"):
        Journal(tmp_path / "journal.jsonl", {"size": 32, "overlap": 0})


def test_journal_is_for_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("s5.data.prepare.journal._LOCK_SECONDS", 0.2)
    with Journal(tmp_path / "journal.jsonl", {}), pytest.raises(PrepareError, match="another run"):
        Journal(tmp_path / "journal.jsonl", {})


def double_or_die(item):
    if item < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


@pytest.mark.parametrize("workers", [1, 3])
def test_run_parallel(workers):
    assert sorted(run_parallel(double_or_die, range(20), workers)) == [(i, 2 * i) for i in range(20)]


def test_killed_worker_is_reported():
    with pytest.raises(PrepareError, match=r"killed.*-1.*--workers"):
        list(run_parallel(double_or_die, [1, 2, -1, 3], 2))


# --- unlabeled pools


@pytest.fixture
def pool(tmp_path):
    """A tree with every kind of file that a pool may hold."""
    src = tmp_path / "src"
    write_image(src / "small.png", noise(33, 40))
    write_image(src / "city one" / "a b.jpg", noise(64, 64))
    write_image(src / "city one" / "big.png", noise(100, 150))
    write_image(src / "twin.jpg", noise(40, 40, 1))
    write_image(src / "twin.png", noise(40, 40, 2))
    write_image(src / "grey.png", noise(40, 40)[..., 0])
    write_image(src / "tiny.png", noise(10, 90))
    write_image(src / "wide.BMP", noise(40, 100))
    (src / "broken.jpg").write_bytes((src / "twin.jpg").read_bytes()[:-300])
    (src / "notes.txt").write_text("no image")
    (src / ".hidden.png").write_bytes(b"no image either")
    return src


def run_unlabeled(src, out, *more, name="pool"):
    return main(["unlabeled", "--src", str(src), "--out", str(out), "--name", name, "--size", "64", *more])


def test_unlabeled_pool(pool, tmp_path, capsys):
    out = tmp_path / "root"
    assert run_unlabeled(pool, out, "--workers", "2") == 0
    text = capsys.readouterr().out
    assert "8 source files cut into 13 patches, 0 finished before" in text
    assert "1 of them gave no patch" in text and "broken.jpg: truncated" in text
    split = Split("splits/unlabeled/pool.txt", out)
    assert len(split) == 13 and check_split(split).ok
    names = [split.name(i) for i in range(len(split))]
    assert "unlabeled/pool/city_one/big_36_100_86_150.jpg" in names
    # Plain images that fit are the same bytes under the same name.
    for name, source in (("city_one/a_b.jpg", "city one/a b.jpg"), ("small.png", "small.png")):
        assert f"unlabeled/pool/{name}" in names
        assert (out / "unlabeled/pool" / name).read_bytes() == (pool / source).read_bytes()
    assert sum("twin-" in name for name in names) == 2
    assert "unlabeled/pool/grey.jpg" in names
    assert "broken.jpg" in (out / "unlabeled/pool/unusable.txt").read_text()


def test_patches_hold_the_right_pixels(pool, tmp_path):
    assert run_unlabeled(pool, tmp_path / "root", "--format", "png", "--overlap", "8") == 0
    image = read_image(pool / "city one" / "big.png")
    found = sorted((tmp_path / "root/unlabeled/pool/city_one").glob("big_*.png"))
    assert len(found) == 6
    for path in found:
        top, bottom, left, right = map(int, path.stem.split("_")[1:])
        assert np.array_equal(read_image(path), image[top:bottom, left:right])


def test_second_run_does_nothing(pool, tmp_path, capsys):
    out = tmp_path / "root"
    run_unlabeled(pool, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")}
    split = (out / "splits/unlabeled/pool.txt").stat().st_mtime_ns
    capsys.readouterr()
    assert run_unlabeled(pool, out) == 0
    assert "nothing to do: 8 source files were finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*g")} == before
    assert (out / "splits/unlabeled/pool.txt").stat().st_mtime_ns == split


def test_new_changed_and_lost_files_are_made_up_for(pool, tmp_path, capsys):
    out = tmp_path / "root"
    run_unlabeled(pool, out)
    write_image(pool / "new.png", noise(50, 50, 5))
    write_image(pool / "small.png", noise(34, 41, 6))
    os.remove(out / "unlabeled/pool/city_one/a_b.jpg")
    write_image(pool / "broken.jpg", noise(40, 40))
    capsys.readouterr()
    assert run_unlabeled(pool, out) == 0
    assert "4 source files cut into 4 patches, 6 finished before" in capsys.readouterr().out
    assert len(Split("splits/unlabeled/pool.txt", out)) == 15
    assert read_image(out / "unlabeled/pool/small.png").shape == (34, 41, 3)
    assert not (out / "unlabeled/pool/unusable.txt").exists()


def test_other_parameters_need_another_place(pool, tmp_path, capsys):
    out = tmp_path / "root"
    run_unlabeled(pool, out)
    assert run_unlabeled(pool, out, "--format", "png") == 1
    error = capsys.readouterr().err
    assert "format was 'jpg', is 'png'" in error and "delete the folder" in error


def test_a_foreign_list_is_kept_aside(pool, tmp_path):
    out = tmp_path / "root"
    (out / "splits/unlabeled").mkdir(parents=True)
    (out / "splits/unlabeled/pool.txt").write_text("unlabeled/elsewhere/a.jpg\n")
    run_unlabeled(pool, out)
    assert (out / "splits/unlabeled/pool.txt.old1").read_text() == "unlabeled/elsewhere/a.jpg\n"


def test_tiff_is_cut_by_windows_with_one_stretch(tmp_path):
    ramp = np.linspace(100, 4000, 96 * 160).reshape(96, 160).astype(np.uint16)
    (tmp_path / "src").mkdir()
    with rasterio.open(
        tmp_path / "src/a.tif", "w", "GTiff", count=4, height=96, width=160, dtype="uint16"
    ) as file:
        file.write(np.stack([ramp, ramp, ramp, ramp * 0]))
    assert run_unlabeled(tmp_path / "src", tmp_path / "root", "--format", "png") == 0
    whole = read_image(tmp_path / "src/a.tif")
    for path in (tmp_path / "root/unlabeled/pool").glob("*.png"):
        top, bottom, left, right = map(int, path.stem.split("_")[1:])
        assert np.array_equal(read_image(path), whole[top:bottom, left:right])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_tiffs_of_every_kind_that_fit_into_a_patch(tmp_path, capsys, workers):
    """As of multispectral collections; Pillow can open none of them but the last."""
    src, rng = tmp_path / "src", np.random.default_rng(0)
    src.mkdir()
    for name, count, dtype in (("s2", 13, "uint16"), ("refl", 3, "float32"), ("sar", 1, "complex64")):
        with rasterio.open(
            src / f"{name}.tif", "w", "GTiff", count=count, height=48, width=64, dtype=dtype
        ) as file:
            file.write(rng.uniform(0, 3000, (count, 48, 64)).astype(dtype))
    image = Image.fromarray(noise(48, 64))
    image.convert("CMYK").save(src / "cmyk.tif")
    image.resize((8, 6)).save(src / "pages.tif", save_all=True, append_images=[image])
    for _ in range(2):
        assert run_unlabeled(src, tmp_path / "root", "--format", "png", "--workers", workers) == 0
        text = capsys.readouterr().out
        assert "pages.tif: of 2 pages, only the largest is read: page 2, 48x64" in text, "each time"
    names = [sample.name for sample in Split("splits/unlabeled/pool.txt", tmp_path / "root")]
    assert names == [f"unlabeled/pool/{name}.png" for name in ("cmyk", "pages", "refl", "s2", "sar")]
    assert np.array_equal(read_image(tmp_path / "root/unlabeled/pool/pages.png"), np.asarray(image))
    assert np.array_equal(read_image(tmp_path / "root" / names[3]), read_image(src / "s2.tif"))


def test_many_notes_are_not_all_shown():
    outcome = Outcome(finished=7, notes=[f"{i}.tif: of 2 pages ..." for i in range(7)])
    assert "7 source files have notes, all of them in prepare_journal.jsonl" in outcome.summary()
    assert "4.tif" in outcome.summary() and "5.tif" not in outcome.summary()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--src", "nowhere"], "no images below nowhere (no such folder)"),
        (["--name", "a/b"], "--name must consist"),
        (["--overlap", "64"], "--overlap from 0 to below --size, got 64 and 64"),
    ],
)
def test_unlabeled_with_bad_arguments(pool, tmp_path, capsys, arguments, message):
    assert run_unlabeled(pool, tmp_path / "root", *arguments) == 1
    assert message in capsys.readouterr().err


def test_source_without_images_says_what_is_there(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/part1.zip").touch()
    assert run_unlabeled(tmp_path / "src", tmp_path / "root") == 1
    assert "found: 1 .zip" in capsys.readouterr().err


def test_full_disk_stops_and_continues(pool, tmp_path, capsys, monkeypatch):
    out = tmp_path / "root"
    written = []

    def full_after_two(path, array, **options):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        write_image(path, array, **options)

    monkeypatch.setattr("s5.data.prepare.own_data.write_image", full_after_two)
    assert run_unlabeled(pool, out, "--workers", "1") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "run the same command again" in error
    monkeypatch.undo()
    assert run_unlabeled(pool, out, "--workers", "1") == 0
    assert len(Split("splits/unlabeled/pool.txt", out)) == 13


# --- pixels without data


@pytest.mark.parametrize("kind", ["nodata", "mask", "alpha", "png"])
@pytest.mark.parametrize("form", ["jpg", "png"])
def test_patches_keep_where_there_are_no_data(tmp_path, capsys, kind, form):
    """Wholly without, a patch is not written; partly without, it is PNG with alpha whatever the format."""
    rgb, valid = np.maximum(noise(128, 128), 1), np.add(*np.mgrid[:128, :128]) > 127
    write_scene(tmp_path / "src", kind, rgb, valid)
    assert run_unlabeled(tmp_path / "src", tmp_path / "root", "--format", form) == 0
    assert "1 patches without any data left out" in capsys.readouterr().out
    split = Split("splits/unlabeled/pool.txt", tmp_path / "root")
    names = [split.name(i).rpartition("/")[2] for i in range(len(split))]
    partly = ["scene_0_64_64_128.png", "scene_64_128_0_64.png"]
    assert names == [*partly, f"scene_64_128_64_128.{form}"]
    for name in partly:
        top, bottom, left, right = map(int, name.removesuffix(".png").split("_")[1:])
        image, known = read_image_with_valid(tmp_path / "root/unlabeled/pool" / name)
        part = np.s_[top:bottom, left:right]
        assert np.array_equal(known, valid[part]) and np.array_equal(image[known], rgb[part][known])
        assert not image[~known].any()
    assert run_unlabeled(tmp_path / "src", tmp_path / "root", "--format", form) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_small_images_without_data_give_no_patch(tmp_path, capsys):
    for name, valid in (("nothing", np.zeros((40, 50), bool)), ("part", np.eye(40, 50, dtype=bool))):
        write_image(tmp_path / f"src/{name}.png", noise(40, 50), valid=valid)
    assert run_unlabeled(tmp_path / "src", tmp_path / "root") == 0
    text = capsys.readouterr().out
    assert "1 of them gave no patch" in text and "1 patches without any data left out" in text
    split = Split("splits/unlabeled/pool.txt", tmp_path / "root")
    assert [split.name(i) for i in range(len(split))] == ["unlabeled/pool/part.png"]
    assert np.array_equal(read_image_with_valid(split.sample(0).image)[1], np.eye(40, 50, dtype=bool))


def write_scene(folder, kind, rgb, valid):
    folder.mkdir()
    if kind == "png":
        write_image(folder / "scene.png", rgb, valid=valid)
        return
    bands = rgb.transpose(2, 0, 1)
    bands = np.where(valid, bands, 0).astype(np.uint8) if kind == "nodata" else bands
    bands = np.concatenate([bands, 255 * valid[None].astype(np.uint8)]) if kind == "alpha" else bands
    size = {"count": len(bands), "height": valid.shape[0], "width": valid.shape[1], "dtype": "uint8"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        nodata = 0 if kind == "nodata" else None
        with rasterio.open(folder / "scene.tif", "w", "GTiff", nodata=nodata, **size) as file:
            file.write(bands)
            if kind == "mask":
                file.write_mask(valid)


# --- interruptions


@pytest.mark.slow
def test_interrupted_and_killed_runs_continue(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    src, out, total = tmp_path / "src", tmp_path / "root", 60
    for i in range(total):
        write_image(src / f"{i:03d}.png", noise(256, 256, i))
    journal = out / "unlabeled/pool/prepare_journal.jsonl"
    arguments = ["unlabeled", "--src", str(src), "--out", str(out), "--name", "pool", "--size", "32"]
    arguments += ["--format", "png", "--workers", "2"]

    process = start_and_wait_for(arguments, journal, 3)
    process.send_signal(signal.SIGINT)
    assert "run the same command again" in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    interrupted = journal.read_bytes().count(b"\n") - 1
    assert 3 <= interrupted < total

    process = start_and_wait_for(arguments, journal, interrupted + 3)
    process.kill()
    process.communicate(timeout=30)
    killed = len([line for line in journal.read_bytes().splitlines(True) if line.endswith(b"\n")]) - 1
    assert interrupted + 3 <= killed < total

    assert main(arguments) == 0
    before = int(capsys.readouterr().out.split("patches, ")[1].split(" ")[0])
    assert before == killed, "what was finished is not done again"
    assert len(Split("splits/unlabeled/pool.txt", out)) == total * 64
    assert main([str(tmp_path / "anew") if word == str(out) else word for word in arguments]) == 0
    assert tree(out) == tree(tmp_path / "anew"), "the result is that of an undisturbed run"


def test_real_pool(shared, tmp_path):
    out = tmp_path / "root"
    source = shared / "data/seg/epfl_roads/unlabeled"
    arguments = ["unlabeled", "--src", str(source), "--out", str(out), "--name", "epfl", "--size", "304"]
    assert main(arguments) == 0
    split = Split("splits/unlabeled/epfl.txt", out)
    assert len(split) == 4 * len(list(source.iterdir()))
