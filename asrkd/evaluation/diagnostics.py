"""A student beside its teacher, frame by frame: when it speaks, how sure it is, where it agrees, how late it is.

Dimension legend: B utterances, T student frames, V tokens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass

import torch
from lhotse import CutSet
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from asrkd.data.batching import load_batch
from asrkd.decoding.ctc import DecodedTokens, greedy
from asrkd.evaluation.decode import Report
from asrkd.evaluation.latency import (
    Spread,
    algorithmic_ms,
    align_words,
    default_chunk_frames,
    emission_delays_s,
    matches,
    spread,
)
from asrkd.models.base import Recogniser
from asrkd.streaming.events import Partial, Word, words_of
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions
from asrkd.types import Frames, SpeechBatch


class Diagnostics(BaseModel):
    """What distillation did to the student's posteriors, and how late its words are.

    Attributes:
        utterances: That were looked at.
        frames: Student frames.
        frame_shift_ms: Of the student.
        chunk_ms: Audio of the student's chunk; ``None`` for full context.
        teacher_blank_mass: Mean probability of blank.
        student_blank_mass: The same of the student.
        teacher_entropy_nats: Mean entropy of a frame.
        student_entropy_nats: The same of the student.
        agreement: Share of the frames where the teacher's likeliest token is not blank in which the student's is the
            same.
        spike_offset_ms: Student minus teacher, of the tokens that both recognise.
        spike_offsets: How many tokens have which offset, in student frames.
        emission_delay_ms: From a word's end by the teacher's forced alignment until it can come out: its chunk
            complete and the look-ahead heard, computation left out; words that the student has right.
        emission_delays_ms: The same, each word.
        first_partial_ms: From the first word's start until the first text comes out.
        revised_words: Share of the words shown in partial texts (all but the one still growing) that the final text
            has otherwise.
        unaligned: Utterances whose transcript does not fit into the teacher's frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    utterances: int
    frames: int
    frame_shift_ms: float
    chunk_ms: float | None
    teacher_blank_mass: float
    student_blank_mass: float
    teacher_entropy_nats: float
    student_entropy_nats: float
    agreement: float | None
    spike_offset_ms: Spread | None
    spike_offsets: dict[int, int]
    emission_delay_ms: Spread | None
    emission_delays_ms: tuple[float, ...]
    first_partial_ms: Spread | None
    revised_words: float | None
    unaligned: int


@dataclass
class _Sums:
    """Running totals over the batches."""

    frames: int = 0
    teacher_blank: float = 0.0
    student_blank: float = 0.0
    teacher_entropy: float = 0.0
    student_entropy: float = 0.0
    spoken: int = 0
    agreed: int = 0
    shown: int = 0
    revised: int = 0
    unaligned: int = 0


@torch.no_grad()
def diagnose(
    student: Recogniser,
    teacher: Recogniser,
    cuts: CutSet,
    *,
    chunk_frames: int | None = None,
    batch: int = 8,
    report: Report = lambda done, total, text: None,
) -> Diagnostics:
    """Compares the posteriors of a student with those of its teacher.

    Args:
        student: In evaluation mode.
        teacher: A CTC model with the same vocabulary, usually with full context; also the forced aligner.
        cuts: With transcripts; a few dozen utterances are enough.
        chunk_frames: Of the student; ``None``: its default; 0: full context.
        batch: Utterances at once.
        report: Called with utterances done, utterances in all, and a short text.

    Raises:
        ValueError: If the vocabularies differ or there is no utterance.
    """
    if student.vocabulary.identity != teacher.vocabulary.identity:
        raise ValueError(
            f"teacher: expected the student's vocabulary of {len(student.vocabulary)} tokens, "
            f"found another of {len(teacher.vocabulary)}"
        )
    everything = list(cuts)
    if not everything:
        raise ValueError("cuts: expected at least one utterance, found none")
    chunk = default_chunk_frames(student) if chunk_frames is None else chunk_frames
    sums, offsets, delays, first = _Sums(), [], [], []
    for start in range(0, len(everything), batch):
        group = everything[start : start + batch]
        loaded = load_batch(CutSet.from_cuts(group), None, sample_rate_hz=student.sample_rate_hz)
        heard = log_posteriors(student, loaded, chunk)
        taught = log_posteriors(teacher, _at_rate(group, loaded, teacher), None)
        _add_frames(sums, heard, taught, student.vocabulary.blank_id)
        found = greedy(heard, student.vocabulary)
        offsets += _spike_offsets(found, greedy(taught, teacher.vocabulary), student.frame_shift_s)
        aligned = align_words(taught, [teacher.tokenizer.encode(t) for t in loaded.texts], teacher.tokenizer)
        for row, words in enumerate(aligned):
            if words is None:
                sums.unaligned += 1
                continue
            if chunk:
                delays += _delays_ms(student, found[row], words, chunk)
                audio = loaded.audio[row, : int(loaded.audio_lengths[row])]
                first += _live(student, audio, words, chunk, sums)
        report(min(start + batch, len(everything)), len(everything), "")
    shift_ms = 1000 * student.frame_shift_s
    return Diagnostics(
        utterances=len(everything),
        frames=sums.frames,
        frame_shift_ms=shift_ms,
        chunk_ms=chunk * shift_ms if chunk else None,
        teacher_blank_mass=sums.teacher_blank / max(1, sums.frames),
        student_blank_mass=sums.student_blank / max(1, sums.frames),
        teacher_entropy_nats=sums.teacher_entropy / max(1, sums.frames),
        student_entropy_nats=sums.student_entropy / max(1, sums.frames),
        agreement=sums.agreed / sums.spoken if sums.spoken else None,
        spike_offset_ms=spread([shift_ms * o for o in offsets]),
        spike_offsets=dict(sorted(Counter(offsets).items())),
        emission_delay_ms=spread(delays),
        emission_delays_ms=tuple(round(d, 1) for d in delays),
        first_partial_ms=spread(first),
        revised_words=sums.revised / sums.shown if sums.shown else None,
        unaligned=sums.unaligned,
    )


