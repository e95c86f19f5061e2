"""Delay: what the geometry of a model costs, and when its words really come out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torchaudio.functional import forced_align

from asrkd.models.base import Recogniser
from asrkd.types import Frames, Vocabulary

WORD_START = "▁"


@dataclass(frozen=True)
class WordTime:
    """A word and where it stands in the audio.

    Args:
        word: Its text.
        start_s: Start of its first token's first frame, in seconds.
        end_s: End of its last token's last frame, in seconds.
    """

    word: str
    start_s: float
    end_s: float


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
    log_probs: Frames, tokens: Sequence[Sequence[int]], vocabulary: Vocabulary
) -> list[tuple[WordTime, ...] | None]:
    """Forced alignment of transcripts by a CTC model, as words with times.

    Args:
        log_probs: ``(B, T, V)`` CTC log-probabilities, usually of a full-context teacher.
        tokens: For each utterance the ids of its transcript. A word begins at ``▁`` (SentencePiece) or after a token
            that is a space (characters).
        vocabulary: Tokens of ``log_probs``.

    Returns:
        For each utterance its words, or ``None`` where the transcript does not fit into the frames.
    """
    found: list[tuple[WordTime, ...] | None] = []
    for row, ids in enumerate(tokens):
        frames = int(log_probs.lengths[row])
        repeats = sum(a == b for a, b in itertools.pairwise(ids))
        if len(ids) + repeats > frames:
            found.append(None)
        elif not ids:
            found.append(())
        else:
            target = torch.tensor([list(ids)], dtype=torch.int32, device=log_probs.values.device)
            path, _ = forced_align(log_probs.values[row : row + 1, :frames].float(), target, blank=vocabulary.blank_id)
            found.append(_words(path[0].tolist(), ids, vocabulary, log_probs.frame_shift_s))
    return found


def words_of(
    tokens: Sequence[int], starts_s: Sequence[float], ends_s: Sequence[float], vocabulary: Vocabulary
) -> tuple[WordTime, ...]:
    """Groups timed tokens into words.

    Args:
        tokens: Ids.
        starts_s: Start of each, in seconds.
        ends_s: End of each, in seconds.
        vocabulary: Of the ids.
    """
    words: list[WordTime] = []
    text, start, end = "", 0.0, 0.0
    for token, token_start, token_end in zip(tokens, starts_s, ends_s, strict=True):
        piece = vocabulary.tokens[token]
        if piece.startswith(WORD_START) or piece == " ":
            if text:
                words.append(WordTime(text, start, end))
            text, piece = "", piece.removeprefix(WORD_START).strip()
        if piece:
            start = token_start if not text else start
            text, end = text + piece, token_end
    if text:
        words.append(WordTime(text, start, end))
    return tuple(words)


def emission_delays_s(
    aligned: Sequence[WordTime], recognised: Sequence[WordTime], chunk_s: float = 0.0, look_ahead_s: float = 0.0
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
    from rapidfuzz.distance import Levenshtein

    said, heard = [w.word for w in aligned], [w.word for w in recognised]
    delays: list[float] = []
    for block in Levenshtein.opcodes(said, heard):
        if block.tag == "equal":
            for i, j in zip(
                range(block.src_start, block.src_end), range(block.dest_start, block.dest_end), strict=True
            ):
                end = recognised[j].end_s
                out = math.ceil(round(end / chunk_s, 6)) * chunk_s if chunk_s else end
                delays.append(out + look_ahead_s - aligned[i].end_s)
    return delays


def _words(path: list[int], ids: Sequence[int], vocabulary: Vocabulary, frame_shift_s: float) -> tuple[WordTime, ...]:
    starts, ends = [], []
    previous = vocabulary.blank_id
    for frame, token in enumerate(path):
        if token != vocabulary.blank_id:
            if token != previous:
                starts.append(frame * frame_shift_s)
                ends.append((frame + 1) * frame_shift_s)
            else:
                ends[-1] = (frame + 1) * frame_shift_s
        previous = token
    return words_of(ids, starts, ends, vocabulary)
