"""Draw where a teacher and a student spike in one utterance, and which frames each blank policy keeps (docs/img/delay.svg).

python tools/draw_delay.py --teacher TEACHER --student STUDENT --cuts CUTS [--index 3] --out docs/img/delay.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor

from asrkd.data.batching import load_batch
from asrkd.models import package
from asrkd.models.base import Recogniser

TEACHER, STUDENT = "#1f5fa8", "#d1651f"


@torch.no_grad()
def log_posteriors(model: Recogniser, cuts: CutSet, chunk_frames: int | None) -> Tensor:
    """``(T, V)`` of one utterance."""
    batch = load_batch(cuts, None, sample_rate_hz=model.sample_rate_hz)
    output = model(model.features(batch.audio, batch.audio_lengths), chunk_frames=chunk_frames)
    return output.ctc_logits.values[0].log_softmax(-1)


def spikes(axis: Any, log_probs: Tensor, model: Recogniser, colour: str, name: str, up: bool) -> None:
    """Probability of anything but blank, with the token above each spike."""
    blank, shift_ms = model.vocabulary.blank_id, 1000 * model.frame_shift_s
    spoken = 1 - log_probs[:, blank].exp()
    times = [shift_ms * t for t in range(len(spoken))]
    sign = 1 if up else -1
    axis.fill_between(times, 0, [sign * float(v) for v in spoken], step="mid", color=colour, alpha=0.35, linewidth=0)
    axis.step(times, [sign * float(v) for v in spoken], where="mid", color=colour, linewidth=1, label=name)
    previous = blank
    for time_ms, token in zip(times, log_probs.argmax(1).tolist(), strict=True):
        if token not in (blank, previous):
            mark = model.vocabulary.tokens[token].replace("▁", "␣").replace(" ", "␣")
            axis.text(time_ms, sign * 1.12, mark, color=colour, ha="center", va="center", fontsize=8, clip_on=True)
        previous = token


def kept(axis: Any, log_probs: Tensor, model: Recogniser) -> None:
    """Rows of the frames that count under each policy."""
    blank, shift_ms = model.vocabulary.blank_id, 1000 * model.frame_shift_s
    spike = log_probs.argmax(1) != blank
    near = torch.nn.functional.max_pool1d(spike.float()[None], 3, 1, 1)[0] > 0
    rows = {
        "keep": torch.ones_like(spike),
        "drop, θ = 0.95": log_probs[:, blank].exp() <= 0.95,
        "select: spikes, ±1": near,
    }
    for place, mask in enumerate(rows.values()):
        bars = [(shift_ms * (t - 0.4), shift_ms * 0.8) for t in mask.nonzero()[:, 0].tolist()]
        axis.broken_barh(bars, (-place - 0.35, 0.7), color=TEACHER, alpha=0.75)
    axis.set_yticks([-p for p in range(len(rows))], list(rows), fontsize=8)
    axis.set_xlabel("ms of audio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "student", "cuts", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--index", type=int, default=0, help="which utterance of the cuts")
    parser.add_argument("--until-ms", type=float, default=2000, help="draw so much of it")
    arguments = parser.parse_args()

    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "asrkd"
    from matplotlib import pyplot

    cut = CutSet.from_cuts([list(CutSet.from_file(arguments.cuts))[arguments.index]])
    teacher, student = package.load(arguments.teacher), package.load(arguments.student)
    taught, heard = log_posteriors(teacher, cut, 0), log_posteriors(student, cut, None)
    figure, (top, below) = pyplot.subplots(2, 1, figsize=(9, 3.8), sharex=True, height_ratios=(3, 1.2))
    spikes(top, taught, teacher, TEACHER, "teacher, full context", up=True)
    spikes(top, heard, student, STUDENT, "student, streaming", up=False)
    top.set(ylim=(-1.35, 1.35), xlim=(0, arguments.until_ms), yticks=[-1, 0, 1], yticklabels=["1", "0", "1"])
    top.set_ylabel("1 − p(blank)")
    top.legend(loc="upper right", fontsize=8, frameon=False, ncols=2, bbox_to_anchor=(1, 1.16))
    kept(below, taught, teacher)
    for axis in (top, below):
        axis.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.16, right=0.98, top=0.93, bottom=0.13, hspace=0.12)
    figure.savefig(arguments.out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
