"""Words and a language model against all word sequences, each scored by torch's CTC and the model's own table."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.decoding.word_lm import LmError, arpa_words
from asrkd.streaming.segment import WordSegment, open_word_lm
from tests.decoding.test_prefix_beam import _ctc_log_prob

pytest.importorskip("flashlight.lib.text.decoder.kenlm", reason="the extra lm is not installed")

UNIGRAMS = {"<unk>": -2.0, "</s>": -0.5, "ab": -0.4, "b": -0.9, "ba": -0.7, "zz": -1.0}
BIGRAMS = {("<s>", "b"): -0.2, ("b", "ab"): -0.1, ("ab", "</s>"): -0.3, ("ba", "b"): -0.2}
BACKOFF = -0.3


def write_arpa(path: Path) -> Path:
    lines = [
        "\\data\\",
        f"ngram 1={len(UNIGRAMS) + 1}",
        f"ngram 2={len(BIGRAMS)}",
        "",
        "\\1-grams:",
        f"-99\t<s>\t{BACKOFF}",
    ]
    lines += [f"{p}\t{w}" + ("" if w == "</s>" else f"\t{BACKOFF}") for w, p in UNIGRAMS.items()]
    lines += ["", "\\2-grams:", *(f"{p}\t{a} {b}" for (a, b), p in BIGRAMS.items()), "", "\\end\\", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def lm_score(words: tuple[str, ...]) -> float:
    """Natural log-probability with back-off."""
    total, before = 0.0, "<s>"
    for word in (*words, "</s>"):
        total += BIGRAMS.get((before, word), BACKOFF + UNIGRAMS[word])
        before = word
    return total * math.log(10)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return train_tokenizer(["ab b", "ba b"], kind="char")  # z cannot be written


@pytest.mark.parametrize("weight", [0.3, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_best_is_that_of_enumeration(tokenizer: Tokenizer, tmp_path: Path, weight: float, seed: int) -> None:
    lm = open_word_lm(str(write_arpa(tmp_path / "lm.arpa")), tokenizer, weight=weight, word_score=0.4)
    assert lm.words == ["ab", "b", "ba"] and lm.left_out == 1
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(9, len(tokenizer), generator=generator)
    logits[:, 1:4] -= 50  # the special tokens
    log_probs = logits.log_softmax(-1)

    truth = {}
    for count in range(4):
        for words in itertools.product(lm.words, repeat=count):
            tokens = tuple(tokenizer.encode(" ".join(words)))
            if len(tokens) + sum(a == b for a, b in itertools.pairwise(tokens)) <= 9:
                # The last word's separator may be heard, or is taken as said.
                ended = _ctc_log_prob(log_probs, (*tokens, lm.separator_id), 0) if tokens else -np.inf
                ctc = np.logaddexp(_ctc_log_prob(log_probs, tokens, 0), ended)
                truth[tokens] = ctc + weight * lm_score(words) + 0.4 * count
    segment = WordSegment(lm, 0.04)
    for start in range(0, 9, 2):
        segment.advance(np.ascontiguousarray(log_probs[start : start + 2].numpy()))
    found = segment.nbest(3)
    # The search keeps one way of saying a word where there are several, so that close ones may change places.
    best = max(truth.values())
    assert truth[found[0].tokens] > best - 0.25
    # Where a separator was heard last, the frame that ends the search can be a blank or more of it: counted twice.
    assert all(f.score <= truth[f.tokens] + math.log(2) + 1e-4 for f in found if f.tokens in truth)
    assert all(0 <= t <= 9 * 0.04 for f in found for t in f.times_s)


def test_many_segments_share_one_model(tokenizer: Tokenizer, tmp_path: Path) -> None:
    lm = open_word_lm(str(write_arpa(tmp_path / "lm.arpa")), tokenizer)
    values = (
        (3 * torch.randn(2, 40, len(tokenizer), generator=torch.Generator().manual_seed(5))).log_softmax(-1).numpy()
    )
    alone = []
    for row in range(2):
        segment = WordSegment(lm, 0.04)
        segment.advance(values[row])
        alone.append(segment.nbest(1)[0].tokens)
    together = [WordSegment(lm, 0.04) for _ in range(2)]
    for start in range(0, 40, 8):
        for row in range(2):
            together[row].advance(np.ascontiguousarray(values[row, start : start + 8]))
            together[row].best_tokens()
    assert [segment.nbest(1)[0].tokens for segment in together] == alone
    empty = WordSegment(lm, 0.04)
    assert empty.best_tokens() == () and empty.nbest(2)[0].tokens == ()


def test_refusals(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(LmError, match="no such file"):
        open_word_lm(str(tmp_path / "none.arpa"), tokenizer)
    broken = tmp_path / "broken.arpa"
    broken.write_bytes(b"\x00\xff\x01 no model")
    with pytest.raises(LmError, match="expected an ARPA file"):
        open_word_lm(str(broken), tokenizer)
    with pytest.raises(LmError, match=r"broken\.arpa"):
        open_word_lm(str(broken), tokenizer, words=["ab"])
    with pytest.raises(LmError, match="none of its 1 words"):
        open_word_lm(str(write_arpa(tmp_path / "lm.arpa")), tokenizer, words=["zz"])
    assert arpa_words(tmp_path / "lm.arpa")[:2] == ["<s>", "<unk>"]
