"""Tokenizers: round trips, special ids, stable identity, damaged files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrkd.data.text import Tokenizer, train_tokenizer

TEXTS = [
    f"{tens} {ones} {extra}".strip()
    for tens in ("TWENTY", "THIRTY", "FORTY", "FIFTY", "SIXTY")
    for ones in ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
    for extra in ("", "DOLLARS", "O'CLOCK")
]


@pytest.fixture(params=["char", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return train_tokenizer(TEXTS, request.param, 64 if request.param == "sentencepiece" else None)


def test_round_trip_and_special_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocabulary.tokens[:4] == ("<blank>", "<unk>", "<s>", "</s>")
    assert tokenizer.vocabulary.blank_id == 0
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert min(ids) >= 4
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([2, *ids, 0, 3]) == text
    assert tokenizer.encode("") == []
    assert tokenizer.encode("  FORTY\tTWO \n") == tokenizer.encode("FORTY TWO")


def test_sentencepiece_units_are_longer_than_characters() -> None:
    pieces = train_tokenizer(TEXTS, "sentencepiece", 64)
    assert 30 < len(pieces) <= 64
    assert len(pieces.encode("TWENTY SEVEN DOLLARS")) < 0.75 * len("TWENTY SEVEN DOLLARS")


def test_size_is_a_wish_where_the_texts_hold_no_more() -> None:
    assert len(train_tokenizer(TEXTS, "sentencepiece", 5000)) < 5000


def test_unknown_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown_characters("FORTY  ÉT 2") == ("2", "É")
    assert tokenizer.unknown_characters("FORTY TWO") == ()
    assert 1 in tokenizer.encode("FORTÉ")
    assert "⁇" in tokenizer.decode(tokenizer.encode("FORTÉ"))


def test_saved_loaded_pickled_and_trained_again_are_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t")
    again = Tokenizer.load(tmp_path / "t")
    trained = train_tokenizer(TEXTS, tokenizer.kind, 64 if tokenizer.kind == "sentencepiece" else None)
    for other in (again, pickle.loads(pickle.dumps(tokenizer)), trained):
        assert other.identity == tokenizer.identity
        assert other.vocabulary == tokenizer.vocabulary
        assert other.encode("FORTY TWO O'CLOCK") == tokenizer.encode("FORTY TWO O'CLOCK")
    assert sorted(p.name for p in (tmp_path / "t").iterdir())[-1].startswith("tokenizer.")
    assert not list((tmp_path / "t").glob(".*"))


def test_kinds_have_different_identities() -> None:
    assert train_tokenizer(TEXTS).identity != train_tokenizer(TEXTS, "sentencepiece", 64).identity


@given(st.text(alphabet="ABC' ", max_size=30))
def test_char_round_trip_is_the_text_with_single_spaces(text: str) -> None:
    tokenizer = train_tokenizer(["ABC'"])
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


def test_damaged_files_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    tokenizer.save(tmp_path)
    if tokenizer.kind == "sentencepiece":
        model = tmp_path / "tokenizer.model"
        model.write_bytes(model.read_bytes()[:-5] + b"spoil")
        with pytest.raises(ValueError, match="SHA-256 differs"):
            Tokenizer.load(tmp_path)
        model.unlink()
        with pytest.raises(ValueError, match=r"tokenizer\.model: no such file"):
            Tokenizer.load(tmp_path)
    record = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**record, "kind": "words"}))
    with pytest.raises(ValueError, match="kind: expected char or sentencepiece, found 'words'"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a tokenizer file"):
        Tokenizer.load(tmp_path)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="found none"):
        train_tokenizer(["", " "])
    with pytest.raises(ValueError, match="expected at least"):
        train_tokenizer(TEXTS, "sentencepiece", 8)
    with pytest.raises(ValueError, match="expected char or sentencepiece"):
        train_tokenizer(TEXTS, "word")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="token id: expected"):
        train_tokenizer(TEXTS).decode([99])
    with pytest.raises(ValueError, match="<blank>"):
        Tokenizer(["a", "b"])
