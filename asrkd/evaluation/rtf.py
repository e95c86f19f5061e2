"""Real-time factors: processing time over audio time, with everything said that the figure depends on.

Timed: features, encoder, head and greedy decoding to text. Left out: reading and resampling of audio, and the
warm-up. On a GPU every reading of the clock comes after a synchronisation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from asrkd.evaluation.latency import default_chunk_frames
from asrkd.models.base import Recogniser
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions

INCLUDES = "features, encoder, head, greedy decoding"


class Timing(BaseModel):
    """Real-time factor of one way of running a model.

    Attributes:
        mode: ``offline`` or ``streaming``.
        device: ``cpu`` or ``cuda``; the name of the device is in the result's machine.
        threads: Of torch's operators on the CPU.
        batch: Utterances (offline) or streams (streaming) at once.
        precision: Number format of the weights.
        includes: What was timed.
        utterances: Of the measurement.
        audio_s: Seconds of audio in one repeat.
        repeats: Timed repeats; one more was run first and left out.
        rtf: Median over the repeats of processing time / audio time.
        rtf_low: Fastest repeat.
        rtf_high: Slowest repeat.
        chunk_ms: Audio in a chunk (streaming).
        chunk_median_ms: Processing time of a chunk, median (streaming).
        chunk_p99_ms: 99 % of the chunks took less (streaming).
        chunk_slowest_ms: The slowest chunk (streaming).
        peak_device_bytes: Highest allocation on the GPU; ``None`` on the CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: str
    device: str
    threads: int
    batch: int
    precision: str
    includes: str = INCLUDES
    utterances: int
    audio_s: float
    repeats: int
    rtf: float
    rtf_low: float
    rtf_high: float
    chunk_ms: float | None = None
    chunk_median_ms: float | None = None
    chunk_p99_ms: float | None = None
    chunk_slowest_ms: float | None = None
    peak_device_bytes: int | None = None

    @property
    def rtfx(self) -> float:
        """Seconds of audio in a second."""
        return 1.0 / self.rtf


def measure_offline(
    model: Recogniser,
    utterances: Sequence[Tensor],
    *,
    batch: int = 1,
    threads: int = 1,
    repeats: int = 3,
    chunk_frames: int | None = None,
) -> Timing:
    """Real-time factor on whole utterances.

    Args:
        model: In evaluation mode, on the device to be measured.
        utterances: ``(S,)`` float samples each, at the model's rate.
        batch: Utterances at once, sorted by length so that little is padded.
        threads: Of torch's operators.
        repeats: Timed passes over all utterances, after one that is not timed.
        chunk_frames: Passed to the model; ``None``: its default.

    Returns:
        The timing; the audio of padding is not counted as audio.

    Raises:
        ValueError: If there is nothing to measure.
    """
    _check(utterances, repeats)
    device = model.feature_mean.device
    ordered = sorted(utterances, key=len)
    groups = [_pad([a.to(device) for a in ordered[i : i + batch]]) for i in range(0, len(ordered), batch)]

    def run() -> None:
        for audio, lengths in groups:
            output = model(model.features(audio, lengths), chunk_frames=chunk_frames)
            for found in model.greedy(output):
                model.tokenizer.decode(found.tokens)

    with _measuring(model, threads):
        times = [_timed(run, device) for _ in range(repeats + 1)][1:]
    return _timing(model, "offline", utterances, times, threads, batch)


