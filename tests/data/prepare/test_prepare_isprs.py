"""Preparing ISPRS Vaihingen and Potsdam, from folders and archives, in all variants."""

import numpy as np
import pytest

from s5.data.check import check_split
from s5.data.datasets import Potsdam, Vaihingen
from s5.data.image_io import read_image, read_mask
from s5.data.labels import get_table
from s5.data.prepare.__main__ import main
from s5.data.prepare.patches import windows
from s5.data.splits import Split
from tests.helpers.shipped_data import (
    HEIGHT,
    WIDTH,
    class_map,
    erode,
    isprs_colors,
    make_potsdam,
    make_vaihingen,
    noise,
    pack,
    start_and_wait_for,
    tree,
    write_tiff,
)

VAIHINGEN_SIZES = {  # height and width of the areas
    **dict.fromkeys((4, 5, 6, 7, 8, 10), (2557, 1887)),
    **dict.fromkeys((14, 15, 16), (2565, 1919)),
    **dict.fromkeys((21, 22, 23, 24), (2546, 1903)),
    **{
        1: (2569, 1919),
        2: (2767, 2428),
        3: (3007, 2006),
        11: (2566, 1893),
        12: (2575, 1922),
        13: (2558, 2818),
    },
    **{17: (1281, 2336), 20: (2315, 1866), 26: (1783, 2995), 27: (3313, 1917), 28: (2567, 1917)},
    **{29: (2563, 1917), 30: (2563, 1934), 31: (2555, 1980), 32: (2555, 1980), 33: (2555, 1581)},
    **{34: (2555, 1388), 35: (1884, 2805), 37: (1995, 1996), 38: (2550, 3816)},
}


def run(dataset, src, out, *more):
    sizes = ["--size", "32", "--overlap", "0"]
    return main([dataset, "--src", str(src), "--out", str(out), *sizes, "--workers", "1", *more])


def masks_of(out, dataset, group):
    """Masks put together again from their patches, by stem."""
    whole = {}
    for sample in Split(f"{dataset}/splits/{group}.txt", out):
        stem, *window = sample.image.stem.rsplit("_", 4) if group == "train" else (sample.image.stem,)
        top, bottom, left, right = map(int, window or (0, HEIGHT, 0, WIDTH))
        mask = whole.setdefault(stem, np.full((HEIGHT, WIDTH), 99, np.uint8))
        mask[top:bottom, left:right] = read_mask(sample.mask)
    return whole


def test_official_splits():
    """The lists of the contest: 16 and 17 areas, 24 and 14 tiles."""
    assert [len(r.tiles["train"]) for r in (Vaihingen, Potsdam)] == [16, 24]
    assert [len(r.tiles["val"]) for r in (Vaihingen, Potsdam)] == [17, 14]
    for dataset in (Vaihingen, Potsdam):
        assert not set(dataset.tiles["train"]) & set(dataset.tiles["val"])
    areas = {int(area) for area in (*Vaihingen.tiles["train"], *Vaihingen.tiles["val"])}
    assert areas == set(range(1, 39)) - {9, 18, 19, 25, 36}
    assert {"2_10", "7_12", "6_7"} <= set(Potsdam.tiles["train"])
    assert {"2_13", "7_13", "4_15"} <= set(Potsdam.tiles["val"])


def test_patches_without_overlap_are_as_many_as_mmsegmentation_counts():
    """By its documentation, for training and validation."""
    per_tile = len(windows(6000, 6000, 512))
    assert (24 * per_tile, 14 * per_tile) == (3456, 2016)
    for tiles, count in ((Vaihingen.tiles["train"], 344), (Vaihingen.tiles["val"], 398)):
        assert sum(len(windows(*VAIHINGEN_SIZES[int(tile)], 512)) for tile in tiles) == count


