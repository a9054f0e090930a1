"""Initial weights by name: `none`, `mae`, `timm` or the path of a checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from s5.backbones import StateDict, get_architecture
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError

logger = logging.getLogger(__name__)

WHERE_TO_GET = (
    "MAE weights pre-trained on MillionAID are published with RVSA (ViT-B: "
    "github.com/ViTAE-Transformer/Remote-Sensing-RVSA), MTP (ViT-L: github.com/ViTAE-Transformer/MTP) and S5 "
    "(github.com/MiliLab/S5); ViT-B and L pre-trained on ImageNet (github.com/facebookresearch/mae) work "
    "as well"
)


def initialise(
    segmentor: nn.Module,
    backbone: str,
    init: str,
    init_paths: Mapping[str, Mapping[str, Path]],
    base: Path,
    bands: Sequence[int] | None = None,
) -> None:
    """Load the initial weights into `segmentor`.

    Args:
        segmentor: The network, randomly initialised.
        backbone: Name of its backbone, such as `vit_b`.
        init: `none`, `timm`, a key of `init_paths` such as `mae`, or the path of a checkpoint.
        init_paths: Paths by key and backbone.
        base: Base folder of relative paths in `init_paths`.
        bands: See :func:`s5.checkpoints.loading.load_weights`.

    Raises:
        CheckpointError: The file is missing (the message says where to download it) or does not fit.
    """
    if init == "none":
        start_from(segmentor, None, bands)
        return
    if init == "timm" and backbone not in init_paths.get("timm", {}):
        load_weights(segmentor, _timm_state(backbone), bands=bands)
        return
    path = Path(init)
    if init in (*init_paths, "mae", "timm"):
        listed = init_paths.get(init, {}).get(backbone)
        if listed is None:
            raise CheckpointError(
                f"init {init!r}: init_paths.{init} in the configuration has no path for {backbone}; set "
                f"init_paths.{init}.{backbone}, or use none, timm, or the path of a checkpoint"
            )
        path = base / listed.expanduser()
    path = path.expanduser()
    if not path.is_file() and not path.with_name(path.name + ".pth").is_file():
        rows = ", ".join(dict.fromkeys(("none", "mae", "timm", *init_paths)))
        known = f"Use {rows}, or the path of a checkpoint"
        hint = f"{WHERE_TO_GET}; then set init_paths.mae.{backbone}" if init == "mae" else known
        raise CheckpointError(f"init {init!r}: no file at {path.absolute()}. {hint}.")
    load_weights(segmentor, path, bands=bands)


def start_from(network: nn.Module, checkpoint: Path | None, bands: Sequence[int] | None = None) -> None:
    """Load a checkpoint into `network`, or leave its random weights.

    Args:
        network: A segmentor or detector, randomly initialised.
        checkpoint: Path of the checkpoint; None for random weights.
        bands: See :func:`s5.checkpoints.loading.load_weights`.

    Raises:
        CheckpointError: The file does not fit, or bands are given without a file.
    """
    if checkpoint is not None:
        load_weights(network, checkpoint, bands=bands)
        return
    if bands is not None:
        raise CheckpointError(
            f"init_bands {','.join(map(str, bands))} selects channels of a checkpoint, but the initial "
            f"weights are random: omit it, or give a checkpoint with --init"
        )
    logger.info("initial weights: random")
    finetune = getattr(network.get_submodule("backbone"), "finetune", "full")
    if finetune != "full":
        logger.warning(
            "model.finetune = %s freezes a backbone of random weights, whose features are of little use: "
            "give a checkpoint with --init, or set model.finetune=full",
            finetune,
        )


def _timm_state(backbone: str) -> StateDict:
    architecture = get_architecture(backbone)
    try:
        weights = architecture.pretrained()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"timm could not download {architecture.timm} ({error}); without internet access, download the "
            f"file elsewhere and set init_paths.timm.{backbone} to its path"
        ) from None
    logger.info("initial weights: timm %s", architecture.timm)
    return weights
