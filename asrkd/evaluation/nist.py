"""NIST's alignment and sentence segments, as the matched-pairs test needs them.

NIST's tools align with costs 4 (substitution), 3 (deletion) and 3 (insertion) instead of 1, 1, 1, which places errors
differently and in rare cases counts more of them. The test's segments depend on where errors stand, so they are built
on this alignment; error *rates* everywhere else are those of `asrkd.evaluation.wer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUBSTITUTION_COST = 4
GAP_COST = 3
_SUBSTITUTE, _DELETE, _INSERT = 0, 1, 2


@dataclass(frozen=True)
class Segment:
    """A stretch of speech with errors, bounded by words that both systems recognised.

    Args:
        errors_a: Errors of the first system in it.
        errors_b: Errors of the second system in it.
    """

    errors_a: int
    errors_b: int


@dataclass(frozen=True)
class WordErrors:
    """Where one system errs, on the clock of the reference words.

    Args:
        wrong: ``(N,)`` bool, reference words that were substituted or deleted.
        inserted: ``(N + 1,)`` insertions before each reference word and, last, after all of them.
    """

    wrong: NDArray[np.bool_]
    inserted: NDArray[np.int64]


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> WordErrors:
    """Errors of one utterance under NIST's alignment costs and tie-breaking.

    Where paths cost the same, a substitution (or correct word) is taken before an insertion, and that before a
    deletion, going back from the end, as in NIST's ``sclite``.

    Args:
        reference: N words.
        hypothesis: Recognised words.
    """
    count = len(reference)
    if list(reference) == list(hypothesis):
        return WordErrors(np.zeros(count, dtype=np.bool_), np.zeros(count + 1, dtype=np.int64))
    ids: dict[str, int] = {}
    a = np.array([ids.setdefault(w, len(ids)) for w in reference], dtype=np.int64)
    b = np.array([ids.setdefault(w, len(ids)) for w in hypothesis], dtype=np.int64)
    back = _compiled_backpointers()(a, b)
    wrong, inserted = np.zeros(count, dtype=np.bool_), np.zeros(count + 1, dtype=np.int64)
    i, j = count, len(b)
    while i > 0 or j > 0:
        step = back[i, j]
        if step == _INSERT:
            inserted[i] += 1
            j -= 1
        elif step == _DELETE:
            wrong[i - 1] = True
            i -= 1
        else:
            wrong[i - 1] = a[i - 1] != b[j - 1]
            i, j = i - 1, j - 1
    return WordErrors(wrong, inserted)


def segments(
    reference: Sequence[str],
    hypothesis_a: Sequence[str],
    hypothesis_b: Sequence[str],
    boundary_words: int = 2,
) -> list[Segment]:
    """Cuts one utterance into segments with errors, `boundary_words` correct words of both systems between them.

    Args:
        reference: Words that were said.
        hypothesis_a: Words of the first system.
        hypothesis_b: Words of the second system.
        boundary_words: Words in a row that both must have right to end a segment (the ends of the utterance do too).

    Returns:
        Segments in order; empty where both systems are right.
    """
    if list(hypothesis_a) == list(hypothesis_b) == list(reference):
        return []
    a, b = word_errors(reference, hypothesis_a), word_errors(reference, hypothesis_b)
    found: list[Segment] = []
    errors_a = errors_b = correct = 0
    for i in range(len(reference) + 1):
        at_end = i == len(reference)
        new_a, new_b = int(a.inserted[i]), int(b.inserted[i])
        if new_a or new_b:
            correct = 0
        if not at_end:
            new_a, new_b = new_a + int(a.wrong[i]), new_b + int(b.wrong[i])
            correct = 0 if a.wrong[i] or b.wrong[i] else correct + 1
        errors_a, errors_b = errors_a + new_a, errors_b + new_b
        if (errors_a or errors_b) and (at_end or correct >= boundary_words):
            found.append(Segment(errors_a, errors_b))
            errors_a = errors_b = 0
    return found


def _backpointers(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.uint8]:
    """``(len(a) + 1, len(b) + 1)`` the last step of the cheapest path to each cell."""
    back = np.zeros((len(a) + 1, len(b) + 1), dtype=np.uint8)
    cost = np.arange(len(b) + 1) * GAP_COST
    back[0, 1:] = _INSERT
    for i in range(1, len(a) + 1):
        diagonal = cost[0]
        cost[0] = i * GAP_COST
        back[i, 0] = _DELETE
        for j in range(1, len(b) + 1):
            substitute = diagonal + (0 if a[i - 1] == b[j - 1] else SUBSTITUTION_COST)
            delete = cost[j] + GAP_COST
            insert = cost[j - 1] + GAP_COST
            diagonal = cost[j]
            if substitute <= delete and substitute <= insert:
                cost[j] = substitute
                back[i, j] = _SUBSTITUTE
            elif delete < insert:
                cost[j] = delete
                back[i, j] = _DELETE
            else:
                cost[j] = insert
                back[i, j] = _INSERT
    return back


@cache
def _compiled_backpointers() -> Any:
    # Compiled on first use: a line of 10,000 words has 10^8 cells.
    from numba import njit

    return njit(cache=True)(_backpointers)
