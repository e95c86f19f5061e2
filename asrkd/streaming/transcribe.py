"""Whole recordings of any length, block by block in constant memory, by streaming and full-context models alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from asrkd.decoding.ctc import DecodedTokens
from asrkd.models.base import Recogniser
from asrkd.models.conformer import ChunkedConformer
from asrkd.streaming.events import Event, Final, words_of
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions

MAX_WINDOW_S, MIN_WINDOW_S = 30.0, 20.0
"""A full-context model hears at most the first, cut at the quietest place after the second."""
_QUIET_S = 0.1


def transcribe(model: Recogniser, blocks: Iterable[NDArray[np.float32]], options: RecognizerOptions) -> Iterator[Event]:
    """Recognise a recording.

    Args:
        model: In evaluation mode. One that streams gives what :class:`Recognizer` gives; one that does not hears the
            recording in windows of up to 30 s and gives one :class:`Final` for each.
        blocks: The recording in pieces ``(S,)`` of any length at the model's rate.
        options: Of the recogniser; a full-context model takes ``beam`` and ``nbest`` of them.

    Yields:
        Events as they come; a recording always ends with a :class:`Final`.
    """
    if isinstance(model, ChunkedConformer):
        session = Recognizer(model, options).session()
        for block in blocks:
            yield from session.accept(block)
        yield from session.finish()
    else:
        begin_s = 0.0
        for window, last in _windows(blocks, model.sample_rate_hz):
            final = _recognise_window(model, window, begin_s, options)
            begin_s += len(window) / model.sample_rate_hz
            yield final if last else replace(final, reason="length")


def text_of(finals: Iterable[Final]) -> str:
    """The text of a recording from its finals."""
    return " ".join(final.text for final in finals if final.text)


def _windows(blocks: Iterable[NDArray[np.float32]], rate_hz: int) -> Iterator[tuple[NDArray[np.float32], bool]]:
    """Windows of bounded length, cut where it is quietest; with each whether it is the last."""
    held = np.zeros(0, dtype=np.float32)
    longest = int(MAX_WINDOW_S * rate_hz)
    for block in blocks:
        held = np.concatenate((held, block))
        while len(held) > longest:
            cut = _quietest(held[:longest], int(MIN_WINDOW_S * rate_hz), int(_QUIET_S * rate_hz))
            yield held[:cut], False
            held = held[cut:]
    yield held, True


def _quietest(audio: NDArray[np.float32], first: int, span: int) -> int:
    """Middle of the quietest ``span`` samples of ``audio`` from sample ``first`` on."""
    energy = np.concatenate(([0.0], np.cumsum(np.square(audio[first:], dtype=np.float64))))
    return first + int(np.argmin(energy[span:] - energy[:-span])) + span // 2


@torch.no_grad()
def _recognise_window(
    model: Recogniser, audio: NDArray[np.float32], begin_s: float, options: RecognizerOptions
) -> Final:
    device = next(model.parameters()).device
    end_s = begin_s + len(audio) / model.sample_rate_hz
    samples = torch.from_numpy(np.ascontiguousarray(audio)).to(device).unsqueeze(0)
    features = model.features(samples, torch.tensor([len(audio)], device=device))
    if features.values.shape[1] == 0:
        return Final("", (), begin_s, end_s, "end")
    output = model(features, chunk_frames=0)
    if model.has_transducer:
        nbest: tuple[DecodedTokens, ...] = (model.greedy(output)[0],)
    else:
        logits = output.ctc_logits
        log_probs = logits.values[0, : int(logits.lengths[0])].float().log_softmax(-1).cpu().numpy()
        segment = options.decoding(model).segment(model.vocabulary, model.frame_shift_s)
        segment.advance(np.ascontiguousarray(log_probs))
        nbest = segment.nbest(options.nbest)
    texts = [model.tokenizer.decode(hypothesis.tokens) for hypothesis in nbest]
    words = words_of(nbest[0], model.tokenizer, begin_s)
    return Final(texts[0], words, begin_s, end_s, "end", tuple(texts[1:]))
