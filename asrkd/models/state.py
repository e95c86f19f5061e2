"""What the streaming students remember between two chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StudentState:
    """Explicit state of B independent streams; the row of each stream can be taken out and put back.

    Args:
        subsampling: For each convolution in front its last input ``(B, channels, 1, bins)``.
        keys: ``(N, B, H, L, D/H)`` unrotated attention keys of the last L frames of N layers.
        values: The same for the values.
        conv: ``(N, B, D, K-1)`` last inputs of each depthwise convolution.
        cached_frames: ``(B,)`` int64, how many of the L frames hold something: 0 at a stream's start.
    """

    subsampling: tuple[Tensor, ...]
    keys: Tensor
    values: Tensor
    conv: Tensor
    cached_frames: Tensor

    def select(self, rows: Tensor) -> StudentState:
        """The streams ``rows`` (int64 indices), in that order."""
        return StudentState(
            tuple(cache[rows] for cache in self.subsampling),
            self.keys[:, rows],
            self.values[:, rows],
            self.conv[:, rows],
            self.cached_frames[rows],
        )

    @staticmethod
    def join(states: Sequence[StudentState]) -> StudentState:
        """The streams of several states as one batch."""
        if len(states) == 1:
            return states[0]
        return StudentState(
            tuple(torch.cat(caches) for caches in zip(*(state.subsampling for state in states), strict=True)),
            torch.cat([state.keys for state in states], dim=1),
            torch.cat([state.values for state in states], dim=1),
            torch.cat([state.conv for state in states], dim=1),
            torch.cat([state.cached_frames for state in states]),
        )


@dataclass(frozen=True)
class TransducerState:
    """Explicit state of B independent streams of a transducer.

    Args:
        encoder: Of the encoder.
        context: ``(B, C)`` int64, the last labels that the search emitted, blanks before the first.
    """

    encoder: StudentState
    context: Tensor

    def select(self, rows: Tensor) -> TransducerState:
        """The streams ``rows`` (int64 indices), in that order."""
        return TransducerState(self.encoder.select(rows), self.context[rows])

    @staticmethod
    def join(states: Sequence[TransducerState]) -> TransducerState:
        """The streams of several states as one batch."""
        return TransducerState(
            StudentState.join([state.encoder for state in states]), torch.cat([state.context for state in states])
        )
