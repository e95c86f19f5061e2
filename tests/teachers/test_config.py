"""Teachers by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asrkd.data.text import train_tokenizer
from asrkd.models import package
from asrkd.teachers.config import (
    HuggingFaceSpec,
    OnnxSpec,
    PackageSpec,
    TorchaudioSpec,
    check_teacher,
    open_teacher,
    parse_teacher,
    teacher_name,
)
from asrkd.teachers.ensemble import Ensemble
from asrkd.teachers.package import PackageTeacher
from asrkd.types import Frames, SpeechBatch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small packages with one vocabulary."""
    place = tmp_path_factory.mktemp("packages")
    tokenizer = train_tokenizer(["ONE TWO THREE"], kind="char")
    for seed in (0, 1):
        torch.manual_seed(seed)
        package.save(package.build({"kind": "streaming_conformer", "size": "tiny"}, tokenizer), place / str(seed))
    return place


def test_a_student_teaches_in_its_turn(folder: Path, batch: SpeechBatch) -> None:
    spec = check_teacher({"kind": "package", "path": "0", "hidden": ["layer.0"]})
    teacher = open_teacher(spec, workdir=folder, nbest=3, beam=4)
    assert isinstance(teacher, PackageTeacher)
    targets = teacher(batch)
    model = package.load(folder / "0")
    with torch.no_grad():
        own = model(model.features(batch.audio, batch.audio_lengths), chunk_frames=0, want_hidden=("layer.0",))
    assert isinstance(targets.posteriors, Frames) and targets.nbest is not None
    torch.testing.assert_close(targets.posteriors.values, own.ctc_logits.values.log_softmax(-1))
    torch.testing.assert_close(targets.hidden["layer.0"].values, own.hidden["layer.0"].values)
    assert all(len(one) == 3 and one[0].score >= one[1].score for one in targets.nbest)
    half = PackageTeacher(package.load(folder / "0"), precision="bf16")
    assert half.identity != PackageTeacher(package.load(folder / "0")).identity
    assert (half(batch).posteriors.values - targets.posteriors.values).abs().max() < 0.5  # type: ignore[union-attr]


def test_ensembles_by_configuration(folder: Path, batch: SpeechBatch) -> None:
    members = [{"kind": "package", "path": "0"}, {"kind": "package", "path": "1"}]
    teacher = open_teacher(check_teacher({"kind": "ensemble", "members": members}), workdir=folder)
    assert isinstance(teacher, Ensemble) and len(teacher.members) == 2
    values = [member(batch).posteriors.values.exp() for member in teacher.members]  # type: ignore[union-attr]
    torch.testing.assert_close(teacher(batch).posteriors.values.exp(), sum(values) / 2)  # type: ignore[union-attr]


def test_names_on_a_command_line(folder: Path) -> None:
    assert parse_teacher("exp/teacher") == PackageSpec(path=Path("exp/teacher"))
    assert parse_teacher("torchaudio:HUBERT_ASR_LARGE") == TorchaudioSpec(kind="torchaudio", bundle="HUBERT_ASR_LARGE")
    assert parse_teacher("huggingface:a/b") == HuggingFaceSpec(kind="huggingface", source="a/b")
    assert parse_teacher("onnx:exp/m") == OnnxSpec(kind="onnx", path=Path("exp/m"))
    for name in ("exp/teacher", "torchaudio:HUBERT_ASR_LARGE", "huggingface:a/b", "onnx:exp/m", "speechbrain:a/b"):
        assert teacher_name(parse_teacher(name)) == name
    with pytest.raises(OSError, match=r"contract\.json"):
        open_teacher(parse_teacher("onnx:m"), workdir=folder)
    with pytest.raises(ValueError, match="found 'kaldi:x'"):
        parse_teacher("kaldi:x")


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"kind": "torchaudio"}, "torchaudio.bundle: Field required"),
        ({"kind": "package", "path": "x", "pat": 1}, "package.pat: Extra inputs"),
        ({"kind": "nemo"}, "'nemo' found using 'kind'"),
        ({"kind": "ensemble", "members": [{"kind": "package", "path": "x"}]}, "at least 2 items"),
    ],
)
def test_wrong_configurations_are_refused(config: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_teacher(config)
