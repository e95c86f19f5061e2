"""Greedy transducer search, for a batch at once, over whole utterances or piece by piece.

Dimension legend: B utterances, T frames, V tokens, C context labels, E places for the labels of a frame, J joint units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asrkd.decoding.ctc import DecodedTokens

MAX_LABELS_A_FRAME = 10
"""After as many the search moves on to the next frame, so that no model can hold it in one for ever."""
FRAMES_AT_ONCE = 8
"""Frames looked at for the next label; nearly all are blank, and as long as they are the context does not change."""

Joint = Callable[[Tensor, Tensor], Tensor]
"""From frames ``(B, W, J)`` and the last labels ``(B, C)`` to logits ``(B, W, V)``."""


@dataclass(frozen=True)
class Emissions:
    """What a search emitted of one utterance, frame by frame.

    Args:
        tokens: ``(T, E)`` int64 labels of each frame, -1 in places without.
        log_probs: ``(T, E)`` float32 log-probability of each label.
        scores: ``(T,)`` float32 log-probability of all that was decided in a frame, its blank included.
    """

    tokens: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, frames: slice) -> Emissions:
        return Emissions(self.tokens[frames], self.log_probs[frames], self.scores[frames])

    def decoded(self, frame_shift_s: float) -> DecodedTokens:
        """The labels in order, each in the frame in which it was emitted.

        Args:
            frame_shift_s: Seconds from one frame to the next.
        """
        frames, places = np.nonzero(self.tokens >= 0)
        return emitted(
            self.tokens[frames, places].tolist(),
            frames.tolist(),
            self.log_probs[frames, places].tolist(),
            float(self.scores.sum(dtype=np.float64)),
            frame_shift_s,
        )


def emitted(
    tokens: Sequence[int], frames: Sequence[int], log_probs: Sequence[float], score: float, frame_shift_s: float
) -> DecodedTokens:
    """Labels with their frames and log-probabilities as a hypothesis; a label lasts one frame."""
    return DecodedTokens(
        tokens=tuple(tokens),
        times_s=tuple(frame * frame_shift_s for frame in frames),
        ends_s=tuple((frame + 1) * frame_shift_s for frame in frames),
        confidences=tuple(min(1.0, math.exp(log_prob)) for log_prob in log_probs),
        score=score,
    )


@torch.no_grad()
def greedy(
    encoded: Tensor,
    lengths: Tensor,
    context: Tensor,
    joint: Joint,
    blank_id: int,
    max_labels: int = MAX_LABELS_A_FRAME,
) -> tuple[list[Emissions], Tensor]:
    """At each node the likeliest token: a label stays in the frame, blank goes on to the next (Graves 2012, section 2.6).

    Utterances go through their frames each at its own pace, so that a batch takes as many rounds as its slowest member.

    Args:
        encoded: ``(B, T, J)`` what ``joint`` takes of each frame.
        lengths: ``(B,)`` valid frames.
        context: ``(B, C)`` int64 labels emitted before the first frame.
        joint: The model's joint network.
        blank_id: Of the vocabulary.
        max_labels: E, labels in one frame.

    Returns:
        What was emitted of each utterance, and the context after its last frame.

    Raises:
        ValueError: If ``max_labels`` is below 1.
    """
    if max_labels < 1:
        raise ValueError(f"max_labels: expected at least 1, found {max_labels}")
    batch, num_frames = encoded.shape[:2]
    device = encoded.device
    rows = torch.arange(batch, device=device)
    ahead = torch.arange(min(FRAMES_AT_ONCE, num_frames), device=device)
    tokens = torch.full((batch, num_frames, max_labels), -1, dtype=torch.int64, device=device)
    log_probs = torch.zeros(batch, num_frames, max_labels, device=device)
    scores = torch.zeros(batch, num_frames, device=device)
    frame, said = torch.zeros_like(rows), torch.zeros_like(rows)
    while bool((frame < lengths).any()):
        looked_at = frame[:, None] + ahead
        valid = looked_at < lengths[:, None]
        looked_at = looked_at.clamp(max=num_frames - 1)
        best, ids = joint(encoded[rows[:, None], looked_at], context).float().log_softmax(-1).max(-1)
        is_label = valid & (ids != blank_id)
        earlier = is_label.cumsum(1) - is_label.long()  # labels before each frame that is looked at
        decided = valid & (earlier == 0)
        scores.scatter_add_(1, looked_at, best.masked_fill(~decided, 0.0))
        blanks = (decided & ~is_label).sum(1)
        said = torch.where(blanks > 0, 0, said)
        frame = frame + blanks
        speaking = is_label.any(1).nonzero().squeeze(1)
        place, at = blanks[speaking], frame[speaking]
        label = ids[speaking, place]
        tokens[speaking, at, said[speaking]] = label
        log_probs[speaking, at, said[speaking]] = best[speaking, place]
        context = context.clone()
        context[speaking] = torch.cat((context[speaking, 1:], label[:, None]), 1)
        said[speaking] += 1
        full = said == max_labels
        frame, said = frame + full.long(), said.masked_fill(full, 0)
    found = zip(tokens.cpu().numpy(), log_probs.cpu().numpy(), scores.cpu().numpy(), strict=True)
    valid_frames = lengths.tolist()
    return [Emissions(*parts)[: valid_frames[row]] for row, parts in enumerate(found)], context
