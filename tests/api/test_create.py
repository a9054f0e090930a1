"""New models."""

from pathlib import Path

import numpy as np
import pytest
import torch

import s5
from s5.detection.network import MultiTaskDetector
from s5.segmentation.segmentor import Segmentor


@pytest.mark.parametrize(
    ("backbone", "experts", "channels"),
    [("vit_t", None, 0), ("vit_t", 48, 48), ("vit_t_moe", 48, 48), ("vit_t_moe", 0, 0)],
)
def test_a_segmentor(backbone: str, experts: int | None, channels: int) -> None:
    tasks = {"roads": 2, "roofs": ["other", "flat", "steep"], "land": "loveda"}
    model = s5.create_model(backbone, tasks, experts=experts, img_size=32, decoder_channels=8).eval()
    assert isinstance(model, Segmentor) and model.backbone.expert_channels == channels
    with torch.inference_mode():
        logits = model.forward_all(torch.zeros(1, 3, 32, 48))
    assert {task: found.shape[1:] for task, found in logits.items()} == {
        "roads": (2, 32, 48),
        "roofs": (3, 32, 48),
        "land": (7, 32, 48),
    }


def test_a_detector() -> None:
    tasks = {"ships": ["ship"], "all": "dota_v2"}
    model = s5.create_model("vit_t", tasks, kind="detection", img_size=64, settings={"channels": 32})
    assert isinstance(model, MultiTaskDetector)
    assert [head.roi_head.bbox_head.num_classes for head in model.heads.values()] == [1, 18]


def test_what_is_created_can_be_saved_and_loaded(tmp_path: Path) -> None:
    tasks = {"roads": 2, "roofs": ["other", "roof"]}
    network = s5.create_model("vit_t", tasks, experts=48, img_size=32, decoder_channels=8).eval()
    torch.save(network.state_dict(), tmp_path / "model.pth")
    model = s5.load(tmp_path / "model", "cpu", "fp32", backbone="vit_t_moe", tasks=tasks)
    assert model.classes == {"roads": ("class_0", "class_1"), "roofs": ("other", "roof")}
    assert model.settings("roads")["crop"] == 32
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in model.model.network.state_dict().items())
    assert model.predict(np.zeros((32, 32, 3), np.uint8), "roofs").mask.shape == (32, 32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'.* vit_t, .*, vit_t_moe"),
        ({"kind": "boxes"}, "kind 'boxes': must be one of segmentation, detection"),
        ({"experts": 999}, "vit_t_moe has 192 channels"),
        ({"tasks": {}}, "tasks: at least one dataset is needed"),
        ({"tasks": {"keys": 2}}, "'keys' cannot name a task"),
        ({"tasks": {"a": "lakes"}}, "unknown label table 'lakes'; known: "),
        ({"settings": {"nms": 0.2}}, "settings are those of a detector"),
        ({"settings": {"nm": 0.2}, "kind": "detection"}, "setting 'nm': must be one of .*nms"),
        ({"settings": {"proposals": -1}, "kind": "detection"}, "settings: proposals: .*greater than 0"),
        ({"tasks": {"a": "lakes"}, "kind": "detection"}, "classes 'lakes': must be dior_r, dota_v1"),
    ],
)
def test_what_cannot_be_built(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        s5.create_model(**{"backbone": "vit_t", "tasks": {"a": 2}, **wrong})
