"""Evaluate one model on test sets: transcribe, count, time. Killed at any moment, the same call continues."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from pydantic import BaseModel, ConfigDict, Field

import asrkd
from asrkd.data.batching import load_batch
from asrkd.evaluation import rtf, significance
from asrkd.evaluation.decode import Decoded, DecodingOptions, Report, decode
from asrkd.evaluation.footprint import Streams, measure_footprint, measure_streams
from asrkd.evaluation.journal import Journal
from asrkd.evaluation.latency import algorithmic_ms, default_chunk_frames
from asrkd.evaluation.machine import describe
from asrkd.evaluation.normalise import normaliser as find_normaliser
from asrkd.evaluation.result import (
    RESULT,
    EvaluationResult,
    ModelFacts,
    PartResult,
    Utterance,
    error_rates,
    interval_record,
    load,
    save,
)
from asrkd.evaluation.wer import UtteranceScore, WerResult, score
from asrkd.models import package
from asrkd.models.base import Recogniser

DURATION_EDGES_S = (2.0, 5.0, 10.0, 15.0)
SNR_EDGES_DB = (5.0, 10.0, 15.0, 20.0, 30.0)


class EvaluationOptions(BaseModel):
    """What to measure and how.

    Attributes:
        normaliser: A key of `asrkd.evaluation.normalise.NORMALISERS`.
        decoding: How the model is decoded.
        speed: Whether real-time factors, start-up and memory are measured.
        streams: Whether the number of live streams that the device holds is measured too.
        speed_audio_s: Seconds of test audio for them.
        threads: Of torch's operators while timing.
        repeats: Timed repeats.
        batch: Utterances at once in the batched timing.
        draws: Of the bootstrap.
        seed: Of the bootstrap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    normaliser: str = "none"
    decoding: DecodingOptions = DecodingOptions()
    speed: bool = True
    streams: bool = False
    speed_audio_s: float = Field(default=60.0, gt=0)
    threads: int = Field(default=1, ge=1)
    repeats: int = Field(default=3, ge=1)
    batch: int = Field(default=16, ge=1)
    draws: int = Field(default=10_000, ge=1)
    seed: int = 0


def evaluate(
    model: Recogniser | str | os.PathLike[str],
    parts: Mapping[str, CutSet],
    folder: str | os.PathLike[str] | None = None,
    options: EvaluationOptions | None = None,
    *,
    name: str | None = None,
    device: str = "cpu",
    report: Report = lambda done, total, text: None,
) -> EvaluationResult:
    """Transcribes test sets with a model (teacher or student alike), counts errors and measures speed.

    Args:
        model: A model package's folder, or a model in memory (used where it is).
        parts: Cuts of each test set by its name.
        folder: Where ``result.json`` and ``utterances.jsonl`` go; what is there already of the same evaluation is
            kept, finished or half-way. ``None`` keeps everything in memory.
        options: What to measure; ``None``: the defaults.
        name: Of the model in tables; ``None``: the package's folder name or the model's kind.
        device: For a package.
        report: Called with utterances done, utterances in all, and the name of the test set.

    Returns:
        Figures and every utterance.

    Raises:
        ValueError: If there is no utterance, ids are not unique, or an option does not fit the model.
        OSError: If a file cannot be read or written.
    """
    options = options or EvaluationOptions()
    find_normaliser(options.normaliser)
    cuts = {part: _checked(part, found) for part, found in parts.items()}
    if not cuts:
        raise ValueError("parts: expected at least one test set, found none")
    path = None if isinstance(model, Recogniser) else Path(model)
    recogniser = model if isinstance(model, Recogniser) else package.load(model, device)
    recogniser.eval()
    weights = _weights_sha256(recogniser, path)
    what = [weights, {part: _manifest(found) for part, found in cuts.items()}, asrkd.__version__]
    decoding_identity = _digest([*what, options.decoding.model_dump(exclude={"batch_audio_s"})])
    timed_on = recogniser.feature_mean.device.type if options.speed else None
    identity = _digest([decoding_identity, options.model_dump(), timed_on])
    target = None if folder is None else Path(folder)
    if target is not None and (finished := _finished(target, identity)) is not None:
        total = len(finished.utterances)
        report(total, total, "already done")
        return finished.model_copy(update={"name": name or finished.name})
    journal = Journal(target, decoding_identity)
    with journal:
        decoded = {part: _decode(recogniser, part, found, options, journal, report) for part, found in cuts.items()}
    utterances = tuple(u for part, found in cuts.items() for u in _scored(part, found, decoded[part], options))
    result = EvaluationResult(
        identity=identity,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        name=name or (path.resolve().name if path else recogniser.kind),
        model=model_facts(recogniser, path, weights, options.decoding.chunk_frames),
        machine=describe(recogniser.feature_mean.device),
        normaliser=options.normaliser,
        decoding=options.decoding,
        parts={part: part_result([u for u in utterances if u.part == part], options) for part in cuts},
        speed=_speed(recogniser, next(iter(cuts.values())), options) if options.speed else (),
        footprint=measure_footprint(path, device=device, threads=options.threads) if options.speed and path else None,
        streams=_streams(recogniser, options),
        utterances=utterances,
    )
    if target is not None:
        save(result, target)
        journal.remove()
    return result


