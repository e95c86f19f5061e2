"""CTC prefix beam search, exact in the log-sum sense, compiled; whole batches or frame by frame as they come.

Each prefix carries the log-probability of all its paths that end in blank and of all that end in its last token
(Hannun et al. 2014, algorithm 1; Graves 2012, section 7.5). Prefixes live in a tree with one node each, so that paths
which meet again are always added together.

Dimension legend: B utterances, T frames, V tokens, K candidate tokens of a frame, W beam width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from asrkd.decoding.ctc import DecodedTokens, check_vocabulary
from asrkd.decoding.hotwords import CHILD, FAIL, ROOT, SIBLING, TOKEN, HotWords
from asrkd.types import Frames, Vocabulary

NO_NODE = -1

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    """Compile to machine code at the first call; the result is kept on disk for the next process."""
    return njit(cache=True)(function)


class PrefixBeam:
    """The search over one utterance, to be fed as its posteriors come.

    Args:
        vocabulary: Tokens of the posteriors.
        beam: W, prefixes kept after each frame.
        tokens_per_frame: K, likeliest non-blank tokens that may extend a prefix in each frame.
        hotwords: Phrases that are made likelier; prefixes are then ranked with what they gained by them.

    Raises:
        ValueError: If ``beam`` or ``tokens_per_frame`` is below 1.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        beam: int = 16,
        tokens_per_frame: int = 20,
        hotwords: HotWords | None = None,
    ) -> None:
        for name, value in (("beam", beam), ("tokens_per_frame", tokens_per_frame)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, found {value}")
        self.vocabulary = vocabulary
        self.beam = beam
        self.tokens_per_frame = min(tokens_per_frame, max(len(vocabulary) - 1, 1))
        # One row a node: parent, token, first child, next sibling, slot in the beam. Node 0 is the empty prefix.
        self._nodes = np.full((256, 5), NO_NODE, dtype=np.int32)
        self._nodes[0, 4] = 0
        self._num_nodes = 1
        self._active = np.zeros(1, dtype=np.int32)
        # Log-probabilities of each active prefix: paths ending in blank, paths ending in its last token.
        self._scores = np.array([[0.0, -np.inf]])
        self.hotwords = hotwords
        # Of each node: state in the hot words' automaton, and all that the prefix gained by them.
        self._states = np.zeros(1 if hotwords is None else len(self._nodes), dtype=np.int32)
        self._gains = np.zeros(len(self._states))

    def advance(self, log_probs: NDArray[np.float32]) -> None:
        """Take the next frames.

        Args:
            log_probs: ``(T, V)`` natural log-probabilities, contiguous float32.

        Raises:
            ValueError: If V is not the vocabulary's size.
        """
        num_frames, size = log_probs.shape
        if size != len(self.vocabulary):
            raise ValueError(f"log_probs: expected {len(self.vocabulary)} tokens as in the vocabulary, found {size}")
        if num_frames == 0:
            return
        candidates = _candidates(log_probs, self.vocabulary.blank_id, self.tokens_per_frame)
        needed = self._num_nodes + num_frames * self.beam
        if needed > len(self._nodes):
            grown = np.full((max(needed, 2 * len(self._nodes)), 5), NO_NODE, dtype=np.int32)
            grown[: self._num_nodes] = self._nodes[: self._num_nodes]
            self._nodes = grown
            if self.hotwords is not None:
                self._states = np.resize(self._states, len(grown))
                self._gains = np.resize(self._gains, len(grown))
        biased, words = self.hotwords is not None, self.hotwords or _NO_WORDS
        self._num_nodes, self._active, self._scores = _advance(
            log_probs, candidates, self.vocabulary.blank_id, self.beam,
            self._nodes, self._num_nodes, self._active, self._scores,
            biased, self._states, self._gains, words.nodes, words.values, words.first, words.largest_gain,
        )  # fmt: skip

    def hypotheses(self, n: int = 1) -> list[tuple[tuple[int, ...], float]]:
        """The n likeliest prefixes so far, best first, each with the log-probability of all its surviving paths.

        Hot words that are complete count in the order, and not in the log-probability.
        """
        totals = np.logaddexp(self._scores[:, 0], self._scores[:, 1])
        rank = totals
        if self.hotwords is not None:
            rank = totals + self._gains[self._active] - self.hotwords.values[self._states[self._active], 0]
        order = np.argsort(-rank, kind="stable")[:n]
        return [(self._tokens(int(self._active[slot])), float(totals[slot])) for slot in order]

    def num_settled(self) -> int:
        """How many tokens all surviving prefixes have in common at their start: no further frame changes them."""
        survivors = [self._tokens(int(node)) for node in self._active]
        shortest = min(survivors, key=len)
        for place, token in enumerate(shortest):
            if any(tokens[place] != token for tokens in survivors):
                return place
        return len(shortest)

    def _tokens(self, node: int) -> tuple[int, ...]:
        tokens = []
        while node > 0:
            tokens.append(int(self._nodes[node, 1]))
            node = int(self._nodes[node, 0])
        return tuple(reversed(tokens))


_NO_WORDS = HotWords([[0]], 1, 0.0)


def prefix_beam_search(
    log_probs: Frames,
    vocabulary: Vocabulary,
    beam: int = 16,
    n: int = 1,
    tokens_per_frame: int = 20,
    hotwords: HotWords | None = None,
) -> list[tuple[DecodedTokens, ...]]:
    """N-best lists of a batch.

    Args:
        log_probs: ``(B, T, V)`` log-probabilities; the blank may stand anywhere.
        vocabulary: Their tokens.
        beam: Prefixes kept after each frame.
        n: Hypotheses wanted, at most ``beam``.
        tokens_per_frame: Likeliest non-blank tokens that may extend a prefix in each frame; with V - 1 and a wide
            beam the search is exact.
        hotwords: Phrases that are made likelier.

    Returns:
        For each utterance its hypotheses, best first. ``score`` is the log-probability of the token sequence summed
        over its paths; times and confidences are those of its best path.

    Raises:
        ValueError: If V is not the vocabulary's size or ``n`` is not within 1 to ``beam``.
    """
    check_vocabulary(log_probs.values, vocabulary)
    if not 0 < n <= beam:
        raise ValueError(f"n: expected 1 to beam={beam}, found {n}")
    values = log_probs.values.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
    lists = []
    for row, length in enumerate(log_probs.lengths.tolist()):
        search = PrefixBeam(vocabulary, beam, tokens_per_frame, hotwords)
        search.advance(values[row, :length])
        lists.append(
            tuple(
                align(values[row, :length], tokens, score, vocabulary.blank_id, log_probs.frame_shift_s)
                for tokens, score in search.hypotheses(n)
            )
        )
    return lists


def align(
    log_probs: NDArray[np.float32], tokens: tuple[int, ...], score: float, blank_id: int, frame_shift_s: float
) -> DecodedTokens:
    """Times and confidences of known tokens by the best CTC path through them (Viterbi).

    Args:
        log_probs: ``(T, V)``.
        tokens: Without blanks; must fit into T frames.
        score: Passed on.
        blank_id: The blank's id.
        frame_shift_s: Seconds from one frame to the next.

    Raises:
        ValueError: If the tokens do not fit.
    """
    if not tokens:
        return DecodedTokens((), (), (), (), score)
    ids = np.array(tokens, dtype=np.int64)
    needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
    if needed > len(log_probs):
        raise ValueError(f"tokens: expected at least {needed} frames for {len(ids)} tokens, found {len(log_probs)}")
    first, last = _viterbi(log_probs, ids, blank_id)
    confidences = tuple(
        min(1.0, float(np.exp(log_probs[a : b + 1, token].max())))
        for a, b, token in zip(first, last, tokens, strict=True)
    )
    starts = tuple(float(frame) * frame_shift_s for frame in first)
    ends = tuple(float(frame + 1) * frame_shift_s for frame in last)
    return DecodedTokens(tokens, starts, ends, confidences, score)


@_compiled
def _candidates(log_probs: NDArray[np.float32], blank_id: int, count: int) -> NDArray[np.int32]:
    """Ids of each frame's ``count`` likeliest non-blank tokens, likeliest first: ``(T, K)``."""
    num_frames, size = log_probs.shape
    ids = np.full((num_frames, count), -1, dtype=np.int32)
    best = np.empty(count, dtype=np.float32)
    for t in range(num_frames):
        kept = 0
        for token in range(size):
            value = log_probs[t, token]
            if token == blank_id or (kept == count and value <= best[count - 1]):
                continue
            place = kept if kept < count else count - 1
            while place > 0 and best[place - 1] < value:
                best[place] = best[place - 1]
                ids[t, place] = ids[t, place - 1]
                place -= 1
            best[place] = value
            ids[t, place] = token
            if kept < count:
                kept += 1
    return ids


@_compiled
def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    if b == -np.inf:
        return a
    return a + np.log1p(np.exp(b - a))


@_compiled
def _push(heap_scores: NDArray[np.float64], heap_items: NDArray[np.int64], size: int, score: float, item: int) -> int:
    """Keep the largest scores in a min-heap of fixed capacity; gives the new size."""
    if size < len(heap_scores):
        place = size
        size += 1
        while place > 0 and heap_scores[(place - 1) // 2] > score:
            heap_scores[place] = heap_scores[(place - 1) // 2]
            heap_items[place] = heap_items[(place - 1) // 2]
            place = (place - 1) // 2
    else:
        if score <= heap_scores[0]:
            return size
        place = 0
        while True:
            child = 2 * place + 1
            if child >= size:
                break
            if child + 1 < size and heap_scores[child + 1] < heap_scores[child]:
                child += 1
            if heap_scores[child] >= score:
                break
            heap_scores[place] = heap_scores[child]
            heap_items[place] = heap_items[child]
            place = child
    heap_scores[place] = score
    heap_items[place] = item
    return size


@_compiled
def _child(nodes: NDArray[np.int32], num_nodes: int, parent: int, token: int) -> int:
    """The node of ``parent`` extended by ``token``; ``num_nodes`` where it is new (and is written there)."""
    child = nodes[parent, 2]
    while child != NO_NODE:
        if nodes[child, 1] == token:
            return child
        child = nodes[child, 3]
    nodes[num_nodes, 0] = parent
    nodes[num_nodes, 1] = token
    nodes[num_nodes, 3] = nodes[parent, 2]
    nodes[parent, 2] = num_nodes
    return num_nodes


@_compiled
def _follow(state: int, token: int, nodes: NDArray[np.int32], first: NDArray[np.int32]) -> int:
    """The state that a token leads to: along the phrase, or from the longest end of it that begins another."""
    while state != ROOT:
        child = nodes[state, CHILD]
        while child != NO_NODE:
            if nodes[child, TOKEN] == token:
                return child
            child = nodes[child, SIBLING]
        state = nodes[state, FAIL]
    return first[token]


@_compiled
def _advance(
    log_probs: NDArray[np.float32],
    candidates: NDArray[np.int32],
    blank_id: int,
    beam: int,
    nodes: NDArray[np.int32],
    num_nodes: int,
    active: NDArray[np.int32],
    scores: NDArray[np.float64],
    biased: bool,
    states: NDArray[np.int32],
    gains: NDArray[np.float64],
    word_nodes: NDArray[np.int32],
    word_values: NDArray[np.float64],
    word_first: NDArray[np.int32],
    largest_gain: float,
) -> tuple[int, NDArray[np.int32], NDArray[np.float64]]:
    """Run the search over the frames; ``nodes`` grows in place by at most ``beam`` a frame."""
    num_frames, count = candidates.shape
    heap_scores = np.empty(beam)
    heap_items = np.empty(beam, dtype=np.int64)
    total = np.empty(beam)
    stay_blank = np.empty(beam)
    stay_token = np.empty(beam)
    merged = np.zeros((beam, log_probs.shape[1]), dtype=np.bool_)
    for t in range(num_frames):
        frame = log_probs[t]
        width = len(active)
        for slot in range(width):
            total[slot] = _log_add(scores[slot, 0], scores[slot, 1])
            stay_blank[slot] = total[slot] + frame[blank_id]
            last = nodes[active[slot], 1]
            stay_token[slot] = scores[slot, 1] + frame[last] if last >= 0 else -np.inf
        # A prefix whose parent is in the beam too gains what the parent's extension brings.
        for slot in range(width):
            parent = nodes[active[slot], 0]
            above = nodes[parent, 4] if parent >= 0 else -1
            if above >= 0:
                token = nodes[active[slot], 1]
                base = scores[above, 0] if nodes[active[above], 1] == token else total[above]
                stay_token[slot] = _log_add(stay_token[slot], base + frame[token])
                merged[above, token] = True
        size = 0
        for slot in range(width):
            gain = gains[active[slot]] if biased else 0.0
            stays = _log_add(stay_blank[slot], stay_token[slot])
            size = _push(heap_scores, heap_items, size, stays + gain, -1 - slot)
        for slot in range(width):
            last = nodes[active[slot], 1]
            gain = gains[active[slot]] if biased else 0.0
            state = states[active[slot]] if biased else ROOT
            for k in range(count):
                token = candidates[t, k]
                if token < 0:
                    break
                reach = total[slot] + frame[token] + gain + largest_gain
                if reach == -np.inf or (size == beam and reach <= heap_scores[0]):
                    break  # the tokens that follow are less likely still
                if merged[slot, token]:
                    continue
                base = scores[slot, 0] if token == last else total[slot]
                if base > -np.inf:
                    item = np.int64(slot) * count + k
                    more = 0.0
                    if biased:
                        target = _follow(state, token, word_nodes, word_first)
                        more = word_values[target, 0] + word_values[target, 1] - word_values[state, 0]
                    size = _push(heap_scores, heap_items, size, base + frame[token] + gain + more, item)
        for slot in range(width):
            parent = nodes[active[slot], 0]
            if parent >= 0 and nodes[parent, 4] >= 0:
                merged[nodes[parent, 4], nodes[active[slot], 1]] = False
        next_active = np.empty(size, dtype=np.int32)
        next_scores = np.empty((size, 2))
        for place in range(size):
            item = heap_items[place]
            if item < 0:
                slot = -1 - item
                next_active[place] = active[slot]
                next_scores[place, 0] = stay_blank[slot]
                next_scores[place, 1] = stay_token[slot]
            else:
                slot, token = item // count, candidates[t, item % count]
                node = _child(nodes, num_nodes, active[slot], token)
                if node == num_nodes:
                    num_nodes += 1
                    if biased:
                        state = states[active[slot]]
                        target = _follow(state, token, word_nodes, word_first)
                        states[node] = target
                        more = word_values[target, 0] + word_values[target, 1] - word_values[state, 0]
                        gains[node] = gains[active[slot]] + more
                next_active[place] = node
                next_scores[place, 0] = -np.inf
                base = scores[slot, 0] if token == nodes[active[slot], 1] else total[slot]
                next_scores[place, 1] = base + frame[token]
        for slot in range(width):
            nodes[active[slot], 4] = -1
        for place in range(size):
            nodes[next_active[place], 4] = place
        active, scores = next_active, next_scores
    return num_nodes, active, scores


@_compiled
def _viterbi(
    log_probs: NDArray[np.float32], tokens: NDArray[np.int64], blank_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last frame of each token on the likeliest path."""
    num_frames, num_states = len(log_probs), 2 * len(tokens) + 1
    score = np.full(num_states, -np.inf)
    back = np.zeros((num_frames, num_states), dtype=np.int8)
    score[0] = log_probs[0, blank_id]
    score[1] = log_probs[0, tokens[0]]
    for t in range(1, num_frames):
        for state in range(num_states - 1, -1, -1):
            best, step = score[state], 0
            if state >= 1 and score[state - 1] > best:
                best, step = score[state - 1], 1
            skips = state % 2 == 1 and state >= 3 and tokens[state // 2] != tokens[state // 2 - 1]
            if skips and score[state - 2] > best:
                best, step = score[state - 2], 2
            token = tokens[state // 2] if state % 2 == 1 else blank_id
            score[state] = best + log_probs[t, token]
            back[t, state] = step
    first = np.zeros(len(tokens), dtype=np.int64)
    last = np.full(len(tokens), -1, dtype=np.int64)
    state = num_states - 1
    if score[num_states - 2] > score[num_states - 1]:
        state = num_states - 2
    for t in range(num_frames - 1, -1, -1):
        if state % 2 == 1:
            index = state // 2
            first[index] = t
            if last[index] < 0:
                last[index] = t
        state -= back[t, state]
    return first, last
