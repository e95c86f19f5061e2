import math
import random
import time

import jiwer
import pytest

from asrkd.evaluation import wer

WORDS = [f"word{i}" for i in range(40)]


def corrupted(rng, words):
    out = []
    for word in words:
        draw = rng.random()
        if draw < 0.05:
            continue
        out.append(rng.choice(WORDS) if draw < 0.12 else word)
        if draw > 0.95:
            out.append(rng.choice(WORDS))
    return out


def corpus(n, seed=0, length=20):
    rng = random.Random(seed)
    references = {f"u{i}": " ".join(rng.choices(WORDS, k=rng.randint(1, 2 * length))) for i in range(n)}
    hypotheses = {i: " ".join(corrupted(rng, text.split())) for i, text in references.items()}
    return references, hypotheses


def slow_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_counts_equal_jiwer():
    references, hypotheses = corpus(300)
    ours = wer.score(references, hypotheses)
    theirs = jiwer.process_words(list(references.values()), list(hypotheses.values()))
    assert (ours.substitutions, ours.deletions, ours.insertions) == (
        theirs.substitutions,
        theirs.deletions,
        theirs.insertions,
    )
    assert ours.wer == theirs.wer > 0
    assert ours.cer == jiwer.cer(list(references.values()), list(hypotheses.values()))


@pytest.mark.parametrize("letters", ["ab", "abcd", "abcdefgh"])
def test_errors_and_alignment_against_a_slow_distance(letters):
    rng = random.Random(letters)
    for _ in range(80):
        said, heard = rng.choices(letters, k=rng.randint(0, 9)), rng.choices(letters, k=rng.randint(0, 9))
        (utterance,) = wer.score({"u": " ".join(said)}, {"u": " ".join(heard)}).utterances
        assert utterance.errors == slow_distance(said, heard)
        assert utterance.character_errors == slow_distance(" ".join(said), " ".join(heard))
        columns = utterance.alignment
        assert [c.reference for c in columns if c.reference] == said
        assert [c.hypothesis for c in columns if c.hypothesis] == heard
        assert sum(c.operation != "equal" for c in columns) == utterance.errors
        assert all((c.reference == c.hypothesis) == (c.operation == "equal") for c in columns)


def test_empty_reference_and_hypothesis():
    both = wer.score({"u": ""}, {"u": " "})
    assert (both.wer, both.cer, both.reference_words) == (0.0, 0.0, 0)
    inserted = wer.score({"u": ""}, {"u": "a b"})
    assert inserted.insertions == 2
    assert math.isinf(inserted.wer)
    deleted = wer.score({"u": "a b", "v": ""}, {"u": "", "v": "c"})
    assert (deleted.deletions, deleted.insertions, deleted.wer) == (2, 1, 1.5)
    assert wer.score({}, {}).wer == 0.0


def test_unicode_is_counted_in_code_points():
    result = wer.score({"u": "größe 語 😀"}, {"u": "grösse 語 😀"})
    assert (result.substitutions, result.errors) == (1, 1)
    assert result.cer == pytest.approx(2 / len("größe 語 😀"))


def test_ten_thousand_word_lines():
    said = " ".join(WORDS[i % 40] for i in range(10_000))
    heard = said.replace("word7 ", "", 3)
    start = time.perf_counter()
    result = wer.score({"u": said}, {"u": heard})
    assert time.perf_counter() - start < 5
    assert (result.deletions, result.errors, result.reference_words) == (3, 3, 10_000)


def test_ten_thousand_utterances_in_well_under_a_second():
    references, hypotheses = corpus(10_000, length=10)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        result = wer.score(references, hypotheses)
        times.append(time.perf_counter() - start)
    assert result.errors > 0
    assert min(times) < 1.0


def test_missing_and_extra_hypotheses_are_refused():
    with pytest.raises(ValueError, match=r"found 1 missing \(first: b\), 1 without a reference \(first: c\)"):
        wer.score({"a": "x", "b": "y"}, {"a": "x", "c": "y"})


def test_most_frequent_errors():
    result = wer.score({"a": "one two three", "b": "one two"}, {"a": "won two", "b": "won two too"})
    assert result.most_frequent("substitute") == [("one", "won", 2)]
    assert result.most_frequent("delete") == [("three", "", 1)]
    assert result.most_frequent("insert") == [("", "too", 1)]
