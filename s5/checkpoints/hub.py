"""Weights from the Hugging Face hub, by the name of a repository or of a model of timm.

    hf-hub:OWNER/NAME[/FILE][@REVISION]    a repository, and a file in it if it has several
    timm:NAME                              a model of timm, such as timm:vit_base_patch16_224.mae

Downloaded files stay in the cache of the hub, from which they are read without a network.
"""

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from s5.backbones import TIMM, Architecture, StateDict
from s5.checkpoints.reading import WEIGHT_SUFFIXES
from s5.errors import CheckpointError, did_you_mean, shorten

logger = logging.getLogger(__name__)

HUB = "hf-hub:"
PAGE = "https://huggingface.co"
REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")
PREFERRED = ("model.safetensors", "pytorch_model.bin")


def is_hub_name(name: str) -> bool:
    """Whether a name of initial weights stands for weights on the hub."""
    return name.startswith((HUB, TIMM))


def from_hub(name: str, architecture: Architecture) -> StateDict | Path:
    """Download weights.

    Args:
        name: A name as described above.
        architecture: The backbone that the weights are for.

    Returns:
        The weights of a model of timm, or the path of a repository's file.

    Raises:
        CheckpointError: There are no such weights, or they cannot be downloaded; the message names the page
            with the file.
    """
    if name.startswith(TIMM):
        return timm_weights(name.removeprefix(TIMM), architecture)
    match = REPOSITORY.fullmatch(name.removeprefix(HUB))
    if match is None:
        raise CheckpointError(
            f"init {name!r}: expected {HUB}OWNER/NAME, {HUB}OWNER/NAME/FILE or ...@REVISION"
        )
    repo, revision = match["repo"], match["revision"]
    from huggingface_hub import hf_hub_download

    try:
        file = match["file"] or _only_file(repo, revision)
        return Path(hf_hub_download(repo, file, revision=revision))
    except CheckpointError as error:
        raise CheckpointError(f"init {name!r}: {error}") from None
    except Exception as error:  # of the HTTP client, which differs between versions
        raise CheckpointError(
            _unreachable(name, error, f"{PAGE}/{repo}/tree/{revision or 'main'}")
        ) from error


def timm_weights(name: str, architecture: Architecture) -> StateDict:
    """Download the weights of a model of timm.

    Args:
        name: Name of the model, with or without the tag of its weights.
        architecture: The backbone that the weights are for.

    Raises:
        CheckpointError: There is no such model, it has no weights, or they cannot be downloaded.
    """
    import timm

    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        raise CheckpointError(f"timm has no model {model!r}{did_you_mean(model, timm.list_models())}")
    weights = timm.list_pretrained(f"{model}.*")
    if not weights or (tag and name not in weights):
        has = f"it has {', '.join(weights)}" if weights else "timm has none for this model"
        raise CheckpointError(f"timm has no weights {name!r}: {has}")
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    try:
        state = replace(cast(Any, architecture), timm=name).pretrained()
    except Exception as error:  # of the HTTP client, which differs between versions
        if isinstance(error, AssertionError | TypeError) or "loading state_dict" in str(error):
            raise CheckpointError(
                f"{TIMM}{name}: another architecture than {architecture.name}, which takes weights of "
                f"{architecture.timm}; choose those, or --backbone {TIMM}{name}"
            ) from error
        page = f"{PAGE}/{config.hf_hub_id}" if config.hf_hub_id else config.url
        raise CheckpointError(_unreachable(f"{TIMM}{name}", error, str(page))) from error
    logger.info("initial weights: timm %s", name)
    return state


def _only_file(repo: str, revision: str | None) -> str:
    """Name of the file with the weights of a repository."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(repo, revision=revision)
    except Exception:  # of the HTTP client; without a network, an earlier download serves as well
        try:
            cached = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        except FileNotFoundError:
            cached = None
        if cached is None:
            raise
        names = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]
    files = [name for name in names if name.endswith(WEIGHT_SUFFIXES)]
    preferred = [name for name in PREFERRED if name in files]
    if not preferred and len(files) != 1:
        has = (
            f"several files with weights: name one, {HUB}{repo}/{files[0]}"
            if files
            else "no file with weights"
        )
        raise CheckpointError(f"the repository has {has} ({shorten(files or names)})")
    return (preferred or files)[0]


def _unreachable(name: str, error: Exception, page: str) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"init {name!r}: cannot be downloaded ({reason}). Download the file with the weights from {page} "
        f"elsewhere, and give its path: --init PATH"
    )
