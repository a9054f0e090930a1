"""The check of a split: what it counts, what it finds, and what training remembers of it."""

import json
import os

import numpy as np
import pytest

from s5.data.check import check_command, check_split, main, require_clean
from s5.data.image_io import write_image, write_mask
from s5.data.labels import get_table
from s5.data.splits import Split, write_split
from s5.errors import DataError


@pytest.fixture
def root(tmp_path):
    """70 good labeled samples (more than two chunks of work) of two sizes."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(70):
        size = (8, 8) if i % 7 else (6, 10)
        write_image(tmp_path / f"images/{i}.png", rng.integers(0, 256, (*size, 3), np.uint8))
        write_mask(tmp_path / f"masks/{i}.png", np.full(size, i % 4 if i else 255, np.uint8))
        lines.append(f"images/{i}.png masks/{i}.png")
    write_split(tmp_path / "s.txt", lines)
    return tmp_path


def test_clean_split(root):
    report = check_split(Split("s.txt", root), get_table("scenes"), workers=2)
    assert report.ok and report.samples == 70 and report.errors == []
    assert report.sizes == {(8, 8): 60, (6, 10): 10}
    expected = np.zeros(8, int)
    for i in range(1, 70):
        expected[i % 4] += 64 if i % 7 else 60
    assert report.histogram.tolist() == expected.tolist()
    assert report.ignored == 60
    share = 100 * expected[1] / expected.sum()
    assert f"{share:.4f} %" in report.summary() and "no errors" in report.summary()


def break_things(root):
    os.remove(root / "images/3.png")
    os.remove(root / "masks/4.png")
    for name in ("images/5.png", "masks/6.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-30])
    mask = np.zeros((8, 8), np.uint8)
    mask[0, :5] = 8
    write_mask(root / "masks/40.png", mask)
    write_mask(root / "masks/41.png", np.zeros((8, 9), np.uint8))
    with (root / "s.txt").open("a") as file:
        file.write("images/1.png\nimages/1.png\tmasks/1.png\tthird.png\n")


def test_every_kind_of_error_is_found(root):
    break_things(root)
    report = check_split(Split("s.txt", root), get_table("scenes"), workers=3)
    kinds = [(problem.kind, os.path.relpath(problem.path, root)) for problem in report.problems]
    assert kinds == [
        ("missing", "images/3.png"),
        ("missing", "masks/4.png"),
        ("corrupt", "images/5.png"),
        ("corrupt", "masks/6.png"),
        ("values", "masks/40.png"),
        ("size", "masks/41.png"),
        ("no mask", "images/1.png"),
        ("line", "s.txt"),
    ]
    assert not report.ok
    text = report.summary()
    assert "8 errors: 2 missing, 2 corrupt, 1 values" in text
    assert "masks/40.png: value 8 (5 pixels)" in text and "valid: 0..7; ignored 255" in text
    assert "8x9 pixels for an image of 8x8" in text
    assert "... and 6 more" in report.summary(show=2)


def test_lines_in_another_form_are_named_by_their_number(root):
    (root / "s.txt").write_text(
        "images/1.png masks/1.png\n\nimages\\2.png masks\\2.png\nimages/3.png,masks/3.png\n"
    )
    report = check_split(Split("s.txt", root), get_table("scenes"))
    assert [problem.kind for problem in report.problems] == ["line", "line"]
    assert f"{root}/s.txt, line 3: no file images\\2.png in {root}; it has backslashes" in report.errors[0]
    assert "s.txt, line 4: no file images/3.png,masks/3.png" in report.errors[1]


def test_masks_that_are_ignored_everywhere(root, tmp_path):
    write_split(root / "s.txt", ["images/7.png masks/0.png"])
    split, table = Split("s.txt", root), get_table("scenes")
    (problem,) = check_split(split, table).problems
    assert problem.kind == "ignored"
    assert "s.txt: no labeled pixel: all 60 pixels of its masks are ignored" in problem.message
    assert "(valid: 0..7; ignored 255)" in problem.message
    with pytest.raises(DataError, match="no labeled pixel"):
        require_clean(split, table, root / "cache")


def test_unlabeled_split_needs_no_masks(root):
    write_split(root / "u.txt", [f"images/{i}.png" for i in range(5)])
    assert check_split(Split("u.txt", root)).ok
    (root / "images/2.png").write_bytes(b"nothing of use")
    assert [p.kind for p in check_split(Split("u.txt", root)).problems] == ["corrupt"]


def test_command(root, capsys):
    assert main(["s.txt", "--root", str(root), "--labels", "scenes"]) == 0
    assert "70 samples" in capsys.readouterr().out
    break_things(root)
    assert main(["s.txt", "--root", str(root), "--labels", "scenes", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 72 and not found["ok"] and len(found["errors"]) == 8
    assert found["classes"][1]["name"] == "forest" and 0 < found["classes"][1]["share"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no.txt"], "no.txt not found"), (["s.txt", "--labels", "isiad"], "known: isaid")],
)
def test_command_with_bad_arguments(root, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        main([*arguments, "--root", str(root)])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_own_table_on_the_command_line(root, capsys):
    own = get_table({"name": "own", "classes": ["a", "b", "c"]})
    command = check_command(Split("s.txt", root), own)
    import shlex

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "s5.data.check"]
    assert main(words[3:]) == 1
    assert "value 3 (64 pixels) is not in label table 'own'" in capsys.readouterr().out
    (root / "own.yaml").write_text("name: own\nclasses: [a, b, c, d]\n")
    assert main(["s.txt", "--root", str(root), "--labels", str(root / "own.yaml")]) == 0


def test_require_clean_remembers(root, monkeypatch):
    from s5.data import check

    table, cache = get_table("scenes"), root / "cache"
    calls = []
    real = check.check_split
    monkeypatch.setattr(check, "check_split", lambda *args: calls.append(1) or real(*args))
    require_clean(Split("s.txt", root), table, cache)
    require_clean(Split("s.txt", root), table, cache)
    assert len(calls) == 1, "a clean result is remembered"
    os.utime(root / "masks/9.png", (1, 1))
    require_clean(Split("s.txt", root), table, cache)
    assert len(calls) == 2, "a changed file is looked at again"
    require_clean(Split("s.txt", root), get_table({"name": "own", "classes": list("abcd")}), cache)
    assert len(calls) == 3, "another table is another question"


def test_require_clean_refuses(root):
    table, cache = get_table("scenes"), root / "cache"
    require_clean(Split("s.txt", root), table, cache)
    break_things(root)
    with pytest.raises(DataError) as error:
        require_clean(Split("s.txt", root), table, cache)
    text = str(error.value)
    assert "s.txt: 8 errors in 72 samples" in text
    assert "images/3.png: file not found" in text
    assert f"python -m s5.data.check {root}/s.txt --root {root} --labels scenes" in text
    with pytest.raises(DataError):  # an error is not remembered as clean
        require_clean(Split("s.txt", root), table, cache)


def test_real_masks(shared, tmp_path):
    folder = shared / "data/seg/dubai"
    lines = [f"images/{p.name} masks/{p.stem}.png" for p in sorted((folder / "images").glob("*.jpg"))[:6]]
    write_split(tmp_path / "s.txt", lines)
    names = ["building", "land", "road", "vegetation", "water"]
    report = check_split(Split(tmp_path / "s.txt", folder), get_table({"name": "dubai", "classes": names}))
    assert report.ok, report.summary()
    assert report.histogram.sum() > 0
