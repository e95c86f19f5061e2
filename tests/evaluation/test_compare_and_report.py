import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from asrkd.evaluation import significance
from asrkd.evaluation.compare import compare, most_changed, paired
from asrkd.evaluation.report import (
    Entry,
    comparisons_of,
    console_table,
    gap_closed_over_seeds,
    headline,
)
from asrkd.evaluation.result import load, save
from asrkd.evaluation.write import write_report

from . import made


def entries(seed=0):
    teacher, alone, distilled = made.three(seed)
    return [Entry(teacher, "teacher"), Entry(alone, "alone", seed), Entry(distilled, "distilled", seed)]


def test_saved_result_reads_back_equal(tmp_path):
    result = made.three()[1]
    save(result, tmp_path / "r")
    again = load(tmp_path / "r")
    assert again == result
    assert [u.score.alignment for u in again.utterances] == [u.score.alignment for u in result.utterances]
    assert load(tmp_path / "r" / "result.json") == result


def test_damaged_results_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"result\.json: expected the result of an evaluation, found no such file"):
        load(tmp_path)
    save(made.three()[1], tmp_path)
    with (tmp_path / "utterances.jsonl").open("a") as file:
        file.write('{"part": "test')
    with pytest.raises(ValueError, match=r"utterances\.jsonl: line 111: expected an utterance"):
        load(tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    record["nonsense"] = 1
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"result\.json: nonsense: Extra inputs"):
        load(tmp_path)


def test_comparison_counts_and_tests():
    _, alone, distilled = made.three()
    found = compare(alone, distilled)
    assert list(found.tests) == ["test-clean", "test-other", "pooled"]
    pooled = found.overall
    assert pooled.utterances == 110
    assert pooled.wins + pooled.ties + pooled.losses == 110
    assert pooled.wins > pooled.losses
    assert pooled.difference.estimate == pytest.approx(pooled.wer_second - pooled.wer_first)
    assert pooled.p < 0.001
    assert pooled.mapsswe_p < 0.001
    assert pooled.speaker_difference.blocks == 5
    same = compare(alone, alone)
    assert (same.overall.p, same.overall.mapsswe_p, same.overall.ties) == (1.0, 1.0, 110)


def test_most_changed():
    _, alone, distilled = made.three()
    better, worse = most_changed(alone, distilled, limit=3)
    gains = [a.score.errors - b.score.errors for a, b in better]
    largest = max(a.score.errors - b.score.errors for a, b in paired(alone, distilled))
    assert gains[0] == largest > 0
    assert gains == sorted(gains, reverse=True)
    assert all(b.score.errors > a.score.errors for a, b in worse)


def test_what_cannot_be_compared_is_refused():
    texts = {"t": made.references()}
    one = made.result("one", {"t": made.recognised(texts["t"], 0.1, 1)}, texts)
    with pytest.raises(ValueError, match=r"one, two: .* found different normaliser none and librispeech"):
        compare(one, made.result("two", {"t": texts["t"]}, texts, normaliser="librispeech"))
    with pytest.raises(ValueError, match="test sets t and v"):
        compare(one, made.result("two", {"v": texts["t"]}, {"v": texts["t"]}))
    fewer = {"t": made.references(59)}
    with pytest.raises(ValueError, match=r"1 utterances of one only \(first: t/u059\)"):
        compare(one, made.result("two", fewer, fewer))
    changed = {"t": {**texts["t"], "u007": "other words"}}
    with pytest.raises(ValueError, match=r"references of 1 utterances \(first: t/u007\)"):
        compare(one, made.result("two", changed, changed))
    other_audio = one.model_copy(
        update={"utterances": tuple(type(u)(**{**vars(u), "audio_sha256": "0" * 16}) for u in one.utterances)}
    )
    with pytest.raises(ValueError, match="audio of 60 utterances"):
        compare(one, other_audio)


def test_report_files(tmp_path):
    made_of = entries()
    rows = write_report(made_of, comparisons_of(made_of), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == ["teacher", "alone", "distilled"]
    assert metrics["rows"] == [row.model_dump(mode="json") for row in rows]
    header, rule, *body = [line for line in text.splitlines() if line.startswith("|")][:5]
    assert all(line.count("|") == header.count("|") for line in (rule, *body))
    for words in ("3.00 M", "2.6 MB", "utterance", "328 ms", "WER test-clean", "MAPSSWE p < 0.001", "pooled"):
        assert words in text
    pooled = metrics["comparisons"][0]["tests"]["pooled"]
    assert pooled["p"] < 0.001


def test_gap_closed_in_the_table():
    made_of = entries()
    row = headline(made_of)[2]
    pooled = [
        sum(u.score.errors for u in e.result.utterances) / sum(len(u.score.reference) for u in e.result.utterances)
        for e in made_of
    ]
    assert row.gap_closed.estimate == pytest.approx((pooled[1] - pooled[2]) / (pooled[1] - pooled[0]))
    assert row.gap_closed.low < row.gap_closed.estimate < row.gap_closed.high
    assert headline(made_of)[1].gap_closed is None
    assert gap_closed_over_seeds(made_of) is None
    several = [made_of[0]] + [e for seed in (1, 2, 3) for e in entries(seed)[1:]]
    over_seeds = gap_closed_over_seeds(several)
    each = [row.gap_closed.estimate for row in headline(several) if row.gap_closed]
    assert (over_seeds.blocks, over_seeds.unit) == (3, "seeds")
    assert over_seeds.estimate == pytest.approx(sum(each) / 3)


def test_no_gap_no_figure():
    teacher, alone, distilled = made.three()
    swapped = [Entry(alone, "teacher"), Entry(teacher, "alone"), Entry(distilled, "distilled")]
    assert headline(swapped)[2].gap_closed is None


def test_console_table_shows_every_figure():
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(console_table(headline(entries())))
    text = console.export_text()
    for words in ("teacher", "0.65 M", "328 ms", "RTF streaming (cpu, 1 thread)"):
        assert words in text


def test_intervals_of_a_part_are_the_bootstraps():
    result = made.three()[1]
    part = result.parts["test-clean"]
    utterances = result.of_part("test-clean")
    errors, words = [u.score.errors for u in utterances], [len(u.score.reference) for u in utterances]
    expected = significance.bootstrap_ci(errors, words, draws=500)
    assert (part.interval.estimate, part.interval.low, part.interval.high) == (
        expected.estimate,
        expected.low,
        expected.high,
    )
    assert part.speaker_interval.blocks == 5
    for group in (part.by_speaker, part.by_duration):
        assert sum(e.reference_words for e in group.values()) == part.errors.reference_words
    assert sum(e.utterances for e in part.by_snr.values()) == sum(u.snr_db is not None for u in utterances)
    assert list(part.by_duration) == ["< 2 s", "2–5 s", "5–10 s", "10–15 s", "≥ 15 s"]


def test_the_documented_keys_of_metrics_are_those_written(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    page = page[page.index("### `metrics.json`") :]
    made_of = entries()
    write_report(made_of, comparisons_of(made_of), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    keys = {*metrics, *metrics["rows"][0], *metrics["comparisons"][0], *metrics["comparisons"][0]["tests"]["pooled"]}
    keys |= set(metrics["rows"][0]["wer"]["test-clean"])
    assert {key for key in keys if not re.search(rf"\b{key}\b", page)} == set()
