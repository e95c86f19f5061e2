"""Live recognition: PCM in, partial and final text out; any number of sessions share one model.

Features, subsampling and encoder go on through endpoints without a seam, so a session's posteriors are those of the
whole recording at once (to float rounding); only the decoder begins anew.

Dimension legend: B sessions, T output frames, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asrkd.data.text import END_ID
from asrkd.decoding.attention import rescore
from asrkd.decoding.ctc import DecodedTokens
from asrkd.decoding.word_lm import WordLm
from asrkd.models.base import Recogniser
from asrkd.models.conformer import ChunkedConformer
from asrkd.streaming.events import Event, Final, Partial, WordHeard, words_of
from asrkd.streaming.hearing import Step, hearing_of
from asrkd.streaming.pcm import PcmInput
from asrkd.streaming.segment import Decoding, SegmentDecoder, encode_hotwords
from asrkd.types import Frames

MAX_CHUNKS_A_STEP = 16
"""Chunks computed at once where a session is behind: enough to fill the matrix products, with bounded memory."""
MAX_PIECE_S = 10.0
"""Longer pieces of audio are taken in parts of this length, so that memory stays bounded."""


@dataclass(frozen=True)
class EndpointRules:
    """When a segment ends, in the manner of Kaldi's ``OnlineEndpointConfig``.

    Args:
        silence_s: Silence that ends a segment in which nothing was recognised.
        silence_after_speech_s: Silence that ends a segment with words.
        segment_s: A segment this long ends at its next pause of ``pause_s``, and at the latest after half as much more.
        pause_s: See ``segment_s``.
    """

    silence_s: float = 2.4
    silence_after_speech_s: float = 1.2
    segment_s: float = 20.0
    pause_s: float = 0.2

    def __post_init__(self) -> None:
        for name in ("silence_s", "silence_after_speech_s", "segment_s", "pause_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")


@dataclass(frozen=True)
class RecognizerOptions:
    """How a :class:`Recognizer` works.

    Args:
        chunk_frames: Output frames of a chunk; ``None``: the model's default.
        left_context_frames: Output frames of the past; ``None``: the model's default.
        beam: Width of the CTC prefix beam search; 1: greedy.
        tokens_per_frame: Of the beam search.
        nbest: Hypotheses in a final result.
        attention_weight: Above 0, the attention decoder rescores the N-best list of each segment with this weight.
        endpoints: When segments end; ``None``: only with the stream (a beam search then keeps all its posteriors).
        partials: Whether :class:`Partial` and :class:`WordHeard` are wanted.
        hotwords: Phrases that are made likelier; needs ``beam`` above 1.
        hotword_boost: Nats for each of their tokens.
        lm: Words and a language model in place of the beam search; see :func:`asrkd.streaming.segment.open_word_lm`.
    """

    chunk_frames: int | None = None
    left_context_frames: int | None = None
    beam: int = 1
    tokens_per_frame: int = 20
    nbest: int = 1
    attention_weight: float = 0.0
    endpoints: EndpointRules | None = field(default_factory=EndpointRules)
    partials: bool = True
    hotwords: tuple[str, ...] = ()
    hotword_boost: float = 1.5
    lm: WordLm | None = None

    def __post_init__(self) -> None:
        if self.hotwords and (self.beam == 1 or self.lm is not None):
            raise ValueError("hotwords: expected a beam above 1 and no language model beside them")
        if self.beam < 1 or not 1 <= self.nbest <= self.beam:
            raise ValueError(f"beam, nbest: expected 1 <= nbest <= beam, found {self.beam}, {self.nbest}")
        if not 0.0 <= self.attention_weight <= 1.0:
            raise ValueError(f"attention_weight: expected 0 to 1, found {self.attention_weight}")
        if self.attention_weight and self.beam == 1:
            raise ValueError("attention_weight: rescoring needs an N-best list, expected beam above 1")

    def decoding(self, model: Recogniser) -> Decoding:
        """How a model's segments are decoded.

        Raises:
            ValueError: If the model's vocabulary cannot write a hot word.
        """
        words = encode_hotwords(self.hotwords, model.tokenizer, self.hotword_boost) if self.hotwords else None
        return Decoding(self.beam, self.tokens_per_frame, words, self.lm)


class Session:
    """One stream of audio. Made by :meth:`Recognizer.session`.

    Attributes:
        finished: Whether :meth:`finish` was called; nothing is accepted any more.
        heard_s: Seconds of audio accepted, at the model's rate.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        model = recognizer.model
        self._recognizer = recognizer
        self._pcm = PcmInput(model.sample_rate_hz)
        self._waiting: list[NDArray[np.float32]] = []
        self._samples = 0
        self._fbank_state = model.fbank.initial_state(1, recognizer.device)
        self._features = torch.zeros(1, 0, model.config.num_mel_bins, device=recognizer.device)
        self._feature_frames = 0
        self._state = recognizer._hearing.initial_state()
        self._segment_begin = 0
        self._segment = recognizer._hearing.segment(None)
        self._encoded: list[Tensor] = []
        self._last_text = ""
        self._words_told = 0
        self.finished = False

    @property
    def heard_s(self) -> float:
        return self._samples / self._recognizer.model.sample_rate_hz

    @property
    def repaired_samples(self) -> int:
        """Samples that were NaN or infinite and were heard as zero."""
        return self._pcm.repaired_samples

    def accept(self, pcm: NDArray[np.generic], sample_rate_hz: int | None = None) -> list[Event]:
        """Hear the next piece of audio; see :meth:`asrkd.streaming.pcm.PcmInput.accept`.

        Raises:
            ValueError: For impossible audio or after :meth:`finish`.
        """
        return self._recognizer.accept([self], [pcm], sample_rate_hz)[0]

    def finish(self) -> list[Event]:
        """Say that the stream ended: what is left is recognised, and the last :class:`Final` closes the session."""
        return self._recognizer.finish([self])[0]

    def _push(self, samples: NDArray[np.float32], final: bool) -> None:
        """Take samples and make features once a chunk's worth is there, so that tiny pieces cost next to nothing."""
        if len(samples):
            self._waiting.append(samples)
            self._samples += len(samples)
        model = self._recognizer.model
        fbank = model.fbank
        wanted = self._feature_frames - self._features.shape[1] + self._recognizer.chunk_features
        if not final and self._samples < (wanted - 1) * fbank.shift + fbank.length - fbank.left_edge:
            if len(self._waiting) > 1024:
                self._waiting = [np.concatenate(self._waiting)]
            return
        audio = np.concatenate(self._waiting) if self._waiting else np.zeros(0, dtype=np.float32)
        self._waiting = []
        tensor = torch.from_numpy(audio).to(self._recognizer.device).unsqueeze(0)
        values, self._fbank_state = fbank.step(tensor, self._fbank_state, final)
        self._feature_frames += values.shape[1]
        self._features = torch.cat((self._features, model.normalise(values)), dim=1)


