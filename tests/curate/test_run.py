"""Whole curations: results, restarts, several processes, bad input."""

import fcntl
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from s5.data.image_io import read_image, write_image, write_mask
from s5.data.splits import Split, write_split
from s5.errors import ConfigError, DataError, PrepareError
from s5.launch import ALONE
from tests.helpers.curation import CLASSES, chosen, configuration, noise, write_pool
from tests.helpers.processes import run_here, start_ranks
from tests.helpers.s4p_runs import arguments, losses
from tests.helpers.trained_models import table, write_checkpoint

for _package in ("duckdb", "faiss", "imagehash", "pyarrow"):
    pytest.importorskip(_package)

from s5.curate import folder  # noqa: E402
from s5.curate.folder import LOCK, POOL, Run, read_shard  # noqa: E402
from s5.curate.run import STEPS, curate  # noqa: E402

pytestmark = pytest.mark.usefixtures("empty_charts")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pool")
    write_pool(root)
    curate(configuration(root, score__pseudo_labels="true"))
    return root


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    write_pool(tmp_path)
    return tmp_path


def results(out: Path) -> tuple[list[str], list[dict]]:
    """Split and table of a run."""
    return chosen(out), read_shard(out / "patches.parquet").to_pylist()


def test_the_split_can_be_read(pool: Path) -> None:
    split = Split(pool / "out/splits/curated.txt", pool)
    assert len(split) == 20
    for sample in split:
        assert read_image(sample.image).shape == (32, 32, 3)
        assert sample.mask is not None and sample.mask.is_file()


def test_a_folder_with_other_files_is_left_alone(fresh: Path) -> None:
    """Folders of the user's may have the names of the curation's, such as patches."""
    write_image(fresh / "out/patches/mine.png", noise(1))
    with pytest.raises(PrepareError, match=r"out: holds other files \(patches\).*choose an empty folder"):
        curate(configuration(fresh))
    assert (fresh / "out/patches/mine.png").exists() and not (fresh / "out" / LOCK).exists()


def test_sources_in_the_folder_of_the_curation_are_refused(fresh: Path) -> None:
    cfg = configuration(fresh, sources="{mine: out/patches}")
    with pytest.raises(
        ConfigError, match=r"mine: .*out/patches is in the folder that the curation writes to"
    ):
        curate(cfg, steps=("index",))


def test_pseudo_labels_need_a_value_for_ignored_pixels(fresh: Path) -> None:
    write_checkpoint(
        fresh / "model.pth", {"s4p": table("s4p", CLASSES, values=[0, 1, 254, 255], ignore=[])}, "vit_t"
    )
    cfg = configuration(fresh, score__pseudo_labels="true")
    with pytest.raises(
        ConfigError, match=r"model.pth: the label table of s4p ignores no value.*ignore: \[253\]"
    ):
        curate(cfg, steps=("index", "score"))


def test_s4p_trains_on_the_split_and_its_pseudo_labels(pool: Path, tmp_path: Path) -> None:
    lines = [f"labeled/{i}.png labels/{i}.png" for i in range(6)]
    for i in range(6):
        write_mask(pool / f"labels/{i}.png", noise(i)[..., 0] % 4)
    write_split(pool / "labeled.txt", lines)
    changes = {
        "data.labels": json.dumps({"name": "s", "classes": CLASSES}),
        "data.labeled.split": "labeled.txt",
        "data.val.split": "labeled.txt",
        "data.unlabeled.split": pool / "out/splits/curated.txt",
        "data.crop": 32,
        "fixmatch.pseudo_labels": "stored",
        "schedule.total_iters": 2,
        "schedule.val_interval": 2,
    }
    assert run_here("train", arguments(pool, tmp_path / "run", **changes)) == 0
    assert all(loss_u > 0 for _, _, loss_u in losses(tmp_path / "run").values())


def test_windows_and_members_are_read_in_place(pool: Path) -> None:
    names = [row["name"] for row in read_shard(pool / "out/patches.parquet").to_pylist()]
    window = next(name for name in names if name.startswith("big.tif#xywh=64,32,"))
    expected = noise(400, 128, 128)[32:64, 64:96]
    np.testing.assert_array_equal(read_image(pool / window), expected)
    member = next(name for name in names if "pool.tar!/b/4.png" in name)
    np.testing.assert_array_equal(read_image(pool / member), noise(304))