def _streams(model: Recogniser, options: EvaluationOptions) -> Streams | None:
    if not options.streams:
        return None
    return measure_streams(model, chunk_frames=options.decoding.chunk_frames, threads=options.threads)


def model_facts(model: Recogniser, path: Path | None, weights_sha256: str, chunk_frames: int | None) -> ModelFacts:
    """Size, cost and geometry of a model.

    Args:
        model: The model.
        path: Its package, where it has one.
        weights_sha256: Of its weights.
        chunk_frames: As it is decoded; ``None``: its default.
    """
    chunk = default_chunk_frames(model) if chunk_frames is None else chunk_frames
    latency_ms = algorithmic_ms(model, chunk)
    tensors = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return ModelFacts(
        kind=model.kind,
        package=None if path is None else str(path),
        weights_sha256=weights_sha256,
        parameters=model.num_parameters,
        size_bytes=tensors if path is None else sum(f.stat().st_size for f in path.rglob("*") if f.is_file()),
        vocabulary_size=len(model.vocabulary),
        sample_rate_hz=model.sample_rate_hz,
        frame_shift_ms=1000 * model.frame_shift_s,
        chunk_ms=1000 * chunk * model.frame_shift_s if chunk else None,
        algorithmic_latency_ms=latency_ms if math.isfinite(latency_ms) else None,
        macs_per_audio_second=rtf.macs_per_audio_second(model, chunk_frames=chunk_frames),
    )


def _decode(
    model: Recogniser,
    part: str,
    cuts: CutSet,
    options: EvaluationOptions,
    journal: Journal,
    report: Report,
) -> dict[str, Decoded]:
    def progress(done: int, total: int, text: str) -> None:
        report(done, total, part)

    for batch in decode(model, cuts, options.decoding, skip=journal.of_part(part).keys(), report=progress):
        journal.add(part, batch)
    return journal.of_part(part)


def _scored(part: str, cuts: CutSet, decoded: Mapping[str, Decoded], options: EvaluationOptions) -> Iterator[Utterance]:
    references = {cut.id: _reference(cut) for cut in cuts}
    scores = score(references, {key: decoded[key].text for key in references}, options.normaliser)
    for cut, counted in zip(cuts, scores.utterances, strict=True):
        found = decoded[cut.id]
        yield Utterance(
            part=part,
            id=cut.id,
            speaker=next((s.speaker for s in cut.supervisions if s.speaker), None),
            duration_s=cut.duration,
            snr_db=_snr_db(cut),
            reference=references[cut.id],
            hypothesis=found.text,
            score=counted,
            words=found.words,
            audio_sha256=found.audio_sha256,
        )


