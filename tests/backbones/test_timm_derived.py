"""Models of timm by name: the contract for small ones of several families, and what is refused."""

import pytest
import timm
import torch
from torch import nn

from s5.backbones import Backbone, Lora, create_backbone
from s5.backbones.timm_derived import derive
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError
from tests.backbones.contract import SIZE, BackboneContract, ExpertsContract


class TestConvNeXt(ExpertsContract):
    architecture = derive("test_convnext")
    lora = Lora(4, 6.0, ("mlp.fc1",))

    def build(self, **options) -> Backbone:
        """Its layer scale, as drawn, would hide the experts."""
        backbone = super().build(**options)
        for name, parameter in backbone.named_parameters():
            if name.endswith(".gamma"):
                nn.init.ones_(parameter)
        return backbone


class TestPvt(ExpertsContract):
    architecture = derive("pvt_v2_b0")
    lora = Lora(4, 6.0, ("attn.q", "attn.kv", "attn.proj", "mlp.fc1"))


class TestResNet(BackboneContract):
    architecture = derive("resnet10t")
    lora = None

    def test_evaluation_is_the_same_every_time_and_training_drops_paths(self) -> None:
        """Its paths compute zero before training."""

    def test_it_has_no_linear_layers_to_adapt(self) -> None:
        with pytest.raises(ValueError, match="'attn.qkv': timm:resnet10t has no linear layers"):
            self.build(lora=Lora(), experts=("a",))


def test_a_wrapped_network_is_layers_all_the_same() -> None:
    with torch.device("meta"):
        twins = create_backbone(derive("twins_pcpvt_small"), SIZE)
    layers = [twins.layer_of(name) for name, _ in twins.named_parameters()]
    assert layers == sorted(layers) and set(layers) == set(range(twins.num_layers))
    assert twins.layer_of(twins.stem) == 0
    assert len(twins.undecayed) == 8 and set(twins.undecayed) <= dict(twins.named_parameters()).keys()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_is_the_same_where_gradients_are_off(mode) -> None:
    with mode():
        assert derive.__wrapped__("test_convnext") == derive("test_convnext")


@pytest.mark.parametrize("name", ["test_convnext", "resnet10t", "swinv2_cr_tiny_ns_224"])
@torch.no_grad()
def test_features_are_those_of_timm(name: str) -> None:
    backbone = create_backbone(derive(name), SIZE).eval()
    network = timm.create_model(name, features_only=True, **derive(name).options).eval()
    network.load_state_dict(backbone.body.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    for one, other in zip(backbone(images), network(images)[-4:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", ["test_convnext", "resnet10t", "swinv2_cr_tiny_ns_224"])
def test_a_file_of_timm_is_read(name: str, features: bool) -> None:
    row = derive(name)
    network = timm.create_model(name, features_only=features, **row.options)
    experts = {"experts": ("a", "b"), "expert_channels": 64} if row.max_expert_channels else {}
    backbone = create_backbone(row, SIZE, **experts)
    report = load_weights(backbone, {"state_dict": network.state_dict()})
    assert report.layout == f"of {row.name}" and report.backbone_share == 1.0
    unused = {key for key in report.unexpected if not key.startswith(("head", "fc", "norm"))}
    assert not unused and bool(report.unexpected) is not features
    stem = network.get_parameter(row.stem if features else row.stem.replace("stem_0", "stem.0"))
    assert torch.equal(backbone.get_parameter(backbone.stem), stem)


def test_a_file_of_another_model_of_timm_is_refused() -> None:
    state = timm.create_model("test_convnext2").state_dict()
    with pytest.raises(CheckpointError, match="unrecognised checkpoint|another architecture"):
        load_weights(create_backbone(derive("test_convnext"), SIZE), state)


def test_windows_of_fixed_number_make_the_divisor() -> None:
    row = derive("maxvit_rmlp_pico_rw_256")
    assert (row.divisor, row.min_size) == (256, 256)


def test_a_model_without_feature_maps_is_refused_with_the_words_of_timm(monkeypatch) -> None:
    create = timm.create_model

    def refuse(name: str, features_only: bool = False, **options: object) -> torch.nn.Module:
        if features_only:
            raise RuntimeError("features_only not implemented for ResNet models.")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match="timm:resnet14t: timm gives no feature maps .*not implemented for"):
        derive("resnet14t")