def test_the_summary_has_everything(pool: Path) -> None:
    summary = json.loads((pool / "out/curation.json").read_text())
    assert summary["config"]["select"]["count"] == 20
    assert len(summary["checkpoint"]["sha256"]) == 64
    assert summary["counts"]["select"]["reasons"]["chosen"] == 20
    assert summary["counts"]["index (pool)"]["patches"] == 40
    assert {"torch", "duckdb", "s5"} <= summary["versions"].keys()
    assert sum(cluster["quota"] for cluster in summary["clusters"]) == 20
    assert (pool / "out/report.html").stat().st_size > 10_000


def test_a_finished_run_is_kept(pool: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (pool / "out/scores").iterdir()}
    again = configuration(pool, score__pseudo_labels="true", select__count=10)
    curate(again)
    assert {path: path.stat().st_mtime_ns for path in (pool / "out/scores").iterdir()} == before
    assert len(chosen(pool / "out")) == 10
    curate(configuration(pool, score__pseudo_labels="true"))


def test_other_clusters_are_made_again(fresh: Path) -> None:
    curate(configuration(fresh))
    scores = [path.stat().st_mtime_ns for path in (fresh / "out/scores").iterdir()]
    curate(configuration(fresh, cluster__count=2))
    summary = json.loads((fresh / "out/curation.json").read_text())
    assert len(summary["clusters"]) == 2 and sum(c["labeled"] for c in summary["clusters"]) == 6
    assert [path.stat().st_mtime_ns for path in (fresh / "out/scores").iterdir()] == scores


def test_the_order_of_the_sources_does_not_matter(pool: Path, tmp_path: Path) -> None:
    sources = "{big: big.tif, tar: pool.tar, zip: pool.zip, folder: folder}"
    curate(configuration(pool, out=tmp_path / "out", sources=sources))
    assert sorted(line.split("\t")[0].split(" /")[0] for line in chosen(tmp_path / "out")) == sorted(
        Split(pool / "out/splits/curated.txt", pool).name(i) for i in range(20)
    )


@pytest.mark.slow
def test_two_processes_choose_the_same(pool: Path, tmp_path: Path) -> None:
    configuration(pool)
    sources = "{folder: folder, big: big.tif}"
    options = (
        f"out={tmp_path / 'out'} patch.size=8 patch.min_size=8 score.workers=1 select.distance=0 "
        "write.cut=none"
    ).split()
    arguments = [
        str(pool / "curate.yaml"),
        "--device",
        "cpu",
        "--cfg-options",
        *options,
        f"sources={sources}",
    ]
    processes = start_ranks("curate", arguments, tmp_path / "told", 2)
    assert [process.wait() for process in processes] == [0, 0], [process.text() for process in processes]
    assert len(list((tmp_path / "out/scores").glob("[0-9]*"))) == 7
    changes = {
        "patch__size": 8,
        "patch__min_size": 8,
        "select__distance": 0,
        "sources": sources,
        "write__cut": "none",
    }
    curate(configuration(pool, out=tmp_path / "alone", **changes))
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def files_again(out: Path) -> None:
    """What messages say to delete before indexing again."""
    for name in ("files", "index", "scores"):
        shutil.rmtree(out / name)


def test_a_pool_that_is_indexed_again_is_scored_again(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg)
    write_image(fresh / "folder/sub é/00.png", noise(77))
    shutil.rmtree(fresh / "out/files")
    shutil.rmtree(fresh / "out/index")
    with pytest.raises(PrepareError, match="scores here were made with other settings.*index was"):
        curate(cfg)
    files_again(fresh / "out")
    curate(cfg)
    whole = fresh / "whole"
    curate(configuration(fresh, out=whole))
    assert results(fresh / "out") == results(whole)


def test_another_model_has_clusters_of_its_own(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg)
    write_checkpoint(fresh / "model.pth", {"s": table("s", CLASSES, background=0)}, "vit_t")
    for part in ("scores", "labeled/scores"):
        shutil.rmtree(fresh / "out" / part)
    curate(cfg)
    curate(configuration(fresh, out=fresh / "whole"))
    assert results(fresh / "out") == results(fresh / "whole")


def test_another_size_of_the_patches_is_noticed(fresh: Path) -> None:
    """Also if only the index is deleted, and the images are the same."""
    curate(configuration(fresh))
    for part in ("index", "labeled/index"):
        shutil.rmtree(fresh / "out" / part)
    with pytest.raises(PrepareError, match="other settings.*index was"):
        curate(configuration(fresh, patch__size=16))


def test_another_checkpoint_does_not_name_the_classes(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg)
    write_checkpoint(fresh / "model.pth", {"s": table("s", ["a", "b"])}, "vit_t")
    with pytest.raises(PrepareError, match="scored by another checkpoint"):
        curate(cfg, ALONE, ("write",))


