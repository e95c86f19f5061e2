"""What segment decoders hear of a model's chunks: CTC log-probabilities, or what a transducer's search emitted.

Dimension legend: B sessions, T output frames, F mel bins, V tokens, D hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from asrkd.models.base import Recogniser
from asrkd.models.conformer import StreamingConformer
from asrkd.models.state import StudentState, TransducerState
from asrkd.models.transducer import StreamingTransducer
from asrkd.streaming.segment import Decoding, SegmentDecoder, TransducerSegment


@dataclass(frozen=True)
class Step:
    """One step of B sessions.

    Args:
        heard: For each session its new frames, as its segment decoder takes them.
        encoded: For each session the encoder's output ``(T, D)``, where a second pass may want it.
        states: For each session its next state.
    """

    heard: list[Any]
    encoded: list[Tensor] | None
    states: list[Any]


class Hearing(Protocol):
    """A model's way from features to frames that a segment decoder takes."""

    def initial_state(self) -> Any:
        """Of one session."""

    def step(self, features: Tensor, states: Sequence[Any], lengths: Tensor) -> Step:
        """The next features ``(B, T', F)`` of sessions in ``states``, of which ``(B,)`` are valid (on the CPU)."""

    def segment(self, previous: SegmentDecoder[Any] | None) -> SegmentDecoder[Any]:
        """A decoder for the segment that begins, after the ``previous`` one of the session."""


@dataclass(frozen=True)
class CtcHearing:
    """Of a CTC model. Args: the model; its chunk and left context in output frames; how its segments are decoded."""

    model: StreamingConformer
    chunk_frames: int
    left_context_frames: int
    decoding: Decoding

    def initial_state(self) -> StudentState:
        return self.model.initial_state(1, self.model.feature_mean.device, self.left_context_frames)

    def step(self, features: Tensor, states: Sequence[StudentState], lengths: Tensor) -> Step:
        state = StudentState.join(states)
        encoded, state = self.model.step_encoder(features, state, lengths.to(features.device), self.chunk_frames)
        log_probs = np.ascontiguousarray(self.model.ctc_head(encoded).float().log_softmax(-1).cpu().numpy())
        valid = self.model.output_lengths(lengths).tolist()
        return Step(
            [log_probs[row, :length] for row, length in enumerate(valid)],
            [encoded[row, :length] for row, length in enumerate(valid)],
            _each(state, len(states), features.device),
        )

    def segment(self, previous: SegmentDecoder[Any] | None) -> SegmentDecoder[Any]:
        return self.decoding.segment(self.model.vocabulary, self.model.frame_shift_s, previous)


@dataclass(frozen=True)
class TransducerHearing:
    """Of a transducer, whose search goes on through endpoints: its labels are those of the whole recording.

    Args: the model; its chunk and left context in output frames."""

    model: StreamingTransducer
    chunk_frames: int
    left_context_frames: int

    def initial_state(self) -> TransducerState:
        return self.model.initial_state(1, self.model.feature_mean.device, self.left_context_frames)

    def step(self, features: Tensor, states: Sequence[TransducerState], lengths: Tensor) -> Step:
        state = TransducerState.join(states)
        heard, state = self.model.step(features, state, lengths.to(features.device), self.chunk_frames)
        return Step(list(heard), None, _each(state, len(states), features.device))

    def segment(self, previous: SegmentDecoder[Any] | None) -> SegmentDecoder[Any]:
        return TransducerSegment(self.model.frame_shift_s)


def hearing_of(model: Recogniser, chunk_frames: int, left_context_frames: int, decoding: Decoding) -> Hearing:
    """The way of ``model``.

    Raises:
        ValueError: If it cannot stream, or not with such a search.
    """
    if isinstance(model, StreamingConformer):
        return CtcHearing(model, chunk_frames, left_context_frames, decoding)
    if isinstance(model, StreamingTransducer):
        if decoding != Decoding(tokens_per_frame=decoding.tokens_per_frame):
            raise ValueError(
                f"beam, hotwords, lm: expected none for a {model.kind}, whose search is greedy; found beam {decoding.beam}"
            )
        return TransducerHearing(model, chunk_frames, left_context_frames)
    raise ValueError(f"model: a {model.kind} hears whole utterances and cannot stream")


def _each(state: Any, count: int, device: torch.device) -> list[Any]:
    """The state of each of ``count`` sessions."""
    return [state] if count == 1 else [state.select(torch.tensor([row], device=device)) for row in range(count)]
