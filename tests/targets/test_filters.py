"""Pseudo-label filters, one reason at a time, and on a store."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from lhotse import CutSet

from asrkd.data.batching import transcript
from asrkd.data.corpora import load_cuts
from asrkd.targets.filters import FilterOptions, filter_pseudo_labels, judge
from asrkd.targets.label import label
from asrkd.targets.store import TargetsError, TargetsStore
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, Vocabulary

ALL = FilterOptions(min_confidence=0.5, min_margin=0.1)


@pytest.mark.parametrize(
    ("text", "reference", "duration_s", "confidences", "second", "reason", "detail"),
    [
        ("one two three", "one two three", 1.0, (0.9,), None, "", ""),
        ("one two three", "", 1.0, None, None, "", ""),
        ("", "one", 1.0, None, None, "empty", ""),
        ("one two four", "one two three", 1.0, None, None, "wer", "0.333"),
        ("one two three", "", 1.0, (0.3, 0.5), None, "confidence", "0.400"),
        ("one two three", "", 1.0, None, -1.15, "margin", "0.050"),
        ("one", "", 10.0, None, None, "too little text", "0.3 characters/s"),
        ("one two three", "", 0.1, None, None, "too much text", "130.0 characters/s"),
        ("no no no no no", "", 1.0, None, None, "repetition", "5 times"),
        ("a b c " * 5, "", 1.0, None, None, "repetition", "5 times"),
        ("a b a b a b a b", "", 1.0, None, None, "", ""),
    ],
)
def test_each_reason(
    text: str,
    reference: str,
    duration_s: float,
    confidences: tuple[float, ...] | None,
    second: float | None,
    reason: str,
    detail: str,
) -> None:
    nbest = [Hypothesis((), text, -1.0, None, confidences)]
    if second is not None:
        nbest.append(Hypothesis((), "something else", second))
    verdict = judge("u", tuple(nbest), reference, duration_s, ALL)
    assert (verdict.reason, verdict.detail) == (reason, detail)


def test_filters_can_be_turned_off_and_checked() -> None:
    off = FilterOptions(None, None, None, None, None, None, allow_empty=True)
    assert judge("u", (Hypothesis((), "", 0.0),), "one", 99.0, off).reason == ""
    assert judge("u", (), "one", 1.0).reason == "empty"
    assert judge("u", (Hypothesis((), "One"),), "ONE", 1.0, normalise=str.upper).reason == ""
    with pytest.raises(ValueError, match="max_wer: expected 0 or more"):
        FilterOptions(max_wer=-1)


class Echo:
    """Says the reference, but for every third utterance, of which it says the same word over and over."""

    identity, sample_rate_hz, frame_shift_s = "echo", 16000, 0.04
    vocabulary = Vocabulary(("<blank>", "a"), 0)
    nbest = True

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        lists = tuple(
            (Hypothesis((), text if place % 3 else "WELL " * 9, -1.0),) for place, text in enumerate(batch.texts)
        )
        lengths = batch.audio_lengths // 640
        posteriors = Frames(batch.audio.new_zeros(len(batch.ids), int(lengths.max()), 2).log_softmax(-1), lengths, 0.04)
        return TeacherTargets(self.vocabulary, posteriors, lists if self.nbest else None)


def test_kept_cuts_carry_the_teachers_transcript_and_the_rest_is_listed(prepared: Path, tmp_path: Path) -> None:
    cuts = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:7])
    label(Echo(), cuts, tmp_path / "targets")
    silent = CutSet.from_cuts(cut.map_supervisions(lambda s: s.with_alignment("none", [])) for cut in cuts)
    for cut in silent:
        cut.supervisions[0].text = None
    kept, report = filter_pseudo_labels(TargetsStore(tmp_path / "targets"), silent)
    assert report.dropped == {"repetition": 3} and len(kept) == len(report.kept) == 4
    references = {cut.id: transcript(cut) for cut in load_cuts(prepared, "dev")}
    for cut in kept:
        assert transcript(cut) == references[cut.id]
        assert cut.supervisions[0].custom["labelled_by"] == "teacher" and cut.supervisions[0].speaker
    path = tmp_path / "kept.jsonl.gz"
    kept.to_file(path)
    assert [c.id for c in CutSet.from_file(path)] == list(report.kept)
    report.write(tmp_path / "dropped.csv")
    rows = list(csv.DictReader((tmp_path / "dropped.csv").open()))
    by_id = {cut.id: cut for cut in cuts}
    assert all(Path(r["audio"]) == Path(by_id[r["utterance"]].recording.sources[0].source) for r in rows)
    assert all(float(r["duration_s"]) == pytest.approx(by_id[r["utterance"]].duration, abs=1e-3) for r in rows)
    assert len(rows) == 3 and {r["reason"] for r in rows} == {"repetition"} and rows[0]["transcript"].startswith("WELL")


def test_a_store_without_lists_is_refused(prepared: Path, tmp_path: Path) -> None:
    teacher = Echo()
    teacher.nbest = False
    cuts = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:2])
    label(teacher, cuts, tmp_path)
    with pytest.raises(TargetsError, match="holds no N-best lists"):
        filter_pseudo_labels(TargetsStore(tmp_path), cuts)
