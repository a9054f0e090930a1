"""Curations that end early, by a kill, a full disk or a lost process: what is written stays, and is used."""

import errno
import shutil
import signal
from pathlib import Path

import pytest

from s5.data.image_io import write_image
from tests.helpers.curation import chosen, configuration, noise, write_pool
from tests.helpers.processes import start, start_ranks, wait_until

pytest.importorskip("duckdb")
pytest.importorskip("faiss")
pytest.importorskip("imagehash")
parquet = pytest.importorskip("pyarrow.parquet")

from s5.curate.__main__ import main  # noqa: E402
from s5.curate.folder import read_shard  # noqa: E402
from s5.curate.run import curate  # noqa: E402
from s5.launch import ALONE  # noqa: E402

pytestmark = pytest.mark.usefixtures("empty_charts")
# A curation that kills itself when it renames a file for the given time; all files appear by renaming.
KILLED_AT_A_RENAME = """
import os, pathlib, signal, sys
from s5.curate.__main__ import main
left, rename = int(sys.argv.pop(1)), pathlib.Path.replace
def replace(path, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, target)
pathlib.Path.replace = replace
sys.exit(main())
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool of three shards."""
    write_pool(tmp_path)
    for i in range(100):
        write_image(tmp_path / f"folder/more/{i}.png", noise(1000 + i))
    return tmp_path


def command(root: Path, *options: str) -> list[str]:
    """Arguments of a whole curation in a folder of its own."""
    configuration(root)
    return ["run", str(root / "curate.yaml"), "--device", "cpu", "--cfg-options", "score.workers=1", *options]


def results(out: Path) -> tuple[list[str], list[dict]]:
    return chosen(out), read_shard(out / "patches.parquet").to_pylist()


def shards(out: Path) -> dict[str, int]:
    """Complete shards of scores and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (out / "scores").glob("[0-9]*.parquet")}


@pytest.mark.slow
def test_killed_while_it_scores(pool: Path) -> None:
    process = start("curate", command(pool)[1:], pool / "told")
    wait_until(lambda: bool(shards(pool / "out")), process)
    process.send(signal.SIGKILL, group=True)
    process.wait()
    before = shards(pool / "out")
    curate(configuration(pool))
    after = shards(pool / "out")
    assert len(after) == 3 and before.items() <= after.items()
    curate(configuration(pool, out=pool / "whole"))
    assert results(pool / "out") == results(pool / "whole")


@pytest.mark.slow
def test_killed_at_files_of_the_later_steps(tmp_path: Path) -> None:
    """At every second file of cluster, select and write: the next run completes it to the same result."""
    write_pool(tmp_path)
    script = tmp_path / "killed.py"
    script.write_text(KILLED_AT_A_RENAME)
    changes = {"score__pseudo_labels": "true", "select__count": 3}
    options = ["score.pseudo_labels=true", "select.count=3"]
    scored, whole = tmp_path / "scored", tmp_path / "whole"
    curate(configuration(tmp_path, out=scored, **changes), ALONE, ("index", "score"))
    shutil.copytree(scored, whole)
    curate(configuration(tmp_path, out=whole, **changes))
    kills = 0
    while True:
        out = tmp_path / f"out{kills}"
        shutil.copytree(scored, out)
        arguments = [str(2 * kills + 1), *command(tmp_path, f"out={out}", *options)]
        process = start(script, arguments, tmp_path / "told")
        if (code := process.wait()) == 0:
            break
        assert code == -signal.SIGKILL, process.text()
        kills += 1
        curate(configuration(tmp_path, out=out, **changes))
        lines, rows = results(whole)
        assert results(out) == ([line.replace("whole/", f"{out.name}/") for line in lines], rows), kills
        assert (out / "report.html").exists()
        assert len(list((out / "pseudo_labels").rglob("*.png"))) == 3
    assert kills > 5  # clusters, the selection, pseudo-labels, the split, the summary and the report


@pytest.mark.slow
def test_a_lost_process_ends_the_others(pool: Path) -> None:
    first, second = start_ranks("curate", command(pool)[1:], pool / "told", 2)
    wait_until(lambda: bool(shards(pool / "out")), first)
    second.send(signal.SIGKILL, group=True)
    assert first.wait() != 0, first.text()
    before = shards(pool / "out")
    curate(configuration(pool))
    assert before.items() <= shards(pool / "out").items()
    curate(configuration(pool, out=pool / "whole"))
    assert results(pool / "out") == results(pool / "whole")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    write_pool(tmp_path)
    write = parquet.write_table

    def full(table: object, path: Path, **options: object) -> None:
        if path.parent.name == "scores" and "labeled" not in path.parts:
            path.write_bytes(b"PAR1")  # what still had room
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(table, path, **options)

    monkeypatch.setattr(parquet, "write_table", full)
    assert main(command(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "scores" in error and "run the same command again" in error
    assert not shards(tmp_path / "out") and shards(tmp_path / "out/labeled")
    monkeypatch.undo()
    before = shards(tmp_path / "out/labeled")
    assert main(command(tmp_path)) == 0
    assert shards(tmp_path / "out/labeled") == before
    curate(configuration(tmp_path, out=tmp_path / "whole"))
    assert results(tmp_path / "out") == results(tmp_path / "whole")
