"""Hot words in the beam search against enumeration with a rule written anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asrkd.decoding.hotwords import HotWords
from asrkd.decoding.prefix_beam import PrefixBeam, prefix_beam_search
from asrkd.types import Frames, Vocabulary
from tests.decoding.test_prefix_beam import _enumerate

PHRASES = [("ab", "abca", "c"), ("bb", "ba"), ("aab", "b"), ("abc", "bca")]


def gained(text: str, phrases: tuple[str, ...], boost: float) -> float:
    """What complete phrases earn: the text is read once, holding on to the longest end that begins a phrase."""
    earned, held = 0.0, ""
    for letter in text:
        held += letter
        while held and not any(phrase.startswith(held) for phrase in phrases):
            held = held[1:]
        if held in phrases:
            paid = max((len(phrase) for phrase in phrases if phrase != held and held.startswith(phrase)), default=0)
            earned += boost * (len(held) - paid)
    return earned


@pytest.mark.parametrize("phrases", PHRASES)
@pytest.mark.parametrize("boost", [1.7, -0.8])
def test_order_is_that_of_enumeration(phrases: tuple[str, ...], boost: float) -> None:
    torch.manual_seed(len(phrases))
    values = torch.randn(1, 5, 4).double().log_softmax(-1)
    vocabulary = Vocabulary(("_", "a", "b", "c"), 0)
    hotwords = HotWords([["_abc".index(letter) for letter in phrase] for phrase in phrases], 4, boost)
    (nbest,) = prefix_beam_search(
        Frames(values, torch.tensor([5]), 0.04), vocabulary, beam=700, n=700, hotwords=hotwords
    )
    truth = _enumerate(values[0], 0)
    assert {h.tokens for h in nbest} == set(truth)
    assert [h.score for h in nbest] == pytest.approx([truth[h.tokens] for h in nbest], abs=1e-5)
    texts = ["".join("_abc"[token] for token in h.tokens) for h in nbest]
    ranks = [h.score + gained(text, phrases, boost) for h, text in zip(nbest, texts, strict=True)]
    assert ranks == pytest.approx(sorted(ranks, reverse=True), abs=1e-5)
    assert {gained(text, phrases, boost) for text in texts} != {0.0}


def test_frame_by_frame_and_no_boost_are_the_plain_search() -> None:
    torch.manual_seed(1)
    values = (2 * torch.randn(60, 9)).log_softmax(-1).numpy()
    vocabulary = Vocabulary(tuple("abcdefghi"), 8)
    words = HotWords([(0, 1, 2), (3,), (1, 1)], 9, 0.0)
    plain, piecewise = PrefixBeam(vocabulary, 8, 8), PrefixBeam(vocabulary, 8, 8, words)
    plain.advance(values)
    for frame in range(60):
        piecewise.advance(np.ascontiguousarray(values[frame : frame + 1]))
    assert piecewise.hypotheses(8) == plain.hypotheses(8)


def test_a_likelier_word_gives_way_to_a_hot_one() -> None:
    """Two words sound alike: what is said in the frames decides, and the hot word tips the balance."""
    probabilities = np.full((3, 4), 0.02, dtype=np.float64)
    probabilities[0, 1], probabilities[1, 2], probabilities[1, 3], probabilities[2, 0] = 0.9, 0.55, 0.35, 0.9
    values = np.log(probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32)
    vocabulary = Vocabulary(("_", "a", "b", "c"), 0)

    def best(hotwords: HotWords | None) -> tuple[int, ...]:
        search = PrefixBeam(vocabulary, 4, 3, hotwords)
        search.advance(values)
        return search.hypotheses(1)[0][0]

    assert best(None) == (1, 2)
    assert best(HotWords([(1, 3)], 4, 1.0)) == (1, 3)
    assert best(HotWords([(1, 3, 3)], 4, 1.0)) == (1, 2)  # never completed: nothing is kept
    assert best(HotWords([(1, 2)], 4, -1.0)) == (1, 3)


@pytest.mark.parametrize(
    ("phrases", "boost", "said"),
    [
        ([], 1.0, "at least one token"),
        ([()], 1.0, "at least one token"),
        ([(9,)], 1.0, "found 9"),
        ([(1,)], float("nan"), "boost"),
    ],
)
def test_refusals(phrases: list, boost: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HotWords(phrases, 4, boost)