def part_result(utterances: Sequence[Utterance], options: EvaluationOptions) -> PartResult:
    """Figures of one test set.

    Args:
        utterances: At least one.
        options: Normaliser's name and bootstrap settings.
    """
    total = WerResult(options.normaliser, tuple(u.score for u in utterances))
    interval = partial(
        significance.bootstrap_ci, total.error_counts, total.word_counts, draws=options.draws, seed=options.seed
    )
    by_speaker: dict[str, list[UtteranceScore]] = {}
    for utterance in utterances:
        if utterance.speaker is not None:
            by_speaker.setdefault(utterance.speaker, []).append(utterance.score)
    speakers = None
    if len(by_speaker) > 1:
        speakers = interval([u.speaker or u.id for u in utterances])
    return PartResult(
        audio_s=sum(u.duration_s for u in utterances),
        errors=error_rates(total.utterances),
        interval=interval_record(interval(), "utterances"),
        speaker_interval=None if speakers is None else interval_record(speakers, "speakers"),
        by_speaker={speaker: error_rates(scores) for speaker, scores in sorted(by_speaker.items())},
        by_duration=_binned(utterances, lambda u: u.duration_s, DURATION_EDGES_S, "s"),
        by_snr=_binned(utterances, lambda u: u.snr_db, SNR_EDGES_DB, "dB"),
        substitutions=tuple(total.most_frequent("substitute")),
        deletions=tuple(total.most_frequent("delete")),
        insertions=tuple(total.most_frequent("insert")),
    )


def _binned(
    utterances: Sequence[Utterance],
    value: Callable[[Utterance], float | None],
    edges: Sequence[float],
    unit: str,
) -> dict[str, Any]:
    bounds = [-math.inf, *edges, math.inf]
    found = {}
    for low, high in itertools.pairwise(bounds):
        scores = [u.score for u in utterances if (v := value(u)) is not None and low <= v < high]
        if scores:
            label = f"≥ {low:g}" if high == math.inf else f"< {high:g}" if low == -math.inf else f"{low:g}–{high:g}"
            found[f"{label} {unit}"] = error_rates(scores)
    return found


def _speed(model: Recogniser, cuts: CutSet, options: EvaluationOptions) -> tuple[rtf.Timing, ...]:
    """Offline one by one and batched, and streaming where the model was decoded in chunks it can stream in."""
    audio = _speed_audio(model, cuts, options.speed_audio_s)
    settings: dict[str, Any] = {
        "threads": options.threads,
        "repeats": options.repeats,
        "chunk_frames": options.decoding.chunk_frames,
    }
    timings = [rtf.measure_offline(model, audio, batch=batch, **settings) for batch in (1, options.batch)]
    chunk = options.decoding.chunk_frames
    if hasattr(model, "step") and (default_chunk_frames(model) if chunk is None else chunk):
        timings.append(rtf.measure_streaming(model, audio, **settings))
    return tuple(timings)


def _speed_audio(model: Recogniser, cuts: CutSet, audio_s: float) -> list[torch.Tensor]:
    """Evenly spaced utterances, about ``audio_s`` seconds of them."""
    everything = list(cuts)
    total_s = sum(cut.duration for cut in everything)
    wanted = max(1, min(len(everything), round(len(everything) * audio_s / max(total_s, 1e-9))))
    chosen = [everything[i * len(everything) // wanted] for i in range(wanted)]
    batch = load_batch(CutSet.from_cuts(chosen), None, sample_rate_hz=model.sample_rate_hz)
    return [row[:length] for row, length in zip(batch.audio, batch.audio_lengths.tolist(), strict=True)]


def _checked(part: str, cuts: CutSet) -> CutSet:
    found = list(cuts)
    if not found:
        raise ValueError(f"{part}: expected at least one utterance, found none")
    if len({cut.id for cut in found}) != len(found):
        raise ValueError(
            f"{part}: expected every cut id once, found {len(found) - len({c.id for c in found})} repeated"
        )
    return CutSet.from_cuts(found)


def _reference(cut: Any) -> str:
    return " ".join(s.text.strip() for s in cut.supervisions if s.text)


def _snr_db(cut: Any) -> float | None:
    for holder in (cut, *cut.supervisions):
        custom = getattr(holder, "custom", None) or {}
        if custom.get("snr_db") is not None:
            return float(custom["snr_db"])
    return None


def _manifest(cuts: CutSet) -> str:
    return _digest([[cut.id, cut.start, cut.duration, _reference(cut)] for cut in cuts])


def _weights_sha256(model: Recogniser, path: Path | None) -> str:
    if path is not None:
        return str(package.read_config(path)["weights_sha256"])
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.ndim
            else repr(tensor.item()).encode()
        )
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _finished(folder: Path, identity: str) -> EvaluationResult | None:
    """The result of the very same evaluation, where it is there and whole."""
    if not (folder / RESULT).is_file():
        return None
    try:
        found = load(folder)
    except ValueError:
        return None
    return found if found.identity == identity else None
