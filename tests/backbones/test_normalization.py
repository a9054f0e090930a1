"""Normalisation per set of weights: names and values, and who decides."""

import logging
from pathlib import Path

import pytest
import timm
import torch

from s5.backbones import IMAGENET, NORMALIZATIONS, create_backbone, parse_normalization
from s5.backbones.normalization import DINOV3_SAT
from s5.backbones.timm_models import normalization_of
from s5.checkpoints.initial import initialise, start_from
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor
from tests.helpers.timm_vits import TINY

OWN = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]


def test_names_and_values() -> None:
    assert parse_normalization("dinov3_sat") == DINOV3_SAT
    assert parse_normalization(OWN).std == (0.4, 0.5, 0.6)
    assert str(IMAGENET) == "imagenet"
    assert str(parse_normalization(OWN)) == "mean [0.1, 0.2, 0.3], std [0.4, 0.5, 0.6]"


@pytest.mark.parametrize(
    "value",
    ["sentinel", None, 3, [[1, 2, 3]], [[1, 2], [1, 2]], [["a"] * 3, [1] * 3], [[float("nan")] * 3] * 2],
)
def test_other_values_are_an_error_that_lists_the_names(value: object) -> None:
    with pytest.raises(ValueError, match="expected imagenet, dinov3_sat, clip, half, or .mean, std."):
        parse_normalization(value)


def test_a_standard_deviation_of_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        parse_normalization([[0, 0, 0], [1, 0, 1]])


def test_values_are_those_of_timm() -> None:
    assert normalization_of("vit_large_patch16_dinov3.sat493m") == NORMALIZATIONS["dinov3_sat"]
    assert normalization_of("vit_base_patch16_clip_224.openai") == NORMALIZATIONS["clip"]
    assert normalization_of("vit_base_patch16_224.augreg_in21k") == NORMALIZATIONS["half"]
    assert normalization_of("vit_base_patch14_dinov2") == IMAGENET


def test_weights_bring_theirs_unless_one_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    source = create_backbone(TINY["dinov3"], 64)
    content = {
        "state_dict": source.state_dict(),
        "meta": {"backbone": "x", "img_size": 64, "normalization": OWN},
    }
    target = create_backbone(TINY["dinov3"], 64)
    with caplog.at_level(logging.INFO):
        load_weights(target, content)
    assert target.normalization == parse_normalization(OWN)
    assert "images are normalised with mean [0.1, 0.2, 0.3]" in caplog.text
    chosen = create_backbone(TINY["dinov3"], 64, normalization=DINOV3_SAT)
    report = load_weights(chosen, content)
    assert chosen.normalization == DINOV3_SAT
    assert any("but model.normalization is dinov3_sat" in note for note in report.notes)


def test_weights_without_one_change_nothing() -> None:
    target = create_backbone(TINY["clip"], 64)
    load_weights(target, create_backbone(TINY["clip"], 64).state_dict())
    assert target.normalization == NORMALIZATIONS["clip"]


def test_one_that_is_none_is_an_error() -> None:
    source = create_backbone(TINY["dinov3"], 64)
    meta = {"backbone": "x", "img_size": 64, "normalization": [1, 2]}
    with pytest.raises(
        CheckpointError, match=r"memory: normalization \[1, 2\] in the metadata: expected imagenet"
    ):
        load_weights(create_backbone(TINY["dinov3"], 64), {"state_dict": source.state_dict(), "meta": meta})


@pytest.mark.parametrize(
    "name",
    [
        "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth",
        "models--facebook--dinov3-vitl16-pretrain-sat493m/snapshots/1a2b/model.pth",  # cache of the hub
    ],
)
def test_the_published_name_of_satellite_weights_says_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(create_backbone(TINY["dinov3"], 64).state_dict(), path)
    target = create_backbone(TINY["dinov3"], 64)
    load_weights(target, path)
    assert target.normalization == DINOV3_SAT


class TestNamedWeights:
    """`--init dinov3_sat`, and `--init timm` of a ViT of timm."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Small models in place of downloads; the names asked for."""
        create, names = timm.create_model, []

        def offline(name: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
            if not pretrained:
                return create(name, **options)
            names.append(name)
            return create(name.partition(".")[0], **options, **TINY["dinov3"].options)

        monkeypatch.setattr(timm, "create_model", offline)
        return names

    @pytest.fixture
    def large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`dinov3_l`, narrow and shallow."""
        from dataclasses import replace

        from s5.backbones import ARCHITECTURES
        from s5.backbones.timm_vit import TIMM_VITS

        small = replace(TIMM_VITS["dinov3_l"], width=32, options=TINY["dinov3"].options)
        monkeypatch.setitem(ARCHITECTURES, "dinov3_l", small)

    @pytest.mark.parametrize("tree", ["pre-training", "fine-tuning"])
    def test_they_set_theirs(self, large: None, asked: list[str], tree: str) -> None:
        for name, normalization in (("timm", IMAGENET), ("dinov3_sat", DINOV3_SAT)):
            segmentor = build_segmentor("dinov3_l", {"a": 3}, 64, channels=8)
            if tree == "pre-training":
                initialise(segmentor, "dinov3_l", name, {}, Path())
            else:
                start_from(segmentor, Path(name))
            assert segmentor.backbone.normalization == normalization
        assert asked == ["vit_large_patch16_dinov3", "vit_large_patch16_dinov3.sat493m"]

    def test_a_file_of_theirs_sets_it_too(self, large: None, tmp_path: Path) -> None:
        torch.save(create_backbone("dinov3_l", 64).state_dict(), tmp_path / "satellite.pth")
        segmentor = build_segmentor("dinov3_l", {"a": 3}, 64, channels=8)
        paths = {"dinov3_sat": {"dinov3_l": Path("satellite.pth")}}
        initialise(segmentor, "dinov3_l", "dinov3_sat", paths, tmp_path)
        assert segmentor.backbone.normalization == DINOV3_SAT

    def test_without_a_network_the_page_and_the_place_are_named(
        self, large: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        segmentor = build_segmentor("dinov3_l", {"a": 3}, 64, channels=8)

        def unreachable(*args: object, **options: object) -> None:
            raise OSError("name resolution failed")

        monkeypatch.setattr(timm, "create_model", unreachable)
        page = "https://huggingface.co/timm/vit_large_patch16_dinov3.sat493m"
        with pytest.raises(CheckpointError, match=rf"{page}.*--init.*init_paths.dinov3_sat.dinov3_l"):
            initialise(segmentor, "dinov3_l", "dinov3_sat", {}, Path())

    def test_another_backbone_has_none_of_them(self, real_vit_t: None) -> None:
        segmentor = build_segmentor("vit_t", {"a": 3}, 64, channels=8)
        with pytest.raises(CheckpointError, match="'dinov3_sat': no file at .*Use none, mae, timm"):
            initialise(segmentor, "vit_t", "dinov3_sat", {}, Path())