def test_vaihingen_from_folders(tmp_path, capsys):
    src, out = tmp_path / "Vaihingen", tmp_path / "root"
    truth = make_vaihingen(src)
    assert run("vaihingen", src, out, "--workers", "2") == 0
    text = capsys.readouterr().out
    assert "33 source files cut into 81 patches" in text  # 4 of each training area
    assert "splits/train.txt: 64 samples" in text and "splits/val.txt: 17 samples" in text
    assert "labels: vaihingen (5 classes" in text
    train, val = masks_of(out, "vaihingen", "train"), masks_of(out, "vaihingen", "val")
    for area in Vaihingen.tiles["train"]:
        assert np.array_equal(train[f"area{area}"], truth[area]), "all pixels count in training"
    for area in Vaihingen.tiles["val"]:
        assert np.array_equal(val[f"area{area}"], erode(truth[area])), "the boundary does not in validation"
    sample = Split("vaihingen/splits/val.txt", out).sample(0)
    assert sample.name == "vaihingen/val/images/area10.png"
    assert np.array_equal(
        read_image(sample.image), noise(HEIGHT, WIDTH, 16 + Vaihingen.tiles["val"].index("10"))
    )
    for group in ("train", "val"):
        for table in ("vaihingen", "vaihingen_6"):
            assert check_split(Split(f"vaihingen/splits/{group}.txt", out), get_table(table)).ok
    assert run("vaihingen", src, out) == 0
    assert "nothing to do: 33" in capsys.readouterr().out


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_archives_in_an_archive_give_the_same(tmp_path, separator, caplog):
    caplog.set_level("INFO")
    src, out = tmp_path / "Vaihingen", tmp_path / "root"
    make_vaihingen(src)
    assert run("vaihingen", src, out) == 0
    for folder in sorted(src.iterdir()):
        pack(folder, src / f"{folder.name}.zip", separator=separator)
    (src / "not_needed.rar").touch()
    pack(src, tmp_path / "download/Vaihingen.zip", inside="Vaihingen", separator=separator)
    assert run("vaihingen", tmp_path / "download", tmp_path / "again", "--workers", "2") == 0
    assert "copying" in caplog.text and "ground_truth_COMPLETE.zip out of its archive" in caplog.text
    assert tree(out / "vaihingen/train") == tree(tmp_path / "again/vaihingen/train")
    assert tree(out / "vaihingen/val") == tree(tmp_path / "again/vaihingen/val")
    left = {path.suffix for path in (tmp_path / "again/vaihingen/.archives").iterdir()}
    assert left == {".json"}, "what was copied out is gone"
    caplog.clear()
    assert run("vaihingen", tmp_path / "download", tmp_path / "again") == 0
    assert "copying" not in caplog.text, "nothing is unpacked to find out that nothing is to do"


def test_upper_case_names_and_other_folders(tmp_path):
    src, out = tmp_path / "v", tmp_path / "root"
    truth = make_vaihingen(src, labels="GTS_for_participants", top="TOP", suffix=".TIF")
    assert run("vaihingen", src, out) == 0
    assert np.array_equal(masks_of(out, "vaihingen", "train")["area1"], truth["1"])


def test_what_is_missing_is_listed(tmp_path, capsys):
    src, out = tmp_path / "v", tmp_path / "root"
    make_vaihingen(src)
    (src / "ISPRS_semantic_labeling_Vaihingen/top/top_mosaic_09cm_area7.tif").unlink()
    for path in (src / "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE").iterdir():
        path.unlink()
    assert run("vaihingen", src, out) == 1
    error = capsys.readouterr().err
    assert "IRRG images: 1 of 33 tiles, in ISPRS_semantic_labeling_Vaihingen.zip: 7" in error
    assert "eroded labels: 17 of 17 tiles" in error and "_ground_truth_eroded_COMPLETE.zip" in error
    assert "full labels" not in error
    assert "--val-boundary full" in error and "https://www.isprs.org" in error
    assert run("vaihingen", src, out, "--val-boundary", "full", "--partial") == 0
    assert len(Split("vaihingen/splits/train.txt", out)) == 15 * 4
    assert run("vaihingen", tmp_path / "nowhere", out) == 1
    assert "nowhere: no such folder or archive" in capsys.readouterr().err


def test_potsdam_variants(tmp_path, capsys):
    src, out = tmp_path / "p", tmp_path / "root"
    truth = make_potsdam(src)
    assert run("potsdam", src, out) == 0
    assert run("potsdam", src, out, "--bands", "irrg", "--boundary", "eroded", "--name", "potsdam_irrg") == 0
    rgb, irrg = (Split(f"{name}/splits/train.txt", out).sample(0) for name in ("potsdam", "potsdam_irrg"))
    first = Potsdam.tiles["train"].index("2_10")
    assert rgb.image.name == irrg.image.name == "2_10_0_32_0_32.png"
    assert np.array_equal(read_image(rgb.image), noise(HEIGHT, WIDTH, first)[:32, :32])
    assert np.array_equal(read_image(irrg.image), noise(HEIGHT, WIDTH, 100 + first)[:32, :32])
    assert np.array_equal(read_mask(rgb.mask), truth["2_10"][:32, :32])
    assert np.array_equal(read_mask(irrg.mask), erode(truth["2_10"])[:32, :32])
    assert len(Split("potsdam/splits/val.txt", out)) == 14
    capsys.readouterr()
    assert run("potsdam", src, out, "--bands", "irrg") == 1
    assert "bands was 'rgb', is 'irrg'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("vaihingen", src, out, "--bands", "rgb")


