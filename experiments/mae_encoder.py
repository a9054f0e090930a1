"""Pre-train a ViT on unlabeled images as a masked autoencoder (MAE), to start S4P from.

    python -m experiments.mae_encoder --data work_dirs/generated_scenes/scenes_0 --out work_dirs/mae.pth
    python -m experiments.generated_scenes --init work_dirs/mae.pth

Masked autoencoders (He et al. 2022, arXiv 2111.06377): the encoder sees a quarter of the patches, a small
decoder predicts the normalised pixels of the others. Images are scaled, cropped, flipped and rotated like
S4P's weak views. Writes the encoder's weights in timm's layout, which `--init` loads. Runs cannot be resumed.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from experiments.training_runs import REPO
from s5 import launch
from s5.backbones import get_architecture
from s5.backbones.normalization import IMAGENET
from s5.backbones.vit import VARIANTS, Block, Variant, ViT
from s5.checkpoints.reading import save_atomic
from s5.command import run_command
from s5.data.augmentation import StrongAugmentation
from s5.data.loaders import build_loader, build_sampler, resolve_split, stop_workers
from s5.data.sources import UnlabeledImages, WeakAugmentation
from s5.errors import UserError
from s5.ops.photometric import to_unit
from s5.segmentation.s4p_config import S4PConfig
from s5.training.config import load_config

CONFIG = REPO / "experiments/configs/generated_scenes.yaml"
MASKED = 0.75  # share of the patches
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 128, 4, 4
BETAS, WEIGHT_DECAY, WARMUP = (0.9, 0.95), 0.05, 0.05  # warm-up as a share of the iterations


class MaskedAutoencoder(nn.Module):
    """A ViT encoder, and a small transformer that reconstructs the masked patches.

    Args:
        encoder: The ViT to pre-train, with a positional embedding for the size of the images.
        masked: Share of masked patches.
    """

    def __init__(self, encoder: ViT, masked: float = MASKED) -> None:
        super().__init__()
        width, self.patch = encoder.variant.width, encoder.variant.patch
        self.encoder = encoder
        self.encoder.pos_embed.requires_grad_(False)  # sines and cosines
        self.norm = nn.LayerNorm(width)
        self.embed = nn.Linear(width, DECODER_WIDTH)
        self.mask_token = nn.Parameter(torch.zeros(DECODER_WIDTH))
        self.positions: Tensor
        positions = build_sincos2d_pos_embed(list(encoder.grid), DECODER_WIDTH, interleave_sin_cos=False)
        self.register_buffer("positions", positions)
        variant = Variant("decoder", DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS, (0, 1, 2, 3))
        blocks = (Block(variant, drop_path=0.0, norm_eps=1e-6) for _ in range(DECODER_DEPTH))
        self.decoder = nn.Sequential(
            *blocks, nn.LayerNorm(DECODER_WIDTH), nn.Linear(DECODER_WIDTH, 3 * self.patch**2)
        )
        self.seen = round(encoder.grid[0] * encoder.grid[1] * (1 - masked))

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Mean squared error of the normalised pixels in the masked patches.

        Args:
            images: (B, 3, H, W), normalised.
            order: (B, N) random order of the patches of each image; the encoder sees the first ones.
        """
        tokens = self.encoder.patch_embed(images) + self.encoder.pos_embed
        tokens = _take(tokens, order[:, : self.seen])
        for block in self.encoder.blocks:
            tokens = block(tokens)
        tokens = self.embed(self.norm(tokens))
        hidden = self.mask_token.to(tokens.dtype).expand(len(order), order.shape[1] - self.seen, -1)
        tokens = _take(torch.cat([tokens, hidden], 1), order.argsort(1))
        found = self.decoder(tokens + self.positions).float()

        pixels = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)  # (B, N, 3 * patch²)
        deviation, mean = torch.std_mean(pixels, -1, keepdim=True)
        error = ((found - (pixels - mean) / (deviation + 1e-6)) ** 2).mean(-1)
        return error.gather(1, order[:, self.seen :]).mean()


def _take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, M, C) at `index` (B, M) of tokens (B, N, C)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def encoder_weights(model: MaskedAutoencoder) -> dict[str, dict[str, Tensor]]:
    """The encoder in the layout of MAE and timm, with an unused slot for the class token."""
    weights = {k: v.cpu() for k, v in model.encoder.state_dict().items() if not k.startswith("pyramid.")}
    weights["pos_embed"] = F.pad(weights["pos_embed"], (0, 0, 1, 0))
    return {"model": weights}


def train(args: argparse.Namespace, cfg: S4PConfig) -> MaskedAutoencoder:
    """Train on the unlabeled images of a configuration."""
    processes, data = launch.start(args.device), cfg.data
    device = processes.device
    torch.manual_seed(cfg.seed)
    encoder = get_architecture(args.backbone).build(data.crop, drop_path=0.0)
    model = MaskedAutoencoder(cast(ViT, encoder)).to(device)
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, args.lr, BETAS, fused=True)
    warmup = max(round(WARMUP * args.iters), 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / args.iters)) / 2)
    )

    weak = WeakAugmentation(data.crop, data.scale, data.flip, data.rotate)
    split = resolve_split(cfg.data_root, data.unlabeled.split)
    source = UnlabeledImages(split, weak, StrongAugmentation())
    sampler = build_sampler([source], [args.batch_size], cfg.seed, processes)
    loader = build_loader([source], sampler, _collate, {}, processes, args.workers)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in IMAGENET)
    patches = encoder.grid[0] * encoder.grid[1]
    total, every = torch.zeros((), device=device), max(args.iters // 20, 1)
    for step, (crops, unreadable) in zip(range(1, args.iters + 1), loader, strict=False):
        for name, reason in unreadable:
            print(f"skipped {name}: {reason}", file=sys.stderr)
        images = (to_unit(crops.to(device, non_blocking=True)) - mean) / std
        order = torch.rand(len(images), patches, device=device).argsort(1)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(images, order)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.detach()
        if step % every == 0:
            average = total.item() / every
            print(f"{step}/{args.iters}  loss {average:.4f}", flush=True)
            if not math.isfinite(average):
                raise UserError(f"the loss is {average} at step {step}; try a lower --lr than {args.lr}")
            total.zero_()
    stop_workers(loader)
    return model


def _collate(samples: list[dict[str, Any]]) -> tuple[Tensor, list[tuple[str, str]]]:
    """Crops (B, 3, S, S) uint8, and names of unreadable images, which others replaced, with the reasons."""
    crops = torch.from_numpy(np.stack([sample["image"] for sample in samples])).permute(0, 3, 1, 2)
    return crops, [skipped for sample in samples for skipped in sample["skipped"]]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="the unlabeled images and their crops")
    parser.add_argument("--data", type=Path, required=True, help="data_root of the configuration")
    parser.add_argument("--out", type=Path, required=True, help="file of the encoder")
    parser.add_argument("--backbone", choices=VARIANTS, default="vit_t")
    parser.add_argument("--iters", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train and write the encoder."""
    args = parse_args(argv)
    options = [f"data_root={args.data.resolve()}", *args.cfg_options]
    cfg = load_config(S4PConfig, args.config, options, backbone=args.backbone)
    save_atomic(encoder_weights(train(args, cfg)), args.out)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
