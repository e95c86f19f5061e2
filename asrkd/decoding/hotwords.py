"""Hot words: phrases that a listener expects, made likelier in the prefix beam search.

A prefix gains ``boost`` nats for each token of a phrase that it has spelled; what it gained is taken back when it turns
out to be another word, and is kept once the phrase is complete (Zhao et al. 2019, "Shallow-Fusion End-to-End Contextual
Biasing", with the failure arcs of Aho and Corasick 1975). Where phrases overlap, the one that began first counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROOT = 0
TOKEN, CHILD, SIBLING, FAIL = range(4)


class HotWords:
    """The automaton of a set of phrases.

    Args:
        phrases: Token ids of each phrase.
        vocab_size: Tokens there are.
        boost: Nats for each token of a phrase; below 0 a phrase becomes less likely.

    Attributes:
        nodes: ``(S, 4)`` int32: token, first child, next sibling, failure state; state 0 is the root.
        values: ``(S, 2)`` float64: what a state holds until its phrase is complete, and what reaching it earns for good.
        first: ``(V,)`` int32 state that a token leads to from the root, 0 for none.

    Raises:
        ValueError: If there is no phrase, an empty one, or a token is not in the vocabulary.
    """

    def __init__(self, phrases: Sequence[Sequence[int]], vocab_size: int, boost: float = 1.5) -> None:
        if not phrases or not all(phrases):
            raise ValueError("hotwords: expected phrases of at least one token each")
        if not np.isfinite(boost):
            raise ValueError(f"boost: expected a number, found {boost}")
        self.boost = float(boost)
        rows, values = [[-1, -1, -1, ROOT]], [[0.0, 0.0]]
        children: list[dict[int, int]] = [{}]
        ends: set[int] = set()
        for phrase in phrases:
            state = ROOT
            for token in phrase:
                if not 0 <= token < vocab_size:
                    raise ValueError(f"hotwords: expected tokens from 0 to {vocab_size - 1}, found {token}")
                if token not in children[state]:
                    children[state][token] = len(rows)
                    rows.append([token, -1, rows[state][CHILD], ROOT])
                    rows[state][CHILD] = len(rows) - 1  # in front of its siblings
                    children.append({})
                    values.append([0.0, 0.0])
                state = children[state][token]
            ends.add(state)
        self._fill(rows, values, children, ends)
        self.nodes: NDArray[np.int32] = np.array(rows, dtype=np.int32)
        self.values: NDArray[np.float64] = np.array(values)
        self.first: NDArray[np.int32] = np.zeros(vocab_size, dtype=np.int32)
        for token, state in children[ROOT].items():
            self.first[token] = state

    def _fill(
        self, rows: list[list[int]], values: list[list[float]], children: list[dict[int, int]], ends: set[int]
    ) -> None:
        """Values and failure states, breadth first."""
        queue = [ROOT]
        for state in queue:
            for token, child in children[state].items():
                held = values[state][0] + self.boost
                values[child] = [0.0, held] if child in ends else [held, 0.0]
                fallback = rows[state][FAIL]
                while fallback != ROOT and token not in children[fallback]:
                    fallback = rows[fallback][FAIL]
                reached = children[fallback].get(token, ROOT)
                rows[child][FAIL] = reached if reached != child else ROOT
                queue.append(child)

    @property
    def largest_gain(self) -> float:
        """No token can add more than this to a prefix."""
        return float(self.values.sum(axis=1).max() - self.values[:, 0].min())