def test_an_index_that_was_killed_takes_what_is_there_now(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg, ALONE, ("index",))
    state = Run(cfg.out).part(POOL).state("index")
    kept = json.loads(state.read_text())
    state.write_text(json.dumps({"settings": kept["settings"]}))  # as before the last step of the index
    write_image(fresh / "folder/sub é/00.png", noise(77))
    curate(cfg)
    names = [row["name"] for row in results(cfg.out)[1]]
    assert len(names) == len(set(names)) == 41


def test_a_lost_index_shard_is_noticed(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg, ALONE, ("index",))
    Run(cfg.out).part(POOL).shard("index", 0).unlink()
    with pytest.raises(PrepareError, match="index: shards are missing"):
        curate(cfg, ALONE, ("score",))


def test_only_the_selection_of_these_settings_is_written(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg)
    with pytest.raises(PrepareError, match="selection here .*count was 20, is 7"):
        curate(configuration(fresh, select__count=7), ALONE, ("write",))
    with pytest.raises(DataError):
        curate(configuration(fresh, select__count=700), ALONE, ("select",))
    with pytest.raises(PrepareError, match="step select is not complete"):
        curate(cfg, ALONE, ("write",))


def test_lost_and_stale_pseudo_labels(fresh: Path) -> None:
    cfg = configuration(fresh, score__pseudo_labels="true")
    curate(cfg)
    Run(cfg.out).part(POOL).shard("masks", 0).unlink()
    curate(configuration(fresh, score__pseudo_labels="true", select__count=5))
    assert len(list((fresh / "out/pseudo_labels").rglob("*.png"))) == 5
    curate(configuration(fresh, out=fresh / "plain"), ALONE, STEPS[:-1])
    with pytest.raises(PrepareError, match="made without pseudo-labels"):
        curate(configuration(fresh, out=fresh / "plain", score__pseudo_labels="true"), ALONE, ("write",))


def test_the_order_of_the_labeled_images_does_not_matter(fresh: Path) -> None:
    for name, order in (("one", range(6)), ("other", (3, 1, 5, 0, 4, 2))):
        (fresh / f"{name}.txt").write_text("".join(f"labeled/{i}.png\n" for i in order))
        curate(configuration(fresh, out=fresh / name, labeled=f"{name}.txt"))
    assert results(fresh / "one") == results(fresh / "other")


def test_two_runs_cannot_write_to_one_folder(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = configuration(fresh)
    (fresh / "out").mkdir()
    monkeypatch.setattr(folder, "LOCK_SECONDS", 0.3)
    with (fresh / "out" / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(PrepareError, match="another curation is writing here"):
            curate(cfg)


def test_no_images(fresh: Path) -> None:
    shutil.rmtree(fresh / "folder")
    (fresh / "folder").mkdir()
    with pytest.raises(DataError, match="no images in .*folder"):
        curate(configuration(fresh, sources="{folder: folder}"))


def test_a_missing_source(fresh: Path) -> None:
    with pytest.raises(DataError, match="the source 'x' does not exist"):
        curate(configuration(fresh, sources="{x: nowhere}"))


def test_fewer_patches_than_asked_for(fresh: Path) -> None:
    with pytest.raises(DataError, match="1000"):
        curate(configuration(fresh, select__count=1000))


def test_more_clusters_than_labeled_patches(fresh: Path) -> None:
    with pytest.raises(ConfigError, match="cluster.count = 7: there are only 6 labeled patches"):
        curate(configuration(fresh, cluster__count=7))


def test_features_of_another_width(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg, ALONE, ("index", "score"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Run(cfg.out).part(POOL).shard("scores", 0)
    content = read_shard(path)
    column = content.schema.get_field_index("feature")
    narrow = pa.array([row[:5] for row in content["feature"].to_pylist()], pa.list_(pa.float16(), 5))
    pq.write_table(content.set_column(column, "feature", narrow), path)
    with pytest.raises(PrepareError, match="features of width 5, those of the labeled patches have 192"):
        curate(cfg, ALONE, ("cluster",))


def test_a_truncated_shard(fresh: Path) -> None:
    cfg = configuration(fresh)
    curate(cfg, ALONE, ("index", "score"))
    path = Run(cfg.out).part(POOL).shard("scores", 0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PrepareError, match=r"000000.parquet: cannot be read .*Delete it"):
        curate(cfg, ALONE, ("cluster",))


def test_without_the_packages_it_says_what_to_install(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"curation needs pyarrow: pip install -e '.\[curate\]'"):
        curate(configuration(fresh))
