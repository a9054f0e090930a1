"""Initial weights by name: `none`, `mae`, `timm`, further weights of timm, or the path of a checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from s5.backbones import Architecture, Backbone, get_architecture
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
        init: `none`, `timm`, a name of `Architecture.named_weights`, a key of `init_paths` such as `mae`, or
            the path of a checkpoint.
        init_paths: Paths by key and backbone.
        base: Base folder of relative paths in `init_paths`.
        bands: See :func:`s5.checkpoints.loading.load_weights`.

    Raises:
        CheckpointError: The file is missing (the message says where to download it) or does not fit.
    """
    if init == "none":
        start_from(segmentor, None, bands)
        return
    named = named_weights(backbone)
    if init in named and backbone not in init_paths.get(init, {}):
        load_named(segmentor, backbone, init, bands)
        return
    path = Path(init)
    if init in (*init_paths, "mae", *named):
        listed = init_paths.get(init, {}).get(backbone)
        if listed is None:
            raise CheckpointError(
                f"init {init!r}: init_paths.{init} in the configuration has no path for {backbone}; set "
                f"init_paths.{init}.{backbone}, or use none, timm, or the path of a checkpoint"
            )
        path = base / listed.expanduser()
    path = path.expanduser()
    if not path.is_file() and not path.with_name(path.name + ".pth").is_file():
        rows = ", ".join(dict.fromkeys(("none", "mae", *named, *init_paths)))
        known = f"Use {rows}, or the path of a checkpoint"
        hint = f"{WHERE_TO_GET}; then set init_paths.mae.{backbone}" if init == "mae" else known
        raise CheckpointError(f"init {init!r}: no file at {path.absolute()}. {hint}.")
    normalization = get_architecture(backbone).with_weights(init).normalization if init in named else None
    load_weights(segmentor, path, bands=bands, normalization=normalization)


def named_weights(backbone: str) -> tuple[str, ...]:
    """Names of timm's weights for a backbone."""
    return ("timm", *get_architecture(backbone).named_weights)


def load_named(network: nn.Module, backbone: str, name: str, bands: Sequence[int] | None = None) -> None:
    """Download timm's weights and load them, with their normalisation.

    Args:
        network: A segmentor or detector, randomly initialised.
        backbone: Name of its backbone.
        name: A name of `named_weights`.
        bands: See :func:`s5.checkpoints.loading.load_weights`.

    Raises:
        CheckpointError: There are no such weights, or they cannot be downloaded (the message says from where,
            and where to put the file).
    """
    architecture = get_architecture(backbone).with_weights(name)
    try:
        weights = architecture.pretrained()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"timm could not download {architecture.timm} ({error}); without internet access, download the "
            f"file elsewhere{page_of(architecture)} and give its path with --init, or set "
            f"init_paths.{name}.{backbone} to it"
        ) from None
    logger.info("initial weights: timm %s", architecture.timm)
    load_weights(network, weights, bands=bands, normalization=architecture.normalization)


def page_of(architecture: Architecture) -> str:
    """Say where timm's weights are published; empty if they are not on the Hugging Face hub."""
    import timm

    cfg = timm.get_pretrained_cfg(architecture.timm or "")
    if cfg is None or not cfg.hf_hub_id:
        return ""
    hub = cfg.hf_hub_id  # of a user, whose page has the model's name, or the whole page
    page = f"{hub}{cfg.architecture}.{cfg.tag}" if hub.endswith("/") else hub
    return f" (https://huggingface.co/{page})"


def start_from(network: nn.Module, checkpoint: Path | None, bands: Sequence[int] | None = None) -> None:
    """Load a checkpoint into `network`, or leave its random weights.

    Args:
        network: A segmentor or detector, randomly initialised.
        checkpoint: Path of the checkpoint, or a name of `named_weights`; None for random weights.
        bands: See :func:`s5.checkpoints.loading.load_weights`.

    Raises:
        CheckpointError: The file does not fit, or bands are given without a file.
    """
    backbone = network.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    if str(checkpoint) in named_weights(backbone.name) and not Path(str(checkpoint)).is_file():
        load_named(network, backbone.name, str(checkpoint), bands)
        return
    if checkpoint is not None:
        load_weights(network, checkpoint, bands=bands)
        return
    if bands is not None:
        raise CheckpointError(
            f"init_bands {','.join(map(str, bands))} selects channels of a checkpoint, but the initial "
            f"weights are random: omit it, or give a checkpoint with --init"
        )
    logger.info("initial weights: random")
