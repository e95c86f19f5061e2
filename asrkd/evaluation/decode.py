"""A model's transcripts of a test set, in batches of utterances of like duration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lhotse import CutSet
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from asrkd.data.batching import load_batch
from asrkd.decoding.attention import rescore
from asrkd.decoding.prefix_beam import prefix_beam_search
from asrkd.models.base import Recogniser
from asrkd.streaming.events import Final, Word, words_of
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions
from asrkd.types import Frames, ModelOutput, SpeechBatch

Report = Callable[[int, int, str], None]
_Found = tuple[str, tuple[Word, ...] | None]


class DecodingOptions(BaseModel):
    """How a model is decoded.

    Attributes:
        method: ``greedy``: the best path (of CTC, or of a transducer) on whole utterances under the model's chunk mask;
            ``streaming``: the live recogniser, fed audio as it would come; ``joint`` CTC/attention beam search for models
            that have one; ``rescore``: CTC prefix beam search under the chunk mask, its list rescored by the attention
            decoder (two passes).
        chunk_frames: Output frames of a chunk; ``None``: the model's default; 0: full context.
        left_context_frames: Output frames that a chunk may look back; ``None``: the model's default.
        beam: Of the joint search, and of the first of two passes.
        ctc_weight: Of the joint search, and of the first pass in the second.
        batch_audio_s: Seconds of audio in a batch, padding counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["greedy", "streaming", "joint", "rescore"] = "greedy"
    chunk_frames: int | None = Field(default=None, ge=0)
    left_context_frames: int | None = Field(default=None, ge=0)
    beam: int = Field(default=10, ge=1)
    ctc_weight: float = Field(default=0.4, ge=0, le=1)
    batch_audio_s: float = Field(default=120.0, gt=0)


@dataclass(frozen=True)
class Decoded:
    """What a model made of one utterance.

    Args:
        id: Of the cut.
        text: Recognised.
        words: Recognised words with their times, where the decoder knows them.
        audio_sha256: First 16 hex digits over the float32 samples that the model was given.
    """

    id: str
    text: str
    words: tuple[Word, ...] | None
    audio_sha256: str


def decode(
    model: Recogniser,
    cuts: CutSet,
    options: DecodingOptions,
    *,
    skip: Collection[str] = (),
    report: Report = lambda done, total, text: None,
) -> Iterator[list[Decoded]]:
    """Transcribes a test set, longest utterances first (what does not fit into memory fails at once).

    Args:
        model: In evaluation mode; its device is used.
        cuts: One supervision or none a cut.
        options: How.
        skip: Ids that are done already.
        report: Called with utterances done, utterances in all, and a short text.

    Yields:
        One batch after the other.

    Raises:
        ValueError: If the model has no joint search, or cannot work in such chunks.
    """
    if options.method == "joint" and not hasattr(model, "nbest"):
        raise ValueError(f"method: expected greedy ({model.kind} has no joint CTC/attention search), found joint")
    if options.method == "rescore" and not model.has_decoder:
        raise ValueError(f"method: expected greedy ({model.kind} has no attention decoder here), found rescore")
    skip = set(skip)
    waiting = sorted((cut for cut in cuts if cut.id not in skip), key=lambda cut: (-cut.duration, cut.id))
    done, total = len(skip), len(skip) + len(waiting)
    report(done, total, "")
    for group in _groups(waiting, options.batch_audio_s):
        batch = load_batch(CutSet.from_cuts(group), None, sample_rate_hz=model.sample_rate_hz)
        yield _decode_batch(model, batch, options)
        done += len(group)
        report(done, total, "")


def _decode_batch(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> list[Decoded]:
    method = {"greedy": _greedy, "streaming": _streaming, "joint": _joint, "rescore": _rescore}[options.method]
    with torch.no_grad():
        found = method(model, batch, options)
    hashes = _hashes(batch)
    return [Decoded(i, text, words, sha) for i, (text, words), sha in zip(batch.ids, found, hashes, strict=True)]


def _greedy(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> list[_Found]:
    found = model.greedy(_forward(model, batch, options))
    return [(model.tokenizer.decode(tokens.tokens), words_of(tokens, model.tokenizer)) for tokens in found]


def _joint(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> list[_Found]:
    encoded = _forward(model, batch, options).encoded
    lists = model.nbest(encoded, n=1, beam=options.beam, ctc_weight=options.ctc_weight)  # type: ignore[operator]
    return [(found[0].text, None) for found in lists]


def _rescore(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> list[_Found]:
    output = _forward(model, batch, options)
    logits, encoded = output.ctc_logits, output.encoded
    log_probs = Frames(logits.values.float().log_softmax(-1), logits.lengths, logits.frame_shift_s)
    lists = prefix_beam_search(log_probs, model.vocabulary, options.beam, n=options.beam)
    end, device = model.vocabulary.tokens.index("</s>"), encoded.values.device
    found: list[_Found] = []
    for row, nbest in enumerate(lists):

        def decoder_logits(tokens: Tensor, lengths: Tensor, row: int = row) -> Tensor:
            rows = torch.full((len(tokens),), row, device=device)
            return model.decoder_logits(encoded, tokens, lengths, rows=rows)

        best = rescore(nbest, decoder_logits, end, attention_weight=1 - options.ctc_weight, device=device)[0]
        found.append((model.tokenizer.decode(best.tokens), words_of(best, model.tokenizer)))
    return found


def _streaming(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> list[_Found]:
    # Without endpoints: test utterances are single segments, and what is asked is what chunks cost.
    recognizer = Recognizer(
        model,
        RecognizerOptions(
            chunk_frames=options.chunk_frames,
            left_context_frames=options.left_context_frames,
            endpoints=None,
            partials=False,
        ),
    )
    sessions = [recognizer.session() for _ in batch.ids]
    lengths = batch.audio_lengths.tolist()
    recognizer.accept(sessions, [row[:n].numpy() for row, n in zip(batch.audio.cpu(), lengths, strict=True)])
    finals = [event for events in recognizer.finish(sessions) for event in events if isinstance(event, Final)]
    return [(final.text, final.words) for final in finals]


def _forward(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> ModelOutput:
    device = model.feature_mean.device
    return model(
        model.features(batch.audio.to(device), batch.audio_lengths.to(device)),
        chunk_frames=options.chunk_frames,
        left_context_frames=options.left_context_frames,
    )


def _groups(cuts: list[Any], batch_audio_s: float) -> Iterator[list[Any]]:
    """Batches of cuts sorted by falling duration; the first of a batch is its longest."""
    group: list[Any] = []
    for cut in cuts:
        if group and group[0].duration * (len(group) + 1) > batch_audio_s:
            yield group
            group = []
        group.append(cut)
    if group:
        yield group


def _hashes(batch: SpeechBatch) -> list[str]:
    audio = batch.audio.cpu().numpy()
    return [
        hashlib.sha256(audio[row, :length].tobytes()).hexdigest()[:16]
        for row, length in enumerate(batch.audio_lengths.tolist())
    ]
