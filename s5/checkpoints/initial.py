"""Initial weights by name: `none`, `mae`, weights of timm, a name on a hub, or the path of a checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from timm import is_model as is_timm_model
from torch import nn

from s5.backbones import TIMM, Architecture, Backbone, StateDict, get_architecture, normalization_of
from s5.checkpoints.hub import HUB, from_hub, is_hub_name, timm_weights
from s5.checkpoints.loading import load_weights
from s5.errors import CheckpointError, did_you_mean

logger = logging.getLogger(__name__)

TIMM_REPOSITORIES = f"{HUB}timm/"
TIMM_DEFAULT = "timm"  # timm's weights of the backbone
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
    bands: Sequence[int] | Sequence[str] | None = None,
) -> None:
    """Load the initial weights into `segmentor`.

    Args:
        segmentor: The network, randomly initialised.
        backbone: Name of its backbone, such as `vit_b`.
        init: `none`, a key of `init_paths` such as `mae`, or as for :func:`start_from`.
        init_paths: Paths by key and backbone.
        base: Base folder of relative paths in `init_paths`.
        bands: See :func:`s5.checkpoints.loading.load_weights`.

    Raises:
        CheckpointError: The file is missing (the message says where to download it) or does not fit.
    """
    listed, named = init_paths.get(init, {}).get(backbone), named_weights(get_architecture(backbone))
    if listed is None and init not in named and init in (*init_paths, "mae"):
        raise CheckpointError(
            f"init {init!r}: init_paths.{init} in the configuration has no path for {backbone}; set "
            f"init_paths.{init}.{backbone}, or use none, timm, or the path of a checkpoint"
        )
    if listed is None:
        names = ("none", "mae", *named, *init_paths)
        start_from(segmentor, None if init == "none" else init, bands, names)
        return
    path = base / listed.expanduser()
    if not _is_there(path):
        where = f"{WHERE_TO_GET}; then set" if init == "mae" else "Set"
        raise CheckpointError(
            f"init {init!r}: no file at {path.absolute()}. {where} init_paths.{init}.{backbone}."
        )
    timm_name = named.get(init)
    trained_with = None if timm_name is None else normalization_of(timm_name)
    load_weights(segmentor, path, bands=bands, normalization=trained_with)


def start_from(
    network: nn.Module,
    init: str | Path | None,
    bands: Sequence[int] | Sequence[str] | None = None,
    names: Sequence[str] = (),
) -> None:
    """Load initial weights into `network`, or leave its random weights.

    Args:
        network: A segmentor or detector, randomly initialised.
        init: Path of a checkpoint, a name of :func:`named_weights` such as `timm`, or a name as in
            :mod:`s5.checkpoints.hub`; None for random weights.
        bands: See :func:`s5.checkpoints.loading.load_weights`.
        names: Names that the command accepts, for messages; by default `none` and those of timm's weights.

    Raises:
        CheckpointError: The file is missing or does not fit, the weights cannot be downloaded, or bands are
            given without weights.
    """
    if init is None:
        if bands is not None:
            raise CheckpointError(
                f"init_bands {','.join(map(str, bands))} selects channels of a checkpoint, but the initial "
                f"weights are random: omit it, or give a checkpoint with --init"
            )
        logger.info("initial weights: random")
        finetune = cast(Backbone, network.get_submodule("backbone")).finetune
        if finetune != "full":
            logger.warning(
                "model.finetune = %s freezes a backbone of random weights, whose features are of little use: "
                "give a checkpoint with --init, or set model.finetune=full",
                finetune,
            )
        return
    name, path = str(init), Path(init).expanduser()
    architecture = cast(Backbone, network.get_submodule("backbone")).architecture
    named = named_weights(architecture)
    weights: StateDict | Path = path
    trained_with = None
    if name in named:
        weights = _timm_weights(name, named[name], architecture)
        trained_with = normalization_of(named[name] or "")
    elif is_hub_name(name):
        weights = from_hub(name, architecture)
        timm_name = name.removeprefix(TIMM).removeprefix(TIMM_REPOSITORIES)
        if name.startswith((TIMM, TIMM_REPOSITORIES)) and is_timm_model(timm_name.partition(".")[0]):
            trained_with = normalization_of(timm_name)
    elif not _is_there(path):
        known = list(dict.fromkeys(names or ("none", *named)))
        raise CheckpointError(
            f"init {name!r}: no file at {path.absolute()}. Use {', '.join(known)}, timm:NAME, "
            f"hf-hub:OWNER/NAME, or the path of a checkpoint{did_you_mean(name, known)}"
        )
    load_weights(network, weights, bands=bands, normalization=trained_with)


def named_weights(architecture: Architecture) -> dict[str, str | None]:
    """Names in timm of the weights for a backbone, by their names for `--init`."""
    names = (TIMM_DEFAULT, *architecture.named_weights)
    return {name: architecture.with_weights(name).timm for name in names}


def _is_there(path: Path) -> bool:
    """Whether there is a file, with or without `.pth`, or a folder, about which reading says more."""
    return path.exists() or path.with_name(f"{path.name}.pth").is_file()


def _timm_weights(init: str, name: str | None, architecture: Architecture) -> StateDict:
    """Download timm's weights of a backbone."""
    if name is None:
        return architecture.pretrained()  # raises the error
    try:
        return timm_weights(name, architecture)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}, or set init_paths.{init}.{architecture.name} in the configuration of S4P"
        ) from None
