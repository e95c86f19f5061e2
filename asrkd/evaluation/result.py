"""What an evaluation leaves behind: ``result.json`` with the figures, ``utterances.jsonl`` with every alignment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, ValidationError

from asrkd.data.files import write_atomically
from asrkd.evaluation import significance
from asrkd.evaluation.decode import DecodingOptions
from asrkd.evaluation.footprint import Footprint, Streams
from asrkd.evaluation.machine import Machine
from asrkd.evaluation.rtf import Timing
from asrkd.evaluation.wer import Edit, Operation, UtteranceScore, WerResult, rate
from asrkd.streaming.events import Word

SCHEMA_VERSION = 1
RESULT, UTTERANCES = "result.json", "utterances.jsonl"
_LETTERS: dict[str, Operation] = {"=": "equal", "S": "substitute", "D": "delete", "I": "insert"}
_LETTER_OF = {operation: letter for letter, operation in _LETTERS.items()}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorRates(_Record):
    """Counts of a set of utterances.

    Attributes:
        utterances: How many.
        reference_words: N.
        substitutions: S.
        deletions: D.
        insertions: I.
        wer: (S + D + I) / N as a fraction; ``None`` without reference words.
        cer: Character error rate as a fraction; ``None`` without reference characters.
    """

    utterances: int
    reference_words: int
    substitutions: int
    deletions: int
    insertions: int
    wer: float | None
    cer: float | None


class IntervalRecord(_Record):
    """An interval as it is written down; see `asrkd.evaluation.significance.Interval`. ``unit`` is what was drawn."""

    estimate: float | None
    low: float | None
    high: float | None
    level: float
    blocks: int
    draws: int
    unit: str


class PartResult(_Record):
    """Figures of one test set.

    Attributes:
        audio_s: Seconds of audio.
        errors: Over the whole set.
        interval: Of the WER, drawn over utterances.
        speaker_interval: Of the WER, drawn over speakers, where there are at least two.
        by_speaker: Where speakers are known.
        by_duration: By seconds of audio.
        by_snr: By signal-to-noise ratio in dB, where known.
        substitutions: Most frequent ``(reference, recognised, count)``.
        deletions: Most frequent ``(reference, "", count)``.
        insertions: Most frequent ``("", recognised, count)``.
    """

    audio_s: float
    errors: ErrorRates
    interval: IntervalRecord
    speaker_interval: IntervalRecord | None
    by_speaker: dict[str, ErrorRates]
    by_duration: dict[str, ErrorRates]
    by_snr: dict[str, ErrorRates]
    substitutions: tuple[tuple[str, str, int], ...]
    deletions: tuple[tuple[str, str, int], ...]
    insertions: tuple[tuple[str, str, int], ...]


class ModelFacts(_Record):
    """The model that was evaluated.

    Attributes:
        kind: Of the model.
        package: Folder that it was read from, where it was.
        weights_sha256: Of its weights.
        parameters: Trainable parameters.
        size_bytes: Of the package's files, or of the tensors of a model in memory.
        vocabulary_size: V.
        sample_rate_hz: Of its audio.
        frame_shift_ms: Of its output.
        chunk_ms: Audio of a chunk as it was decoded; ``None`` for full context.
        algorithmic_latency_ms: From the geometry; ``None`` for full context, which waits for the utterance's end.
        macs_per_audio_second: Multiply–adds, features left out.
    """

    kind: str
    package: str | None
    weights_sha256: str
    parameters: int
    size_bytes: int
    vocabulary_size: int
    sample_rate_hz: int
    frame_shift_ms: float
    chunk_ms: float | None
    algorithmic_latency_ms: float | None
    macs_per_audio_second: float | None


@dataclass(frozen=True)
class Utterance:
    """One utterance as it was recognised.

    Args:
        part: Test set.
        id: Of the cut.
        speaker: Where known.
        duration_s: Of the audio.
        snr_db: Where known.
        reference: As in the manifest.
        hypothesis: As recognised.
        score: Counts and alignment after normalisation.
        words: Recognised words (before normalisation) with times and confidences, where known.
        audio_sha256: First 16 hex digits over the samples that the model was given.
    """

    part: str
    id: str
    speaker: str | None
    duration_s: float
    snr_db: float | None
    reference: str
    hypothesis: str
    score: UtteranceScore
    words: tuple[Word, ...] | None
    audio_sha256: str


class EvaluationResult(_Record):
    """Everything that was measured of one model.

    Attributes:
        schema_version: Of ``result.json``.
        identity: SHA-256 over what the figures follow from; an evaluation with the same one is not repeated.
        created: UTC time, ISO 8601.
        name: Shown in tables.
        model: Which model.
        machine: Where it was measured.
        normaliser: Of both texts before counting.
        decoding: How it was decoded.
        parts: Figures of each test set.
        speed: Real-time factors; empty where they were not asked for.
        footprint: Start-up and memory of a package; ``None`` where they were not asked for.
        streams: How many live streams the device holds, where asked for.
        utterances: Of all parts; kept in ``utterances.jsonl`` instead of ``result.json``.
    """

    schema_version: int = SCHEMA_VERSION
    identity: str
    created: str
    name: str
    model: ModelFacts
    machine: Machine
    normaliser: str
    decoding: DecodingOptions
    parts: dict[str, PartResult]
    speed: tuple[Timing, ...] = ()
    footprint: Footprint | None = None
    streams: Streams | None = None
    utterances: SkipValidation[tuple[Utterance, ...]] = Field(default=(), exclude=True, repr=False)

    def of_part(self, part: str) -> list[Utterance]:
        """Utterances of one test set."""
        return [u for u in self.utterances if u.part == part]

    def timing(self, mode: str, batch: int | None = None) -> Timing | None:
        """The first timing of a mode (and batch size)."""
        return next((t for t in self.speed if t.mode == mode and batch in (None, t.batch)), None)


def error_rates(scores: Iterable[UtteranceScore]) -> ErrorRates:
    """Counts over utterances.

    Args:
        scores: Of the utterances.
    """
    total = WerResult("", tuple(scores))
    return ErrorRates(
        utterances=len(total.utterances),
        reference_words=total.reference_words,
        substitutions=total.substitutions,
        deletions=total.deletions,
        insertions=total.insertions,
        wer=finite(rate(total.errors, total.reference_words)),
        cer=finite(total.cer),
    )


def interval_record(interval: significance.Interval, unit: str) -> IntervalRecord:
    """An interval in the form that is written down; what is not finite becomes ``None``.

    Args:
        interval: The interval.
        unit: What was drawn: ``utterances``, ``speakers`` or ``seeds``.
    """
    return IntervalRecord(
        estimate=finite(interval.estimate),
        low=finite(interval.low),
        high=finite(interval.high),
        level=interval.level,
        blocks=interval.blocks,
        draws=interval.draws,
        unit=unit,
    )


def finite(value: float) -> float | None:
    """``value``, or ``None`` where JSON has no number for it."""
    return value if math.isfinite(value) else None


def save(result: EvaluationResult, folder: Path) -> None:
    """Writes ``utterances.jsonl``, then ``result.json``; each whole or not at all.

    Args:
        result: With its utterances.
        folder: Made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(_to_json(u), ensure_ascii=False) + "\n" for u in result.utterances)
    write_atomically(folder / UTTERANCES, lines.encode())
    write_atomically(folder / RESULT, (result.model_dump_json(indent=1) + "\n").encode())


