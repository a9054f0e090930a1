"""Initial weights by name: search paths and messages about missing files."""

from pathlib import Path

import pytest
import timm
import torch

from s5.checkpoints.initial import initialise
from s5.checkpoints.reading import save_atomic
from s5.errors import CheckpointError
from s5.segmentation.segmentor import Segmentor, build_segmentor


@pytest.fixture
def segmentor(real_vit_t: None) -> Segmentor:
    return build_segmentor("vit_t", {"s4p": 3}, 64, channels=8)


def test_none_leaves_the_random_weights(segmentor: Segmentor) -> None:
    before = segmentor.backbone.blocks[0].attn.qkv.weight.clone()
    initialise(segmentor, "vit_t", "none", {}, Path())
    assert torch.equal(segmentor.backbone.blocks[0].attn.qkv.weight, before)


def test_timm_weights_reach_the_backbone(segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    made = []

    def offline(name: str, pretrained: bool, **options: object) -> torch.nn.Module:
        assert pretrained
        made.append(create(name, pretrained=False, **options))
        return made[-1]

    monkeypatch.setattr(timm, "create_model", offline)
    initialise(segmentor, "vit_t", "timm", {}, Path())
    assert torch.equal(segmentor.backbone.blocks[3].mlp.fc1.weight, made[0].blocks[3].mlp.fc1.weight)


def test_timm_without_a_network_says_the_way_out(
    segmentor: Segmentor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **options: object) -> None:
        raise OSError("name resolution failed")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(CheckpointError, match=r"vit_tiny.*name resolution failed.*init_paths.timm.vit_t"):
        initialise(segmentor, "vit_t", "timm", {}, Path())


def test_mae_file_of_the_path_table_is_loaded(segmentor: Segmentor, tmp_path: Path) -> None:
    source = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    save_atomic({"model": source.state_dict()}, tmp_path / "mae.pth")
    initialise(segmentor, "vit_t", "mae", {"mae": {"vit_t": Path("mae.pth")}}, tmp_path)
    assert torch.equal(segmentor.backbone.patch_embed.proj.weight, source.patch_embed.proj.weight)


def test_missing_mae_file_says_where_to_get_it(segmentor: Segmentor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file at .*nowhere.pth.*RVSA.*init_paths.mae.vit_t"):
        initialise(segmentor, "vit_t", "mae", {"mae": {"vit_t": tmp_path / "nowhere.pth"}}, Path())


def test_backbone_without_a_path_is_named(segmentor: Segmentor) -> None:
    with pytest.raises(CheckpointError, match=r"init_paths.mae.*no path for vit_t"):
        initialise(segmentor, "vit_t", "mae", {"mae": {"vit_b": Path("x.pth")}}, Path())


def test_missing_path_is_named(segmentor: Segmentor) -> None:
    with pytest.raises(CheckpointError, match=r"no file at .*weights/none.pth.*Use none, mae, timm"):
        initialise(segmentor, "vit_t", "weights/none.pth", {}, Path())


@pytest.mark.parametrize(("init", "nearest"), [("mea", "mae"), ("tim", "timm"), ("satelite", "satellite")])
def test_an_unknown_name_says_the_nearest(segmentor: Segmentor, init: str, nearest: str) -> None:
    with pytest.raises(CheckpointError, match=f"Use none, mae, timm, satellite, .*did you mean '{nearest}'"):
        initialise(segmentor, "vit_t", init, {"satellite": {"vit_b": Path("x.pth")}}, Path())
