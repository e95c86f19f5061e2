"""Size, error and speed of stored hidden states: float16 against codes of a multi-codebook quantiser.

    python tools/bench_hidden.py --teacher exp/teacher/package --layer layer.2 --fit corpus/cuts_train-clean.jsonl.gz \
        --cuts corpus/cuts_test-clean.jsonl.gz

Prints Markdown. The quantiser is fitted to the first manifest; what it loses (share of the variance) is measured on the second.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.losses.mvq import train_quantiser
from asrkd.models.package import load
from asrkd.targets.hidden import pack_hidden
from asrkd.teachers.package import PackageTeacher


def states_of(teacher: PackageTeacher, cuts: Path, layer: str, wanted: int) -> tuple[torch.Tensor, float]:
    """Some ``(N, D)`` states, and their frame shift."""
    rows: list[torch.Tensor] = []
    for cut in CutSet.from_file(cuts):
        frames = teacher(load_batch([cut], None, sample_rate_hz=teacher.sample_rate_hz)).hidden[layer]
        rows.append(frames.values[0, : int(frames.lengths[0])])
        if sum(map(len, rows)) >= wanted:
            break
    return torch.cat(rows)[:wanted], frames.frame_shift_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, type=Path, help="model package")
    parser.add_argument("--layer", required=True)
    parser.add_argument("--fit", required=True, type=Path, help="manifest that quantisers are fitted to")
    parser.add_argument("--cuts", required=True, type=Path, help="manifest that they are measured on")
    parser.add_argument("--states", type=int, default=20_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    teacher = PackageTeacher(load(arguments.teacher), hidden=(arguments.layer,))
    fitted, shift_s = states_of(teacher, arguments.fit, arguments.layer, arguments.states)
    other, _ = states_of(teacher, arguments.cuts, arguments.layer, arguments.states)
    hours = len(other) * shift_s / 3600
    variance = float((other - fitted.mean(0)).square().sum())
    print(
        f"{arguments.layer}, {other.shape[1]} units every {1000 * shift_s:g} ms; {len(fitted)} states fitted to, ",
        end="",
    )
    print(
        f"{len(other)} measured on, one core\n\n| kept as | MB an hour | variance lost, % | fit, s | encode, x real time |"
    )
    print("|---|---|---|---|---|")
    packed = pack_hidden(other.numpy())
    restored = torch.from_numpy(np.frombuffer(packed, "<f2").reshape(other.shape).astype(np.float32))
    lost = float((restored - other).square().sum()) / variance
    print(f"| float16 | {len(packed) / 1e6 / hours:.2f} | {100 * lost:.5f} | | |")
    for num_codebooks in (2, 4, 8, 16):
        started = time.process_time()
        quantiser = train_quantiser(fitted, num_codebooks=num_codebooks)
        fit_s = time.process_time() - started
        started = time.process_time()
        codes = quantiser.encode(other)
        encode_s = time.process_time() - started
        lost = float((quantiser.decode(codes) - other).square().sum()) / variance
        print(
            f"| {num_codebooks} codes of 256 | {codes.numel() / 1e6 / hours:.2f} | {100 * lost:.2f} | {fit_s:.1f} | "
            f"{hours * 3600 / encode_s:,.0f} |"
        )


if __name__ == "__main__":
    main()