def measure_streaming(
    model: Recogniser,
    utterances: Sequence[Tensor],
    *,
    chunk_frames: int | None = None,
    threads: int = 1,
    repeats: int = 3,
) -> Timing:
    """Real-time factor of one stream through the live recogniser, chunk by chunk, with the time of every chunk.

    Args:
        model: A model that streams, in evaluation mode, on the device to be measured.
        utterances: ``(S,)`` float samples each, at the model's rate.
        chunk_frames: Output frames of a chunk; ``None``: the model's default.
        threads: Of torch's operators.
        repeats: Timed passes over all utterances, after one that is not timed.

    Raises:
        ValueError: If there is nothing to measure or the model cannot stream.
    """
    _check(utterances, repeats)
    chunk = default_chunk_frames(model) if chunk_frames is None else chunk_frames
    device = model.feature_mean.device
    recognizer = Recognizer(model, RecognizerOptions(chunk_frames=chunk, endpoints=None))
    step_samples = chunk * model.subsampling_factor * model.fbank.shift
    audio = [a.cpu().numpy() for a in utterances]
    chunk_times: list[float] = []

    def run() -> None:
        chunk_times.extend(t for a in audio for t in _stream(recognizer, a, step_samples))

    with _measuring(model, threads):
        run()
        chunk_times.clear()
        times = [_timed(run, device) for _ in range(repeats)]
    chunks_ms = 1000 * np.array(chunk_times)
    return _timing(model, "streaming", utterances, times, threads, 1).model_copy(
        update={
            "chunk_ms": 1000 * chunk * model.frame_shift_s,
            "chunk_median_ms": float(np.median(chunks_ms)),
            "chunk_p99_ms": float(np.quantile(chunks_ms, 0.99)),
            "chunk_slowest_ms": float(chunks_ms.max()),
        }
    )


def macs_per_audio_second(model: Recogniser, audio_s: float = 10.0, chunk_frames: int | None = None) -> float:
    """Multiply–adds of the model for each second of audio, counted by torch on one utterance.

    Args:
        model: A recogniser.
        audio_s: Length of the utterance; attention over the whole of it grows with the square.
        chunk_frames: Passed to the model; ``None``: its default.

    Returns:
        Half of the floating-point operations of matrix products, convolutions and attention; features left out.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = model.feature_mean.device
    audio = torch.zeros(1, round(audio_s * model.sample_rate_hz), device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = model.features(audio, torch.tensor([audio.shape[1]], device=device))
        model.greedy(model(features, chunk_frames=chunk_frames))  # a transducer's search is part of its cost
    return counter.get_total_flops() / 2 / audio_s


def _stream(recognizer: Recognizer, audio: NDArray[np.float32], step_samples: int) -> Iterator[float]:
    """Runs one utterance through the live recogniser, chunk by chunk; gives the processing time of each in seconds."""
    session = recognizer.session()
    for start in range(0, len(audio), step_samples):
        _synchronise(recognizer.device)
        begin = time.perf_counter()
        session.accept(audio[start : start + step_samples])
        if start + step_samples >= len(audio):
            session.finish()
        _synchronise(recognizer.device)
        yield time.perf_counter() - begin


def _pad(utterances: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(a) for a in utterances], device=utterances[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True), lengths


def _timed(run: Callable[[], None], device: torch.device) -> float:
    _synchronise(device)
    begin = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - begin


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _measuring(model: Recogniser, threads: int) -> Iterator[None]:
    """Evaluation mode, no gradients, a fixed number of threads, and the device's peak memory counted from here."""
    before, training = torch.get_num_threads(), model.training
    torch.set_num_threads(threads)
    model.eval()
    if model.feature_mean.is_cuda:
        torch.cuda.reset_peak_memory_stats(model.feature_mean.device)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)
        model.train(training)


def _timing(
    model: Recogniser, mode: str, utterances: Sequence[Tensor], times: Sequence[float], threads: int, batch: int
) -> Timing:
    audio_s = sum(len(a) for a in utterances) / model.sample_rate_hz
    device = model.feature_mean.device
    return Timing(
        mode=mode,
        device=device.type,
        threads=threads,
        batch=batch,
        precision=str(next(model.parameters()).dtype).removeprefix("torch."),
        utterances=len(utterances),
        audio_s=audio_s,
        repeats=len(times),
        rtf=float(np.median(times)) / audio_s,
        rtf_low=min(times) / audio_s,
        rtf_high=max(times) / audio_s,
        peak_device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _check(utterances: Sequence[Tensor], repeats: int) -> None:
    if not sum(len(a) for a in utterances):
        raise ValueError("utterances: expected some audio to measure on, found none")
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, found {repeats}")
