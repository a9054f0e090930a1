"""Parameter counts."""

import json

import pytest
import torch

from s5 import params
from s5.backbones import create_backbone
from s5.backbones.rvsa import RVSA_VARIANTS
from s5.backbones.vit import VARIANTS
from s5.segmentation.segmentor import build_segmentor

# Millions, from the results table that the models are measured against.
EXPECTED = {
    ("vit_b", 1, 0): 103.158,
    ("vit_l", 1, 0): 327.427,
    ("vit_h", 1, 0): 663.383,
    ("vit_g", 1, 0): 990.903,
    ("vit_b", 4, 0): 132.081,
    ("vit_l", 4, 0): 359.496,
    ("vit_h", 4, 0): 698.598,
    ("vit_b", 4, 128): 146.242,
    ("vit_b", 4, 256): 160.402,
    ("vit_l", 4, 256): 435.012,
    ("vit_h", 4, 256): 824.451,
    ("vit_b", 4, 512): 188.723,
    # The results table counts these two as plain ViTs (103.158 and 327.427). The released vit_b_rvsa has the
    # number here: no class token, but relative positions and what moves the windows.
    ("vit_b_rvsa", 1, 0): 103.588,
    ("vit_l_rvsa", 1, 0): 329.186,
}


EXPECTED_DETECTORS = {
    ("vit_b", 1, 0): 111.180,
    ("vit_l", 1, 0): 334.662,
    ("vit_h", 1, 0): 671.721,
    ("vit_b", 2, 256): 138.283,
    ("vit_l", 2, 256): 377.760,
    ("vit_h", 2, 256): 729.971,
}


@pytest.fixture(scope="module")
def rows():
    names = (*VARIANTS, *RVSA_VARIANTS, "swin_b")
    return [row for backbone in names for row in params.segmentation_rows(backbone)]


@pytest.fixture(scope="module")
def detectors():
    """Those of the results table."""
    names = dict.fromkeys(published.backbone for published in params.PUBLISHED)
    return [row for backbone in names for row in params.detection_rows(backbone)]


def test_counts_of_the_results_table(rows):
    counts = {(row.backbone, row.datasets, row.expert_channels): row.params for row in rows}
    assert len(counts) == len(rows)
    for key, millions in EXPECTED.items():
        assert round(counts[key] / 1e6, 3) == millions, key


def test_detector_counts_of_the_results_table(detectors):
    counts = {(row.backbone, row.datasets, row.expert_channels): row.params for row in detectors}
    assert len(counts) == len(detectors)
    for key, millions in EXPECTED_DETECTORS.items():
        assert round(counts[key] / 1e6, 3) == millions, key


def test_json_is_a_list_of_objects_with_exact_counts(capsys, monkeypatch):
    monkeypatch.setattr(params, "list_backbones", lambda: ["vit_b"])
    params.main(["--json"])
    rows = json.loads(capsys.readouterr().out)
    first = {"backbone": "vit_b", "task": "seg", "datasets": 1, "expert_channels": 0, "params": 103158289}
    assert rows[0] == first
    assert all(list(row) == list(first) for row in rows)


@pytest.fixture
def printed(rows, detectors, capsys, monkeypatch):
    """The two tables that the command prints, in lines."""
    for function, counts in (("segmentation_rows", rows), ("detection_rows", detectors)):
        monkeypatch.setattr(params, function, lambda name, c=counts: [r for r in c if r.backbone == name])
    params.main([])
    return [table.splitlines() for table in capsys.readouterr().out.split("\n\n")]


def test_table_has_a_line_per_backbone(printed):
    lines = printed[0]
    assert [line.split()[0] for line in lines[2:]] == [*VARIANTS, *RVSA_VARIANTS, "swin_b"]
    assert len({len(line) for line in lines[1:]}) == 1
    assert "103.158" in lines[4]
    assert lines[2].split()[-1] == "-"  # 512 expert channels do not fit into a width of 192


def test_published_table_is_printed_beside_our_counts(printed):
    lines = printed[1]
    table, notes = lines[2 : 2 + len(params.PUBLISHED)], lines[2 + len(params.PUBLISHED) :]
    assert [line.split()[0] for line in table] == [published.method for published in params.PUBLISHED]
    assert "103.588 / 103.2*" in table[0] and "96.877 / 96.9 " in table[1] and "160.402 / 160.4 " in table[10]
    assert [note.split(":")[0] for note in notes] == [
        "* RVSA, SAMRS, MTP",
        "* Scale-MAE, SatMAE++, SelectiveMAE",
    ]


@pytest.mark.parametrize("published", params.PUBLISHED, ids=lambda row: f"{row.method}-{row.backbone}")
def test_every_difference_from_the_published_table_has_its_reason(published, rows, detectors):
    """A reason where a count differs by more than 0.1 M, and none where there is no such difference."""
    pairs = params.compare(published, [*rows, *detectors])
    assert any(params.differs(*pair) for pair in pairs) == bool(published.why)
    one_model = pairs[::2]
    assert published.why == params.PLAIN or not any(params.differs(*pair) for pair in one_model)


@pytest.mark.parametrize(
    ("name", "whole", "pyramid"),
    [("vit_b", 93.514, 7.082), ("vit_l", 316.734, 12.588), ("vit_h", 651.642, 19.667)],
)
def test_backbone_and_pyramid_counts(name, whole, pyramid):
    with torch.device("meta"):
        vit = create_backbone(name)
    assert round(params.count_parameters(vit) / 1e6, 3) == whole
    assert round(params.count_parameters(vit.pyramid) / 1e6, 3) == pyramid


def test_head_count_agrees_with_its_closed_form():
    width, c, classes = 768, 256, 16
    with torch.device("meta"):
        head = build_segmentor("vit_b", {"seg": classes}).heads["seg"]
    closed = (
        3 * (width * c + 2 * c)
        + 4 * (width * c + 2 * c)
        + 9 * (width + 4 * c) * c
        + 2 * c
        + 3 * (9 * c**2 + 2 * c)
        + 36 * c**2
        + 2 * c
    )
    unused_classifier, classifier = c + 1, (c + 1) * classes
    assert params.count_parameters(head) == closed + unused_classifier + classifier


def test_no_weights_are_allocated(monkeypatch):
    seen = set()
    count = params.count_parameters

    def spy(model):
        seen.update(p.device.type for p in model.parameters())
        return count(model)

    monkeypatch.setattr(params, "count_parameters", spy)
    list(params.segmentation_rows("vit_b"))
    assert seen == {"meta"}
