"""Size, error and speed of the codecs of frame posteriors, on random peaky posteriors and on a teacher's own.

    python tools/bench_targets.py
    python tools/bench_targets.py --teacher exp/teacher/package --cuts corpus/cuts_dev.jsonl.gz

Prints Markdown. KL is KL(stored || live) in nats a frame over the stored events (kept entries and tail). Speed is in hours of
audio for each hour of one core's time (process time, best of several repeats), utterance by utterance.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from numpy.typing import NDArray

from asrkd.data.batching import load_batch
from asrkd.targets.codec import SampledCodec, TopKCodec
from asrkd.teachers.config import open_teacher, parse_teacher
from asrkd.types import Frames

Posteriors = NDArray[np.float32]


def peaky(seed: int, frames: int, vocab_size: int) -> Posteriors:
    """Random posteriors as a CTC model gives: 70 % of frames nearly all blank, the others a spike among 1000 others.

    Logits are standard normal; each frame has one random token at +8, and 70 % of frames have blank at +20.
    """
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((frames, vocab_size)).astype(np.float32)
    logits[np.arange(frames), generator.integers(0, vocab_size, frames)] += 8
    logits[generator.random(frames) < 0.7, 0] += 20
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def of_teacher(name: str, cuts: Path, device: str, seconds: float) -> tuple[list[Posteriors], float, int, float]:
    """Live posteriors, frame shift, blank, and the teacher's own speed (hours of audio an hour)."""
    teacher = open_teacher(parse_teacher(name), device=device)
    found: list[Posteriors] = []
    heard = spent = 0.0
    for cut in CutSet.from_file(cuts):
        batch = load_batch([cut], None, sample_rate_hz=teacher.sample_rate_hz)
        started = time.perf_counter()
        posteriors = teacher(batch).to("cpu").posteriors
        spent += time.perf_counter() - started
        assert isinstance(posteriors, Frames)
        found.append(posteriors.values[0, : int(posteriors.lengths[0])].float().numpy())
        heard += cut.duration
        if heard >= seconds:
            break
    return found, teacher.frame_shift_s, teacher.vocabulary.blank_id, heard / spent


def divergence(live: Posteriors, decoded: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """KL(stored || live) of each frame."""
    ids, values, tail = decoded
    kept = np.isfinite(values)
    own = np.take_along_axis(live.astype(np.float64), ids, 1)
    own_tail = np.log(np.maximum(1 - np.where(kept, np.exp(own), 0).sum(1), 1e-12))
    probs = np.where(kept, np.exp(values), 0)
    entries = (probs * np.where(kept, np.where(kept, values, 0) - own, 0)).sum(1)
    rest = np.exp(tail)
    return entries + np.where(rest > 0, rest * (np.where(rest > 0, tail, 0) - own_tail), 0)


def fastest(work: Callable[[], None], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def measure(utterances: Sequence[Posteriors], codec: TopKCodec | SampledCodec, shift_s: float, repeats: int) -> str:
    """One row of the table."""
    data = [codec.encode(one, str(place)) for place, one in enumerate(utterances)]
    hours = sum(map(len, utterances)) * shift_s / 3600
    kl = np.concatenate([divergence(u, codec.decode(d)) for u, d in zip(utterances, data, strict=True)])
    decode_s = fastest(lambda: [codec.decode(d) for d in data] and None, repeats)
    encode_s = fastest(lambda: [codec.encode(u, "") for u in utterances] and None, 1)
    options = ", ".join(f"{key} {value}" for key, value in codec.options().items() if key != "kind")
    return (
        f"| {codec.kind} | {options} | {sum(map(len, data)) / 1e6 / hours:.3f} | {kl.mean():.5f} | {kl.max():.4f} | "
        f"{hours * 3600 / decode_s:,.0f} | {hours * 3600 / encode_s:,.0f} |"
    )


def table(title: str, utterances: Sequence[Posteriors], blank_id: int, shift_s: float, repeats: int) -> None:
    vocab_size = utterances[0].shape[1]
    frames = sum(map(len, utterances))
    print(f"\n{title}: {len(utterances)} utterances, {frames} frames of {1000 * shift_s:g} ms, V = {vocab_size}\n")
    print("| codec | options | MB an hour | mean KL | largest KL | decode, x real time | encode, x real time |")
    print("|---|---|---|---|---|---|---|")
    for options in ({}, {"bits": 16}, {"max_entries": 8}, {"max_entries": 4}, {"max_entries": 1}, {"mass": 0.99}):
        print(measure(utterances, TopKCodec(vocab_size, blank_id, **options), shift_s, repeats))
    for samples in (16, 32, 64):
        print(measure(utterances, SampledCodec(vocab_size, blank_id, samples), shift_s, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="package folder, or KIND:NAME as for asrkd inspect")
    parser.add_argument("--cuts", type=Path, help="manifest that the teacher hears")
    parser.add_argument("--seconds", type=float, default=600.0, help="of audio that the teacher hears (600)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if (arguments.teacher is None) != (arguments.cuts is None):
        parser.error("--teacher, --cuts: expected both or neither")
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}, one core")
    utterances = [peaky(seed, 250, 1000) for seed in range(40)]
    table("random peaky posteriors, 10 s each", utterances, 0, 0.04, arguments.repeats)
    if arguments.teacher is not None:
        live, shift_s, blank_id, speed = of_teacher(
            arguments.teacher, arguments.cuts, arguments.device, arguments.seconds
        )
        table(f"teacher on {arguments.cuts.name}", live, blank_id, shift_s, arguments.repeats)
        print(f"\nThe teacher itself, one utterance at a time on {arguments.device}: {speed:,.0f} x real time.")


if __name__ == "__main__":
    main()
