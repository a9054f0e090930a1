"""A sampler that draws a fixed number of images from every source in every step.

FixMatch's labeled and unlabeled images and the datasets of multi-dataset fine-tuning are sources that share a
batch. Each source is shuffled and cycled independently. The order is a pure function of
`(seed, source, position)`, so the sampler has no running state: any step of any process can be computed
directly, which makes resuming exact and instantaneous.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from s5.errors import DataError


class Draw(NamedTuple):
    """A sample to load: source, index of the image, and the position that keys its random parameters."""

    source: int
    item: int
    position: int


class MultiSourceSampler(Sampler[Draw | None]):
    """Endless stream of draws; every `sum(batch_sizes)` of them form a batch, ordered by source.

    Args:
        lengths: Number of images of each source.
        batch_sizes: Images per step and process from each source.
        seed: Seed of all shuffles.
        rank: Rank of this process.
        world_size: Number of processes; they share one global order and take disjoint parts of every step.
        names: Names of the sources for error messages.
        starts: First step of each source; its draws are None before. Default: all start at 0.

    Raises:
        DataError: A source has fewer images than one global step takes.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_sizes: Sequence[int],
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        names: Sequence[str] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        self.lengths = list(lengths)
        self.batch_sizes = list(batch_sizes)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.starts = list(starts or [0] * len(self.lengths))
        names = names or [f"source {i}" for i in range(len(lengths))]
        for name, length, count in zip(names, lengths, batch_sizes, strict=True):
            if length < count * world_size:
                raise DataError(
                    f"{name}: {length} images, fewer than one step takes ({count} per process x {world_size} "
                    f"processes = {count * world_size}). Reduce the batch size, use fewer processes, or list "
                    f"the images more than once in the split file."
                )
        self._consumed = [0] * len(self.lengths)  # global position of every source at `_first_step`
        self._first_step = 0
        self._next_step = 0
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def batch_size(self) -> int:
        """Images per step and process, over all sources."""
        return sum(self.batch_sizes)

    @property
    def epoch_steps(self) -> int:
        """Number of full steps in the source that takes longest."""
        return max(
            length // (n * self.world_size) for length, n in zip(self.lengths, self.batch_sizes, strict=True)
        )

    def __len__(self) -> int:
        """Number of draws of this process in `epoch_steps` steps."""
        return self.epoch_steps * self.batch_size

    def skip(self, num_samples: int) -> None:
        """Skip `num_samples` draws of this process (on resume)."""
        self._next_step += num_samples // self.batch_size

    def consumed(self, step: int) -> list[int]:
        """Images of every source drawn by all processes before `step`."""
        return [
            before + (max(step, start) - max(self._first_step, start)) * count * self.world_size
            for before, start, count in zip(self._consumed, self.starts, self.batch_sizes, strict=True)
        ]

    def resume_at(self, step: int, consumed: Sequence[int]) -> None:
        """Continue a run that had drawn `consumed` images when it reached `step`.

        Needed if the number of processes or a batch size changed; otherwise it has no effect.
        """
        if len(consumed) != len(self.lengths):
            raise DataError(
                f"the checkpoint has {len(consumed)} data sources, this run has {len(self.lengths)}"
            )
        self._consumed = list(consumed)
        self._first_step = step

    def __iter__(self) -> Iterator[Draw | None]:
        step = self._next_step
        while True:
            yield from self.batch(step)
            step += 1

    def batch(self, step: int) -> list[Draw | None]:
        """The draws of this process in `step`, ordered by source; None for sources that have not started."""
        draws: list[Draw | None] = []
        for source, (before, count) in enumerate(zip(self.consumed(step), self.batch_sizes, strict=True)):
            if step < self.starts[source]:
                draws += [None] * count
                continue
            first = before + self.rank * count
            draws += [
                Draw(source, self._index_at(source, position), position)
                for position in range(first, first + count)
            ]
        return draws

    def _index_at(self, source: int, position: int) -> int:
        epoch, offset = divmod(position, self.lengths[source])
        cached = self._orders.get(source)
        if cached is None or cached[0] != epoch:
            order = np.random.default_rng([self.seed, source, epoch]).permutation(self.lengths[source])
            self._orders[source] = cached = (epoch, order)
        return int(cached[1][offset])


class ValidationSampler(Sampler[int]):
    """Indices into several concatenated datasets, in order, each in exactly one process.

    Args:
        lengths: Number of images of each dataset, by name.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, lengths: Mapping[str, int], rank: int = 0, world_size: int = 1) -> None:
        self.lengths = dict(lengths)
        self.rank = rank
        self.world_size = world_size
        self.active = set(lengths)
        """Datasets to iterate over; the others are skipped at no cost."""

    def __len__(self) -> int:
        """Number of images of this process."""
        return len(self._indices())

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices())

    def _indices(self) -> list[int]:
        indices: list[int] = []
        first = 0
        for name, length in self.lengths.items():
            if name in self.active:
                indices += range(first, first + length)
            first += length
        return indices[self.rank :: self.world_size]
