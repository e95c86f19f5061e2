"""Transcripts to token ids and back: characters or SentencePiece units, with the blank always at id 0.

Transcripts are taken as they are (LibriSpeech's are upper case words with spaces and apostrophes); nothing is folded.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import sentencepiece

from asrkd.data.files import write_atomically
from asrkd.types import Vocabulary

SPECIAL_TOKENS = ("<blank>", "<unk>", "<s>", "</s>")
BLANK_ID, UNKNOWN_ID, START_ID, END_ID = range(4)
_SPACE = "\u2581"  # SentencePiece's ▁, in character vocabularies too
_UNKNOWN_TEXT = "\u2047"  # ⁇: what <unk> decodes to
_FORMAT = 1

TokenizerKind = Literal["char", "sentencepiece"]


class Tokenizer:
    """A vocabulary with the rule that cuts text into it; ids 0 ``<blank>``, 1 ``<unk>``, 2 ``<s>``, 3 ``</s>``.

    Args:
        tokens: All tokens in the order of their ids, the four special ones first.
        model: The serialised SentencePiece model whose pieces ``tokens`` are; ``None`` for characters.

    Raises:
        ValueError: If the special tokens are not where they belong or the model has other pieces.
    """

    def __init__(self, tokens: Sequence[str], model: bytes | None = None) -> None:
        if tuple(tokens[:4]) != SPECIAL_TOKENS:
            raise ValueError(f"tokens: expected {' '.join(SPECIAL_TOKENS)} first, found {' '.join(tokens[:4])}")
        self.vocabulary = Vocabulary(tuple(tokens), blank_id=BLANK_ID)
        self._model = model
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._characters = frozenset("".join(tokens[4:]).replace(_SPACE, " "))
        self._processor = None
        if model is not None:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            if _pieces(self._processor) != list(tokens):
                raise ValueError("tokens: expected the pieces of the SentencePiece model, found others")

    @property
    def kind(self) -> TokenizerKind:
        return "char" if self._model is None else "sentencepiece"

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over kind, tokens and model: equal exactly when every text is encoded alike."""
        digest = hashlib.sha256(f"{self.kind} {self.vocabulary.identity}".encode())
        digest.update(self._model or b"")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without sentence marks; characters outside the vocabulary become ``<unk>``.

        White space of any kind and length counts as one space; at the ends it is dropped.
        """
        words = text.split()
        if self._processor is not None:
            return list(self._processor.encode(" ".join(words)))
        return [self._ids.get(character, UNKNOWN_ID) for character in _SPACE.join(words)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; ``<blank>``, ``<s>`` and ``</s>`` are left out, ``<unk>`` reads ``⁇``.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        pieces = []
        for i in ids:
            if not 0 <= i < len(self.vocabulary):
                raise ValueError(f"token id: expected 0 to {len(self.vocabulary) - 1}, found {i}")
            if i == UNKNOWN_ID:
                pieces.append(_UNKNOWN_TEXT)
            elif i >= len(SPECIAL_TOKENS):
                pieces.append(self.vocabulary.tokens[i])
        return " ".join("".join(pieces).replace(_SPACE, " ").split())

    def unknown_characters(self, text: str) -> tuple[str, ...]:
        """The characters of ``text`` that no token contains, sorted, each once; spaces are never unknown."""
        return tuple(sorted(set("".join(text.split())) - self._characters))

    def save(self, folder: str | Path) -> None:
        """Writes ``tokenizer.json`` (and ``tokenizer.model`` for SentencePiece) into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "format": _FORMAT,
            "kind": self.kind,
            "blank_id": self.vocabulary.blank_id,
            "model_sha256": None if self._model is None else hashlib.sha256(self._model).hexdigest(),
            "tokens": list(self.vocabulary.tokens),
        }
        if self._model is not None:
            write_atomically(folder / "tokenizer.model", self._model)
        text = json.dumps(record, ensure_ascii=False, indent=0) + "\n"
        write_atomically(folder / "tokenizer.json", text.encode())

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads what :meth:`save` wrote.

        Raises:
            ValueError: If a file is missing or damaged.
        """
        path = Path(folder) / "tokenizer.json"
        try:
            record = json.loads(path.read_text("utf-8"))
            kind, tokens, checksum = record["kind"], record["tokens"], record["model_sha256"]
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; expected a tokenizer saved by asrkd") from None
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(f"{path}: not a tokenizer file: {error!r}") from None
        if kind not in ("char", "sentencepiece"):
            raise ValueError(f"{path}: kind: expected char or sentencepiece, found {kind!r}")
        if kind == "char":
            return cls(tokens)
        model_path = path.with_name("tokenizer.model")
        if not model_path.is_file():
            raise ValueError(f"{model_path}: no such file; tokenizer.json says sentencepiece")
        model = model_path.read_bytes()
        if hashlib.sha256(model).hexdigest() != checksum:
            raise ValueError(f"{model_path}: SHA-256 differs from the one in tokenizer.json: the file was changed")
        return cls(tokens, model)

    def __getstate__(self) -> dict[str, Any]:
        return {"tokens": self.vocabulary.tokens, "model": self._model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tokens"], state["model"])  # type: ignore[misc]


def train_tokenizer(texts: Iterable[str], kind: TokenizerKind = "char", size: int | None = None) -> Tokenizer:
    """Builds a tokenizer from transcripts; the same texts in the same order give the same tokenizer.

    Args:
        texts: Transcripts.
        kind: ``char``: every character of the texts in code-point order; ``sentencepiece``: unigram units.
        size: Wished-for number of tokens, the four special ones included (sentencepiece only; default 128). Fewer
            come out where the texts hold no more.

    Raises:
        ValueError: If there is no text, the kind is unknown, or ``size`` is too small for the characters.
    """
    lines = [" ".join(text.split()) for text in texts]
    lines = [line for line in lines if line]
    if not lines:
        raise ValueError("texts: expected at least one transcript that is not empty, found none")
    characters = sorted(set("".join(lines)) - {" "})
    if kind == "char":
        if size is not None:
            raise ValueError(f"size: a char vocabulary has the size of its alphabet; expected none, found {size}")
        return Tokenizer([*SPECIAL_TOKENS, _SPACE, *characters])
    if kind != "sentencepiece":
        raise ValueError(f"kind: expected char or sentencepiece, found {kind!r}")
    size = 128 if size is None else size
    least = len(SPECIAL_TOKENS) + len(characters) + 1
    if size < least:
        raise ValueError(
            f"size: the texts have {len(characters)} characters, so expected at least {least}, found {size}"
        )
    return _train_sentencepiece(lines, size)


def _train_sentencepiece(lines: list[str], size: int) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=BLANK_ID,
        unk_id=UNKNOWN_ID,
        bos_id=START_ID,
        eos_id=END_ID,
        pad_piece=SPECIAL_TOKENS[BLANK_ID],
        unk_piece=SPECIAL_TOKENS[UNKNOWN_ID],
        bos_piece=SPECIAL_TOKENS[START_ID],
        eos_piece=SPECIAL_TOKENS[END_ID],
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return Tokenizer(_pieces(processor), model.getvalue())


def _pieces(processor: sentencepiece.SentencePieceProcessor) -> list[str]:
    return [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
