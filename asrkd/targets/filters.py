"""Which of a teacher's transcripts are good enough to be learnt from as labels (pseudo-labels).

Sources: Gandhi et al. 2023 (Distil-Whisper: word error rate against a reference at most 10 %); the other filters are common
in semi-supervised training (Kahn et al. 2020: confidence, repetition, length).
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment

from asrkd.data.batching import transcript
from asrkd.data.files import write_atomically
from asrkd.targets.store import TargetsError, TargetsStore
from asrkd.types import Hypothesis, NBest


@dataclass(frozen=True)
class FilterOptions:
    """What a transcript has to keep to; ``None`` turns a filter off.

    Args:
        max_wer: Word error rate against the reference, for utterances that have one.
        min_confidence: Mean confidence of the tokens; a transcript without confidences passes.
        min_margin: Log-probability of the best hypothesis over that of the second, in nats for each word.
        min_characters_per_s: Fewer are too little text for the audio.
        max_characters_per_s: More are too much.
        max_repetitions: Times that one word, pair or triple of words may stand in a row.
        allow_empty: Whether an empty transcript passes.

    Raises:
        ValueError: If a limit is out of range.
    """

    max_wer: float | None = 0.1
    min_confidence: float | None = None
    min_margin: float | None = None
    min_characters_per_s: float | None = 2.0
    max_characters_per_s: float | None = 40.0
    max_repetitions: int | None = 4
    allow_empty: bool = False

    def __post_init__(self) -> None:
        for name in ("max_wer", "min_confidence", "min_margin", "min_characters_per_s", "max_characters_per_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name}: expected 0 or more, found {value}")
        if self.max_repetitions is not None and self.max_repetitions < 1:
            raise ValueError(f"max_repetitions: expected at least 1, found {self.max_repetitions}")


@dataclass(frozen=True)
class Verdict:
    """What was found of one utterance.

    Args:
        utterance: Its id.
        text: The teacher's transcript.
        reference: Its own, or empty.
        reason: Why it is dropped; empty: it is kept.
        detail: Figures of the reason.
        audio: File that it lies in, where it is one.
        start_s: Where it begins there.
        duration_s: How long it is.
    """

    utterance: str
    text: str
    reference: str
    reason: str
    detail: str = ""
    audio: str = ""
    start_s: float = 0.0
    duration_s: float = 0.0


@dataclass(frozen=True)
class FilterReport:
    """Verdicts on every utterance."""

    verdicts: tuple[Verdict, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """Ids of utterances whose transcript passed."""
        return tuple(v.utterance for v in self.verdicts if not v.reason)

    @property
    def dropped(self) -> dict[str, int]:
        """How many were dropped for each reason, most first."""
        return dict(Counter(v.reason for v in self.verdicts if v.reason).most_common())

    def write(self, path: str | Path) -> None:
        """A table (CSV) of all that was dropped and why, with the transcripts and where the audio lies, to listen to."""
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(["utterance", "reason", "detail", "transcript", "reference", "audio", "start_s", "duration_s"])
        for v in self.verdicts:
            if v.reason:
                place = [v.audio, f"{v.start_s:.3f}", f"{v.duration_s:.3f}"]
                table.writerow([v.utterance, v.reason, v.detail, v.text, v.reference, *place])
        write_atomically(Path(path), buffer.getvalue().encode())


def filter_pseudo_labels(
    store: TargetsStore,
    cuts: CutSet,
    options: FilterOptions = FilterOptions(),
    normalise: Callable[[str], str] = str,
) -> tuple[CutSet, FilterReport]:
    """Cuts whose text is the teacher's best hypothesis, those that pass.

    Args:
        store: With N-best lists.
        cuts: Utterances; texts they have are references for ``max_wer``.
        options: What to keep to.
        normalise: Of transcript and reference before they are compared.

    Returns:
        The kept cuts with the teacher's transcripts (the field ``reference`` keeps their own), and the verdicts.

    Raises:
        TargetsError: If the store has no N-best lists or an utterance is missing.
    """
    kept, verdicts = [], []
    for cut in cuts:
        nbest = store.read([cut.id]).nbest
        if nbest is None:
            raise TargetsError(f"{store.folder}: holds no N-best lists; label with nbest of at least 1")
        verdict = judge(cut.id, nbest[0], transcript(cut), cut.duration, options, normalise)
        verdict = replace(verdict, audio=_file(cut), start_s=getattr(cut, "start", 0.0), duration_s=cut.duration)
        verdicts.append(verdict)
        if not verdict.reason:
            kept.append(_relabelled(cut, verdict))
    return CutSet.from_cuts(kept), FilterReport(tuple(verdicts))


def judge(
    utterance: str,
    nbest: NBest,
    reference: str,
    duration_s: float,
    options: FilterOptions = FilterOptions(),
    normalise: Callable[[str], str] = str,
) -> Verdict:
    """The first filter that a transcript does not pass.

    Args:
        utterance: Its id.
        nbest: Of the teacher, best first.
        reference: Empty where there is none.
        duration_s: Of the audio.
        options: What to keep to.
        normalise: Of transcript and reference before they are compared.
    """
    best = nbest[0] if nbest else Hypothesis((), "")  # a search may find nothing
    text = best.text.strip()

    def drop(reason: str, detail: str = "") -> Verdict:
        return Verdict(utterance, text, reference, reason, detail)

    if not text and not options.allow_empty:
        return drop("empty")
    expected = normalise(reference)
    if expected and options.max_wer is not None:
        wer = float(jiwer.wer(expected, normalise(text)))
        if wer > options.max_wer:
            return drop("wer", f"{wer:.3f}")
    if options.min_confidence is not None and (sure := _confidence(best)) < options.min_confidence:
        return drop("confidence", f"{sure:.3f}")
    if options.min_margin is not None and (margin := _margin(nbest)) < options.min_margin:
        return drop("margin", f"{margin:.3f}")
    rate = len(text) / max(duration_s, 1e-6)
    if text and options.min_characters_per_s is not None and rate < options.min_characters_per_s:
        return drop("too little text", f"{rate:.1f} characters/s")
    if options.max_characters_per_s is not None and rate > options.max_characters_per_s:
        return drop("too much text", f"{rate:.1f} characters/s")
    if options.max_repetitions is not None and (times := _repetitions(text.split())) > options.max_repetitions:
        return drop("repetition", f"{times} times")
    return Verdict(utterance, text, reference, "")


def _confidence(hypothesis: Hypothesis) -> float:
    sure = hypothesis.confidences
    return sum(sure) / len(sure) if sure else 1.0


def _margin(nbest: NBest) -> float:
    """Nats for each word between the first and the second transcript."""
    others = [h.score for h in nbest[1:] if h.text != nbest[0].text]
    return (nbest[0].score - others[0]) / max(1, len(nbest[0].text.split())) if others else math.inf


def _repetitions(words: Sequence[str]) -> int:
    """Most times that one to three words stand in a row."""
    most = 1 if words else 0
    for size in (1, 2, 3):
        for start in range(len(words) - size + 1):
            unit, times = words[start : start + size], 1
            while words[start + times * size : start + (times + 1) * size] == unit:
                times += 1
            most = max(most, times)
    return most


def _file(cut: Cut) -> str:
    """The file that a cut's audio lies in; empty where it is none, or several."""
    sources = cut.recording.sources if getattr(cut, "recording", None) is not None else []
    return str(sources[0].source) if len(sources) == 1 and sources[0].type == "file" else ""


def _relabelled(cut: Cut, verdict: Verdict) -> Cut:
    own = cut.supervisions[0] if cut.supervisions else None
    label = SupervisionSegment(
        id=own.id if own else cut.id,
        recording_id=own.recording_id if own else cut.recording_id,
        start=0.0,
        duration=cut.duration,
        channel=own.channel if own else 0,
        text=verdict.text,
        language=own.language if own else None,
        speaker=own.speaker if own else None,
        custom={"reference": verdict.reference, "labelled_by": "teacher"},
    )
    relabelled = cut.drop_supervisions()
    relabelled.supervisions = [label]
    return relabelled