def test_validation_images_in_parts(tmp_path):
    make_potsdam(tmp_path / "p", bands=("RGB",))
    assert run("potsdam", tmp_path / "p", tmp_path / "root", "--val-size", "30") == 0
    names = [s.image.name for s in Split("potsdam/splits/val.txt", tmp_path / "root")]
    assert names[:4] == [
        "2_13_0_20_0_25.png",
        "2_13_0_20_25_50.png",
        "2_13_20_40_0_25.png",
        "2_13_20_40_25_50.png",
    ]
    assert len(names) == 14 * 4


def test_inexact_colors_of_two_potsdam_tiles(tmp_path, capsys):
    src, out = tmp_path / "p", tmp_path / "root"
    truth = make_potsdam(src, bands=("RGB",))
    lossy = isprs_colors(truth["4_12"]).astype(int) + np.random.default_rng(0).integers(
        -40, 41, (HEIGHT, WIDTH, 3)
    )
    write_tiff(src / "5_Labels_all/top_potsdam_4_12_label.tif", np.clip(lossy, 0, 255).astype(np.uint8))
    cars = isprs_colors(truth["6_7"])
    cars[truth["6_7"] == 4] = (252, 255, 0)
    write_tiff(src / "5_Labels_all/top_potsdam_6_7_label.tif", cars)
    strange = isprs_colors(truth["2_11"])
    strange[0, :7] = (252, 255, 0)
    write_tiff(src / "5_Labels_all/top_potsdam_2_11_label.tif", strange)
    assert run("potsdam", src, out) == 0
    text = capsys.readouterr().out
    assert f"{(truth['6_7'] == 4).sum()} pixels of top_potsdam_6_7_label.tif had inexact colours" in text
    assert "pixels of top_potsdam_4_12_label.tif had inexact colours" in text
    assert "1 source files could not be used" in text, "other tiles are not guessed at"
    assert "top_potsdam_2_11_label.tif: colour RGB (252, 255, 0) (7 pixels)" in text
    train = masks_of(out, "potsdam", "train")
    assert np.array_equal(train["4_12"], truth["4_12"]) and np.array_equal(train["6_7"], truth["6_7"])
    assert "2_11" not in train
    write_tiff(src / "5_Labels_all/top_potsdam_2_11_label.tif", isprs_colors(truth["2_11"]))
    assert run("potsdam", src, out) == 0
    text = capsys.readouterr().out
    assert "1 source files cut into 4 patches, 37 finished before" in text and "6_7_label.tif had" in text


@pytest.mark.slow
def test_killed_while_reading_archives(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(repository))
    src, out = tmp_path / "p", tmp_path / "root"
    folders = {"RGB": ("2_Ortho_RGB", "RGB"), "label": ("5_Labels_all", "label")}
    for i, tile in enumerate((*Potsdam.tiles["train"], *Potsdam.tiles["val"])):
        images = {"RGB": noise(256, 256, i), "label": isprs_colors(class_map(256, 256, 6, i))}
        for kind, (folder, suffix) in folders.items():
            write_tiff(src / folder / f"top_potsdam_{tile}_{suffix}.tif", images[kind])
    for folder, _ in folders.values():
        pack(src / folder, src / f"{folder}.zip", inside=folder)
    pack(src, tmp_path / "Potsdam.zip")
    source = str(tmp_path / "Potsdam.zip")
    arguments = ["potsdam", "--src", source, "--out", str(out), "--size", "64", "--val-boundary", "full"]
    arguments += ["--overlap", "0", "--workers", "2"]
    process = start_and_wait_for(arguments, out / "potsdam/prepare_journal.jsonl", 3)
    process.kill()
    process.communicate(timeout=30)
    journal = (out / "potsdam/prepare_journal.jsonl").read_bytes()
    done = len([line for line in journal.splitlines(True) if line.endswith(b"\n")]) - 1
    assert 3 <= done < 38
    assert main(arguments) == 0
    assert f"{38 - done} source files cut" in capsys.readouterr().out
    assert main([str(tmp_path / "anew") if word == str(out) else word for word in arguments]) == 0
    assert tree(out) == tree(tmp_path / "anew"), "the result is that of an undisturbed run"
