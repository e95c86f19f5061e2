"""WER of the student against bytes an hour of stored targets, for several codecs and seeds; and stored against live targets.

    python tools/bench_codecs.py --demo exp/demo1 exp/demo2 exp/demo3 --out exp/codecs
    python tools/bench_codecs.py --demo exp/demo1 --seeds 1 2 3 --out exp/codecs

Each --demo is the folder of a finished `asrkd demo` (its teacher and corpus are used), each seed one of the student's training. For
each
codec the student is trained under the teacher's targets kept with it, with the demo's recipe but for the number of epochs,
frame KL beside CTC, without the N-best term, so that the codec is all that differs. Prints Markdown; draws codecs.svg.
Killed at any moment, the same command continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from asrkd.cli.recipes import recipes_dir

CODECS: dict[str, list[str]] = {
    "top-1": ["targets.max_entries=1"],
    "top-4": ["targets.max_entries=4"],
    "top-16": ["targets.max_entries=16"],
    "sampled 8": ["targets.codec=sampled", "targets.samples=8"],
    "sampled 32": ["targets.codec=sampled", "targets.samples=32"],
}
LOSSES = "losses=[{loss: ctc, weight: 0.4}, {loss: frame_kl, weight: 0.6, window: utterance, max_delay_ms: 80}]"


def asrkd(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "asrkd", *words], check=True, stdout=subprocess.DEVNULL)


def trained(demo: Path, out: Path, name: str, seed: int, epochs: int, more: list[str]) -> Path:
    """Train and evaluate one student; gives the folder of its run."""
    run = (out / demo.name / f"{name.replace(' ', '_')}.{seed}").resolve()
    recipe = recipes_dir() / "spoken_numbers" / "student_distilled.yaml"
    words = [f"workdir={demo.resolve()}", f"seed={seed}", f"output={run}", f"training.epochs={epochs}", LOSSES]
    asrkd("train", str(recipe), *words, "targets.nbest=0", *more)
    parts = [word for part in ("test-clean", "test-other") for word in ("--data", str(demo / "corpus" / part))]
    asrkd("evaluate", str(run / "package"), *parts, "--no-speed", "--out", str(run / "evaluation"))
    return run


def own_seed(demo: Path) -> int:
    return int(json.loads((demo / "teacher" / "run.json").read_text(encoding="utf-8"))["recipe"]["seed"])


def pooled_wer(run: Path) -> float:
    metrics = json.loads((run / "evaluation" / "result.json").read_text(encoding="utf-8"))
    counts = [part["errors"] for part in metrics["parts"].values()]
    errors = sum(c["substitutions"] + c["deletions"] + c["insertions"] for c in counts)
    return 100 * errors / sum(c["reference_words"] for c in counts)


def steps(run: Path) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def megabytes_per_hour(folder: Path) -> float:
    from asrkd.targets.store import TargetsStore

    return TargetsStore(folder).summary().posterior_mb_per_hour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", help="of the students; default: each demo's own")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    out: Path = arguments.out
    table: dict[str, list[float]] = {}
    size: dict[str, list[float]] = {}
    speed: dict[str, list[float]] = {}
    pairs = [(demo, seed) for demo in arguments.demo for seed in arguments.seeds or [own_seed(demo)]]
    for demo, seed in pairs:
        for name, codec in CODECS.items():
            targets = (out / demo.name / f"targets_{name.replace(' ', '_')}").resolve()
            run = trained(demo, out, name, seed, arguments.epochs, [f"targets.folder={targets}", *codec])
            table.setdefault(name, []).append(pooled_wer(run))
            size.setdefault(name, []).append(megabytes_per_hour(targets))
            speed.setdefault(name, []).append(float(np.median([s["audio_s_per_s"] for s in steps(run)])))
        run = trained(demo, out, "live", seed, arguments.epochs, ["targets.live=true"])
        table.setdefault("live", []).append(pooled_wer(run))
        speed.setdefault("live", []).append(float(np.median([s["audio_s_per_s"] for s in steps(run)])))
    print(f"{len(pairs)} seeds, {arguments.epochs} epochs; WER pooled over both test sets.\n")
    print("| targets | MB an hour | WER by seed | mean | audio s/s of training |\n|---|---|---|---|---|")
    for name, errors in table.items():
        stored = f"{np.mean(size[name]):.3f}" if name in size else "0 (teacher at every step)"
        each = ", ".join(f"{e:.2f}" for e in errors)
        print(f"| {name} | {stored} | {each} | {np.mean(errors):.2f} % | {np.mean(speed[name]):.0f} |")
    draw(table, size, out / "codecs.svg")


def draw(table: dict[str, list[float]], size: dict[str, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6.5, 3.6))
    for name, errors in table.items():
        if name not in size:
            axis.axhline(float(np.mean(errors)), color="#888", linestyle=":", label="live teacher, mean")
            continue
        x = float(np.mean(size[name]))
        colour = "#d1651f" if name.startswith("sampled") else "#1f5fa8"
        axis.scatter([x] * len(errors), errors, color=colour, alpha=0.4, s=18)
        axis.scatter([x], [float(np.mean(errors))], color=colour, s=50)
        axis.annotate(name, (x, float(np.mean(errors))), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axis.set(xlabel="MB an hour of frame posteriors", ylabel="WER of the student, %", xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
