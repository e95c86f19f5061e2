"""CTC decoding without a language model: greedy, for a whole batch at once.

Dimension legend: B utterances, T frames, V tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from asrkd.types import Frames, Vocabulary


@dataclass(frozen=True)
class DecodedTokens:
    """Tokens of one utterance with where and how surely they were heard; the text is the tokenizer's matter.

    Args:
        tokens: Token ids, without blanks.
        times_s: Start of each token in seconds.
        ends_s: End of each token's last frame in seconds.
        confidences: Highest probability of each token within its frames, in ``[0, 1]``.
        score: Log-probability: of the best path (greedy) or of the whole token sequence (beam search), in nats.
    """

    tokens: tuple[int, ...]
    times_s: tuple[float, ...]
    ends_s: tuple[float, ...]
    confidences: tuple[float, ...]
    score: float


def greedy(log_probs: Frames, vocabulary: Vocabulary) -> list[DecodedTokens]:
    """Best path: the likeliest token of each frame, repetitions merged, blanks left out (Graves et al. 2006, eq. 4).

    Args:
        log_probs: ``(B, T, V)`` log-probabilities.
        vocabulary: Their tokens.

    Returns:
        One for each utterance.

    Raises:
        ValueError: If V is not the vocabulary's size.
    """
    check_vocabulary(log_probs.values, vocabulary)
    best, ids = log_probs.values.max(dim=-1)
    return collapse(ids, best, log_probs.lengths, vocabulary.blank_id, log_probs.frame_shift_s)


def collapse(
    ids: Tensor, log_probs: Tensor, lengths: Tensor, blank_id: int, frame_shift_s: float
) -> list[DecodedTokens]:
    """Merge the repetitions of frame-wise token ids and leave out blanks.

    Args:
        ids: ``(B, T)`` int64.
        log_probs: ``(B, T)`` log-probability of each.
        lengths: ``(B,)`` valid frames.
        blank_id: The blank's id.
        frame_shift_s: Seconds from one frame to the next.
    """
    num_frames = ids.shape[1]
    valid = torch.arange(num_frames, device=ids.device) < lengths[:, None]
    spoken = valid & (ids != blank_id)
    begins = spoken.clone()
    begins[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    ends = spoken.clone()
    ends[:, :-1] &= (ids[:, 1:] != ids[:, :-1]) | ~valid[:, 1:]
    scores = log_probs.float().masked_fill(~valid, 0.0).sum(dim=1).tolist()
    # Runs are numbered through the whole batch; everything spoken gives its probability to its run.
    run = begins.flatten().cumsum(0) - 1
    spoken_flat = spoken.flatten()
    peaks = torch.zeros(int(begins.sum()), device=ids.device)
    peaks.scatter_reduce_(0, run[spoken_flat], log_probs.float().flatten()[spoken_flat].exp(), "amax")
    first = begins.nonzero(as_tuple=True)[1].tolist()
    last = ends.nonzero(as_tuple=True)[1].tolist()
    tokens = ids[begins].tolist()
    confidences = peaks.clamp(max=1.0).tolist()
    bounds = [0, *begins.sum(dim=1).cumsum(0).tolist()]
    return [
        DecodedTokens(
            tuple(tokens[start:end]),
            tuple(frame * frame_shift_s for frame in first[start:end]),
            tuple((frame + 1) * frame_shift_s for frame in last[start:end]),
            tuple(confidences[start:end]),
            scores[row],
        )
        for row, (start, end) in enumerate(itertools.pairwise(bounds))
    ]


def check_vocabulary(values: Tensor, vocabulary: Vocabulary) -> None:
    """Refuse posteriors whose last dimension is not the vocabulary's size.

    Raises:
        ValueError: Naming both sizes.
    """
    if values.shape[-1] != len(vocabulary):
        raise ValueError(f"log_probs: expected {len(vocabulary)} tokens as in the vocabulary, found {values.shape[-1]}")
