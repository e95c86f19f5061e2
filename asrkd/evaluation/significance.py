"""Intervals for error rates, and whether two systems differ.

Legend: U utterances, G blocks (speakers, or utterances where none are given), R draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asrkd.evaluation.nist import Segment, segments

Floats = NDArray[np.float64]

_INDEXES_AT_ONCE = 1 << 20  # about what stays in the cache


@dataclass(frozen=True)
class Interval:
    """A figure with its interval.

    Args:
        estimate: On the data as they are.
        low: Lower end.
        high: Upper end.
        level: Coverage that was asked for, 0.95 for 95 %.
        blocks: What was drawn from: utterances or speakers.
        draws: Resampled data sets; 0 where the interval is not a bootstrap.
    """

    estimate: float
    low: float
    high: float
    level: float
    blocks: int
    draws: int


@dataclass(frozen=True)
class PairedBootstrap:
    """Difference of two error rates on the same audio.

    Args:
        difference: WER of the second minus WER of the first, with its interval; negative: the second is better.
        p: Two-sided p-value of "no difference".
        improvement: Share of draws in which the second system is better (Bisani and Ney's "probability of
            improvement"), ties counted by half.
    """

    difference: Interval
    p: float
    improvement: float


@dataclass(frozen=True)
class Mapsswe:
    """Matched-pairs sentence-segment word error test.

    Args:
        segments: Segments in which at least one of the two systems errs.
        mean_difference: Errors of the first minus errors of the second, for each segment; positive: the second is
            better.
        standard_deviation: Of these differences.
        z: The statistic, standard normal when the systems do not differ.
        p: Two-tailed.
    """

    segments: int
    mean_difference: float
    standard_deviation: float
    z: float
    p: float


def bootstrap_ci(
    errors: ArrayLike,
    words: ArrayLike,
    blocks: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of an error rate Σ errors / Σ words.

    Whole blocks are drawn with replacement: speakers where they are known (Liu et al. 2020, "Statistical testing on ASR
    performance via blockwise bootstrap", arXiv 1912.09508), since a speaker's utterances are not independent; else
    utterances (Bisani and Ney 2004).

    Args:
        errors: ``(U,)`` errors of each utterance.
        words: ``(U,)`` reference words of each utterance.
        blocks: ``(U,)`` speaker of each utterance; ``None`` draws utterances.
        level: Coverage, between 0 and 1.
        draws: Resampled data sets.
        seed: Of the draws.

    Raises:
        ValueError: If the lengths differ, nothing is given, or ``level`` or ``draws`` is out of range.
    """
    sums = _block_sums(blocks, errors=errors, words=words)
    _check_options(level, draws)
    low, high = _ends(_ratio(*_resampled(sums, draws, seed)), level)
    return Interval(float(_ratio(*sums.sum(axis=1))), low, high, level, sums.shape[1], draws)


def paired_bootstrap(
    errors_a: ArrayLike,
    errors_b: ArrayLike,
    words: ArrayLike,
    blocks: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> PairedBootstrap:
    """Bootstrap of the difference of two error rates on the same utterances.

    Both systems are scored on the same draw each time, so what is common to them (hard utterances, long ones) cancels
    (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation"). The two-sided
    p is twice the smaller share of draws on either side of zero, each with one added so that it is never 0.

    Args:
        errors_a: ``(U,)`` errors of the first system.
        errors_b: ``(U,)`` errors of the second system.
        words: ``(U,)`` reference words.
        blocks: ``(U,)`` speaker of each utterance; ``None`` draws utterances.
        level: Coverage of the interval.
        draws: Resampled data sets.
        seed: Of the draws.

    Raises:
        ValueError: If the lengths differ, nothing is given, or ``level`` or ``draws`` is out of range.
    """
    sums = _block_sums(blocks, errors_a=errors_a, errors_b=errors_b, words=words)
    _check_options(level, draws)
    change = np.stack([sums[1] - sums[0], sums[2]])
    differences = _ratio(*_resampled(change, draws, seed))
    low, high = _ends(differences, level)
    better, worse = int((differences < 0).sum()), int((differences > 0).sum())
    smaller = min(draws - better, draws - worse)
    return PairedBootstrap(
        Interval(float(_ratio(*change.sum(axis=1))), low, high, level, sums.shape[1], draws),
        p=min(1.0, 2 * (smaller + 1) / (draws + 1)),
        improvement=(better + (draws - better - worse) / 2) / draws,
    )


def mapsswe(
    references: Mapping[str, Sequence[str]],
    hypotheses_a: Mapping[str, Sequence[str]],
    hypotheses_b: Mapping[str, Sequence[str]],
    *,
    boundary_words: int = 2,
) -> Mapsswe:
    """Matched-pairs sentence-segment word error test (Gillick and Cox 1989; Pallett et al. 1990).

    The speech is cut into segments that hold errors of at least one system and are bounded by at least
    ``boundary_words`` words that both recognised; errors in different segments are then close to independent, and the
    differences d of errors in a segment give z = mean(d) / (sd(d) / √segments).

    Args:
        references: Words of each utterance id.
        hypotheses_a: Words recognised by the first system, same ids.
        hypotheses_b: Words recognised by the second system, same ids.
        boundary_words: Correct words between two segments; NIST's default is 2.

    Returns:
        The test; z 0 and p 1 where the differences have no spread (as in NIST's ``sc_stats``, whose figures these are).

    Raises:
        ValueError: If the ids differ.
    """
    for name, hypotheses in (("hypotheses_a", hypotheses_a), ("hypotheses_b", hypotheses_b)):
        if hypotheses.keys() != references.keys():
            wrong = sorted(hypotheses.keys() ^ references.keys())
            raise ValueError(f"{name}: expected the ids of the references, {len(wrong)} differ (first: {wrong[0]})")
    found: list[Segment] = []
    for key, words in references.items():
        found += segments(words, hypotheses_a[key], hypotheses_b[key], boundary_words)
    differences = np.array([s.errors_a - s.errors_b for s in found], dtype=np.float64)
    count = len(found)
    mean = float(differences.mean()) if count else 0.0
    deviation = float(differences.std(ddof=1)) if count > 1 else 0.0
    z = mean / (deviation / math.sqrt(count)) if deviation > 0 else 0.0
    return Mapsswe(count, mean, deviation, z, p=math.erfc(abs(z) / math.sqrt(2)))


def gap_closed(alone: Sequence[float], distilled: Sequence[float], teacher: float, *, level: float = 0.95) -> Interval:
    """Gap closed over seeds: the mean of (alone − distilled) / (alone − teacher), with Student's t interval.

    Args:
        alone: WER of the student trained without a teacher, one for each seed.
        distilled: WER of the distilled student with the same seeds, in the same order.
        teacher: WER of the teacher.
        level: Coverage of the interval.

    Returns:
        Estimate and interval as fractions of the gap; with one seed the ends are infinite, with several equal ones
        they meet.

    Raises:
        ValueError: If the lengths differ, nothing is given, or there is no gap to close (a student alone is not worse
            than its teacher).
    """
    from scipy.stats import t

    if len(alone) != len(distilled) or not alone:
        raise ValueError(
            f"distilled: expected one WER for each of {len(alone)} seeds (at least 1), found {len(distilled)}"
        )
    closest = min(alone)
    if closest <= teacher:
        raise ValueError(f"alone: expected every WER above the teacher's {teacher:.4f}, found {closest:.4f}")
    closed = (np.asarray(alone) - np.asarray(distilled)) / (np.asarray(alone) - teacher)
    mean, seeds = float(closed.mean()), len(alone)
    half = math.inf
    if seeds > 1:
        half = float(t.ppf((1 + level) / 2, seeds - 1) * closed.std(ddof=1) / math.sqrt(seeds))
    return Interval(mean, mean - half, mean + half, level, seeds, 0)


def gap_closed_ci(
    errors_alone: ArrayLike,
    errors_distilled: ArrayLike,
    errors_teacher: ArrayLike,
    blocks: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Gap closed of one seed, with a bootstrap interval over utterances or speakers.

    It says how far the test set bounds the figure; the spread of training itself needs several seeds
    (`gap_closed`).

    Args:
        errors_alone: ``(U,)`` errors of the student alone.
        errors_distilled: ``(U,)`` errors of the distilled student.
        errors_teacher: ``(U,)`` errors of the teacher.
        blocks: ``(U,)`` speaker of each utterance; ``None`` draws utterances.
        level: Coverage of the interval.
        draws: Resampled data sets; those without a gap are left out.
        seed: Of the draws.

    Raises:
        ValueError: As `paired_bootstrap`.
    """
    sums = _block_sums(
        blocks, errors_alone=errors_alone, errors_distilled=errors_distilled, errors_teacher=errors_teacher
    )
    _check_options(level, draws)
    gaps = np.stack([sums[0] - sums[1], sums[0] - sums[2]])
    low, high = _ends(_ratio(*_resampled(gaps, draws, seed)), level)
    return Interval(float(_ratio(*gaps.sum(axis=1))), low, high, level, sums.shape[1], draws)


def _block_sums(blocks: Sequence[Hashable] | None, **columns: ArrayLike) -> Floats:
    """``(columns, G)``: each column summed over each block."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    first, count = next((name, len(values)) for name, values in arrays.items())
    if count == 0:
        raise ValueError(f"{first}: expected at least one utterance, found none")
    lengths = {name: len(values) for name, values in arrays.items()}
    if blocks is not None:
        lengths["blocks"] = len(blocks)
    for name, length in lengths.items():
        if length != count:
            raise ValueError(f"{name}: expected {count} utterances as in {first}, found {length}")
    stacked = np.stack(list(arrays.values()))
    if blocks is None:
        return stacked
    places: dict[Hashable, int] = {}
    index = np.array([places.setdefault(block, len(places)) for block in blocks])
    return np.stack([np.bincount(index, weights=row, minlength=len(places)) for row in stacked])


def _check_options(level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: expected between 0 and 1, found {level}")
    if draws < 1:
        raise ValueError(f"draws: expected at least 1, found {draws}")


def _resampled(sums: Floats, draws: int, seed: int) -> Floats:
    """``(columns, R)``: the columns' sums over each draw of G blocks with replacement."""
    return np.concatenate(list(_resampled_parts(sums, draws, seed)), axis=1)


def _resampled_parts(sums: Floats, draws: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    count = sums.shape[1]
    at_once = max(1, _INDEXES_AT_ONCE // count)
    for start in range(0, draws, at_once):
        index = generator.integers(0, count, size=(min(at_once, draws - start), count), dtype=np.int32)
        yield np.stack([row.take(index).sum(axis=1) for row in sums])


def _ratio(numerator: Floats | np.float64, denominator: Floats | np.float64) -> Floats:
    """Quotient; a draw without reference words (or without a gap) has none and becomes NaN, 0 / 0 is 0."""
    numerator, denominator = np.asarray(numerator), np.asarray(denominator)
    whole = np.where((numerator == 0) & (denominator == 0), 0.0, np.nan)
    return np.divide(numerator, denominator, out=whole, where=denominator != 0)


def _ends(values: Floats, level: float) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