def load(folder: str | Path) -> EvaluationResult:
    """Reads what `save` wrote.

    Args:
        folder: Of the result (or its ``result.json``).

    Raises:
        ValueError: One line that names the file and what is wrong with it.
        OSError: If a file cannot be read.
    """
    folder = Path(folder)
    folder = folder.parent if folder.name == RESULT else folder
    path = folder / RESULT
    if not path.is_file():
        raise ValueError(f"{path}: expected the result of an evaluation, found no such file")
    try:
        result = EvaluationResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "JSON"
        raise ValueError(f"{path}: {place}: {first['msg']} (schema version {SCHEMA_VERSION})") from None
    if result.schema_version != SCHEMA_VERSION:
        raise ValueError(f"{path}: schema_version: expected {SCHEMA_VERSION}, found {result.schema_version}")
    return result.model_copy(update={"utterances": tuple(_read_utterances(folder / UTTERANCES))})


def _read_utterances(path: Path) -> Iterator[Utterance]:
    if not path.is_file():
        raise ValueError(f"{path}: expected the utterances of {RESULT}, found no such file")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: line {number}: expected an utterance, found {error!r}") from None


def _to_json(utterance: Utterance) -> dict[str, Any]:
    score = utterance.score
    return {
        "part": utterance.part,
        "id": utterance.id,
        "speaker": utterance.speaker,
        "duration_s": utterance.duration_s,
        "snr_db": utterance.snr_db,
        "reference": utterance.reference,
        "hypothesis": utterance.hypothesis,
        "substitutions": score.substitutions,
        "deletions": score.deletions,
        "insertions": score.insertions,
        "character_errors": score.character_errors,
        "reference_characters": score.reference_characters,
        "alignment": [[_LETTER_OF[e.operation], e.reference, e.hypothesis] for e in score.alignment],
        "words": None
        if utterance.words is None
        else [[w.text, w.start_s, w.end_s, w.confidence] for w in utterance.words],
        "audio_sha256": utterance.audio_sha256,
    }


def _from_json(record: dict[str, Any]) -> Utterance:
    edits = [Edit(_LETTERS[letter], said, heard) for letter, said, heard in record["alignment"]]
    changes: list[tuple[Operation, int, int]] = []
    i = j = 0
    for edit in edits:
        if edit.operation != "equal":
            changes.append((edit.operation, i, j))
        i += edit.operation != "insert"
        j += edit.operation != "delete"
    score = UtteranceScore(
        id=record["id"],
        reference=tuple(e.reference for e in edits if e.operation != "insert"),
        hypothesis=tuple(e.hypothesis for e in edits if e.operation != "delete"),
        substitutions=record["substitutions"],
        deletions=record["deletions"],
        insertions=record["insertions"],
        character_errors=record["character_errors"],
        reference_characters=record["reference_characters"],
        changes=tuple(changes),
    )
    words = record["words"]
    return Utterance(
        part=record["part"],
        id=record["id"],
        speaker=record["speaker"],
        duration_s=record["duration_s"],
        snr_db=record["snr_db"],
        reference=record["reference"],
        hypothesis=record["hypothesis"],
        score=score,
        words=None if words is None else tuple(Word(*word) for word in words),
        audio_sha256=record["audio_sha256"],
    )
