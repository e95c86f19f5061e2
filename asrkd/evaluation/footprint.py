"""What a model costs beside its processing time: start-up, memory, and how many live streams one device holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from asrkd.evaluation.latency import default_chunk_frames
from asrkd.models.base import Recogniser
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions

_FRESH = """
import json, sys, time, psutil, torch
torch.set_num_threads(int(sys.argv[3]))
import asrkd
model = asrkd.load(sys.argv[1], device=sys.argv[2])
device = model.feature_mean.device
audio = torch.zeros(1, model.sample_rate_hz, device=device)
with torch.no_grad():
    model.greedy(model(model.features(audio, torch.tensor([audio.shape[1]], device=device))))
process = psutil.Process()
seconds = time.time() - process.create_time()
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
except ImportError:
    peak = process.memory_info().peak_wset
print(json.dumps({"start_up_s": seconds, "peak_host_bytes": peak}))
"""


class Footprint(BaseModel):
    """Of a fresh process that loads a package and recognises one second of silence.

    Attributes:
        start_up_s: From the start of the process, imports and all, to the first text.
        peak_host_bytes: Highest resident memory.
        threads: Of torch's operators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_up_s: float
    peak_host_bytes: int
    threads: int


class Streams(BaseModel):
    """How many live streams a device holds, tried by doubling.

    Attributes:
        streams: The most of which every chunk came in time.
        chunk_ms: Audio in a chunk.
        slowest_ms: The slowest chunk of all streams together at that number.
        beyond_ms: The slowest at twice that number; ``None`` if no more were tried.
        device: ``cpu`` or ``cuda``.
        threads: Of torch's operators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    streams: int
    chunk_ms: float
    slowest_ms: float
    beyond_ms: float | None
    device: str
    threads: int


def measure_footprint(package: str | Path, *, device: str = "cpu", threads: int = 1) -> Footprint:
    """Start a process for it.

    Args:
        package: Model package.
        device: Where the model goes.
        threads: Of torch's operators.

    Raises:
        OSError: If the process fails, with its last line.
    """
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", _FRESH, str(package), device, str(threads)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode:
        raise OSError(f"{package}: {(answer.stderr.strip().splitlines() or ['no answer'])[-1]}")
    return Footprint(**json.loads(answer.stdout.splitlines()[-1]), threads=threads)


def measure_streams(
    model: Recogniser, *, chunk_frames: int | None = None, threads: int = 1, limit: int = 4096, chunks: int = 12
) -> Streams:
    """Double the number of streams, all fed at once with noise, until a chunk takes longer than it lasts.

    Args:
        model: A model that streams, in evaluation mode, on the device to be measured.
        chunk_frames: Output frames of a chunk; ``None``: the model's default.
        threads: Of torch's operators.
        limit: The most streams to try.
        chunks: Timed chunks a try, after two that are not.

    Raises:
        ValueError: If the model cannot stream, or not even one stream is in time.
    """
    chunk = default_chunk_frames(model) if chunk_frames is None else chunk_frames
    recognizer = Recognizer(model, RecognizerOptions(chunk_frames=chunk, endpoints=None))
    chunk_ms = 1000 * chunk * model.frame_shift_s
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    held, slowest, beyond, count = 0, 0.0, None, 1
    try:
        while count <= limit:
            took = _slowest_ms(recognizer, model, round(chunk_ms / 1000 * model.sample_rate_hz), count, chunks)
            if took > chunk_ms:
                beyond = took
                break
            held, slowest, count = count, took, 2 * count
    finally:
        torch.set_num_threads(before)
    if not held:
        raise ValueError(
            f"streams: expected a chunk of {chunk_ms:.0f} ms to be done in time, found {beyond:.0f} ms for one"
        )
    device = model.feature_mean.device.type
    return Streams(
        streams=held, chunk_ms=chunk_ms, slowest_ms=slowest, beyond_ms=beyond, device=device, threads=threads
    )


def _slowest_ms(recognizer: Recognizer, model: Recogniser, samples: int, count: int, chunks: int) -> float:
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    sessions = [recognizer.session() for _ in range(count)]
    times = []
    for _ in range(chunks + 2):
        if model.feature_mean.is_cuda:
            torch.cuda.synchronize(model.feature_mean.device)
        begin = time.perf_counter()
        recognizer.accept(sessions, [noise] * count)
        times.append(time.perf_counter() - begin)
    return 1000 * max(times[2:])
