"""How many real-time streams a server holds with every chunk on time, clients and server on this machine.

    python tools/bench_serve.py exp/demo/student_distilled/package exp/demo/audio/test-clean

Each client speaks at its own pace: pieces of 100 ms from the recordings, one after the other, beginning at a random
moment. A chunk is on time when its result is back before the next chunk is complete, on the client's clock. The number of
streams is doubled until one run has a chunk too late, then halved in between. Prints Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect

from asrkd.data.audio import AUDIO_SUFFIXES, read_audio

PIECE_S, RATE_HZ = 0.1, 16000


@dataclass
class Run:
    """What came out of a number of streams: latencies of all chunks in ms, and the server's processor share."""

    streams: int
    latencies_ms: list[float]
    chunk_ms: float
    cores: float

    @property
    def on_time(self) -> bool:
        return max(self.latencies_ms) < self.chunk_ms


@contextlib.contextmanager
def server(package: str, sessions: int, threads: int) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "asrkd", "serve", package, "--port", "0", "--sessions", str(sessions)]
    with subprocess.Popen([*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.match(r"http://([\d.]+:\d+)/", process.stdout.readline())
        assert found, "the server did not start"
        yield found[1], process.pid
        process.terminate()


async def client(address: str, audio: np.ndarray, seconds: float, delay_s: float) -> list[float]:
    """Speaks for ``seconds``; the latency of every chunk in ms."""
    await asyncio.sleep(delay_s)
    sent_s: list[tuple[float, float]] = []  # seconds of audio sent, and when
    latencies: list[float] = []
    async with connect(f"ws://{address}/stream", proxy=None) as socket:
        await socket.send("{}")
        await socket.recv()

        async def listen() -> None:
            async for message in socket:
                event: dict[str, Any] = json.loads(message)
                if event["event"] == "progress":
                    now = time.perf_counter()
                    # From when the last audio of this piece of work was sent.
                    newest = next(at for heard, at in reversed(sent_s) if heard <= event["decoded_s"] + 1e-6)
                    latencies.append(1000 * (now - newest))

        listener = asyncio.create_task(listen())
        started, size = time.perf_counter(), int(PIECE_S * RATE_HZ)
        for index in range(int(seconds / PIECE_S)):
            ahead_s = started + index * PIECE_S - time.perf_counter()
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
            piece = np.take(audio, range(index * size, (index + 1) * size), mode="wrap")
            sent_s.append(((index + 1) * PIECE_S, time.perf_counter()))
            await socket.send(piece.tobytes())
        await socket.send('{"event": "end"}')
        await listener
    return latencies


async def run(address: str, pid: int, audios: list[np.ndarray], streams: int, seconds: float, chunk_ms: float) -> Run:
    import psutil

    rng, process = random.Random(streams), psutil.Process(pid)
    before, started = process.cpu_times(), time.perf_counter()
    tasks = [client(address, rng.choice(audios), seconds, rng.uniform(0, 1.0)) for _ in range(streams)]
    found = [value for values in await asyncio.gather(*tasks) for value in values]
    after, spent = process.cpu_times(), time.perf_counter() - started
    cores = (after.user + after.system - before.user - before.system) / spent
    return Run(streams, found, chunk_ms, cores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("audio", type=Path, help="a folder of recordings")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run (default 20)")
    parser.add_argument("--most", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1, help="of the server's model (default 1)")
    arguments = parser.parse_args()
    import asrkd

    model = asrkd.load(arguments.package)
    chunk_ms = 1000 * model.config.chunk_frames * model.frame_shift_s
    files = sorted(path for path in arguments.audio.rglob("*") if path.suffix in AUDIO_SUFFIXES)[:20]
    audios = [(32767 * np.clip(read_audio(path, RATE_HZ)[0], -1, 1)).astype("<i2") for path in files]
    print(
        f"{model.num_parameters / 1e6:.2f} M parameters, chunks of {chunk_ms:.0f} ms, {arguments.threads} thread, clients on the same "
        f"{platform.machine()} machine\n\n| streams | chunks | median latency | p99 | slowest | server, cores | every chunk on time |\n"
        "|---|---|---|---|---|---|---|"
    )
    with server(arguments.package, arguments.most, arguments.threads) as (address, pid):

        def attempt(streams: int) -> bool:
            result = asyncio.run(run(address, pid, audios, streams, arguments.seconds, chunk_ms))
            values = np.array(result.latencies_ms)
            print(
                f"| {streams} | {len(values)} | {np.median(values):.0f} ms | {np.percentile(values, 99):.0f} ms | "
                f"{values.max():.0f} ms | {result.cores:.2f} | {'yes' if result.on_time else 'no'} |",
                flush=True,
            )
            return result.on_time

        attempt(1)  # warm-up
        low, high = 0, 8
        while high <= arguments.most and attempt(high):
            low, high = high, 2 * high
        while high - low > max(1, low // 16):
            middle = (low + high) // 2
            low, high = (middle, high) if attempt(middle) else (low, middle)
        print(f"\n{low} streams held.")


if __name__ == "__main__":
    main()
