"""The plain S4P step: the computation of S5's step, implemented like the published code.

Attention by `nn.MultiheadAttention`, which is not fused as it returns its weights; the weak pass in float32
outside autocast over the unlabeled images and over their CutMix partners (which come from a second pass over
the loader); an unfused optimizer.
"""

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from s5.compat.precision import autocast
from s5.ops.cutmix import cutmix
from s5.ops.losses import pixel_cross_entropy, pseudo_label_loss
from s5.segmentation.segmentor import Segmentor

CONF_THRESH = 0.95


class PlainStep:
    """One optimizer step on normalised float images that the loader has already augmented."""

    def __init__(self, segmentor: Segmentor, dtype: torch.dtype | None) -> None:
        """Take a segmentor of unfused attention and the autocast type of the pass with gradient."""
        self.segmentor, self.dtype = segmentor, dtype
        parameters = [p for p in segmentor.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=5e-5, weight_decay=0.01)
        self.device = next(segmentor.parameters()).device

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """Train on `labeled`, `labels`, `weak`, `strong`, their `*_mix` partners and `boxes`."""
        own, other = self.predict(batch["weak"]), self.predict(batch["weak_mix"])
        boxes = batch["boxes"]
        strong = paste(batch["strong"], batch["strong_mix"], boxes)
        conf, pseudo = (paste(x, mix, boxes) for x, mix in zip(own, other, strict=True))
        self.segmentor.train()
        with autocast(self.device, self.dtype):
            logits = self.segmentor(torch.cat([batch["labeled"], strong]))
        logits_s, logits_u = logits.tensor_split([len(batch["labels"])])
        valid = torch.ones_like(pseudo, dtype=torch.bool)
        loss_u = pseudo_label_loss(logits_u, pseudo, conf >= CONF_THRESH, valid)
        loss = (pixel_cross_entropy(logits_s, batch["labels"]) + loss_u) / 2
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence and pseudo-label (B, H, W), in float32."""
        self.segmentor.eval()
        conf, pseudo = self.segmentor(images).softmax(1).max(1)
        return conf, pseudo


def paste(x: Tensor, mix: Tensor, boxes: Tensor) -> Tensor:
    """CutMix with partners from a second batch."""
    partner = torch.arange(len(x), 2 * len(x), device=x.device)
    return cutmix(torch.cat([x, mix]), boxes.repeat(2, 1), torch.cat([partner, partner - len(x)]))[: len(x)]


class PlainAttention(nn.Module):
    """Self-attention of `nn.MultiheadAttention` in its default mode, which stores the attention weights."""

    def __init__(self, width: int, heads: int) -> None:
        """Build the layer."""
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, N, C)."""
        return self.attn(tokens, tokens, tokens)[0]


def use_plain_attention(segmentor: Segmentor) -> None:
    """Replace the fused attention of all blocks."""
    for block in [*segmentor.backbone.modules()]:
        if isinstance(attention := getattr(block, "attn", None), Attention):
            block.attn = PlainAttention(attention.qkv.in_features, attention.num_heads)
