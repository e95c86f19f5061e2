"""The few frozen records that travel between rooms.

Dimension legend, used in every tensor file of the project:
    B utterances   S audio samples   T frames   V tokens (blank included)   U labels
    N hypotheses   K kept entries    D features or hidden units

Lengths are absolute integers in frames (or samples, or labels), never fractions. Every frame sequence carries its
``frame_shift_s``; every posterior carries its vocabulary, and the vocabulary its ``blank_id``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vocabulary:
    """The ordered tokens of a model's output and where its CTC blank stands.

    Args:
        tokens: Token strings; index is the token's id. SentencePiece pieces keep their ``▁``.
        blank_id: Id of the CTC blank, in ``[0, len(tokens))``.

    Raises:
        ValueError: If ``blank_id`` is out of range or a token stands twice.
    """

    tokens: tuple[str, ...]
    blank_id: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.blank_id < len(self.tokens):
            raise ValueError(f"blank_id: expected 0 to {len(self.tokens) - 1}, found {self.blank_id}")
        if len(set(self.tokens)) != len(self.tokens):
            twice = sorted({t for t in self.tokens if self.tokens.count(t) > 1})
            raise ValueError(f"tokens: expected each once, found twice: {', '.join(map(repr, twice[:5]))}")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of the ordered tokens and the blank: equal exactly when posteriors are comparable."""
        text = json.dumps([list(self.tokens), self.blank_id], ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Frames:
    """A padded batch of frame sequences.

    Args:
        values: ``(B, T, D)``; what lies beyond ``lengths`` is undefined.
        lengths: ``(B,)`` int64, valid frames of each row.
        frame_shift_s: Seconds from one frame to the next.
    """

    values: Tensor
    lengths: Tensor
    frame_shift_s: float

    def to(self, device: torch.device | str) -> Frames:
        return replace(self, values=self.values.to(device), lengths=self.lengths.to(device))


@dataclass(frozen=True)
class TopK:
    """Sparse frame posteriors: the kept entries of each frame and one bucket for the rest.

    Args:
        ids: ``(B, T, K)`` int64 token ids; unused places hold 0.
        log_probs: ``(B, T, K)`` float log-probabilities; ``-inf`` in unused places.
        tail_log_prob: ``(B, T)`` log of the mass outside the kept entries; ``-inf`` where none is left.
        lengths: ``(B,)`` int64 valid frames.
        frame_shift_s: Seconds from one frame to the next.
        vocab_size: V of the posteriors that these came from.
    """

    ids: Tensor
    log_probs: Tensor
    tail_log_prob: Tensor
    lengths: Tensor
    frame_shift_s: float
    vocab_size: int

    def to(self, device: torch.device | str) -> TopK:
        return replace(
            self,
            ids=self.ids.to(device),
            log_probs=self.log_probs.to(device),
            tail_log_prob=self.tail_log_prob.to(device),
            lengths=self.lengths.to(device),
        )


@dataclass(frozen=True)
class Hypothesis:
    """One transcript of one utterance.

    Args:
        tokens: Token ids, without blank and sentence marks.
        text: The detokenised transcript.
        score: Total log-probability (natural log) under the model and search that made it.
        times_s: Time of each token in seconds from the start of the audio, where known.
        confidences: Probability of each token in ``[0, 1]``, where known.
    """

    tokens: tuple[int, ...]
    text: str
    score: float = 0.0
    times_s: tuple[float, ...] | None = None
    confidences: tuple[float, ...] | None = None


NBest = tuple[Hypothesis, ...]


@dataclass(frozen=True)
class TeacherTargets:
    """What a teacher says of a batch; the same type whether it was just computed or read from disk.

    Args:
        vocabulary: Tokens of ``posteriors`` and of the hypotheses.
        posteriors: Frame *log-probabilities*: dense ``Frames`` ``(B, T, V)``, ``TopK``, or ``None``.
        nbest: For each utterance its hypotheses, best first, or ``None``.
        hidden: Named internal representations, each ``(B, T, D)``.
        decoder: Token log-probabilities of the attention decoder under teacher forcing on ``decoder_tokens``
            (rows hold U labels then end-of-sentence), ``(B, U+1, V)``, or ``None``.
        decoder_tokens: ``Frames``-like ids ``(B, U)`` and lengths the decoder was forced on.
        lattice: Token log-probabilities of a transducer's joint network at every node, forced on the batch's labels,
            ``(B, T, U+1, V)``, or ``None``.
    """

    vocabulary: Vocabulary
    posteriors: Frames | TopK | None = None
    nbest: tuple[NBest, ...] | None = None
    hidden: Mapping[str, Frames] = field(default_factory=dict)
    decoder: Frames | None = None
    decoder_tokens: tuple[Tensor, Tensor] | None = None
    lattice: Frames | None = None

    def to(self, device: torch.device | str) -> TeacherTargets:
        return replace(
            self,
            posteriors=None if self.posteriors is None else self.posteriors.to(device),
            hidden={name: frames.to(device) for name, frames in self.hidden.items()},
            decoder=None if self.decoder is None else self.decoder.to(device),
            decoder_tokens=None
            if self.decoder_tokens is None
            else (self.decoder_tokens[0].to(device), self.decoder_tokens[1].to(device)),
            lattice=None if self.lattice is None else self.lattice.to(device),
        )


@dataclass(frozen=True)
class SpeechBatch:
    """A padded batch of utterances.

    Args:
        ids: Cut ids.
        audio: ``(B, S)`` float32 samples in ``[-1, 1]``, zero beyond ``audio_lengths``.
        audio_lengths: ``(B,)`` int64 samples.
        sample_rate_hz: Of ``audio``.
        texts: Reference transcripts (empty string where there is none).
        tokens: ``(B, U)`` int64 label ids, padded with 0; or ``None`` before tokenising.
        token_lengths: ``(B,)`` int64 labels.
        targets: The teacher's targets for these utterances, or ``None``.
    """

    ids: tuple[str, ...]
    audio: Tensor
    audio_lengths: Tensor
    sample_rate_hz: int
    texts: tuple[str, ...] = ()
    tokens: Tensor | None = None
    token_lengths: Tensor | None = None
    targets: TeacherTargets | None = None

    def to(self, device: torch.device | str) -> SpeechBatch:
        return replace(
            self,
            audio=self.audio.to(device),
            audio_lengths=self.audio_lengths.to(device),
            tokens=None if self.tokens is None else self.tokens.to(device),
            token_lengths=None if self.token_lengths is None else self.token_lengths.to(device),
            targets=None if self.targets is None else self.targets.to(device),
        )


@dataclass(frozen=True)
class ModelOutput:
    """What one forward pass of a recogniser gives.

    Args:
        ctc: ``(B, T, V)`` unnormalised scores of the CTC head, with lengths and frame shift; ``None`` without such a head.
        encoded: ``(B, T, D)`` encoder output (what the attention decoder and the transducer's joint network read).
        hidden: Named intermediate layers, ``"layer.0"`` the output of the first block; empty unless asked for.
    """

    ctc: Frames | None
    encoded: Frames
    hidden: Mapping[str, Frames] = field(default_factory=dict)

    @property
    def ctc_logits(self) -> Frames:
        """``ctc`` of a model that has a CTC head.

        Raises:
            ValueError: If this one has none.
        """
        if self.ctc is None:
            raise ValueError(
                "model: expected one with a CTC head; found a transducer without (model.ctc_head: true gives one)"
            )
        return self.ctc
