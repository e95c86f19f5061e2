"""The options of the search that ``transcribe``, ``listen`` and ``serve`` share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from asrkd.models.base import Recogniser

BeamOption = Annotated[int, typer.Option(min=1, help="Prefixes of the CTC beam search; 1 takes the best path.")]
ChunkOption = Annotated[int | None, typer.Option(help="Chunk of a streaming model; its own default if left out.")]
LmOption = Annotated[
    Path | None, typer.Option(help="KenLM n-gram model (ARPA or binary): only its words are recognised. Extra lm.")
]
LexiconOption = Annotated[
    Path | None, typer.Option(help="Words for --lm, one a line; those of an ARPA file if left out.")
]
LmWeightOption = Annotated[float, typer.Option(help="Weight of --lm beside the model.")]
WordScoreOption = Annotated[float, typer.Option(help="Added for each word under --lm, in nats.")]
HotwordsOption = Annotated[Path | None, typer.Option(help="Phrases to expect, one a line; needs --beam above 1.")]
BoostOption = Annotated[float, typer.Option(help="Of each token of a hot word, in nats.")]


def search_options(
    model: Recogniser,
    *,
    beam: int,
    lm: Path | None,
    lexicon: Path | None,
    lm_weight: float,
    word_score: float,
    hotwords: Path | None,
    hotword_boost: float,
) -> dict[str, Any]:
    """Fields of ``RecognizerOptions`` for these options.

    Raises:
        ValueError: For options that do not go together, or a file that is missing, empty or damaged.
    """
    if lexicon is not None and lm is None:
        raise ValueError("--lexicon: expected --lm beside it, found none")
    if model.has_transducer and (beam > 1 or lm or hotwords):
        raise ValueError(f"--beam, --lm, --hotwords: expected none for a {model.kind}, whose search is greedy")
    if hotwords is not None and (beam == 1 or lm is not None):
        raise ValueError("--hotwords: expected --beam above 1 and no --lm beside it")
    found: dict[str, Any] = {"beam": beam}
    if hotwords is not None:
        from asrkd.streaming.segment import encode_hotwords

        phrases = read_lines(hotwords)
        encode_hotwords(
            phrases, model.tokenizer, hotword_boost
        )  # what cannot be written is said before any audio is heard
        found |= {"hotwords": phrases, "hotword_boost": hotword_boost}
    if lm is not None:
        from asrkd.streaming.segment import open_word_lm

        words = None if lexicon is None else read_lines(lexicon)
        found["lm"] = open_word_lm(str(lm), model.tokenizer, words=words, weight=lm_weight, word_score=word_score)
    return found


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file without empty ones, each once.

    Raises:
        ValueError: If there is none, or it is no UTF-8 text.
    """
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text: {error}") from None
    lines = list(dict.fromkeys(line for line in lines if line))
    if not lines:
        raise ValueError(f"{path}: expected one phrase a line, found none")
    return tuple(lines)
