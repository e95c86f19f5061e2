"""Exports equal the model step by step, sherpa-onnx runs them unchanged, int8 stands behind a gate."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from asrkd.data.text import train_tokenizer
from asrkd.export.check import check, cost, quantise, reference_log_probs, text_of
from asrkd.export.graphs import StepGraph
from asrkd.export.run import ExportedStudent
from asrkd.export.write import ExportError, export, read_description, tokens_file
from asrkd.models import package
from asrkd.models.conformer import StreamingConformer
from tests.export.made import sound, student

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")


@pytest.fixture(scope="module")
def model() -> StreamingConformer:
    return student()


@pytest.fixture(scope="module")
def exports(model: StreamingConformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders onnx and sherpa, and the package."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in ("onnx", "sherpa"):
        export(model, folder / kind, kind)  # type: ignore[arg-type]
    package.save(model, folder / "package", licence="Apache-2.0")
    return folder


@pytest.mark.parametrize("kind", ["onnx", "sherpa"])
def test_equals_the_model_over_whole_utterances(kind: str, exports: Path, model: StreamingConformer) -> None:
    assert check(exports / kind, model, [sound(1, 0.05), sound(2, 0.24), sound(3, 3.3), sound(4, 6.0)]) < 1e-4
    said = text_of(model, ExportedStudent(exports / kind).log_probs(sound(3, 3.3)))
    assert len(said) > 3  # not silence beside silence


def test_streams_of_a_batch_go_their_own_way(exports: Path, model: StreamingConformer) -> None:
    """Three streams at different places, one at its end, with any number of streams."""
    exported, graph = ExportedStudent(exports / "onnx"), StepGraph(model, 6, 16).eval()
    features = torch.randn(3, 24, 80) * 3 + 9
    with torch.no_grad():
        _, *one = graph(features, torch.full((3,), 24), *graph.initial_state(3))
        fresh = graph.initial_state(3)
        places = [1, 1, 1, 0, *([0] * (len(one) - 4))]
        # Row 1 begins anew while the others go on.
        mixed = [
            torch.cat((a.narrow(d, 0, 1), b.narrow(d, 1, 1), a.narrow(d, 2, 1)), d)
            for a, b, d in zip(one, fresh, places, strict=True)
        ]
        lengths = torch.tensor([24, 24, 9])
        expected = graph(features, lengths, *mixed)
    given = {"features": features.numpy(), "lengths": lengths.numpy()}
    given |= {name: value.numpy() for name, value in zip(graph.state_names(), mixed, strict=True)}
    found = exported._session.run(None, given)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a.numpy(), atol=1e-4)


SHERPA = """
import json, sys, numpy, soundfile, sherpa_onnx
folder, arguments, *files = sys.argv[1:]
recogniser = sherpa_onnx.OnlineRecognizer.from_wenet_ctc(
    model=f"{folder}/model.onnx", tokens=f"{folder}/tokens.txt", num_threads=1, **json.loads(arguments))
for file in files:
    samples, rate = soundfile.read(file, dtype="float32")
    stream = recogniser.create_stream()
    stream.accept_waveform(rate, samples)
    stream.accept_waveform(rate, numpy.zeros(rate, dtype=numpy.float32))
    stream.input_finished()
    while recogniser.is_ready(stream):
        recogniser.decode_stream(stream)
    print(json.dumps(recogniser.get_result(stream)))
