"""Exported segmentors: the same probabilities for every batch and image size."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import s5
from s5.backbones import ARCHITECTURES, Lora
from s5.backbones.timm_derived import derive
from s5.backbones.timm_models import TimmModel
from s5.checkpoints.loading import load_weights
from s5.errors import ConfigError
from s5.export import ExportOptions
from s5.export.plan import make_plan
from s5.export.run import make_graph, record
from s5.export.segmentor import AveragePool, averages, pad, take
from tests.export.conftest import TABLES, TOLERANCE, exported, require_onnx
from tests.export.deepness import Deepness
from tests.helpers.trained_models import table, write_checkpoint

SIZES = ((1, 64, 64), (2, 100, 150), (3, 50, 128), (1, 131, 77))  # images, height, width


def eager(checkpoint: Path, images: torch.Tensor, task: str) -> torch.Tensor:
    """Probabilities of the model as it is; the least side of a graph for any size is 64 px."""
    height, width = images.shape[-2:]
    model = s5.load(checkpoint, "cpu", "fp32").model
    padded = torch.nn.functional.pad(model._prepare(images), (0, max(0, 64 - width), 0, max(0, 64 - height)))
    with torch.no_grad():
        return model.segmentor.forward_all(padded, [task])[task].softmax(1)[..., :height, :width]


@pytest.mark.slow
class TestAnySize:
    """One task for images of any size."""

    @pytest.mark.parametrize("size", SIZES)
    def test_probabilities_are_those_of_the_model(
        self, segmentor: Path, any_size: Path, size: tuple[int, int, int]
    ) -> None:
        images = torch.rand(size[0], 3, *size[1:])
        (found,) = Deepness(any_size).session.run(None, {"image": images.numpy()})
        expected = eager(segmentor, images, "land").numpy()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < TOLERANCE
        assert np.allclose(found.sum(1), 1, atol=1e-5)

    def test_dimensions_have_names(self, any_size: Path) -> None:
        file = Deepness(any_size)
        assert file.input.shape == ["batch", 3, "height", "width"]
        assert [(out.name, out.shape) for out in file.outputs] == [("land", ["batch", 3, "height", "width"])]

    def test_torch_export_runs_without_this_package(
        self, segmentor: Path, any_size: Path, tmp_path: Path
    ) -> None:
        images = torch.rand(3, 3, 80, 90)
        torch.save(images, tmp_path / "images.pt")
        code = (
            "import sys, torch, json\n"
            "extra = {'metadata.json': ''}\n"
            f"program = torch.export.load({str(any_size.with_suffix('.pt2'))!r}, extra_files=extra)\n"
            "torch.save(program.module()(torch.load('images.pt'))[0], 'found.pt')\n"
            "assert json.loads(json.loads(extra['metadata.json'])['class_names'])['2'] == 'wood'\n"
            "assert not [name for name in sys.modules if name.split('.')[0] in ('s5', 'mmseg', 'timm')]\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={"OMP_NUM_THREADS": "1"})
        found = torch.load(tmp_path / "found.pt")
        assert torch.allclose(found, eager(segmentor, images, "land"), atol=TOLERANCE)


@pytest.fixture(scope="module")
def adapted(segmentor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segmentor with LoRA adapters that change its predictions."""
    path = tmp_path_factory.mktemp("adapted") / "lora.pth"
    spec = s5.load(segmentor, "cpu", "fp32").spec
    network = spec.build_network(Lora(rank=2))
    load_weights(network, segmentor)
    for name, factor in network.named_parameters():
        if ".lora." in name:
            nn.init.normal_(factor, std=0.03)  # larger ones multiply rounding errors beyond the tolerance
    torch.save({"state_dict": network.state_dict(), "meta": spec.meta()}, path)
    return path


@pytest.mark.slow
def test_adapters_of_lora_are_part_of_the_graph(segmentor: Path, adapted: Path) -> None:
    images = torch.rand(3, 3, 64, 64)
    plan = make_plan(s5.load(adapted, "cpu", "fp32"), ExportOptions(task="all", size=64))
    recorded = record(make_graph(plan, adapted), plan).module()
    for task, found in zip(TABLES, recorded(images), strict=True):
        assert torch.allclose(found, eager(adapted, images, task), atol=TOLERANCE)
        assert (found - eager(segmentor, images, task)).abs().max() > 1e-3


@torch.no_grad()
def test_adapters_of_one_task_are_merged_into_its_layers(segmentor: Path, adapted: Path) -> None:
    """So that what is recorded is a network without adapters."""
    merged, plain = (
        make_graph(make_plan(s5.load(path, "cpu", "fp32"), ExportOptions(task="roads")), path)
        for path in (adapted, segmentor)
    )
    assert merged.state_dict().keys() == plain.state_dict().keys()
    images = torch.rand(3, 3, 70, 90)
    (found,) = merged(images)
    assert torch.allclose(found, eager(adapted, images, "roads"), atol=TOLERANCE)
    assert (found - eager(segmentor, images, "roads")).abs().max() > 1e-3


