"""Scores of patches: the entropy against its formula in float64, batches, unreadable and changed files."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from s5.errors import ConfigError, DataError, PrepareError, UserError
from s5.launch import ALONE
from s5.ops.photometric import to_unit
from tests.helpers.curation import configuration, noise, write_pool
from tests.helpers.trained_models import table, write_checkpoint

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("imagehash")

from s5.curate.folder import LABELED, POOL, Run, read_shard  # noqa: E402
from s5.curate.reading import PatchBatches, pixel_facts  # noqa: E402
from s5.curate.run import curate  # noqa: E402
from s5.curate.score import build_scorer  # noqa: E402
from s5.curate.scorer import masked_mean, pixel_entropy  # noqa: E402


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_pool(tmp_path)
    return tmp_path


def rows(out: Path, step: str = "scores") -> list[dict]:
    return [row for path in Run(out).part(POOL).shards(step) for row in read_shard(path).to_pylist()]


def test_entropy_is_that_of_the_formula() -> None:
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0)) * 8
    counted = torch.tensor([0.0, 1, 1, 1, 1])
    entropy, best, labels = pixel_entropy(logits, counted)
    p = torch.softmax(logits.double(), 1)
    expected = -(p[:, 1:] * p[:, 1:].log()).sum(1)
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(labels, p.argmax(1))
    torch.testing.assert_close(best.double(), p.amax(1), rtol=1e-5, atol=1e-6)


def test_certain_pixels_have_no_entropy() -> None:
    logits = torch.full((1, 3, 2, 2), -1e4)
    logits[:, 1] = 1e4
    entropy, _, _ = pixel_entropy(logits, torch.ones(3))
    assert torch.equal(entropy, torch.zeros(1, 2, 2))


def test_the_mean_is_over_pixels_with_data() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, float("nan")]], [[1.0, 1.0], [1.0, 1.0]]])
    valid = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    assert masked_mean(values, valid).tolist() == [2.0, 0.0]


def test_the_scores_of_a_pool_are_those_of_its_model(root: Path) -> None:
    cfg = configuration(root, score__pseudo_labels="true")
    curate(cfg, ALONE, ("index", "score"))
    scorer, _ = build_scorer(cfg, ALONE)
    found = {row["name"]: row for row in rows(root / "out")}
    assert len(found) == 40
    pixels = torch.from_numpy(noise(105)).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = scorer.model.logits(to_unit(pixels)).double()
    p = logits.softmax(1)[:, 1:]
    row = found["folder/sub é/5.png"]
    assert row["entropy"] == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-5)
    counts = np.bincount(logits.argmax(1).flatten(), minlength=4)
    assert row["classes"] == counts.tolist() and row["valid"] == 1.0
    assert np.linalg.norm(np.array(row["feature"], np.float64)) == pytest.approx(1, abs=2e-3)
    assert {row["source"] for row in found.values()} == {"folder", "zip", "tar", "big"}


def test_batches_of_a_shard_do_not_depend_on_the_number_of_workers(root: Path) -> None:
    cfg = configuration(root)
    curate(cfg, ALONE, ("index",))
    part = Run(root / "out").part(POOL)
    batches = PatchBatches(part, [0], root, 4)
    alone = [(batch.rows, batch.images) for batch in batches]
    turns = [list(batches._batches(turn, 2)) for turn in range(2)]
    together = [turns[i % 2][i // 2] for i in range(len(alone))]
    for (expected, images), batch in zip(alone, together, strict=True):
        assert batch.rows == expected and torch.equal(batch.images, images)
    assert [batch.last for batch in together] == [False] * (len(alone) - 1) + [True]


def test_facts_of_pixels() -> None:
    image, valid = noise(1), np.ones((32, 32), bool)
    valid[:8] = False
    share, deviation, sharpness, _ = pixel_facts(image, valid)
    assert share == 0.75 and 10 < deviation < 100 and 0.2 < sharpness < 3
    blurred, white = (
        cv2.GaussianBlur(image, (0, 0), 6),
        np.random.default_rng(0).integers(0, 256, (32, 32, 3)),
    )
    assert pixel_facts(blurred, valid)[2] < 0.2 and pixel_facts(white.astype(np.uint8), valid)[2] > 4
    assert pixel_facts(np.full((32, 32, 3), 7, np.uint8), valid)[1] == 0
    assert pixel_facts(image, np.zeros((32, 32), bool))[:3] == (0, 0, 0)
    near = pixel_facts(np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8), valid)[3]
    same, other = (pixel_facts(noise(seed), valid)[3] for seed in (1, 2))
    assert (near ^ same).bit_count() <= 2 < (other ^ same).bit_count()


def test_unreadable_images_are_rows_with_a_reason(root: Path) -> None:
    (root / "folder/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    whole = (root / "folder/sub é/3.png").read_bytes()
    (root / "folder/sub é/3.png").write_bytes(whole[:-200])
    cfg = configuration(root, score__max_unreadable="0.1")
    curate(cfg, ALONE, ("index", "score"))
    errors = {row["name"]: row["error"] for row in rows(root / "out") if row["error"]}
    assert set(errors) == {"folder/broken.jpg", "folder/sub é/3.png"}
    assert "truncated" in errors["folder/sub é/3.png"]


def test_kinds_of_images_are_scored(root: Path) -> None:
    for path in (root / "folder").rglob("*.png"):
        path.unlink()
    Image.fromarray(noise(1)).convert("CMYK").save(root / "folder/cmyk.jpg")
    for count, dtype in ((1, "uint8"), (3, "uint16"), (4, "uint8"), (2, "float32")):
        profile = {"driver": "GTiff", "height": 40, "width": 33, "count": count, "dtype": dtype}
        with rasterio.open(root / f"folder/{count}.tif", "w", **profile) as file:
            file.write(noise(count, 40, 33 * count).reshape(-1, 40, 33)[:count].astype(dtype))
    curate(configuration(root, sources="{folder: folder}"), ALONE, ("index", "score"))
    found = rows(root / "out")
    assert len(found) == 1 + 4 * 4 and not any(row["error"] for row in found)
    assert all(row["entropy"] > 0 and row["valid"] > 0 for row in found)


def test_the_share_of_unreadable_images_is_that_of_the_whole_pool(root: Path) -> None:
    """Four of 540 are below one percent, wherever in the pool they are."""
    for i in range(500):
        os.link(root / "labeled/0.png", root / f"folder/{i}.png")
    for i in range(4):
        (root / f"folder/{i}.png").unlink()
        (root / f"folder/{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    curate(configuration(root, score__batch_size=64), ALONE, ("index", "score"))
    counts = json.loads((root / "out/scores/step.json").read_text())["counts"]
    assert counts["patches"] == 540 and counts["unreadable"] == 4


def test_a_damaged_window_does_not_spoil_the_others(root: Path) -> None:
    with rasterio.open(root / "big.tif") as file:
        profile = file.profile | {"compress": "deflate"}
        pixels = file.read()
    with rasterio.open(root / "big.tif", "w", **profile) as file:
        file.write(pixels)
    data = bytearray((root / "big.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 400] = b"\xff" * 400
    (root / "big.tif").write_bytes(data)
    cfg = configuration(root, sources="{big: big.tif}", score__max_unreadable="1")
    curate(cfg, ALONE, ("index", "score"))
    errors = [row["error"] is not None for row in rows(root / "out")]
    assert 0 < sum(errors) < len(errors)


def test_too_many_unreadable_images_end_the_step(root: Path) -> None:
    for i in range(12):
        (root / f"folder/sub é/{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"unreadable, more than score.max_unreadable = 1%.*\.png"):
        curate(configuration(root), ALONE, ("index", "score"))


def test_a_changed_image_is_noticed(root: Path) -> None:
    cfg = configuration(root, score__max_unreadable="1")
    curate(cfg, ALONE, ("index",))
    with (root / "pool.zip").open("ab") as file:
        file.write(b"more")
    curate(cfg, ALONE, ("score",))
    errors = [row["error"] for row in rows(root / "out") if row["error"]]
    assert len(errors) == 6 and all("has changed since it was indexed" in error for error in errors)


def test_a_checkpoint_with_one_class_is_refused(root: Path) -> None:
    """Label tables have two classes at least; a file that says otherwise does not fit to its weights."""
    content = torch.load(root / "model.pth", weights_only=True)
    content["meta"]["labels"]["s"] = {"name": "s", "classes": ["roof"]}
    for name, tensor in content["state_dict"].items():
        if ".classifier." in name:
            content["state_dict"][name] = tensor[:1]
    torch.save(content, root / "model.pth")
    with pytest.raises(UserError, match="model.pth|2 to 254 classes"):
        curate(configuration(root), ALONE, ("index", "score"))


def test_several_tasks_need_a_choice(root: Path) -> None:
    tables = {name: table(name, ["a", "b"]) for name in ("one", "two")}
    write_checkpoint(root / "model.pth", tables, "vit_t")
    cfg = configuration(root)
    with pytest.raises(ConfigError, match="choose one with score.task"):
        curate(cfg, ALONE, ("index", "score"))
    curate(configuration(root, score__task="two"), ALONE, ("score",))
    assert len(rows(root / "out")[0]["classes"]) == 2


def test_another_checkpoint_does_not_continue_a_run(root: Path) -> None:
    cfg = configuration(root)
    curate(cfg, ALONE, ("index", "score"))
    Run(root / "out").part(POOL).shard("scores", 0).unlink()
    write_checkpoint(root / "model.pth", {"s": table("s", ["a", "b"])}, "vit_t")
    with pytest.raises(PrepareError, match="other settings.*checkpoint was"):
        curate(cfg, ALONE, ("score",))


def test_a_step_without_the_one_before_says_which(root: Path) -> None:
    with pytest.raises(PrepareError, match="s5.curate index"):
        curate(configuration(root), ALONE, ("score",))
    assert not Run(root / "out").part(LABELED).shards("scores")
