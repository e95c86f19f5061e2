"""The one face of every teacher, and what most of them share.

Dimension legend: B utterances, S samples, T frames, V tokens, D hidden units.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
import torchaudio
from torch import Tensor, nn

from asrkd.decoding.ctc import DecodedTokens, greedy
from asrkd.decoding.prefix_beam import align, prefix_beam_search
from asrkd.types import Frames, Hypothesis, NBest, SpeechBatch, TeacherTargets, Vocabulary

Precision = Literal["fp32", "bf16", "fp16"]

TEXT_ONLY = Vocabulary(("<blank>",), 0)
"""Of teachers whose hypotheses are text alone: no token ids, no frame posteriors."""


class Teacher(Protocol):
    """Hears a batch and says what it heard; whatever it needs (rate, features, device) is its own matter.

    Attributes:
        identity: Hash over everything that changes what it says: weights, vocabulary, features, search.
        vocabulary: Of its posteriors and hypotheses.
        sample_rate_hz: Of the audio that it takes; audio at another rate is resampled.
        frame_shift_s: Of its posteriors.
    """

    identity: str
    vocabulary: Vocabulary
    sample_rate_hz: int
    frame_shift_s: float

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """What the teacher says of ``batch``, on the CPU or its own device."""
        ...


class CtcTeacher(ABC):
    """A teacher with frame posteriors: resampling, precision, N-best lists by CTC prefix beam search.

    Args:
        vocabulary: Of the posteriors.
        sample_rate_hz: Of the audio that it takes.
        frame_shift_s: Of the posteriors.
        weights: What to hash for the identity, beside the options here; or a hash of them.
        device: Where it runs.
        nbest: Hypotheses of each utterance; 0: none.
        beam: Beam width, at least ``nbest``.
        precision: ``fp32``, or ``bf16``/``fp16`` for matrix products.
        hidden: Names of the hidden layers that it gives.

    Raises:
        ValueError: If ``beam`` is smaller than ``nbest``.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        sample_rate_hz: int,
        frame_shift_s: float,
        weights: nn.Module | str,
        *,
        device: str = "cpu",
        nbest: int = 0,
        beam: int = 8,
        precision: Precision = "fp32",
        hidden: tuple[str, ...] = (),
    ) -> None:
        check_search(nbest, beam)
        self.vocabulary = vocabulary
        self.sample_rate_hz = sample_rate_hz
        self.frame_shift_s = frame_shift_s
        self.device = device
        self.nbest = nbest
        self.beam = beam
        self.precision = precision
        options = {"nbest": nbest, "beam": beam if nbest else 0, "precision": precision, **named(hidden)}
        self.identity = teacher_identity(type(self).__name__, weights, vocabulary, options)

    @torch.no_grad()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """Log-probabilities ``(B, T, V)`` and, where asked for, N-best lists and hidden states."""
        audio, lengths = at_rate(batch, self.sample_rate_hz)
        with autocast(self.device, self.precision):
            logits, frames, states = self._hear(audio.to(self.device), lengths.to(self.device))
        posteriors = Frames(logits.float().log_softmax(-1), frames.long(), self.frame_shift_s)
        hidden = {name: Frames(values.float(), frames.long(), self.frame_shift_s) for name, values in states.items()}
        nbest = ctc_nbest(posteriors, self.vocabulary, self._text, self.nbest, self.beam) if self.nbest else None
        return TeacherTargets(self.vocabulary, posteriors, nbest, hidden)

    @abstractmethod
    def _hear(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Audio ``(B, S)`` and samples ``(B,)`` to scores ``(B, T, V)`` (or log-probabilities), frames ``(B,)`` and the hidden
        states that were asked for, each ``(B, T, D)``."""

    @abstractmethod
    def _text(self, tokens: Sequence[int]) -> str:
        """Transcript of token ids."""


def check_search(nbest: int, beam: int) -> None:
    """Refuse a beam that cannot hold the list.

    Raises:
        ValueError: Naming both.
    """
    if nbest < 0:
        raise ValueError(f"nbest: expected 0 or more, found {nbest}")
    if nbest and beam < nbest:
        raise ValueError(f"beam: expected at least nbest = {nbest}, found {beam}")


def teacher_identity(kind: str, weights: nn.Module | str, vocabulary: Vocabulary, options: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over kind, weights and buffers (or a hash of them), vocabulary and options."""
    digest = hashlib.sha256(f"{kind} {vocabulary.identity} {sorted(options.items())}".encode())
    if isinstance(weights, str):
        digest.update(weights.encode())
        return digest.hexdigest()
    for name, tensor in sorted(weights.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def named(hidden: tuple[str, ...]) -> dict[str, Any]:
    """Hidden layers as one of the options that an identity is made of; nothing where there are none."""
    return {"hidden": hidden} if hidden else {}


def at_rate(batch: SpeechBatch, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
    """The batch's audio ``(B, S)`` and samples ``(B,)`` at the teacher's rate."""
    if batch.sample_rate_hz == sample_rate_hz:
        return batch.audio, batch.audio_lengths
    audio = torchaudio.functional.resample(batch.audio, batch.sample_rate_hz, sample_rate_hz)
    lengths = torch.ceil(batch.audio_lengths.double() * sample_rate_hz / batch.sample_rate_hz).long()
    return audio, lengths.clamp(max=audio.shape[1])


def autocast(device: str, precision: Precision) -> AbstractContextManager[Any]:
    """Half precision for matrix products where asked for."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(torch.device(device).type, half, enabled=half is not None)


def ctc_nbest(
    posteriors: Frames, vocabulary: Vocabulary, text_of: Callable[[Sequence[int]], str], n: int, beam: int
) -> tuple[NBest, ...]:
    """N-best lists of CTC posteriors: the greedy path for ``n`` = 1, else prefix beam search."""

    def hypothesis(found: DecodedTokens) -> Hypothesis:
        return Hypothesis(found.tokens, text_of(found.tokens), found.score, found.times_s, found.confidences)

    if n == 1:
        return tuple((hypothesis(one),) for one in greedy(posteriors, vocabulary))
    return tuple(tuple(map(hypothesis, one)) for one in prefix_beam_search(posteriors, vocabulary, beam=beam, n=n))


def with_times(nbest: Sequence[NBest], posteriors: Frames, vocabulary: Vocabulary) -> tuple[NBest, ...]:
    """Hypotheses of a search that keeps no times, with those of the best CTC path through each, and its confidences.

    Args:
        nbest: For each utterance its hypotheses.
        posteriors: ``(B, T, V)`` log-probabilities over the same tokens.
        vocabulary: Of both.
    """
    values = posteriors.values.float().cpu().contiguous().numpy()

    def timed(row: int, length: int, one: Hypothesis) -> Hypothesis:
        try:
            found = align(values[row, :length], one.tokens, one.score, vocabulary.blank_id, posteriors.frame_shift_s)
        except ValueError:  # more tokens than frames
            return one
        return replace(one, times_s=found.times_s, confidences=found.confidences)

    lengths = posteriors.lengths.tolist()
    return tuple(tuple(timed(row, lengths[row], one) for one in some) for row, some in enumerate(nbest))


def measured_frame_shift_s(frames_of: Callable[[Tensor], int], sample_rate_hz: int) -> float:
    """Frame shift found by letting a model hear 4 and 8 seconds of faint noise, to 0.1 ms.

    Args:
        frames_of: Audio ``(1, S)`` to the number of frames that the model makes of it.
        sample_rate_hz: Of that audio.
    """
    noise = 1e-3 * torch.randn(1, 8 * sample_rate_hz, generator=torch.Generator().manual_seed(0))
    more = frames_of(noise) - frames_of(noise[:, : 4 * sample_rate_hz])
    if more <= 0:
        raise ValueError("frame shift: expected more frames of more audio, found as many")
    return round(4.0 / more, 4)


def stack(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``(T_b, V)`` of each utterance to one padded ``(B, T, V)`` and frames ``(B,)``."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=rows[0].device)
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths


def characters_to_text(tokens: Sequence[str], separator: str = "|") -> str:
    """Character tokens with a word separator to plain text."""
    return " ".join("".join(tokens).replace(separator, " ").split())


def confidence(posteriors: Frames, blank_id: int) -> Tensor:
    """``(B,)`` mean log-probability of the likeliest token over frames where that is no blank; ``-inf`` where none is."""
    best, ids = posteriors.values.float().max(-1)
    valid = torch.arange(best.shape[1], device=best.device) < posteriors.lengths.to(best.device)[:, None]
    spoken = valid & (ids != blank_id)
    means = best.masked_fill(~spoken, 0.0).sum(1) / spoken.sum(1).clamp(min=1)
    return means.masked_fill(~spoken.any(1), -math.inf)
