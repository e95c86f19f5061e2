"""From cuts to groups of micro-batches: one group is one optimiser step of one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from asrkd.data.batching import BatchSource
from asrkd.types import SpeechBatch

Group = list[SpeechBatch]


class _Reader(Dataset[Group]):
    """Turns the cuts of a group into tensors; runs in the loader's workers."""

    def __init__(self, read: Callable[[Any], SpeechBatch]) -> None:
        self._read = read

    def __getitem__(self, group: Sequence[Any]) -> Group:
        return [self._read(cuts) for cuts in group]


class GroupSampler:
    """The groups of one epoch from a position on.

    Batches of a group are consecutive in the source's order over all ranks, so that ``accumulate`` micro-batches on one
    process and as many ranks with one each make the same step.

    Args:
        source: Deterministic batches for ``(seed, epoch)``.
        accumulate: Micro-batches in a group.
        start: Gives the number of this epoch's groups that are done already, when an epoch begins.
    """

    def __init__(self, source: BatchSource, accumulate: int = 1, start: Callable[[], int] = lambda: 0) -> None:
        self.source = source
        self.accumulate = accumulate
        self.start = start
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Any]]:
        group: list[Any] = []
        for cuts in self.source.batches(self.epoch, start=self.start() * self.accumulate):
            group.append(cuts)
            if len(group) == self.accumulate:
                yield group
                group = []
        if group:
            yield group

    def count(self, epoch: int) -> int:
        """Groups of an epoch."""
        batches = sum(1 for _ in self.source.batches(epoch))
        return -(-batches // self.accumulate)


def make_loader(sampler: GroupSampler, read: Callable[[Any], SpeechBatch], workers: int) -> DataLoader[Group]:
    """A torch loader over groups; ``workers`` 0 reads in the training process."""
    return DataLoader(
        _Reader(read),
        sampler=sampler,  # any iterable of "indexes" will do, and ours are lists of cuts
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
    )
