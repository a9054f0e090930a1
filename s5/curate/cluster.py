"""Step 3: K-Means on the features of the labeled patches, and the nearest centroid of every unlabeled patch.

Features have unit length, so the largest dot product is the highest cosine similarity.
"""

import logging
from pathlib import Path

import numpy as np

from s5.command import Progress
from s5.curate import require
from s5.curate.config import ClusterConfig
from s5.curate.folder import (
    LABELED,
    POOL,
    Run,
    begin,
    complete,
    read_shard,
    settings_of,
    write_shard,
)
from s5.curate.score import require_scores
from s5.data.files import atomic_path
from s5.errors import ConfigError, PrepareError

logger = logging.getLogger(__name__)


def cluster(run: Run, settings: ClusterConfig) -> None:
    """Compute the prototypes, unless they exist for these settings, and the missing shards of assignments.

    Raises:
        ConfigError: There are more clusters than labeled patches.
        PrepareError: Scores are missing, or have features of different widths.
    """
    pool = run.part(POOL)
    shards = require_scores(pool)
    labeled = require_scores(run.part(LABELED))
    scored, labeled_scored = (settings_of(run.part(name).state("scores")) for name in (POOL, LABELED))
    if {**scored, "index": ""} != {**labeled_scored, "index": ""}:
        raise PrepareError(f"{run.path}: labeled and unlabeled patches were scored with different settings")
    state = pool.state("clusters")
    depends = {**settings.model_dump(), "scores": scored, "labeled scores": labeled_scored}
    if not run.prototypes.exists() or not state.exists() or settings_of(state) != depends:
        for path in (state, run.prototypes, *pool.shards("clusters")):  # they take seconds to make again
            path.unlink(missing_ok=True)
    begin(state, depends, "clusters")
    if not run.prototypes.exists():
        features = _labeled_features(labeled)
        centroids = kmeans(features, settings)
        counts = np.bincount(nearest(features, centroids)[0], minlength=len(centroids))
        with atomic_path(run.prototypes) as temporary, temporary.open("wb") as file:
            np.savez(file, centroids=centroids, labeled=counts)
    centroids, counts = load_prototypes(run)
    with Progress(len(shards), "cluster", "shards", logger) as progress:
        for path in shards:
            target = pool.path / "clusters" / path.name
            if not target.exists():
                _assign(path, target, centroids)
            progress.update()
    result = {"clusters": len(centroids), "labeled": int(counts.sum())}
    complete(state, result)
    logger.info("cluster: %d labeled patches in %d clusters", result["labeled"], result["clusters"])


def kmeans(features: np.ndarray, settings: ClusterConfig) -> np.ndarray:
    """Centroids (M, D) float32 of unit length of features (N, D) float32, by spherical K-Means.

    Raises:
        ConfigError: There are more clusters than features.
    """
    if len(features) < settings.count:
        raise ConfigError(
            f"cluster.count = {settings.count}: there are only {len(features)} labeled patches; "
            "choose fewer clusters"
        )
    faiss = require("faiss")
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums would depend on the number of threads
    try:
        means = faiss.Kmeans(
            features.shape[1],
            settings.count,
            niter=settings.iterations,
            seed=settings.seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=len(features),  # no subsampling
        )
        means.train(np.ascontiguousarray(features, np.float32))
    finally:
        faiss.omp_set_num_threads(threads)
    return np.asarray(means.centroids, np.float32)


def nearest(features: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid (N,) int32 of features (N, D), and its cosine similarity (N,) float32."""
    similarity = features.astype(np.float32) @ centroids.T
    best = similarity.argmax(1)
    return best.astype(np.int32), similarity[np.arange(len(best)), best]


def load_prototypes(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Centroids (M, D) and numbers of labeled patches (M,).

    Raises:
        PrepareError: The cluster step has not run.
    """
    if not run.prototypes.exists():
        raise PrepareError(f"{run.prototypes}: missing; run `python -m s5.curate cluster` first")
    with np.load(run.prototypes) as content:
        return content["centroids"], content["labeled"]


def features_of(path: Path) -> np.ndarray:
    """Features (N, D) float16 of the readable patches of a shard of scores."""
    column = read_shard(path, ["feature"])["feature"].drop_null().combine_chunks()
    if len(column) == 0:
        return np.zeros((0, 0), np.float16)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _labeled_features(shards: list[Path]) -> np.ndarray:
    """Features (N, D) float32 of the labeled patches, ordered by key: K-Means depends on the order."""
    found, keys = [], []
    for path in shards:
        table = read_shard(path, ["key", "feature"])
        features = features_of(path)
        if len(features):
            found.append(features.astype(np.float32))
            keys.append(table["key"].to_numpy()[np.asarray(table["feature"].is_valid())])
    if not found:
        raise PrepareError(
            f"{shards[0].parent}: no labeled patch could be read; correct `labeled` in the configuration"
        )
    if len({features.shape[1] for features in found}) > 1:
        raise PrepareError(
            f"{shards[0].parent}: features of different widths; delete the folder and run the score "
            "step again"
        )
    return np.concatenate(found)[np.argsort(np.concatenate(keys), kind="stable")]


def _assign(path: Path, target: Path, centroids: np.ndarray) -> None:
    """Write the clusters of a shard; those of unreadable patches are null."""
    pa = require("pyarrow")
    table = read_shard(path, ["patch", "feature"])
    features = features_of(path)
    readable = np.asarray(table["feature"].is_valid())
    cluster, similarity = np.zeros(len(table), np.int32), np.zeros(len(table), np.float32)
    if len(features):
        if features.shape[1] != centroids.shape[1]:
            raise PrepareError(
                f"{path}: features of width {features.shape[1]}, those of the labeled patches have "
                f"{centroids.shape[1]}. It was scored by another model: delete {path.parent} and run the "
                "score step again"
            )
        cluster[readable], similarity[readable] = nearest(features, centroids)
    write_shard(
        target,
        pa.table(
            {
                "patch": table["patch"],
                "cluster": pa.array(cluster, mask=~readable),
                "similarity": pa.array(similarity, mask=~readable),
            }
        ),
    )
