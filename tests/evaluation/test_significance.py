import importlib.util
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from asrkd.evaluation.nist import segments, word_errors
from asrkd.evaluation.significance import bootstrap_ci, gap_closed, gap_closed_ci, mapsswe, paired_bootstrap
from asrkd.evaluation.wer import score

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "sctk.json").read_text())


def tool():
    spec = importlib.util.spec_from_file_location("sctk_golden", ROOT / "tools" / "sctk_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def split(texts):
    return {key: text.split() for key, text in texts.items()}


def data(utterances=300, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(1, 40, utterances)
    return rng.binomial(words, 0.15), rng.binomial(words, 0.12), words


def check_against_sctk(references, first, second, measured):
    for system, texts in (("a", first), ("b", second)):
        errors = [word_errors(said.split(), texts[key].split()) for key, said in references.items()]
        assert (
            sum(int(e.wrong.sum()) for e in errors) == measured[system]["substitutions"] + measured[system]["deletions"]
        )
        assert sum(int(e.inserted.sum()) for e in errors) == measured[system]["insertions"]
    for order, pair in (("ab", (first, second)), ("ba", (second, first))):
        ours, theirs = mapsswe(split(references), *map(split, pair)), measured[order]
        assert ours.segments == theirs["segments"]
        assert ours.mean_difference == pytest.approx(theirs["mean"], abs=5.1e-4)
        assert ours.standard_deviation == pytest.approx(theirs["deviation"], abs=5.1e-4)
        assert ours.z == pytest.approx(theirs["z"], abs=5.1e-4)
        if theirs["p"].startswith("<"):
            assert ours.p < float(theirs["p"][1:])
        else:
            assert ours.p == pytest.approx(float(theirs["p"]), abs=2e-3)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"seed{case['setting']['seed']}")
def test_mapsswe_equals_sctk(case):
    check_against_sctk(*tool().systems(**case["setting"]), case["measured"])


@pytest.mark.parametrize("seed", [11, 12])
def test_mapsswe_equals_sctk_live(seed):
    sctk = tool()
    if not (sctk.PROGRAMS / "sclite").exists():
        pytest.skip("the Debian package sctk is not installed")
    texts = sctk.systems(seed, 50, 6, 0.4)
    check_against_sctk(*texts, sctk.measure(*texts))


def test_wer_equals_sctk_where_both_alignments_agree():
    # At a usual error rate and vocabulary the 4-3-3 costs of sclite and unit costs count the same errors.
    case = next(c for c in GOLDEN if c["setting"]["words"] == 400)
    references, *hypotheses = tool().systems(**case["setting"])
    for system, texts in zip("ab", hypotheses, strict=True):
        ours, theirs = score(references, texts), case["measured"][system]
        assert ours.errors == theirs["substitutions"] + theirs["deletions"] + theirs["insertions"]
        assert ours.reference_words == theirs["reference_words"]


@pytest.mark.parametrize(
    ("reference", "first", "second", "expected"),
    [
        ("a b c d", "a b c d", "a b c d", []),
        ("a b c d e", "x b c d y", "a b c d e", [(1, 0), (1, 0)]),  # three words that both have right divide
        ("a b c", "x b y", "a b c", [(2, 0)]),  # one does not
        ("a b c d e", "x b c d e", "a b c y e", [(1, 0), (0, 1)]),
        ("a b", "a b x", "a b", [(1, 0)]),
        ("a b", "a b", "a b x", [(0, 1)]),
        ("", "x", "", [(1, 0)]),
        ("a b c d", "a b x c d", "", [(1, 4)]),
    ],
)
def test_segments(reference, first, second, expected):
    found = segments(reference.split(), first.split(), second.split())
    assert [(s.errors_a, s.errors_b) for s in found] == expected


def test_mapsswe_refuses_other_utterances_and_handles_no_errors():
    with pytest.raises(ValueError, match=r"hypotheses_b: expected the ids of the references, 1 differ \(first: u\)"):
        mapsswe({"u": ["a"]}, {"u": ["a"]}, {})
    assert mapsswe({"u": ["a"]}, {"u": ["a"]}, {"u": ["a"]}).p == 1.0


def test_interval_agrees_with_scipy():
    errors, _, words = data()
    ours = bootstrap_ci(errors, words)
    theirs = stats.bootstrap(
        (errors, words),
        lambda e, w, axis: e.sum(axis) / w.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == errors.sum() / words.sum()
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_interval_covers_the_true_rate():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        words = rng.integers(1, 30, 120)
        interval = bootstrap_ci(rng.binomial(words, 0.2), words, draws=500, seed=trial)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_speakers_with_their_own_rates_widen_the_interval():
    rng = np.random.default_rng(3)
    speakers = np.repeat(np.arange(12), 40)
    words = np.full(480, 10)
    errors = rng.binomial(words, np.linspace(0.05, 0.4, 12)[speakers])
    by_utterance, by_speaker = bootstrap_ci(errors, words), bootstrap_ci(errors, words, speakers.tolist())
    assert by_speaker.blocks == 12
    assert by_speaker.estimate == by_utterance.estimate
    assert by_speaker.high - by_speaker.low > 2 * (by_utterance.high - by_utterance.low)


def test_seeds_and_order():
    errors_a, errors_b, words = data()
    assert paired_bootstrap(errors_a, errors_b, words) == paired_bootstrap(errors_a, errors_b, words)
    one, other = paired_bootstrap(errors_a, errors_b, words), paired_bootstrap(errors_b, errors_a, words)
    assert one.difference.estimate == -other.difference.estimate == (errors_b.sum() - errors_a.sum()) / words.sum()
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.p == pytest.approx(other.p)
    assert one.improvement == pytest.approx(1 - other.improvement)


def test_p_values_are_uniform_under_no_difference_and_small_under_one():
    rng = np.random.default_rng(5)
    words = rng.integers(5, 30, 200)
    p_values = []
    for trial in range(200):
        a, b = rng.binomial(words, 0.2), rng.binomial(words, 0.2)
        p_values.append(paired_bootstrap(a, b, words, draws=500, seed=trial).p)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert 0.4 <= np.mean(p_values) <= 0.6
    better = paired_bootstrap(rng.binomial(words, 0.3), rng.binomial(words, 0.2), words)
    assert better.p < 0.001
    assert better.difference.high < 0
    assert better.improvement > 0.999


def test_equal_systems_do_not_differ():
    errors, _, words = data()
    same = paired_bootstrap(errors, errors, words)
    assert (same.difference.estimate, same.p, same.improvement) == (0.0, 1.0, 0.5)


def test_ten_thousand_utterances_ten_thousand_draws():
    errors, _, words = data(10_000)
    start = time.perf_counter()
    bootstrap_ci(errors, words)
    assert time.perf_counter() - start < 5


def test_bad_arguments():
    with pytest.raises(ValueError, match="words: expected 2 utterances as in errors, found 1"):
        bootstrap_ci([1, 2], [3])
    with pytest.raises(ValueError, match="errors: expected at least one utterance, found none"):
        bootstrap_ci([], [])
    with pytest.raises(ValueError, match="level: expected between 0 and 1, found 95"):
        bootstrap_ci([1], [2], level=95)
    with pytest.raises(ValueError, match="blocks: expected 2 utterances"):
        bootstrap_ci([1, 2], [3, 3], ["s"])


def test_no_reference_words():
    interval = bootstrap_ci([1, 0], [0, 0])
    assert math.isnan(interval.estimate)
    assert bootstrap_ci([0], [0]).high == 0.0


def test_gap_closed_over_seeds():
    found = gap_closed([0.30, 0.32, 0.28], [0.25, 0.26, 0.25], 0.10)
    each = np.array([0.05 / 0.20, 0.06 / 0.22, 0.03 / 0.18])
    low, high = stats.t.interval(0.95, 2, loc=each.mean(), scale=stats.sem(each))
    assert (found.estimate, found.low, found.high) == pytest.approx((each.mean(), low, high))
    assert math.isinf(gap_closed([0.3], [0.2], 0.1).high)
    with pytest.raises(ValueError, match=r"alone: expected every WER above the teacher's 0\.3000, found 0\.2500"):
        gap_closed([0.4, 0.25], [0.2, 0.2], 0.3)
    with pytest.raises(ValueError, match="distilled: expected one WER for each of 2 seeds"):
        gap_closed([0.4, 0.25], [0.2], 0.1)


def test_gap_closed_by_utterances():
    errors, _, _words = data()
    teacher = errors // 3
    half_way = (errors + teacher) / 2
    found = gap_closed_ci(errors, half_way, teacher)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert gap_closed_ci(errors, teacher, teacher).low == pytest.approx(1.0)
