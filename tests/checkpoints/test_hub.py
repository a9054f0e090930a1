"""Initial weights by names on the hub, without a network."""

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from s5.backbones import NORMALIZATIONS, create_backbone, get_architecture
from s5.checkpoints.hub import from_hub
from s5.checkpoints.initial import start_from
from s5.errors import CheckpointError
from s5.segmentation.segmentor import build_segmentor

MODEL = "vit_tiny_patch16_224.augreg_in21k"
VIT_T = get_architecture("vit_t")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository `someone/vit`."""

    def download(repo: str, file: str, revision: str | None = None) -> str:
        assert repo == "someone/vit"
        if not (tmp_path / file).is_file():
            raise huggingface_hub.errors.EntryNotFoundError(f"404: {file}")
        return str(tmp_path / file)

    def names(repo: str, revision: str | None = None) -> list[str]:
        assert repo == "someone/vit" and revision in (None, "v1.0")
        return sorted(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", names)
    (tmp_path / "README.md").touch()
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class ConnectError(Exception):
        """Of an HTTP client; no OSError."""

    def unreachable(*args: object, **options: object) -> None:
        raise ConnectError("Name or service not known")

    for name in ("hf_hub_download", "list_repo_files"):
        monkeypatch.setattr(huggingface_hub, name, unreachable)
    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", ["hf-hub:someone/vit", "hf-hub:someone/vit@v1.0"])
@pytest.mark.parametrize("file", ["model.safetensors", "vit_l.pth"])
def test_the_only_weights_of_a_repository_are_loaded(repository: Path, name: str, file: str) -> None:
    source, target = create_backbone("vit_t", 64), build_segmentor("vit_t", {"a": 2}, 64, channels=8)
    if file.endswith(".pth"):
        torch.save({"model": source.state_dict()}, repository / file)
    else:
        save_file(source.state_dict(), repository / file)
        (repository / "optimizer.pt").touch()  # the usual name comes first
    start_from(target, name)
    assert torch.equal(target.backbone.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)


def test_one_of_several_files_is_named(repository: Path) -> None:
    for name in ("vit_b.pth", "vit_l.pth"):
        (repository / name).touch()
    with pytest.raises(CheckpointError, match="name one, hf-hub:someone/vit/vit_b.pth .vit_b.pth, vit_l.pth"):
        from_hub("hf-hub:someone/vit", VIT_T)
    assert from_hub("hf-hub:someone/vit/vit_l.pth", VIT_T) == repository / "vit_l.pth"
    with pytest.raises(CheckpointError, match=r"404: x\.pth\).*huggingface.co/someone/vit/tree/v1\.0"):
        from_hub("hf-hub:someone/vit/x.pth@v1.0", VIT_T)


def test_a_repository_without_weights_is_an_error(repository: Path) -> None:
    with pytest.raises(
        CheckpointError, match="'hf-hub:someone/vit': the repository has no file with weights"
    ):
        from_hub("hf-hub:someone/vit", VIT_T)


@pytest.mark.parametrize("name", ["hf-hub:vit", "hf-hub:", "hf-hub:a/b c"])
def test_a_name_of_another_form_is_an_error(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"init '{name}': expected hf-hub:OWNER/NAME"):
        from_hub(name, VIT_T)


def test_without_a_network_the_page_and_the_way_out_are_named(no_network: None) -> None:
    page = r"https://huggingface.co/someone/vit/tree/main elsewhere, and give its path: --init PATH"
    with pytest.raises(CheckpointError, match=rf"cannot be downloaded \(Name or service.*{page}"):
        from_hub("hf-hub:someone/vit", VIT_T)
    page = f"https://huggingface.co/timm/{MODEL} elsewhere"
    with pytest.raises(CheckpointError, match=rf"'timm:{MODEL}': cannot be downloaded \(Name or.*{page}"):
        from_hub(f"timm:{MODEL}", VIT_T)


def test_an_earlier_download_serves_without_a_network(
    no_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file, **_: str(tmp_path / file))
    assert from_hub("hf-hub:someone/vit", VIT_T) == tmp_path / "model.safetensors"


def test_a_model_of_timm_by_name(real_vit_t: None, monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = timm.create_model, {}

    def offline(name: str, pretrained: bool, **options: object) -> torch.nn.Module:
        assert pretrained
        made[name] = create(name, pretrained=False, **options)
        return made[name]

    monkeypatch.setattr(timm, "create_model", offline)
    target = build_segmentor("vit_t", {"a": 2}, 64, channels=8)
    start_from(target, f"timm:{MODEL}")
    assert torch.equal(target.backbone.blocks[3].attn.qkv.weight, made[MODEL].blocks[3].attn.qkv.weight)
    with pytest.raises(CheckpointError, match="it looks like a ResNet"):
        start_from(target, "timm:resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tiny_patch16_223", r"no model 'vit_tiny_patch16_223'; did you mean 'vit_tiny_patch16_224'\?"),
        ("vit_tiny_patch16_224.mae", "no weights 'vit_tiny_patch16_224.mae': it has .*augreg_in21k"),
        ("test_vit_unknown", "no model"),
    ],
)
def test_an_unknown_model_of_timm_is_an_error_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_hub(f"timm:{name}", VIT_T)


def test_weights_of_another_architecture_are_said_to_be_that() -> None:
    """Without a network: the network is built before anything is downloaded."""
    with pytest.raises(CheckpointError, match="another architecture than swin_t.*timm:convnext_tiny"):
        from_hub("timm:convnext_tiny", get_architecture("swin_t"))


def test_repositories_of_timm_bring_their_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(create_backbone("vit_t", 64).state_dict(), tmp_path / "model.pth")
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["model.pth"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model.pth"))
    segmentor = build_segmentor("vit_t", {"a": 2}, 64, channels=8)
    start_from(segmentor, f"hf-hub:timm/{MODEL}")
    assert segmentor.backbone.normalization == NORMALIZATIONS["half"]
    start_from(segmentor, "hf-hub:someone/vit")
    assert segmentor.backbone.normalization == NORMALIZATIONS["half"], "no other is known"
