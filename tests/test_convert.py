"""`python -m s5.convert`: input files, output files and messages."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import s5
from s5 import convert as command
from s5.checkpoints.layouts import LAYOUTS, convert
from s5.checkpoints.reading import read_checkpoint
from s5.detection.predict import DetectionPredictor
from s5.detection.trained import DetectionSpec
from s5.segmentation.segmentor import build_segmentor
from s5.segmentation.trained import SegmentationSpec
from tests.detection.predict import det_models
from tests.helpers.trained_models import table, write_checkpoint


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model with experts, as training writes it."""
    path = tmp_path_factory.mktemp("convert") / "vit_t_moe_mdf.pth"
    tables = {"roads": table("roads", ["a", "b"]), "roofs": table("roofs", ["a", "b", "c"])}
    write_checkpoint(path, tables)
    return path


def backbone(*tasks: str, expert_channels: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a lone backbone."""
    classes = dict.fromkeys(tasks, 2)
    model = build_segmentor("vit_t", classes, 64, channels=8, expert_channels=expert_channels)
    return model.backbone.state_dict()


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def test_to_published_and_back(own, tmp_path, capsys):
    assert run(own, tmp_path / "published.pth", "--to", "published") == 0
    out = capsys.readouterr().out
    assert f"{own}: S5, " in out and "experts for roads, roofs, heads of roads, roofs" in out
    assert "published.pth: published S5, " in out
    assert "left out: the metadata" in out
    content = read_checkpoint(tmp_path / "published.pth")
    assert list(content) == ["model"]
    assert run(tmp_path / "published.pth", tmp_path / "back.pth", "--to", "s5") == 0
    assert "metadata: none: commands need --config" in capsys.readouterr().out
    state, back = read_checkpoint(own)["state_dict"], read_checkpoint(tmp_path / "back.pth")["state_dict"]
    assert state.keys() == back.keys()
    assert all(torch.equal(value, back[key]) for key, value in state.items())


def test_metadata_of_own_files_is_kept(own, tmp_path, capsys):
    assert run(own, tmp_path / "copy.pth", "--to", "s5") == 0
    assert "metadata: kept (backbone, decoder_channels, " in capsys.readouterr().out
    assert read_checkpoint(tmp_path / "copy.pth")["meta"] == read_checkpoint(own)["meta"]


def test_to_timm_names_what_is_left_out_and_how_to_load_it(tmp_path, capsys):
    torch.save({"state_dict": backbone("a")}, tmp_path / "vit_t_s4p.pth")
    assert run(tmp_path / "vit_t_s4p", tmp_path / "timm.pth", "--to", "timm") == 0  # `.pth` may be left out
    out = capsys.readouterr().out
    assert "left out: 9 tensors (cls_token, pyramid.up4.0.weight" in out
    assert "class_token=False" in out
    state = torch.load(tmp_path / "timm.pth", weights_only=True)
    assert convert(state).layout == "MAE or timm" and "blocks.3.mlp.fc2.bias" in state


def test_an_existing_file_is_only_replaced_when_asked(own, tmp_path, capsys):
    target = tmp_path / "there.pth"
    target.write_bytes(b"precious")
    assert run(own, target, "--to", "published") == 1
    assert "there.pth exists: add --overwrite" in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert run(own, target, "--to", "published", "--overwrite") == 0
    assert read_checkpoint(target)
    assert run(own, own, "--to", "published", "--overwrite") == 1
    assert "is the file to convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        (
            "x.onnx",
            "s5",
            r"x.onnx: choose a name that ends in .pth, .pt, .bin, .ckpt (written with torch.save)",
        ),
        ("x.pth", "keras", "unknown layout 'keras'; available: s5, published"),
        ("x.pth", "huggingface", "Hugging Face ViT cannot be written: its networks always attend to a class"),
        (
            "x.pth",
            "timm",
            "vit_t_moe_mdf.pth: MAE or timm has no experts, but the backbone has some for roads",
        ),
    ],
)
def test_what_cannot_be_written_is_an_error_and_leaves_no_file(own, tmp_path, capsys, name, to, message):
    assert run(own, tmp_path / name, "--to", to) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- safetensors with a model card


@pytest.fixture
def run_folder(own: Path, tmp_path: Path) -> Path:
    """A work folder with weights that know their scores, and the configuration."""
    folder = tmp_path / "run"
    folder.mkdir()
    content = torch.load(own, weights_only=False)
    content["meta"] |= {"iteration": 7, "roads/mIoU": 51.25, "roofs/mIoU": 40.5}
    torch.save(content, folder / "best.pth")
    (folder / "config.yaml").write_text("data_root: /home/me/data\ntasks: {roads: /data/roads/train.txt}\n")
    return folder


def front_matter(card: Path) -> dict:
    return yaml.safe_load(card.read_text().split("---")[1])


def test_safetensors_keep_the_metadata_and_load(run_folder, tmp_path, capsys):
    target = tmp_path / "hub" / "roads.safetensors"
    assert run(run_folder / "best.pth", target, "--to", "s5", "--license", "cc-by-4.0") == 0
    assert f"{target.with_name('README.md')}: model card" in capsys.readouterr().out
    source, back = read_checkpoint(run_folder / "best.pth"), read_checkpoint(target)
    assert source["state_dict"].keys() == back["state_dict"].keys()
    assert all(torch.equal(value, back["state_dict"][key]) for key, value in source["state_dict"].items())
    assert SegmentationSpec.from_meta(back["meta"]) == SegmentationSpec.from_meta(source["meta"])
    image = np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)
    first, second = (
        s5.load(path, "cpu").predict(image, task="roofs") for path in (run_folder / "best.pth", target)
    )
    assert np.array_equal(first.mask, second.mask)


def test_a_detector_keeps_its_settings_in_safetensors(tmp_path):
    det_models.write_detector(tmp_path / "det.pth", {"a": ("ship", "plane")})
    target = tmp_path / "hub" / "det.safetensors"
    assert run(tmp_path / "det.pth", target, "--to", "s5") == 0
    first, second = (
        DetectionSpec.from_meta(read_checkpoint(path)["meta"]) for path in (tmp_path / "det.pth", target)
    )
    assert first == second and isinstance(s5.load(target, "cpu"), DetectionPredictor)
    assert front_matter(target.with_name("README.md"))["pipeline_tag"] == "object-detection"
    assert "a: ship, plane." in target.with_name("README.md").read_text()


def test_the_model_card_says_what_is_known(run_folder, tmp_path):
    target = tmp_path / "hub" / "roads.safetensors"
    assert run(run_folder / "best.pth", target, "--to", "s5", "--license", "cc-by-4.0") == 0
    card, text = front_matter(target.with_name("README.md")), target.with_name("README.md").read_text()
    assert card["license"] == "cc-by-4.0" and card["pipeline_tag"] == "image-segmentation"
    assert {"remote-sensing", "vit_t_moe", "roads", "roofs"} <= set(card["tags"])
    (model,) = card["model-index"]
    scores = {entry["dataset"]["name"]: entry["metrics"][0]["value"] for entry in model["results"]}
    assert scores == {"roads": 51.25, "roofs": 40.5}
    assert hashlib.sha256(target.read_bytes()).hexdigest() in text
    assert "| 1 | b | 58, 89, 166 |" in text and "| roads/mIoU | 51.25 |" in text
    assert 's5.load("roads.safetensors")' in text
    assert "data_root: data\ntasks: {roads: train.txt}" in text and "/home/me" not in text


def test_scores_of_another_iteration_are_not_those_of_the_weights(run_folder, tmp_path):
    content = torch.load(run_folder / "best.pth", weights_only=False)
    content["meta"] = {key: value for key, value in content["meta"].items() if "/" not in key}
    torch.save(content, run_folder / "last.pth")
    for iteration, found in ((7, True), (8, False)):
        (run_folder / "final_metrics.json").write_text(
            json.dumps({"iteration": iteration, "roads/mIoU": 33.0})
        )
        target = tmp_path / str(iteration) / "last.safetensors"
        assert run(run_folder / "last.pth", target, "--to", "s5") == 0
        assert ("model-index" in front_matter(target.with_name("README.md"))) is found


def test_the_card_of_a_backbone_in_another_layout_says_how_to_use_it(tmp_path):
    torch.save({"state_dict": backbone("a")}, tmp_path / "vit_t_s4p.pth")
    target = tmp_path / "hub" / "vit_t.safetensors"
    assert run(tmp_path / "vit_t_s4p.pth", target, "--to", "timm") == 0
    card, text = front_matter(target.with_name("README.md")), target.with_name("README.md").read_text()
    assert card["license"] == "unknown" and card["pipeline_tag"] == "image-feature-extraction"
    assert "pretrained_cfg_overlay=dict(file='vit_t.safetensors'), features_only=True" in text
    assert "Set `license`" in text and convert(read_checkpoint(target)).layout == "MAE or timm"


def test_a_readme_is_only_replaced_if_it_is_a_card_and_when_asked(own, tmp_path, capsys):
    target, readme = tmp_path / "a.safetensors", tmp_path / "README.md"
    readme.write_text("mine")
    assert run(own, target, "--to", "s5", "--overwrite") == 1
    assert (
        "README.md exists, where the model card would be written: it is no model card"
        in capsys.readouterr().err
    )
    assert readme.read_text() == "mine" and not target.exists()
    readme.unlink()
    assert run(own, target, "--to", "s5") == 0
    assert run(own, tmp_path / "b.safetensors", "--to", "s5") == 1
    assert (
        "README.md exists, where the model card would be written: add --overwrite" in capsys.readouterr().err
    )
    assert run(own, tmp_path / "b.safetensors", "--to", "s5", "--overwrite") == 0
    assert readme.read_text().count("b.safetensors")


def test_an_incomplete_file_is_an_error(tmp_path, capsys):
    state = backbone("a")
    del state["blocks.2.norm2.weight"]
    torch.save(state, tmp_path / "half.pth")
    assert run(tmp_path / "half.pth", tmp_path / "x.pth", "--to", "published") == 1
    assert "half.pth: the weights are incomplete: blocks.2.norm2.weight is missing" in capsys.readouterr().err


def test_numbered_experts_get_the_names_given(tmp_path, capsys):
    moe = backbone("roads", "roofs", expert_channels=8)
    torch.save(moe, tmp_path / "own.pth")
    assert run(tmp_path / "own.pth", tmp_path / "published.pth", "--to", "published") == 0
    assert "reading the file needs --tasks roads,roofs" in capsys.readouterr().out
    assert run(tmp_path / "published.pth", tmp_path / "x.pth", "--to", "s5") == 1
    assert "2 experts without names" in capsys.readouterr().err
    assert run(tmp_path / "published.pth", tmp_path / "x.pth", "--to", "s5", "--tasks", "roads,roofs") == 0
    state = read_checkpoint(tmp_path / "x.pth")["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in moe.items())


def test_names_for_experts_that_have_names_are_an_error(own, tmp_path, capsys):
    assert run(own, tmp_path / "x.pth", "--to", "s5", "--tasks", "roads,ships") == 1
    assert "--tasks roads,ships: the checkpoint has experts for roads, roofs; omit" in capsys.readouterr().err


def test_the_layouts_are_listed(capsys):
    assert run("--list") == 0
    out = capsys.readouterr().out
    assert all(layout.key in out and layout.example in out for layout in LAYOUTS)
    assert "read only: it has no biases of keys" in out


def test_source_target_and_layout_are_needed(capsys):
    with pytest.raises(SystemExit):
        run("a.pth")
    assert "give SRC, DST and --to LAYOUT, or --list" in capsys.readouterr().err
