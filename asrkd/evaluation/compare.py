"""Two evaluations of the same audio against each other, utterance by utterance."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from asrkd.evaluation import significance
from asrkd.evaluation.result import EvaluationResult, IntervalRecord, Utterance, finite, interval_record
from asrkd.evaluation.wer import rate

POOLED = "pooled"


class PairedTest(BaseModel):
    """The second system against the first on one test set, or on all pooled.

    Attributes:
        utterances: Of both.
        wer_first: Of the first system, a fraction.
        wer_second: Of the second system, a fraction.
        difference: WER of the second minus WER of the first, drawn over utterances; negative: the second is better.
        p: Two-sided, of the paired bootstrap over utterances.
        improvement: Share of draws in which the second is better.
        speaker_difference: As ``difference``, drawn over speakers, where there are at least two.
        speaker_p: Two-sided, of the paired bootstrap over speakers.
        mapsswe_segments: Segments of the matched-pairs sentence-segment word error test.
        mapsswe_z: Its statistic; positive: the second is better.
        mapsswe_p: Two-tailed.
        wins: Utterances in which the second makes fewer errors.
        ties: As many.
        losses: More.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    utterances: int
    wer_first: float | None
    wer_second: float | None
    difference: IntervalRecord
    p: float
    improvement: float
    speaker_difference: IntervalRecord | None
    speaker_p: float | None
    mapsswe_segments: int
    mapsswe_z: float
    mapsswe_p: float
    wins: int
    ties: int
    losses: int


class Comparison(BaseModel):
    """Two systems on the same audio.

    Attributes:
        first: Name of the first system.
        second: Name of the second system.
        normaliser: Of both.
        tests: For each test set and, where there are several, ``pooled``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: str
    second: str
    normaliser: str
    tests: dict[str, PairedTest]

    @property
    def overall(self) -> PairedTest:
        """The pooled test, or that of the only test set."""
        return self.tests.get(POOLED) or next(iter(self.tests.values()))


def compare(first: EvaluationResult, second: EvaluationResult, *, draws: int = 10_000, seed: int = 0) -> Comparison:
    """Tests whether two systems differ.

    Args:
        first: Result with its utterances.
        second: Result on the same audio and with the same normaliser.
        draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        ValueError: If they were not made on the same audio, references and normaliser; it says what differs.
    """
    pairs = paired(first, second)
    groups = {part: [p for p in pairs if p[0].part == part] for part in first.parts}
    if len(groups) > 1:
        groups[POOLED] = pairs
    return Comparison(
        first=first.name,
        second=second.name,
        normaliser=first.normaliser,
        tests={name: _test(group, draws, seed) for name, group in groups.items()},
    )


def paired(first: EvaluationResult, second: EvaluationResult) -> list[tuple[Utterance, Utterance]]:
    """The utterances of two results side by side.

    Args:
        first: Result with its utterances.
        second: Another.

    Raises:
        ValueError: If they were not made on the same audio, references and normaliser; it says what differs.
    """
    differences = []
    if first.normaliser != second.normaliser:
        differences.append(f"normaliser {first.normaliser} and {second.normaliser}")
    if list(first.parts) != list(second.parts) and set(first.parts) != set(second.parts):
        differences.append(f"test sets {', '.join(first.parts)} and {', '.join(second.parts)}")
    others = {(u.part, u.id): u for u in second.utterances}
    ours = {(u.part, u.id) for u in first.utterances}
    if not differences and ours != others.keys():
        example = min(ours ^ others.keys())
        differences.append(f"{len(ours ^ others.keys())} utterances of one only (first: {'/'.join(example)})")
    pairs = [(u, others[u.part, u.id]) for u in first.utterances if (u.part, u.id) in others]
    if not differences:
        # At different sample rates the samples differ although the recording is one.
        same_rate = first.model.sample_rate_hz == second.model.sample_rate_hz
        for what, wrong in (
            ("references", [a for a, b in pairs if a.score.reference != b.score.reference]),
            ("audio", [a for a, b in pairs if same_rate and a.audio_sha256 != b.audio_sha256]),
        ):
            if wrong:
                differences.append(f"{what} of {len(wrong)} utterances (first: {wrong[0].part}/{wrong[0].id})")
    if differences:
        raise ValueError(
            f"{first.name}, {second.name}: expected results of the same audio and normaliser, "
            f"found different {'; '.join(differences)}"
        )
    return pairs


def most_changed(
    first: EvaluationResult, second: EvaluationResult, limit: int = 10
) -> tuple[list[tuple[Utterance, Utterance]], list[tuple[Utterance, Utterance]]]:
    """The utterances whose errors changed most from the first system to the second.

    Args:
        first: Result with its utterances.
        second: Result on the same audio.
        limit: Of each list.

    Returns:
        Those that got better and those that got worse, most changed first.

    Raises:
        ValueError: As `compare`.
    """
    pairs = [(b.score.errors - a.score.errors, a.part, a.id, a, b) for a, b in paired(first, second)]
    better = sorted((p for p in pairs if p[0] < 0), key=lambda p: p[:3])
    worse = sorted((p for p in pairs if p[0] > 0), key=lambda p: (-p[0], *p[1:3]))
    return [p[3:] for p in better[:limit]], [p[3:] for p in worse[:limit]]


def _test(pairs: Sequence[tuple[Utterance, Utterance]], draws: int, seed: int) -> PairedTest:
    first, second = ([u.score for u in side] for side in zip(*pairs, strict=True))
    errors_a, errors_b = [s.errors for s in first], [s.errors for s in second]
    words = [len(s.reference) for s in first]
    by_utterance = significance.paired_bootstrap(errors_a, errors_b, words, draws=draws, seed=seed)
    speakers = [a.speaker or a.id for a, _ in pairs]
    by_speaker = None
    if len({a.speaker for a, _ in pairs if a.speaker}) > 1:
        by_speaker = significance.paired_bootstrap(errors_a, errors_b, words, speakers, draws=draws, seed=seed)
    matched = significance.mapsswe(
        {f"{a.part}/{a.id}": a.score.reference for a, _ in pairs},
        {f"{a.part}/{a.id}": a.score.hypothesis for a, _ in pairs},
        {f"{b.part}/{b.id}": b.score.hypothesis for _, b in pairs},
    )
    changes = [b - a for a, b in zip(errors_a, errors_b, strict=True)]
    return PairedTest(
        utterances=len(pairs),
        wer_first=finite(rate(sum(errors_a), sum(words))),
        wer_second=finite(rate(sum(errors_b), sum(words))),
        difference=interval_record(by_utterance.difference, "utterances"),
        p=by_utterance.p,
        improvement=by_utterance.improvement,
        speaker_difference=None if by_speaker is None else interval_record(by_speaker.difference, "speakers"),
        speaker_p=None if by_speaker is None else by_speaker.p,
        mapsswe_segments=matched.segments,
        mapsswe_z=matched.z,
        mapsswe_p=matched.p,
        wins=sum(c < 0 for c in changes),
        ties=sum(c == 0 for c in changes),
        losses=sum(c > 0 for c in changes),
    )
