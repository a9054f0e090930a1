"""The masked autoencoder: what its loss depends on, and an encoder that S4P starts from."""

from pathlib import Path
from typing import cast

import pytest
import torch

from experiments import mae_encoder as experiment
from s5.backbones import get_architecture
from s5.backbones.vit import ViT
from s5.checkpoints.loading import load_weights
from s5.errors import UserError
from s5.segmentation.segmentor import build_segmentor
from scenes.dataset import Request, write_dataset


def test_predictions_do_not_depend_on_what_they_are_compared_with() -> None:
    """Other pixels in two masked patches change the errors of these two alone, so the changes add up."""
    model = experiment.MaskedAutoencoder(cast(ViT, get_architecture("vit_t").build(64, drop_path=0.0)))
    order = torch.randperm(16).repeat(2, 1)
    assert (model.seen, order.shape[1]) == (4, 16)
    images, noise = torch.rand(2, 2, 3, 64, 64)

    def change(*patches: int) -> float:
        changed = images.clone()
        for patch in patches:
            row, column = divmod(patch, 4)
            place = (..., slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
            changed[place] = noise[place]
        with torch.no_grad():
            return (model(changed, order) - model(images, order)).item()

    seen, *_, one, other = order[0].tolist()
    assert change(one) != 0 and change(other) != 0
    assert change(one, other) == pytest.approx(change(one) + change(other), abs=1e-6)
    assert change(seen, one) != pytest.approx(change(seen) + change(one), abs=1e-6)


def test_a_segmentor_starts_from_the_encoder_of_a_short_run(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_dataset(tmp_path, Request(labeled=1, unlabeled=8, val=1, size=128, seed=3), workers=1)
    damaged = next((tmp_path / "unlabeled").rglob("*.jpg"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    arguments = (
        f"--data {tmp_path} --out {tmp_path}/mae.pth --iters 20 --batch-size 4 --workers 0 --device cpu"
    )
    assert experiment.main(arguments.split()) == 0
    printed = capsys.readouterr()
    losses = [float(line.split()[-1]) for line in printed.out.splitlines() if "loss" in line]
    assert len(losses) == 20 and sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert f"skipped {damaged.relative_to(tmp_path)}: " in printed.err

    segmentor = build_segmentor("vit_t", {"land": 2}, 128)
    report = load_weights(segmentor, tmp_path / "mae.pth")
    assert report.backbone_share == 1 and not report.unexpected


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    write_dataset(tmp_path, Request(labeled=1, unlabeled=4, val=1, size=128, seed=3), workers=1)
    arguments = (
        f"--data {tmp_path} --out {tmp_path}/mae.pth --iters 9 --batch-size 2 --workers 0 --device cpu"
    )
    with pytest.raises(UserError, match=r"the loss is nan at step \d; try a lower --lr than 1e\+30"):
        experiment.main([*arguments.split(), "--lr", "1e30"])
    assert not (tmp_path / "mae.pth").exists()