def log_posteriors(model: Recogniser, batch: SpeechBatch, chunk_frames: int | None) -> Frames:
    """CTC log-probabilities ``(B, T, V)`` of a batch, on the CPU.

    Args:
        model: In evaluation mode, on any device.
        batch: Audio at the model's rate.
        chunk_frames: Passed to the model.
    """
    device = model.feature_mean.device
    features = model.features(batch.audio.to(device), batch.audio_lengths.to(device))
    logits = model(features, chunk_frames=chunk_frames).ctc_logits
    return Frames(logits.values.float().log_softmax(-1), logits.lengths, logits.frame_shift_s).to("cpu")


def _at_rate(cuts: list[object], loaded: SpeechBatch, model: Recogniser) -> SpeechBatch:
    if loaded.sample_rate_hz == model.sample_rate_hz:
        return loaded
    return load_batch(CutSet.from_cuts(cuts), None, sample_rate_hz=model.sample_rate_hz)


def _add_frames(sums: _Sums, student: Frames, teacher: Frames, blank_id: int) -> None:
    """Blank mass, entropy and agreement; the teacher is read at the middle of each student frame."""
    frames = student.values.shape[1]
    middle_s = (torch.arange(frames) + 0.5) * student.frame_shift_s
    index = (middle_s / teacher.frame_shift_s).long().clamp(max=teacher.values.shape[1] - 1)
    taught = teacher.values[:, index]
    valid = torch.arange(frames) < student.lengths[:, None]
    sums.frames += int(valid.sum())
    sums.student_blank += float(student.values[..., blank_id].exp()[valid].sum())
    sums.teacher_blank += float(taught[..., blank_id].exp()[valid].sum())
    sums.student_entropy += float(_entropy(student.values)[valid].sum())
    sums.teacher_entropy += float(_entropy(taught)[valid].sum())
    best = taught.argmax(-1)
    spoken = valid & (best != blank_id)
    sums.spoken += int(spoken.sum())
    sums.agreed += int((spoken & (student.values.argmax(-1) == best)).sum())


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _spike_offsets(student: list[DecodedTokens], teacher: list[DecodedTokens], shift_s: float) -> list[int]:
    """Offsets in student frames of the tokens that both have."""
    return [
        round((ours.times_s[j] - theirs.times_s[i]) / shift_s)
        for ours, theirs in zip(student, teacher, strict=True)
        for i, j in matches(theirs.tokens, ours.tokens)
    ]


def _delays_ms(student: Recogniser, found: DecodedTokens, words: tuple[Word, ...], chunk: int) -> list[float]:
    """Emission delays: a greedy decoder has a word with the first frame of its last token."""
    shift_s = student.frame_shift_s
    emitted = dataclasses.replace(found, ends_s=tuple(t + shift_s for t in found.times_s))
    chunk_s = chunk * shift_s
    look_ahead_s = algorithmic_ms(student, chunk) / 1000 - chunk_s
    delays = emission_delays_s(words, words_of(emitted, student.tokenizer), chunk_s, look_ahead_s)
    return [1000 * d for d in delays]


def _live(student: Recogniser, audio: Tensor, words: tuple[Word, ...], chunk: int, sums: _Sums) -> list[float]:
    """Runs the live recogniser; counts revised words and gives the delay of the first text in ms, where it has any."""
    recognizer = Recognizer(student, RecognizerOptions(chunk_frames=chunk, endpoints=None))
    session = recognizer.session()
    samples = audio.numpy()
    step = student.subsampling_factor * student.fbank.shift
    partials: list[list[str]] = []
    first_s: float | None = None
    for start in range(0, len(samples), step):
        texts = [e.text for e in session.accept(samples[start : start + step]) if isinstance(e, Partial) and e.text]
        if texts and first_s is None:
            first_s = session.heard_s
        partials += [text.split() for text in texts]
    session.finish()
    final = partials[-1] if partials else []
    for shown in partials:
        settled = shown[:-1]
        sums.shown += len(settled)
        sums.revised += sum(place >= len(final) or word != final[place] for place, word in enumerate(settled))
    return [1000 * (first_s - words[0].start_s)] if first_s is not None and words else []
