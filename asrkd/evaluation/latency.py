"""Delay: what the geometry of a model costs, and when its words really come out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from rapidfuzz.distance import Levenshtein
from torchaudio.functional import forced_align

from asrkd.data.text import Tokenizer
from asrkd.decoding.ctc import collapse
from asrkd.models.base import Recogniser
from asrkd.streaming.events import Word, words_of
from asrkd.types import Frames


@dataclass(frozen=True)
class Spread:
    """A distribution in a few figures, all in the unit of what was measured.

    Args:
        count: Values.
        median: Half are smaller.
        p90: 90 % are smaller.
        p99: 99 % are smaller.
        highest: The largest.
    """

    count: int
    median: float
    p90: float
    p99: float
    highest: float


def spread(values: ArrayLike) -> Spread | None:
    """Median, 90 %, 99 % and maximum of values; ``None`` where there are none.

    Args:
        values: Numbers.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return None
    median, p90, p99 = np.quantile(array, [0.5, 0.9, 0.99])
    return Spread(int(array.size), float(median), float(p90), float(p99), float(array.max()))


def algorithmic_ms(model: Recogniser, chunk_frames: int | None = None) -> float:
    """Longest time between a sample and the first output that can depend on it, with infinitely fast computation.

    It is the chunk (the first sample of a chunk waits for its last frame) and the look-ahead behind it: what the
    feature window of the chunk's last frame reaches beyond the chunk's end. Subsampling and convolutions are causal
    within the chunk and add nothing.

    Args:
        model: A recogniser.
        chunk_frames: Output frames of a chunk; ``None``: the model's default; 0: full context.

    Returns:
        Milliseconds; infinite for full context, which waits for the end of the utterance.
    """
    chunk = default_chunk_frames(model) if chunk_frames is None else chunk_frames
    if chunk == 0:
        return math.inf
    fbank = model.fbank
    look_ahead_samples = fbank.length - fbank.left_edge - fbank.shift
    return 1000 * (chunk * model.frame_shift_s + look_ahead_samples / model.sample_rate_hz)


def default_chunk_frames(model: Recogniser) -> int:
    """Output frames of the model's own chunk; 0 for one that hears whole utterances.

    Args:
        model: A recogniser.
    """
    return int(getattr(model.config, "chunk_frames", 0))


def align_words(
    log_probs: Frames, tokens: Sequence[Sequence[int]], tokenizer: Tokenizer
) -> list[tuple[Word, ...] | None]:
    """Forced alignment of transcripts by a CTC model, as words with times.

    Args:
        log_probs: ``(B, T, V)`` CTC log-probabilities, usually of a full-context teacher.
        tokens: For each utterance the ids of its transcript.
        tokenizer: Of ``log_probs`` and ``tokens``.

    Returns:
        For each utterance its words, ``confidence`` the mean probability of their tokens' likeliest frames; ``None``
        where the transcript does not fit into the frames.
    """
    blank_id = tokenizer.vocabulary.blank_id
    found: list[tuple[Word, ...] | None] = []
    for row, ids in enumerate(tokens):
        frames = int(log_probs.lengths[row])
        repeats = sum(a == b for a, b in itertools.pairwise(ids))
        if len(ids) + repeats > frames:
            found.append(None)
        elif not ids:
            found.append(())
        else:
            # On the CPU: the op wants float32 and is quick there.
            values = log_probs.values[row : row + 1, :frames].float().cpu()
            path, scores = forced_align(values, torch.tensor([list(ids)], dtype=torch.int32), blank=blank_id)
            (aligned,) = collapse(path.long(), scores, torch.tensor([frames]), blank_id, log_probs.frame_shift_s)
            found.append(words_of(aligned, tokenizer))
    return found


def emission_delays_s(
    aligned: Sequence[Word], recognised: Sequence[Word], chunk_s: float = 0.0, look_ahead_s: float = 0.0
) -> list[float]:
    """How long after the end of each correctly recognised word it comes out.

    A word comes out when the chunk that holds the end of its last token is complete and its look-ahead heard.

    Args:
        aligned: Words of the reference with their times in the audio.
        recognised: Words of the recogniser, ``end_s`` the end of the frame in which the last token first shows.
        chunk_s: Seconds of a chunk; 0 counts from the frame itself.
        look_ahead_s: Seconds of audio needed beyond the chunk's end.

    Returns:
        Seconds for each word that both have, in order; negative where the word came out before its end.
    """
    delays: list[float] = []
    for i, j in matches([w.text for w in aligned], [w.text for w in recognised]):
        end = recognised[j].end_s
        out = math.ceil(round(end / chunk_s, 6)) * chunk_s if chunk_s else end
        delays.append(out + look_ahead_s - aligned[i].end_s)
    return delays


def matches(first: Sequence[Hashable], second: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    """Positions of the equal elements of a Levenshtein alignment.

    Args:
        first: Words or token ids.
        second: The same of another.
    """
    for block in Levenshtein.opcodes(first, second):
        if block.tag == "equal":
            yield from zip(range(block.src_start, block.src_end), range(block.dest_start, block.dest_end), strict=True)
