"""Figures of a store against plain counts, its picture, and the two verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from lhotse import CutSet
from typer.testing import CliRunner

from asrkd.cli.filter import filter_labels
from asrkd.cli.inspect import inspect
from asrkd.data.batching import load_batch
from asrkd.data.corpora import load_cuts
from asrkd.data.text import train_tokenizer
from asrkd.models import package
from asrkd.targets.hidden import HiddenCodec
from asrkd.targets.inspect import inspect_store
from asrkd.targets.label import label
from asrkd.targets.picture import draw_utterance
from asrkd.targets.store import TargetsError, TargetsStore
from asrkd.teachers.config import open_teacher, parse_teacher
from asrkd.teachers.package import PackageTeacher
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, Vocabulary


class Misheard:
    """A spike of ``a`` every tenth frame, the reference without its last word as transcript."""

    identity, sample_rate_hz, frame_shift_s = "misheard", 16000, 0.04
    vocabulary = Vocabulary(("<blank>", "a", "b", "c"), 0)

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        lengths = batch.audio_lengths // 640
        probs = torch.tensor([0.9, 0.06, 0.03, 0.01]).repeat(len(batch.ids), int(lengths.max()), 1)
        probs[:, ::10] = torch.tensor([0.2, 0.8, 0.0, 0.0])
        nbest = tuple((Hypothesis((1, 1), " ".join(text.split()[:-1]), -1.0, (0.0, 0.4)),) for text in batch.texts)
        return TeacherTargets(self.vocabulary, Frames(probs.log(), lengths, 0.04), nbest)


@pytest.fixture(scope="module")
def labelled(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected") / "targets"
    label(Misheard(), CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:5]), folder, bits=16)
    return folder


def test_figures(labelled: Path, prepared: Path) -> None:
    store, cuts = TargetsStore(labelled), list(load_cuts(prepared, "dev"))[:7]
    found = inspect_store(store, cuts, worst=2)
    assert (found.utterances, found.covered, found.asked) == (5, 5, 7)
    assert found.missing == (cuts[5].id, cuts[6].id)
    assert found.hours == pytest.approx(sum(c.duration for c in cuts[:5]) / 3600)
    size = sum(p.stat().st_size for p in labelled.glob("*.bin"))
    assert (found.posterior_mb_per_hour + found.nbest_mb_per_hour) * found.hours * 1e6 == pytest.approx(size)
    lengths = [int(n) for n in load_batch(cuts[:5], None).audio_lengths // 640]
    spikes = sum(-(-n // 10) for n in lengths)
    share = spikes / sum(lengths)
    assert found.frames == sum(lengths)
    assert found.blank_frames == pytest.approx(1 - share)
    assert found.blank_mass == pytest.approx(0.2 * share + 0.9 * (1 - share), abs=1e-3)
    entropies = [-sum(p * torch.log(torch.tensor(p)) for p in ps) for ps in ((0.2, 0.8), (0.9, 0.06, 0.03, 0.01))]
    assert found.entropy_nats == pytest.approx(float(entropies[0] * share + entropies[1] * (1 - share)), abs=1e-2)
    assert found.entries_per_frame == pytest.approx(2 * share + 4 * (1 - share))
    words = [len(c.supervisions[0].text.split()) for c in cuts[:5]]
    assert found.wer == pytest.approx(5 / sum(words)) and found.reference_words == sum(words)
    assert [one.words for one in found.worst] == sorted(words)[:2] and found.hypotheses == 1
    assert inspect_store(store).wer is None


def command(function: object) -> typer.Typer:
    app = typer.Typer()
    app.command()(function)  # type: ignore[type-var]
    return app


def test_the_verb_says_it_and_what_a_student_could_learn(labelled: Path, prepared: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a b"], kind="char")
    package.save(package.build({"kind": "streaming_conformer", "size": "tiny"}, tokenizer), tmp_path / "student")
    options = [str(labelled), str(tmp_path / "student"), "--cuts", str(prepared / "cuts_dev.jsonl.gz")]
    plain = CliRunner().invoke(command(inspect), options, env={"COLUMNS": "200"})
    assert plain.exit_code == 0, plain.output
    assert "MB an hour" in plain.output and "the student has no 'c'" in plain.output
    machine = CliRunner().invoke(command(inspect), [*options, "--json"])
    figures = json.loads(machine.stdout.splitlines()[-1])
    assert figures["utterances"] == 5 and figures["student"]["relation"] == "different"
    assert figures["student"]["unknown"] == ["c"] and figures["student"]["case"] == "keep"
    assert [level["possible"] for level in figures["student"]["levels"]] == [True, True, False, False]
    assert figures["header"]["codec"]["bits"] == 16


def test_hidden_codes_are_shown_with_what_they_lose(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = package.build({"kind": "streaming_conformer", "size": "tiny"}, train_tokenizer(["ONE TWO $"], kind="char"))
    teacher = PackageTeacher(model, hidden=("layer.1",))
    cuts = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:5])
    codec = HiddenCodec("mvq", num_codebooks=4, codebook_size=16, fit_states=300)
    label(teacher, cuts, tmp_path / "targets", hidden=codec)
    package.save(model, tmp_path / "student")
    answer = CliRunner().invoke(
        command(inspect), [str(tmp_path / "targets"), str(tmp_path / "student")], env={"COLUMNS": "200"}
    )
    assert answer.exit_code == 0, answer.exception
    lost = 100 * TargetsStore(tmp_path / "targets").quantisers.errors["layer.1"]  # type: ignore[union-attr]
    assert f"layer.1 4 codes, {lost:.1f} % of variance lost" in answer.output and 0 < lost < 100
    assert "yes: layer.1 4 codes (loss mvq), frames of 40 ms and 40 ms" in answer.output


def test_pictures_of_stored_and_live(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = package.build({"kind": "streaming_conformer", "size": "tiny"}, train_tokenizer(["ONE TWO $"], kind="char"))
    package.save(model, tmp_path / "teacher")
    cuts = list(load_cuts(prepared, "dev"))[:1]
    label(PackageTeacher(package.load(tmp_path / "teacher"), nbest=1), CutSet.from_cuts(cuts), tmp_path / "targets")
    options = [str(tmp_path / "targets"), "--cuts", str(prepared / "cuts_dev.jsonl.gz"), "--utterance", cuts[0].id]
    live = ["--teacher", str(tmp_path / "teacher"), "--nbest", "1"]
    sizes = []
    for name, more in (("stored.png", []), ("both.png", live)):
        answer = CliRunner().invoke(command(inspect), [*options, "--picture", str(tmp_path / name), *more])
        assert answer.exit_code == 0, answer.exception
        sizes.append((tmp_path / name).stat().st_size)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sizes[1] > sizes[0]  # one panel more
    store = TargetsStore(tmp_path / "targets")
    with pytest.raises(TargetsError, match="made by another teacher"):
        draw_utterance(store, cuts[0], tmp_path / "x.png", open_teacher(parse_teacher(str(tmp_path / "teacher"))))
    with pytest.raises(ValueError, match=r"expected an ending of .*png"):
        draw_utterance(store, cuts[0], tmp_path / "x.txt")


def test_filtering_by_the_verb(labelled: Path, prepared: Path, tmp_path: Path) -> None:
    cuts = CutSet.from_cuts(list(load_cuts(prepared, "dev"))[:5])
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    options = [str(labelled), "--cuts", str(tmp_path / "cuts.jsonl.gz"), "--out", str(tmp_path / "kept.jsonl.gz")]
    answer = CliRunner().invoke(command(filter_labels), [*options, "--max-wer", "0.2"])
    assert answer.exit_code == 0, answer.output
    kept = CutSet.from_file(tmp_path / "kept.jsonl.gz")
    words = {c.id: len(c.supervisions[0].text.split()) for c in cuts}
    assert {c.id for c in kept} == {i for i, n in words.items() if 1 / n <= 0.2}
    dropped = sum(1 / n > 0.2 for n in words.values())
    assert f"dropped {dropped}: wer" in answer.output or dropped == 0
    assert len((tmp_path / "kept.dropped.csv").read_text().splitlines()) == dropped + 1
    nothing = CliRunner().invoke(command(filter_labels), [*options, "--max-wer", "0"])
    assert isinstance(nothing.exception, ValueError) and "nothing passed" in str(nothing.exception)
