"""Folders paired by name, and a part of a split held out."""

import pytest

from s5.data.folders import hold_out, pair_folders
from s5.data.splits import Split
from s5.errors import SplitError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path):
    touch(tmp_path, "images/b.jpg", "images/north/a 1.TIF", "images/notes.txt", "images/.hidden.png")
    touch(tmp_path, "masks/b.png", "masks/north/a 1.png", "masks/Thumbs.db")
    return tmp_path


def test_pairs_by_name(root):
    split = pair_folders("images", "masks", root)
    assert split.path == root / "images"
    assert [(s.name, s.mask) for s in split] == [
        ("images/b.jpg", root / "masks/b.png"),
        ("images/north/a 1.TIF", root / "masks/north/a 1.png"),
    ]


def test_folders_outside_the_root(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("root")
    sample = pair_folders(root / "images", root / "masks", other).sample(0)
    assert sample.name == str(root / "images/b.jpg") and sample.image == root / "images/b.jpg"


def test_what_is_refused(root):
    def fails(message):
        with pytest.raises(SplitError, match=message):
            pair_folders("images", "masks", root)

    touch(root, *(f"images/{i}.png" for i in range(5)), "masks/extra.png")
    fails(r"5 images in .*images have no partner in .*masks: 0.png, 1.*4.png; 1 masks in .*extra.png")
    with pytest.raises(SplitError, match=r"nowhere: no such folder"):
        pair_folders("images", "nowhere", root)
    (root / "empty").mkdir()
    with pytest.raises(SplitError, match=r"empty: no (images|masks) \(.jpg"):
        pair_folders("images", "empty", root)
    touch(root, "images/b.png")
    fails(r"images/b.jpg and .*images/b.png have the same name")


def split_of(tmp_path, names):
    return Split.from_lines([f"{name}.png m/{name}.png" for name in names], tmp_path, "s")


def names(split):
    return [sample.name for sample in split]


def test_hold_out(tmp_path):
    split = split_of(tmp_path, range(50))
    train, val = hold_out(split, 0.2)
    assert (len(train), len(val)) == (40, 10)
    assert sorted(names(train) + names(val)) == sorted(names(split))
    assert names(val) == [name for name in names(split) if name in names(val)], "order of the split"
    assert val.sample(0).mask == tmp_path / f"m/{val.sample(0).name}"
    shuffled = split_of(tmp_path, reversed(range(50)))
    assert sorted(names(hold_out(shuffled, 0.2)[1])) == sorted(names(val)), "whatever the order"
    assert set(names(val)) < set(names(hold_out(split, 0.3)[1])), "a larger share holds out more"


def test_an_image_that_is_listed_more_than_once_is_not_divided(tmp_path):
    train, val = hold_out(split_of(tmp_path, [*range(20)] * 3), 0.2)
    assert (len(train), len(val)) == (48, 12)
    assert not set(names(train)) & set(names(val))
    once = hold_out(split_of(tmp_path, range(20)), 0.2)[1]
    assert set(names(val)) == set(names(once)), "the same choice as when they are listed once"


def test_hold_out_leaves_one_at_least(tmp_path):
    for share in (0.01, 0.99):
        train, val = hold_out(split_of(tmp_path, range(3)), share)
        assert len(train) >= 1 and len(val) >= 1
    for same in ([1], [1, 1, 1]):
        with pytest.raises(SplitError, match="one image cannot be divided"):
            hold_out(split_of(tmp_path, same), 0.2)
    with pytest.raises(SplitError, match="between 0 and 1, got 1"):
        hold_out(split_of(tmp_path, range(3)), 1)
