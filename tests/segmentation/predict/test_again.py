"""Results of an earlier run of `predict.py`."""

import os
from pathlib import Path

import pytest

from s5.errors import ConfigError
from s5.prediction.sources import find_sources
from s5.segmentation import predict as command
from tests.segmentation.predict.predicting import files, predict


def test_resume_leaves_finished_images_alone(checkpoint, model, images, tmp_path):
    out = tmp_path / "out"
    predict(checkpoint, images, out)
    written = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    (out / "ponds/overlay/a.png").unlink()
    assert predict(checkpoint, images, out, "--resume") == 0
    changed = [name for name in files(out) if (out / name).stat().st_mtime_ns != written[name]]
    assert {Path(name).name for name in changed} == {"a.png", "prediction.yaml"}
    assert predict(checkpoint, images, out, "--resume") == 0
    with pytest.raises(ConfigError, match=r"ponds/prediction.yaml.*stride 24, now it is 16"):
        predict(checkpoint, images, out, "--resume", "--stride", "16")


def test_resume_knows_the_checkpoint_by_its_file(checkpoint, model, images, tmp_path):
    copy, out = tmp_path / "copy.pth", tmp_path / "out"
    copy.write_bytes(checkpoint.read_bytes())
    options = ("--tasks", "ponds", "--kinds", "index")
    predict(copy, images, out, *options)
    before = (out / "ponds/index/a.png").stat().st_mtime_ns
    (tmp_path / "link.pth").symlink_to("copy.pth")
    for same in (tmp_path / "copy", tmp_path / "link", tmp_path / "images/../copy.pth"):
        assert predict(same, images, out, "--resume", *options) == 0
    assert (out / "ponds/index/a.png").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"made with checkpoint .*copy.pth, now it is .*vit_t_moe_mdf.pth"):
        predict(checkpoint, images, out, "--resume", *options)
    with pytest.raises(ConfigError, match="made with precision float32, now it is bfloat16"):
        predict(copy, images, out, "--resume", *options, "--precision", "bf16")
    os.utime(copy, ns=(1, 1))
    with pytest.raises(ConfigError, match=r"made before .*copy.pth was overwritten; .*omit --resume"):
        predict(copy, images, out, "--resume", *options)


def test_no_result_of_another_checkpoint_outlives_an_interruption(
    checkpoint, model, images, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    predict(checkpoint, images, out)
    predict(checkpoint, images, out, "--kinds", "color")  # in the same way: the other kinds are kept
    assert len(files(out)) == 2 * (3 * 3 + 1)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "predict_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict(checkpoint, images, out, "--stride", "16", "--tasks", "roofs", "--kinds", "index")
    left = [name for name in files(out) if "prediction.yaml" not in name]
    assert len(left) == 9 and all(name.startswith("ponds/") for name in left)


def test_a_folder_keeps_to_one_way(checkpoint, model, images, tmp_path):
    """Its settings would be wrong for the results of images that are not predicted now."""
    out = tmp_path / "out"
    predict(checkpoint, images, out, "--kinds", "index")
    with pytest.raises(
        ConfigError, match=r"stride 24, now it is 16, and 2 are of other images.*remove .*out"
    ):
        predict(checkpoint, images / "a.png", out, "--stride", "16")
    assert len(files(out)) == 2 * (3 + 1)
    assert predict(checkpoint, images, out, "--stride", "16", "--kinds", "index") == 0


@pytest.mark.parametrize(
    ("pattern", "out", "found"),
    [
        ("**/*.png", "deep/results", ["a", "deep/er/d"]),
        ("*.png", ".", ["a"]),
        ("**/*.png", ".", ["a", "deep/er/d"]),
        ("deep/*/*.png", ".", ["d"]),
    ],
)
def test_a_pattern_leaves_earlier_results_out(checkpoint, model, images, pattern, out, found):
    before = len(files(images))
    for _ in range(2):
        options = ("--tasks", "ponds", "--kinds", "index")
        assert predict(checkpoint, f"{images}/{pattern}", images / out, *options) == 0
    assert [Path(source.name).name for source in find_sources([f"{images}/{pattern}"], images / out)] == [
        Path(name).name for name in found
    ]
    assert len(files(images)) == before + len(found) + 1
