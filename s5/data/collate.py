"""Collation of samples into the one batch of a step: of FixMatch, of several tasks, and of validation."""

from typing import Any

import numpy as np
import torch

from s5.data.draws import NEUTRAL, derangement, sample_rng

PARTNER_STREAM = 1 << 20  # keeps the batch's own draws apart from those of any source


class FixMatchCollate:
    """Stacks samples, labeled ones first, and draws the CutMix partners within the batch.

    Args:
        seed: seed of the run; the partners are keyed by it and the position of the first unlabeled sample.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of labeled and unlabeled samples.

        Returns:
            ``images`` (L + U, 3, S, S) uint8 in channels-last memory, ``labels`` (L, S, S) uint8, ``names``
            (L + U), ``skipped`` list of (name, reason); with unlabeled samples also ``padding`` (U, S, S)
            bool, ``views`` with ``photometric`` (V, U, 6), ``boxes`` (V, U, 4) and ``partner`` (V, U), and
            ``stored`` (U, S, S) if there are stored pseudo-labels.
        """
        labeled = [sample for sample in samples if "label" in sample]
        unlabeled = [sample for sample in samples if "label" not in sample]
        samples = labeled + unlabeled
        batch: dict[str, Any] = {
            "images": _stack(samples, "image").permute(0, 3, 1, 2),
            "labels": _stack(labeled, "label"),
            "names": [sample["name"] for sample in samples],
            "skipped": [entry for sample in unlabeled for entry in sample["skipped"]],
        }
        if unlabeled:
            batch["padding"] = _stack(unlabeled, "padding").bool()
            batch["views"] = self._views(unlabeled)
            if "stored" in unlabeled[0]:
                batch["stored"] = _stack(unlabeled, "stored")
        return batch

    def _views(self, unlabeled: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        photometric = np.stack([sample["photometric"] for sample in unlabeled], axis=1)
        boxes = np.stack([sample["boxes"] for sample in unlabeled], axis=1)
        first = unlabeled[0]
        rng = sample_rng(self.seed, PARTNER_STREAM + first["source"], first["position"])
        count = len(unlabeled)
        if count > 1:
            partner = np.stack([derangement(rng, count) for _ in range(len(boxes))])
        else:
            partner = np.zeros((len(boxes), 1), dtype=np.int64)
            boxes = np.zeros_like(boxes)  # a single image has no partner to paste from
        return {
            "photometric": torch.from_numpy(photometric.astype(np.float32)),
            "boxes": torch.from_numpy(boxes.astype(np.int64)),
            "partner": torch.from_numpy(partner.astype(np.int64)),
        }


def _stack(samples: list[dict[str, Any]], key: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample[key] for sample in samples]))


class TasksCollate:
    """Stacks labeled samples of several tasks, ordered by task.

    Args:
        tasks: number of tasks.
    """

    def __init__(self, tasks: int) -> None:
        self.tasks = tasks

    def __call__(self, samples: list[dict[str, Any] | None]) -> dict[str, Any]:
        """The batch; None stands for samples of tasks that have not started.

        Returns:
            ``images`` (B, 3, S, S) uint8 in channels-last memory, ``labels`` (B, S, S) uint8, ``photometric``
            (B, 6) float32, neutral where a task has no photometric augmentation, ``counts``: images of each
            task, ``names`` (B), ``skipped``: an empty list.
        """
        present = [sample for sample in samples if sample is not None]
        sources = [sample["source"] for sample in present]
        rows = [sample.get("photometric", NEUTRAL) for sample in present]
        return {
            "images": _stack(present, "image").permute(0, 3, 1, 2),
            "labels": _stack(present, "label"),
            "photometric": torch.from_numpy(np.stack(rows)),
            "counts": [sources.count(task) for task in range(self.tasks)],
            "names": [sample["name"] for sample in present],
            "skipped": [],
        }


def collate_validation(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Lists of ``images`` (3, H, W), ``labels`` (H, W), ``names``, ``tasks``: images may differ in size."""
    return {key: [sample[key] for sample in samples] for key in samples[0]}
