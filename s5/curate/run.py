"""The steps of a curation, one after the other, in one or several processes."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict

import torch.distributed as dist

from s5.command import usable_cpus
from s5.curate import require
from s5.curate.cluster import cluster, load_prototypes
from s5.curate.config import CurateConfig
from s5.curate.folder import LABELED, POOL, Run, begin, complete, counts_of, is_complete
from s5.curate.index import index
from s5.curate.score import count_scores, score
from s5.curate.select import select
from s5.curate.write import selection_settings, write
from s5.errors import ConfigError
from s5.launch import ALONE, Launch, host_group, main_process_first

PACKAGES = ("duckdb", "faiss", "imagehash", "pyarrow")
STEPS = ("index", "score", "cluster", "select", "write")


def curate(cfg: CurateConfig, launch: Launch = ALONE, steps: Sequence[str] = STEPS) -> Run:
    """Run steps of a curation; finished work is kept.

    All processes score; the main process does the rest while the others wait.

    Args:
        cfg: Configuration.
        launch: Device and rank of this process.
        steps: Steps to run, in this order.

    Returns:
        The folder of the run.

    Raises:
        UserError: An image, file or setting cannot be used; what is finished is kept.
    """
    for package in PACKAGES:
        require(package)
    run = Run(cfg.out)
    with run.locked() if launch.is_main else nullcontext():
        for step in steps:
            if step == "score":
                _score(cfg, run, launch)
                continue
            with main_process_first(launch) as is_main:
                if is_main:
                    _ALONE[step](cfg, run)
    return run


def _score(cfg: CurateConfig, run: Run, launch: Launch) -> None:
    counts = score(cfg, run, launch)
    every = [counts] * launch.world_size
    if launch.world_size > 1:
        dist.all_gather_object(every, counts, group=host_group())
    if not launch.is_main:
        return
    for name in (LABELED, POOL):
        part = run.part(name)
        if is_complete(part.state("scores")):
            continue
        scored: dict[str, float] = {**count_scores(part, cfg.score)}
        if name == POOL and (seconds := max(c["seconds"] for c in every)):  # of this start of the step
            scored["patches_per_second"] = round(sum(c["patches"] for c in every) / seconds, 1)
            scored["data_wait"] = max(c["data_wait"] for c in every)
        complete(part.state("scores"), scored)


def _index(cfg: CurateConfig, run: Run) -> None:
    root, workers = cfg.data_root.absolute(), usable_cpus()
    for name, path in {"labeled": cfg.labeled, **cfg.sources}.items():
        if (root / path).resolve().is_relative_to(run.path.resolve()):
            raise ConfigError(
                f"{name}: {root / path} is in the folder that the curation writes to; choose another out"
            )
    index(run.part(LABELED), {"labeled": cfg.labeled}, root, cfg.patch, workers)
    index(run.part(POOL), cfg.sources, root, cfg.patch, workers)


def _select(cfg: CurateConfig, run: Run) -> None:
    counts_of(run.part(POOL).state("clusters"), "cluster")
    _, labeled = load_prototypes(run)
    state = run.part(POOL).state("select")
    state.unlink(missing_ok=True)  # before the table changes
    selection = select(run.path, labeled.tolist(), cfg.select)
    begin(state, selection_settings(cfg, run), "selection")
    clusters = [{"cluster": number, **asdict(share)} for number, share in enumerate(selection.clusters)]
    complete(
        state,
        {
            "reasons": selection.reasons,
            "clusters": clusters,
            "duplicates": asdict(selection.pairs),
            "cut": selection.cut,
            "notes": list(selection.notes),
        },
    )


_ALONE: dict[str, Callable[[CurateConfig, Run], None]] = {
    "index": _index,
    "cluster": lambda cfg, run: cluster(run, cfg.cluster),
    "select": _select,
    "write": write,
}
