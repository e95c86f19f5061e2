"""Model packages: round trip, refusals in one line, replacement as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import asrkd
from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.models.base import Recogniser
from asrkd.models.package import MODELS, PackageError, build, load, read_config, read_metrics, save
from asrkd.types import Frames

SMALL = {"d_model": 32, "num_layers": 1, "num_heads": 2, "ffn_dim": 32, "subsampling_channels": 4}
HEADS = {
    "streaming_conformer": {"decoder_layers": 1},
    "speechbrain_conformer": {"decoder_layers": 1},
    "streaming_transducer": {"predictor_dim": 16, "joiner_dim": 24, "ctc_head": True},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["one two three"], kind="char")


def model_of(kind: str, tokenizer: Tokenizer) -> Recogniser:
    model = build({"kind": kind, **SMALL, **HEADS[kind]}, tokenizer).eval()
    model.set_feature_statistics(torch.randn(80), torch.rand(80) + 0.5)
    return model


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_round_trip(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of(kind, tokenizer)
    folder = tmp_path / "deep" / "package"
    save(model, folder, {"wer": 0.123}, "# Card\n", licence="CC-BY-4.0")
    again = asrkd.load(str(folder))
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    assert again.tokenizer.vocabulary == tokenizer.vocabulary
    audio, lengths = 0.1 * torch.randn(2, 8000), torch.tensor([8000, 5000])
    expected, found = model(model.features(audio, lengths)), again(again.features(audio, lengths))
    assert torch.equal(expected.ctc_logits.values, found.ctc_logits.values)
    if model.has_transducer:
        labels = torch.tensor([[4, 5, 6], [5, 0, 0]]), torch.tensor([3, 1])
        joints = [m.transducer_logits(out.encoded, *labels) for m, out in ((model, expected), (again, found))]
        assert torch.equal(*joints)
    assert read_metrics(folder) == {"wer": 0.123}
    assert read_config(folder)["licence"] == "CC-BY-4.0"
    assert (folder / "README.md").read_text() == "# Card\n"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["package"]


def test_replaces_as_a_whole_or_not_at_all(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "package"
    first = model_of("streaming_conformer", tokenizer)
    save(first, folder, {"n": 1})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    second = model_of("streaming_conformer", tokenizer)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(second.tokenizer), "save", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save(second, folder, {"n": 2})
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    save(second, folder, {"n": 2})
    assert read_metrics(folder) == {"n": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_does_not_replace_what_is_no_package(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is no model package; not replaced"):
        save(model_of("streaming_conformer", tokenizer), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def _edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def test_refusals_are_one_line_and_name_the_reason(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of("streaming_conformer", tokenizer)

    def refused(name: str, because: str) -> None:
        with pytest.raises(PackageError, match=because) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)

    def fresh(name: str) -> Path:
        save(model, tmp_path / name)
        return tmp_path / name

    refused("nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused("empty", r"config\.json is missing")
    (tmp_path / "file").write_text("x")
    refused("file", "not a folder")
    (fresh("json") / "config.json").write_text("{")
    refused("json", "not JSON")
    _edit(fresh("schema"), schema_version=99)
    refused("schema", "schema_version: expected at most 1, found 99: made by a newer asrkd")
    _edit(fresh("kind"), model={"kind": "perceptron"})
    refused(
        "kind",
        "kind: expected one of speechbrain_conformer, streaming_conformer, streaming_transducer, found 'perceptron'",
    )
    _edit(fresh("licence"), licence=None)
    refused("licence", "licence: expected text")
    (fresh("weights") / "model.safetensors").unlink()
    refused("weights", r"model\.safetensors is missing")
    with (fresh("hash") / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    refused("hash", "wrong SHA-256")
    _edit(fresh("numbers"), model={**model.config.model_dump(), "d_model": 64})
    refused("numbers", "does not fit its weights: .*size mismatch")
    _edit(fresh("keys"), model={**model.config.model_dump(), "depth": 4})
    refused("keys", "depth")
    train_tokenizer(["zebra"], kind="char").save(fresh("words") / "tokenizer")
    refused("words", "not the vocabulary")


def test_build_names_what_is_wrong(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        ValueError,
        match="kind: expected one of speechbrain_conformer, streaming_conformer, streaming_transducer, found None",
    ):
        build({}, tokenizer)
    with pytest.raises(ValueError, match=r"layers: Extra inputs .*\(known: .*num_layers"):
        build({"kind": "streaming_conformer", "size": "tiny", "layers": 2}, tokenizer)


def test_licence_is_never_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = model_of("streaming_conformer", tokenizer)
    with pytest.raises(ValueError, match="licence"):
        save(model, tmp_path / "a", licence=" ")
    save(model, tmp_path / "b")
    assert read_config(tmp_path / "b")["licence"] == "not stated"
    assert "not stated" in (tmp_path / "b" / "README.md").read_text()


def test_logits_do_not_depend_on_the_machines_batching(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save(model_of("streaming_conformer", tokenizer), tmp_path / "p")
    model = load(tmp_path / "p")
    features = torch.randn(2, 33, 80)
    both = model(Frames(features, torch.tensor([33, 33]), 0.01)).ctc_logits.values
    one = model(Frames(features[:1], torch.tensor([33]), 0.01)).ctc_logits.values
    torch.testing.assert_close(both[:1], one, atol=1e-5, rtol=0)
