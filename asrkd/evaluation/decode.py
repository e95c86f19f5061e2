"""A model's transcripts of a test set, in batches of utterances of like duration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lhotse import CutSet
from pydantic import BaseModel, ConfigDict, Field

from asrkd.data.batching import load_batch
from asrkd.decoding.ctc import greedy
from asrkd.models.base import Recogniser
from asrkd.types import Frames, SpeechBatch

Report = Callable[[int, int, str], None]


class DecodingOptions(BaseModel):
    """How a model is decoded.

    Attributes:
        method: ``greedy`` CTC, or ``joint`` CTC/attention beam search for models that have one.
        chunk_frames: Output frames of a chunk; ``None``: the model's default; 0: full context.
        left_context_frames: Output frames that a chunk may look back; ``None``: the model's default.
        beam: Of the joint search.
        ctc_weight: Of the joint search.
        batch_audio_s: Seconds of audio in a batch, padding counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["greedy", "joint"] = "greedy"
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
        tokens: Recognised token ids.
        times_s: Start of each token, where the decoder knows it.
        confidence: Mean token probability, where known.
        audio_sha256: First 16 hex digits over the float32 samples that the model was given.
    """

    id: str
    text: str
    tokens: tuple[int, ...]
    times_s: tuple[float, ...] | None
    confidence: float | None
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
    skip = set(skip)
    waiting = sorted((cut for cut in cuts if cut.id not in skip), key=lambda cut: (-cut.duration, cut.id))
    done, total = len(skip), len(skip) + len(waiting)
    report(done, total, "")
    for group in _groups(waiting, options.batch_audio_s):
        batch = load_batch(CutSet.from_cuts(group), None, sample_rate_hz=model.sample_rate_hz)
        yield _decode_batch(model, batch, options)
        done += len(group)
        report(done, total, "")


@torch.inference_mode()
def _decode_batch(model: Recogniser, batch: SpeechBatch, options: DecodingOptions) -> list[Decoded]:
    device = model.feature_mean.device
    output = model(
        model.features(batch.audio.to(device), batch.audio_lengths.to(device)),
        chunk_frames=options.chunk_frames,
        left_context_frames=options.left_context_frames,
    )
    hashes = _hashes(batch)
    if options.method == "joint":
        lists = model.nbest(  # type: ignore[operator]
            output.encoded, n=1, beam=options.beam, ctc_weight=options.ctc_weight
        )
        return [
            Decoded(i, found[0].text, tuple(found[0].tokens), found[0].times_s, None, sha)
            for i, found, sha in zip(batch.ids, lists, hashes, strict=True)
        ]
    logits = output.ctc_logits
    log_probs = Frames(logits.values.float().log_softmax(-1), logits.lengths, logits.frame_shift_s)
    return [
        Decoded(
            i,
            model.tokenizer.decode(found.tokens),
            found.tokens,
            found.times_s,
            sum(found.confidences) / len(found.confidences) if found.confidences else None,
            sha,
        )
        for i, found, sha in zip(batch.ids, greedy(log_probs, model.vocabulary), hashes, strict=True)
    ]


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