"""


def test_sherpa_onnx_gives_the_same_texts(exports: Path, model: StreamingConformer, tmp_path: Path) -> None:
    """The folder as it is, in a process of its own: what does not fit ends sherpa-onnx's process."""
    pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed")
    files, expected = [], []
    exported = ExportedStudent(exports / "sherpa")
    for seed in range(6):
        samples = sound(10 + seed, 1.0 + 0.7 * seed)
        path = tmp_path / f"{seed}.wav"
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        files.append(str(path))
        padded = np.concatenate((samples, np.zeros(16000, np.float32)))
        # sherpa-onnx decodes a chunk only when more than that is there; what it leaves is silence.
        chunks = (len(padded) // 160 - 1) // exported.chunk_features
        expected.append(text_of(model, reference_log_probs(model, padded, exported)[: 6 * chunks]))
    options = {"chunk_size": 6, "num_left_chunks": read_description(exports / "sherpa")["num_left_chunks"]}
    command = [sys.executable, "-c", SHERPA, str(exports / "sherpa"), json.dumps(options), *files]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [text.strip() for text in found] == [text.strip() for text in expected]
    assert sum(map(len, found)) > 20


def test_int8_is_smaller_and_its_cost_is_said(
    exports: Path, model: StreamingConformer, prepared: Path, tmp_path: Path
) -> None:
    quantise(exports / "sherpa", tmp_path / "int8")
    assert (tmp_path / "int8/model.onnx").stat().st_size < (exports / "sherpa/model.onnx").stat().st_size
    assert (
        "int8" in (tmp_path / "int8/README.md").read_text()
        and "int8" in read_description(tmp_path / "int8")["precision"]
    )
    cuts = CutSet.from_cuts(list(CutSet.from_file(prepared / "cuts_test-clean.jsonl.gz"))[:4])
    found = cost(tmp_path / "int8", model, cuts)
    assert found.words > 0 and found.wer_before > 0 and "relative" in str(found)
    same = cost(exports / "sherpa", model, cuts)
    assert same.wer_before == same.wer_after and same.relative == 0


def asrkd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "asrkd", "export", *words], capture_output=True, text=True, check=False
    )


def test_the_verb_checks_gates_and_refuses(exports: Path, prepared: Path, tmp_path: Path) -> None:
    made = asrkd(str(exports / "package"), "--to", "sherpa", "--out", str(tmp_path / "out"))
    assert made.returncode == 0 and "largest difference" in made.stdout, made.stderr
    again = asrkd(
        str(exports / "package"), "--out", str(tmp_path / "out"), "--check", "--data", str(prepared / "test-clean")
    )
    assert again.returncode == 0 and "largest difference" in again.stdout, again.stderr
    alone = asrkd(str(exports / "package"), "--int8", "--out", str(tmp_path / "int8"))
    assert alone.returncode == 2 and "--int8: expected --data" in alone.stderr
    strict = ["--int8", "--data", str(prepared / "test-clean"), "--max-loss", "-1", "--out", str(tmp_path / "int8")]
    refused = asrkd(str(exports / "package"), *strict)
    assert refused.returncode == 2 and "--force writes it" in refused.stderr and not (tmp_path / "int8").exists()
    forced = asrkd(str(exports / "package"), *strict, "--force")
    assert forced.returncode == 0 and (tmp_path / "int8" / "model.onnx").exists(), forced.stderr


def test_what_cannot_be_exported_is_refused(exports: Path, model: StreamingConformer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"subsampling_factor: expected 4 for sherpa-onnx.*found 8"):
        export(student(subsampling_factor=8), tmp_path / "x", "sherpa")
    tokens = train_tokenizer(["ONE"], kind="char")
    teacher = package.build({"kind": "speechbrain_conformer", "size": "tiny"}, tokens)
    with pytest.raises(ExportError, match="expected a streaming_conformer"):
        export(teacher, tmp_path / "x", "onnx")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(ExportError, match="no export; not replaced"):
        export(model, tmp_path / "mine", "onnx")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ExportError, match="other weights"):
        check(exports / "onnx", student(ffn_dim=16), [sound(0, 0.5)])


def test_a_changed_graph_is_refused(model: StreamingConformer, exports: Path, tmp_path: Path) -> None:
    for path in (exports / "onnx").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ExportError, match="wrong SHA-256"):
        ExportedStudent(tmp_path)


def test_tokens_are_as_sherpa_reads_them(model: StreamingConformer) -> None:
    lines = tokens_file(model).splitlines()
    assert lines[model.vocabulary.blank_id] == f"<blk> {model.vocabulary.blank_id}"
    assert [int(line.split(" ")[1]) for line in lines] == list(range(len(model.vocabulary)))


def test_step_can_be_exported_and_compiled_by_torch(model: StreamingConformer) -> None:
    graph = StepGraph(model, 6, 16).eval()
    arguments = (torch.randn(1, 24, 80), torch.tensor([24]), *graph.initial_state(1))
    with torch.no_grad():
        expected = graph(*arguments)
        exported = torch.export.export(graph, arguments).module()(*arguments)
        compiled = torch.compile(graph, backend="aot_eager", fullgraph=True)(*arguments)
    for a, b, c in zip(expected, exported, compiled, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)
