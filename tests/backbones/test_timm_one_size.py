"""Models of timm for images of one size: contract, features, positions, names, and all three trees."""

from pathlib import Path

import pytest
import torch

import s5
from s5.backbones import Lora, create_backbone
from s5.backbones.timm_derived import derive
from s5.backbones.timm_models import TimmModel
from s5.checkpoints.reading import read_checkpoint
from s5.errors import ConfigError
from s5.export import ExportOptions
from s5.export.plan import make_plan
from s5.segmentation.model import SegmentationModel
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.tta import Tta
from s5.segmentation.windows import Inference
from tests.backbones.contract import SIZE, BackboneContract, ExpertsContract
from tests.helpers import det_runs, mdf_runs, s4p_runs

NARROW = {"embed_dim": 32, "depth": 4, "num_heads": 4}
HIERA = {"embed_dim": 32, "num_heads": 1, "stages": (1, 1, 2, 1)}
PROJECTIONS = Lora(4, 6.0, ("attn.proj", "mlp.fc1"))  # BEiT uses the weight of attn.qkv without its layer
BEIT = derive("beit_base_patch16_224", **NARROW, init_values=1.0)
RELPOS = derive("vit_relpos_base_patch16_cls_224", **NARROW, init_values=1.0)


class OneSize:
    """Instead of the tests of the contract that give images of several sizes."""

    architecture: TimmModel

    def test_maps_have_the_promised_channels_and_strides_at_any_size(self) -> None:
        """Of those that it is built for."""
        for size in (SIZE, SIZE + self.architecture.divisor):
            backbone = create_backbone(self.architecture, size).eval()
            maps = backbone(torch.randn(2, 3, size, size))
            assert [level.shape[1] for level in maps] == [*backbone.out_channels]
            assert [level.shape[-1] for level in maps] == [size // stride for stride in backbone.strides]

    def test_other_sizes_are_an_error_with_the_size_and_the_divisor(self) -> None:
        backbone, name = create_backbone(self.architecture, SIZE), self.architecture.name
        for height, width in ((SIZE, SIZE + 32), (2 * SIZE, 2 * SIZE), (SIZE, SIZE - 1)):
            with pytest.raises(ValueError, match=f"{height}x{width} pixels: {name} takes .*64x64 .* only"):
                backbone(torch.zeros(1, 3, height, width))
        with pytest.raises(ValueError, match="64x96 pixels"):
            create_backbone(self.architecture, (64, 96))
        with pytest.raises(ValueError, match="80x80 pixels: both sides must be multiples of 32"):
            create_backbone(self.architecture, 80)

    def test_the_padded_side_is_the_next_that_fits(self) -> None:
        built = self.architecture.for_size(SIZE)
        assert built.padded(1) == built.padded(SIZE) == SIZE
        with pytest.raises(ValueError, match=f"image of 65 pixels: {built.name} .* of 64x64 pixels only"):
            built.padded(SIZE + 1)


class TestBeit(OneSize, ExpertsContract):
    architecture = BEIT
    lora = PROJECTIONS

    def test_layers_that_it_does_not_call_cannot_be_adapted(self) -> None:
        with pytest.raises(ValueError, match=r"does not call attn\.qkv as a layer"):
            self.build(lora=Lora())


class TestRelativePositions(OneSize, ExpertsContract):
    """Positions are in attention alone, computed by a small network without experts."""

    architecture = RELPOS
    lora = Lora(4, 6.0, ("attn.qkv", "attn.proj"))

    def test_the_network_of_positions_has_no_experts(self) -> None:
        experts = {name for name, _ in self.build().named_parameters() if ".experts." in name}
        assert experts and not any("rel_pos" in name for name in experts)


class TestHiera(OneSize, ExpertsContract):
    """Hierarchical."""

    architecture = derive("hiera_tiny_224", **HIERA)


class TestSam(ExpertsContract):
    """Any size, because its positions are resampled for every image."""

    architecture = derive("samvit_base_patch16", **NARROW, global_attn_indexes=(1, 3))


class TestHybrid(BackboneContract):
    """A ResNet before the blocks; maps of stride 32 alone."""

    architecture = derive("vit_tiny_r_s16_p8_224", **NARROW)

    def test_the_pyramid_upsamples_eight_times(self) -> None:
        assert [name for name, _ in self.build().pyramid.named_children()] == ["up8", "up4", "up2"]

    def test_activation_checkpointing_keeps_less_for_the_backward_pass(self) -> None:
        """Not of its ResNet, which outweighs such narrow blocks."""


class TestWindows:
    """Windows of images are of the size of the network; smaller images are padded."""

    def model(self, tta: Tta | None = None, **inference: object) -> SegmentationModel:
        torch.manual_seed(0)
        segmentor = build_segmentor(BEIT, {"a": 3}, SIZE, channels=8)
        return SegmentationModel(segmentor, {"a": Inference(**inference)}, tta=tta).eval()

    @pytest.mark.parametrize("mode", ["slide_window", "resize"])
    def test_images_of_any_size_are_predicted(self, mode: str) -> None:
        model = self.model(mode=mode, crop=SIZE, stride=48, tta=Tta(flip=True, scales=(1.0, 0.5)))
        for height, width in ((40, 150), (64, 64), (100, 33)):
            image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
            assert model.predict(image, "a").shape == (height, width)

    @torch.no_grad()
    def test_a_smaller_image_is_padded_with_the_mean_colour(self) -> None:
        segmentor = self.model(crop=SIZE, stride=48).segmentor
        images = torch.randn(1, 3, 40, 50)
        padded = torch.nn.functional.pad(images, (0, 14, 0, 24))
        assert torch.equal(segmentor(images), segmentor(padded)[..., :40, :50])

    @pytest.mark.parametrize(
        ("inference", "tta", "message"),
        [
            ({"mode": "original"}, None, "mode original .* set the mode to slide_window .* crop to 64"),
            ({"crop": 128, "stride": 96}, None, "crop 128: .* the crop to 64"),
            ({"crop": 32, "stride": 24}, None, "crop 32: .* the crop to 64"),
            ({"crop": 64, "stride": 48}, Tta(scales=(1.0, 1.5)), "no scale above 1, got 1.5"),
        ],
    )
    def test_others_are_refused_before_anything_runs(
        self, inference: dict[str, object], tta: Tta | None, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=f"built for images of 64x64 pixels .*{message}"):
            self.model(tta, **inference)


# -- all three trees: two steps with layer decay, a validation, and the weights once more

NAME = "timm:beit_base_patch16_224"
ON_CPU = ["--device", "cpu"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of BEiT-B, narrow and shallow."""
    monkeypatch.setattr("s5.backbones._of_timm", lambda name: BEIT)


def test_the_only_size_of_a_model_is_said_before_training(tmp_path: Path) -> None:
    root = s4p_runs.write_dataset(tmp_path / "data")
    args = s4p_runs.arguments(root, tmp_path / "run", "--backbone", "timm:efficientformer_l1")
    with pytest.raises(ConfigError, match="data.crop = 64: .* of 224x224 pixels only; set it to 224"):
        s4p_runs.script().main(args)


@pytest.mark.usefixtures("small")
class TestTrees:
    def test_pre_training_and_prediction(self, tmp_path: Path) -> None:
        root, run = s4p_runs.write_dataset(tmp_path / "data"), tmp_path / "run"
        changes = {
            "schedule.total_iters": 2,
            "schedule.val_interval": 2,
            "model.activation_checkpointing": True,
            "fixmatch.pseudo_labels": "ema",
            "optim.layer_decay": 0.7,
        }
        args = s4p_runs.arguments(root, run, "--backbone", NAME, **changes)
        assert s4p_runs.script().main(args) == 0
        assert len(s4p_runs.losses(run)) == 2
        weights = run / "timm_beit_base_patch16_224_s4p_upernet.pth"
        assert read_checkpoint(weights)["meta"]["img_size"] == SIZE
        predictor = s5.load(weights, device="cpu")
        side = predictor.model.network.backbone.architecture.side
        assert side == SIZE and make_plan(predictor, ExportOptions()).size == SIZE
        with pytest.raises(ConfigError, match="size 65: timm:beit.* takes images of up to 64 pixels only"):
            make_plan(predictor, ExportOptions(size=65))
        args = [str(weights), "--config", str(run / "config.yaml"), *ON_CPU]
        assert s4p_runs.script("evaluate").main([*args, "--work-dir", str(tmp_path / "scores")]) == 0

    def test_a_size_that_it_cannot_take_is_said_before_training(self, tmp_path: Path) -> None:
        root = s4p_runs.write_dataset(tmp_path / "data")
        for crop, val, message in ((80, 64, "data.crop = 80: .* set it to 96"), (64, 96, "crop 96: set the")):
            changes = {"data.crop": crop, "data.val.crop": val}
            with pytest.raises(ConfigError, match=message):
                s4p_runs.script().main(
                    s4p_runs.arguments(root, tmp_path / "run", "--backbone", NAME, **changes)
                )

    @pytest.mark.parametrize(
        ("backbone", "changes"),
        [
            (f"{NAME}_moe", {"model.expert_channels": 8}),
            (NAME, {"model.finetune": "lora", "model.lora.targets": ["attn.proj"], "model.lora.rank": 4}),
            (NAME, {"model.finetune": "frozen"}),
        ],
        ids=["experts", "lora", "frozen"],
    )
    def test_fine_tuning(self, backbone: str, changes: dict[str, object], tmp_path: Path) -> None:
        root, run = mdf_runs.write_datasets(tmp_path / "data"), tmp_path / "run"
        crops = {f"tasks.{task}.evaluation.crop": SIZE for task in mdf_runs.TASKS}
        length = {"schedule.epochs": 1, "schedule.val_interval": 1, "schedule.steps_per_epoch": 2}
        own = {"optim.layer_decay": 0.7, "crop": SIZE, **crops, **length, **changes}
        pre_trained = tmp_path / "beit.pth"
        torch.save(create_backbone(BEIT, 2 * SIZE).state_dict(), pre_trained)
        args = mdf_runs.arguments(root, run, "--init", str(pre_trained), backbone=backbone, **own)
        assert mdf_runs.script().main(args) == 0
        assert len(mdf_runs.losses(run)) == 2
        (weights,) = run.glob("*_mdf.pth")
        args = [str(weights), *ON_CPU, "--work-dir", str(tmp_path / "scores")]
        assert mdf_runs.script("evaluate").main(args) == 0

    def test_detection(self, tmp_path: Path) -> None:
        config, run = det_runs.write_config(det_runs.write_datasets(tmp_path)), tmp_path / "run"
        short = [*det_runs.SHORT, "model.expert_channels=8"]
        options = [*ON_CPU, "--cfg-options", f"backbone={NAME}_moe", *short, "optim.layer_decay=0.7"]
        assert det_runs.script().main([str(config), *options, "--work-dir", str(run)]) == 0
        assert len(det_runs.losses(run)) == 2
        weights = run / "timm_beit_base_patch16_224_moe_det.pth"
        args = [str(config), str(weights), *options, "--work-dir", str(tmp_path / "scores")]
        assert det_runs.script("test").main(args) == 0
        assert s5.load(weights, device="cpu").model.network.backbone.architecture.side == det_runs.SIZE
