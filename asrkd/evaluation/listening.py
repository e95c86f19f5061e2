"""Utterances to look at and listen to on the report's page, small enough to be part of it.

Legend: T frames, V tokens, F mel bins.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import librosa
import numpy as np
import soundfile
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from matplotlib.image import imsave
from numpy.typing import NDArray

from asrkd.data.batching import load_batch
from asrkd.evaluation.compare import most_changed
from asrkd.evaluation.diagnostics import log_posteriors
from asrkd.evaluation.result import EvaluationResult, Utterance
from asrkd.models.base import Recogniser
from asrkd.types import SpeechBatch

RATE_HZ = 16000
MOST_SECONDS = 20.0
MOST_TOKENS = 48


@dataclass(frozen=True)
class Posteriors:
    """What one model says, as a picture. Args: the system's name; a PNG of (tokens, frames) as a data URL; the row names
    from the top; ``(share of the length, token)`` of each spike."""

    name: str
    image: str
    tokens: tuple[str, ...]
    spikes: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Item:
    """One utterance.

    Args:
        part: Test set.
        id: Of the cut.
        note: Why it is shown.
        seconds: Of audio shown.
        audio: Data URL.
        waveform: Highest absolute sample of each of 400 stretches, 0 to 1.
        spectrogram: Data URL of a PNG (mel bins upward, time rightward).
        posteriors: One picture a model.
        heard: For each system its result of this utterance.
    """

    part: str
    id: str
    note: str
    seconds: float
    audio: str
    waveform: tuple[float, ...]
    spectrogram: str
    posteriors: tuple[Posteriors, ...]
    heard: tuple[tuple[str, Utterance], ...]


def choose(results: Sequence[EvaluationResult], count: int) -> list[tuple[str, str, str]]:
    """``(part, id, why)`` of the utterances worth a look: those that the last two systems differ most in, then the worst.

    Args:
        results: On the same audio.
        count: How many at most.
    """
    chosen = []
    if len(results) > 1:
        first, second = results[-2:]
        better, worse = most_changed(first, second, count)
        few = better[: count - min(len(worse), count // 3)]
        for a, b in few + worse[: count - len(few)]:
            chosen.append((b.part, b.id, f"{first.name} {a.score.errors} errors, {second.name} {b.score.errors}"))
    there = {(part, identity) for part, identity, _ in chosen}
    worst = sorted(results[-1].utterances, key=lambda u: (-u.score.errors, u.part, u.id))
    more = [(u.part, u.id, f"{u.score.errors} errors") for u in worst if (u.part, u.id) not in there]
    return chosen + more[: count - len(chosen)]


def items(
    results: Sequence[EvaluationResult],
    cuts: Mapping[str, CutSet],
    models: Mapping[str, tuple[Recogniser, int | None]],
    count: int = 10,
) -> list[Item]:
    """Everything that the page shows of the chosen utterances.

    Args:
        results: As of `choose`.
        cuts: Of each test set; what is not there is not shown.
        models: For each system whose posteriors are wanted its model and chunk in frames.
        count: How many at most.
    """
    chosen = choose(results, count)
    found = {part: {cut.id: cut for cut in cuts.get(part, ()) if cut.id in {i for _, i, _ in chosen}} for part in cuts}
    by_id = [{(u.part, u.id): u for u in result.utterances} for result in results]
    made = []
    for part, identity, note in chosen:
        cut = found.get(part, {}).get(identity)
        if cut is None or cut.duration > MOST_SECONDS:
            continue
        heard = [(r.name, u[part, identity]) for r, u in zip(results, by_id, strict=True) if (part, identity) in u]
        made.append(_item(part, cut, note, tuple(heard), models))
    return made


def _item(
    part: str,
    cut: Cut,
    note: str,
    heard: tuple[tuple[str, Utterance], ...],
    models: Mapping[str, tuple[Recogniser, int | None]],
) -> Item:
    batch = load_batch(CutSet.from_cuts([cut]), None, sample_rate_hz=RATE_HZ)
    audio = batch.audio[0].numpy()
    return Item(
        part=part,
        id=cut.id,
        note=note,
        seconds=len(audio) / RATE_HZ,
        audio=_audio(audio),
        waveform=tuple(round(float(abs(piece).max(initial=0.0)), 3) for piece in np.array_split(audio, 400)),
        spectrogram=_spectrogram(audio),
        posteriors=tuple(_posteriors(name, model, cut, chunk) for name, (model, chunk) in models.items()),
        heard=heard,
    )


def _audio(samples: NDArray[np.float32]) -> str:
    """MP3, which every browser plays; FLAC where libsndfile is too old for it."""
    form, kind = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "flac")
    file = io.BytesIO()
    soundfile.write(file, samples.clip(-1, 1), RATE_HZ, format=form)
    return _url(file.getvalue(), f"audio/{kind}")


def _spectrogram(samples: NDArray[np.float32]) -> str:
    power = librosa.feature.melspectrogram(y=samples, sr=RATE_HZ, n_fft=400, hop_length=160, n_mels=80)
    decibels = librosa.power_to_db(power, ref=np.max, top_db=70.0)
    return _png(decibels[::-1], "magma", -70.0, 0.0)


@torch.no_grad()
def _posteriors(name: str, model: Recogniser, cut: Cut, chunk_frames: int | None) -> Posteriors:
    batch: SpeechBatch = load_batch(CutSet.from_cuts([cut]), None, sample_rate_hz=model.sample_rate_hz)
    probs = log_posteriors(model, batch, chunk_frames).values[0].exp()
    blank, tokens = model.vocabulary.blank_id, model.vocabulary.tokens
    likely = probs.amax(0)
    likely[blank] = 2.0  # always shown, at the bottom
    rows = [i for i in likely.argsort(descending=True).tolist()[:MOST_TOKENS] if likely[i] > 0.1]
    order = [*sorted(i for i in rows if i != blank), blank]
    best, spikes, previous = probs.argmax(1).tolist(), [], blank
    for frame, token in enumerate(best):
        if token not in (blank, previous):
            spikes.append((round((frame + 0.5) / len(best), 4), tokens[token].replace("▁", "␣").replace(" ", "␣")))
        previous = token
    image = _png(probs[:, order].T.numpy(), "Blues", 0.0, 1.0)
    return Posteriors(name, image, tuple(tokens[i] for i in order), tuple(spikes))


def _png(values: NDArray[np.float32], colours: str, low: float, high: float) -> str:
    file = io.BytesIO()
    imsave(file, values, vmin=low, vmax=high, cmap=colours, format="png")
    return _url(file.getvalue(), "image/png")


def _url(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
