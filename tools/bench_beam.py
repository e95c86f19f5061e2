"""CTC beam searches side by side on the same posteriors: time of an utterance and the log-probability of what is found.

    pip install pyctcdecode flashlight-text      # peers that are not needed otherwise
    python tools/bench_beam.py

32 utterances of 500 frames over 500 tokens, blank at 0, beam 16, no language model, one thread: peaky posteriors (as a trained
model's) and soft ones. The score is the exact log-probability (``F.ctc_loss``) of the tokens that each search returns, on
average; higher is better. Prints Markdown.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from asrkd.decoding.prefix_beam import prefix_beam_search
from asrkd.types import Frames, Vocabulary

Search = Callable[[torch.Tensor], list[int]]
"""Takes ``(T, V)`` log-probabilities and gives token ids."""


def posteriors(count: int, frames: int, size: int, soft: bool, seed: int = 0) -> torch.Tensor:
    """Blank mostly, spikes of one or two frames with rivals: ``(B, T, V)`` log-probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((count, frames, size)).astype(np.float32)
    logits[..., 0] += 4.0 if soft else 9.0
    for row in range(count):
        for at in range(3, frames - 3, 4):
            rivals = rng.integers(1, size, 3)
            width = rng.integers(1, 3)
            logits[row, at : at + width, rivals[0]] += 7.0 if soft else 13.0
            logits[row, at : at + width, rivals[1:]] += 5.0 if soft else 9.0
    return torch.from_numpy(logits).log_softmax(-1)


def ours(vocabulary: Vocabulary, beam: int) -> Search:
    def search(log_probs: torch.Tensor) -> list[int]:
        frames = Frames(log_probs[None], torch.tensor([len(log_probs)]), 0.04)
        return list(prefix_beam_search(frames, vocabulary, beam)[0][0].tokens)

    return search


def torchaudio_search(vocabulary: Vocabulary, beam: int, tokens: int | None) -> Search:
    from torchaudio.models.decoder import ctc_decoder

    names = list(vocabulary.tokens)
    decoder = ctc_decoder(
        lexicon=None,
        tokens=names,
        beam_size=beam,
        beam_size_token=tokens,
        blank_token=names[0],
        sil_token=names[1],
        log_add=True,
    )

    def search(log_probs: torch.Tensor) -> list[int]:
        # Its lexicon-free tokens begin and end with the silence token that it was told.
        return decoder(log_probs[None])[0][0].tokens.tolist()[1:-1]

    return search


def speechbrain_search(vocabulary: Vocabulary, beam: int, prefix: bool) -> Search:
    from speechbrain.decoders.ctc import CTCBeamSearcher, CTCPrefixBeamSearcher

    names = [""] + [chr(0x4E00 + i) for i in range(1, len(vocabulary))]
    searcher = (CTCPrefixBeamSearcher if prefix else CTCBeamSearcher)(
        blank_index=0, vocab_list=names, space_token=" ", beam_size=beam
    )

    def search(log_probs: torch.Tensor) -> list[int]:
        found = searcher(log_probs[None], torch.ones(1))[0][0]
        return [ord(character) - 0x4E00 for character in found.text]

    return search


def pyctcdecode_search(vocabulary: Vocabulary, beam: int) -> Search:
    from pyctcdecode import build_ctcdecoder

    decoder = build_ctcdecoder(["", *(chr(0x4E00 + i) for i in range(1, len(vocabulary)))])

    def search(log_probs: torch.Tensor) -> list[int]:
        return [ord(c) - 0x4E00 for c in decoder.decode(log_probs.numpy(), beam_width=beam) if c != " "]

    return search


def exact(log_probs: torch.Tensor, tokens: Sequence[int]) -> float:
    length = torch.tensor([len(log_probs)])
    target = torch.tensor([list(tokens)])
    loss = torch.nn.functional.ctc_loss(
        log_probs[:, None].double(), target, length, torch.tensor([len(tokens)]), reduction="sum"
    )
    return -float(loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--beam", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size, beam = 500, arguments.beam
    vocabulary = Vocabulary(("<blank>", *(f"t{i}" for i in range(1, size))), 0)
    searches: dict[str, Callable[[], Search]] = {
        "asrkd prefix beam": lambda: ours(vocabulary, beam),
        "torchaudio ctc_decoder, 20 tokens": lambda: torchaudio_search(vocabulary, beam, 20),
        "torchaudio ctc_decoder": lambda: torchaudio_search(vocabulary, beam, None),
        "SpeechBrain CTCBeamSearcher": lambda: speechbrain_search(vocabulary, beam, False),
        "SpeechBrain CTCPrefixBeamSearcher": lambda: speechbrain_search(vocabulary, beam, True),
        "pyctcdecode": lambda: pyctcdecode_search(vocabulary, beam),
    }
    sets = {
        "peaky": posteriors(arguments.utterances, 500, size, False),
        "soft": posteriors(arguments.utterances, 500, size, True),
    }
    print(
        f"{arguments.utterances} utterances, 500 frames, {size} tokens, beam {beam}, one thread of {platform.machine()}\n"
    )
    print("| search | peaky, ms | peaky, mean log p | soft, ms | soft, mean log p |\n|---|---|---|---|---|")
    for name, make in searches.items():
        cells: list[Any] = [name]
        try:
            search = make()
            for values in sets.values():
                found = [search(row) for row in values[:2]]  # warm-up, compiling
                times = []
                for _ in range(arguments.repeats):
                    started = time.perf_counter()
                    found = [search(row) for row in values]
                    times.append(1000 * (time.perf_counter() - started) / len(values))
                score = np.mean([exact(row, tokens) for row, tokens in zip(values, found, strict=True)])
                cells += [f"{min(times):.1f}", f"{score:.3f}"]
        except ImportError as error:
            cells += [f"not installed: {error.name}", "", "", ""]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