@pytest.mark.slow
class TestQgis:
    """Both tasks with a fixed size, as Deepness opens them."""

    def test_no_field_is_left_to_the_user(self, tiles: Path) -> None:
        file = Deepness(tiles)
        assert (file.tile, file.batch) == (32, None)
        assert file.read("model_type").capitalize() == "Segmentor"
        assert file.class_names() == [["other", "main road"], ["water", "field", "wood"]]
        assert (file.read("tile_size"), file.read("tiles_overlap")) == (32, 25)  # windows of 32, stride 24
        assert file.read("resolution") == 30
        assert file.read("seg_thresh") == file.read("seg_small_segment") == 0
        assert [(out.name, out.shape) for out in file.outputs] == [
            ("roads", ["batch", 2, 32, 32]),
            ("land", ["batch", 3, 32, 32]),
        ]

    def test_masks_are_those_of_the_model(self, segmentor: Path, tiles: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 4), np.uint8)
        model = s5.load(segmentor, "cpu", "fp32")
        for task, masks in zip(("roads", "land"), Deepness(tiles).masks(images), strict=True):
            for image, mask in zip(images, masks, strict=True):
                expected = model.predict(np.ascontiguousarray(image[..., :3]), task).mask
                assert np.mean(mask == expected) > 0.999  # two classes may be equally probable

    def test_old_runtimes_can_read_it(self, tiles: Path) -> None:
        import onnx

        model = onnx.load(tiles)
        assert model.ir_version <= 9 and [one.version for one in model.opset_import] == [18]


@pytest.mark.slow
def test_a_hierarchical_backbone_with_a_fixed_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_onnx()
    small = TimmModel(
        "swin_tiny",
        "swin_tiny_patch4_window7_224",
        stem="patch_embed.proj.weight",
        options={
            "strict_img_size": False,
            "always_partition": True,
            "embed_dim": 24,
            "depths": (1, 1, 2, 1),
            "num_heads": (1, 2, 4, 8),
        },
    )
    monkeypatch.setitem(ARCHITECTURES, "swin_tiny", small)
    write_checkpoint(tmp_path / "model.pth", {"roads": table("roads", ["a", "b"])}, backbone="swin_tiny")
    with pytest.raises(
        ValueError, match="swin_tiny can only be exported for a fixed image size: .* --size 32"
    ):
        exported(tmp_path / "model.pth", tmp_path / "out.onnx")
    images = torch.rand(3, 3, 60, 60)
    (found,) = Deepness(exported(tmp_path / "model.pth", tmp_path / "out.onnx", size=60)).session.run(
        None, {"image": images.numpy()}
    )
    assert np.abs(found - eager(tmp_path / "model.pth", images, "roads").numpy()).max() < TOLERANCE


@pytest.mark.slow
def test_a_backbone_for_images_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is exported for that size, or for smaller images, which the graph pads."""
    narrow = {"embed_dim": 32, "depth": 4, "num_heads": 4}
    monkeypatch.setitem(ARCHITECTURES, "beit_t", derive("beit_base_patch16_224", **narrow))
    write_checkpoint(tmp_path / "beit.pth", {"roads": table("roads", ["a", "b"])}, backbone="beit_t", size=64)
    for side, options in ((50, {"size": 50}), (64, {}), (64, {"qgis": True})):
        images = torch.rand(2, 3, side, side)
        plan = make_plan(s5.load(tmp_path / "beit.pth", "cpu", "fp32"), ExportOptions(**options))
        graph = make_graph(plan, tmp_path / "beit.pth")
        if side == 50:  # recording takes seconds, and is the same for all
            graph = record(graph, plan).module()
        (found,) = graph(images)
        assert torch.allclose(found, eager(tmp_path / "beit.pth", images, "roads"), atol=TOLERANCE)
    with pytest.raises(ConfigError, match="size 65: beit_t takes images of up to 64 pixels only"):
        exported(tmp_path / "beit.pth", tmp_path / "large.onnx", size=65)


class TestOperators:
    """Operators whose recorded form takes any size."""

    @pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 6), (7, 13), (32, 17)])
    @pytest.mark.parametrize("bins", [1, 2, 3, 6])
    def test_average_pool(self, size: tuple[int, int], bins: int) -> None:
        maps = torch.randn(2, 3, *size)
        expected = nn.AdaptiveAvgPool2d(bins)(maps)
        assert torch.allclose(AveragePool((bins, bins))(maps), expected, atol=1e-6)
        assert torch.allclose(averages(bins, size[1], maps).sum(1), torch.ones(bins))

    def test_pad_and_take(self) -> None:
        images = torch.randn(2, 3, 5, 7)
        padded = pad(images, (8, 7))
        assert torch.equal(padded, nn.functional.pad(images, (0, 0, 0, 3)))
        assert torch.equal(take(padded, 2, 5, 8), images)