class Recognizer:
    """A streaming model made ready for live audio.

    Args:
        model: A streaming student in evaluation mode; its device is used.
        options: How.

    Raises:
        ValueError: If the model cannot stream or an option does not fit it.
    """

    def __init__(self, model: Recogniser, options: RecognizerOptions | None = None) -> None:
        if not isinstance(model, ChunkedConformer):
            raise ValueError(f"model: a {model.kind} hears whole utterances and cannot stream")
        self.model = model.eval()
        self.options = options or RecognizerOptions()
        config = model.config
        given = self.options.chunk_frames
        self.chunk_frames = config.chunk_frames if given is None else given
        if self.chunk_frames < 1:
            raise ValueError(f"chunk_frames: expected at least 1 to stream, found {self.chunk_frames}")
        left = self.options.left_context_frames
        self.left_context_frames = config.left_context_frames if left is None else left
        if self.options.attention_weight and not model.has_decoder:
            raise ValueError("attention_weight: this model has no attention decoder to rescore with")
        self._hearing = hearing_of(model, self.chunk_frames, self.left_context_frames, self.options.decoding(model))
        self.chunk_features = self.chunk_frames * model.subsampling_factor
        self.device = next(model.parameters()).device

    def session(self) -> Session:
        """A new stream."""
        return Session(self)

    @torch.no_grad()
    def accept(
        self, sessions: Sequence[Session], pcm: Sequence[NDArray[np.generic]], sample_rate_hz: int | None = None
    ) -> list[list[Event]]:
        """Hear the next pieces of several streams, whose chunks are computed in one batch where they are ready.

        Args:
            sessions: Different sessions of this recogniser, at any point of their streams.
            pcm: A piece for each; see :meth:`asrkd.streaming.pcm.PcmInput.accept`.
            sample_rate_hz: Of all the pieces; ``None``: the model's.

        Returns:
            The events of each session.

        Raises:
            ValueError: For impossible audio, or a session that is finished or belongs to another recogniser; nothing
                is accepted then of that session and those after it.
        """
        events: list[list[Event]] = [[] for _ in sessions]
        pieces = [np.asarray(piece) for piece in pcm]
        part = int(MAX_PIECE_S * (sample_rate_hz or self.model.sample_rate_hz))
        longest = max((len(piece) for piece in pieces if piece.ndim), default=0)
        for start in range(0, max(longest, 1), max(part, 1)):
            for session, piece in zip(sessions, pieces, strict=True):
                self._check_open(session)
                rest = piece[start : start + part] if piece.ndim else piece
                session._push(session._pcm.accept(rest, sample_rate_hz), final=False)
            for heard, more in zip(events, self._advance(sessions), strict=True):
                heard.extend(more)
        return events

    @torch.no_grad()
    def finish(self, sessions: Sequence[Session]) -> list[list[Event]]:
        """End several streams at once; see :meth:`Session.finish`."""
        for session in sessions:
            self._check_open(session)
            session._push(session._pcm.flush(), final=True)
            session.finished = True
        events = self._advance(sessions)
        for session, heard in zip(sessions, events, strict=True):
            self._end_segment(session, "end", heard)
        return events

    def _check_open(self, session: Session) -> None:
        if session._recognizer is not self:
            raise ValueError("session: belongs to another recogniser")
        if session.finished:
            raise ValueError("session: is finished; expected a new session for more audio")

    def _advance(self, sessions: Sequence[Session]) -> list[list[Event]]:
        """Compute all chunks that are ready, batch by batch, until none is left."""
        events: list[list[Event]] = [[] for _ in sessions]
        advanced: set[int] = set()
        while True:
            ready = [
                row
                for row, session in enumerate(sessions)
                if session._features.shape[1] >= self.chunk_features
                or (session.finished and session._features.shape[1] > 0)
            ]
            if not ready:
                break
            step = self._step([sessions[row] for row in ready])
            advanced.update(ready)
            for place, row in enumerate(ready):
                encoded = None if step.encoded is None else step.encoded[place]
                self._hear(sessions[row], step.heard[place], encoded, events[row])
        if self.options.partials:
            for row in sorted(advanced):
                self._tell(sessions[row], events[row])
        return events

    def _step(self, sessions: Sequence[Session]) -> Step:
        """One step for sessions that all have a chunk ready."""
        # As many whole chunks as every session has; one whose stream ends may bring less than one.
        chunks = min(max(session._features.shape[1] // self.chunk_features, 1) for session in sessions)
        num_features = min(chunks, MAX_CHUNKS_A_STEP) * self.chunk_features
        lengths = torch.tensor([min(session._features.shape[1], num_features) for session in sessions])
        batch = torch.zeros(len(sessions), int(lengths.max()), self.model.config.num_mel_bins, device=self.device)
        for row, session in enumerate(sessions):
            batch[row, : int(lengths[row])] = session._features[0, :num_features]
            session._features = session._features[:, num_features:]
        step = self._hearing.step(batch, [session._state for session in sessions], lengths)
        for session, state in zip(sessions, step.states, strict=True):
            session._state = state
        return step

    def _hear(self, session: Session, heard: Any, encoded: Tensor | None, events: list[Event]) -> None:
        """Decode new frames chunk by chunk, so that endpoints do not depend on how the audio was cut into pieces."""
        for start in range(0, len(heard), self.chunk_frames):
            stop = start + self.chunk_frames
            session._segment.advance(heard[start:stop])
            if self.options.attention_weight and encoded is not None:
                session._encoded.append(encoded[start:stop])
            reason = self._endpoint(session._segment)
            if reason is not None:
                self._end_segment(session, reason, events)

    def _endpoint(self, segment: SegmentDecoder[Any]) -> Literal["silence", "length"] | None:
        rules = self.options.endpoints
        if rules is None:
            return None
        silence_s = segment.trailing_blanks * self.model.frame_shift_s
        length_s = segment.num_frames * self.model.frame_shift_s
        if silence_s >= (rules.silence_after_speech_s if segment.best_tokens() else rules.silence_s):
            return "silence"
        if length_s >= rules.segment_s and (silence_s >= rules.pause_s or length_s >= 1.5 * rules.segment_s):
            return "length"
        return None

    def _tell(self, session: Session, events: list[Event]) -> None:
        """Words that are settled by now, and the partial text where it changed."""
        tokens = session._segment.best_tokens()
        text = self.model.tokenizer.decode(tokens)
        offset_s = session._segment_begin * self.model.frame_shift_s
        if text == session._last_text:
            return
        settled = session._segment.num_settled()
        if settled:
            decoded = session._segment.nbest(1)[0]
            # The last word may go on: it is settled only when the next one has begun.
            words = words_of(_first(decoded, settled), self.model.tokenizer, offset_s)[:-1]
            events.extend(WordHeard(word) for word in words[session._words_told :])
            session._words_told = max(session._words_told, len(words))
        session._last_text = text
        end_s = offset_s + session._segment.num_frames * self.model.frame_shift_s
        events.append(Partial(text, offset_s, end_s))

    def _end_segment(self, session: Session, reason: Literal["silence", "length", "end"], events: list[Event]) -> None:
        """Close the segment and say what it was; silence in which nothing was said is no result."""
        told = session._words_told
        spoken = bool(session._segment.best_tokens())
        final = self._close_segment(session, reason)
        if spoken or reason == "end":
            if self.options.partials:
                events.extend(WordHeard(word) for word in final.words[told:])
            events.append(final)

    def _close_segment(self, session: Session, reason: Literal["silence", "length", "end"]) -> Final:
        segment, shift_s = session._segment, self.model.frame_shift_s
        nbest = segment.nbest(self.options.beam if self.options.attention_weight else self.options.nbest)
        if self.options.attention_weight and session._encoded:
            nbest = self._rescore(session, nbest)[: self.options.nbest]
        offset_s = session._segment_begin * shift_s
        final = Final(
            text=self.model.tokenizer.decode(nbest[0].tokens),
            words=words_of(nbest[0], self.model.tokenizer, offset_s),
            start_s=offset_s,
            end_s=offset_s + segment.num_frames * shift_s,
            reason=reason,
            alternatives=tuple(self.model.tokenizer.decode(other.tokens) for other in nbest[1:]),
        )
        session._segment_begin += segment.num_frames
        session._segment = self._hearing.segment(segment)
        session._encoded = []
        session._last_text = ""
        session._words_told = 0
        return final

    def _rescore(self, session: Session, nbest: tuple[DecodedTokens, ...]) -> tuple[DecodedTokens, ...]:
        values = torch.cat(session._encoded).unsqueeze(0)
        lengths = torch.tensor([values.shape[1]], device=self.device)
        encoded = Frames(values, lengths, self.model.frame_shift_s)

        def decoder_logits(tokens: Tensor, token_lengths: Tensor) -> Tensor:
            rows = torch.zeros(len(tokens), dtype=torch.int64, device=self.device)
            return self.model.decoder_logits(encoded, tokens, token_lengths, rows)

        return rescore(nbest, decoder_logits, END_ID, self.options.attention_weight, self.device)


def chunk_frames_of(model: Recogniser, chunk_ms: int) -> int:
    """Output frames of a chunk given in milliseconds.

    Raises:
        ValueError: If it is no multiple of the model's frame.
    """
    frame_ms = round(1000 * model.frame_shift_s)
    if chunk_ms < frame_ms or chunk_ms % frame_ms:
        raise ValueError(f"--chunk-ms: expected a multiple of this model's {frame_ms} ms a frame, found {chunk_ms}")
    return chunk_ms // frame_ms


def _first(decoded: DecodedTokens, count: int) -> DecodedTokens:
    """The first ``count`` tokens."""
    return DecodedTokens(
        decoded.tokens[:count], decoded.times_s[:count], decoded.ends_s[:count], decoded.confidences[:count],
        decoded.score,
    )  # fmt: skip
