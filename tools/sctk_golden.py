#!/usr/bin/env python3
"""Rebuild tests/evaluation/golden/sctk.json: error counts and MAPSSWE of random systems by NIST's sctk.

Needs the Debian package `sctk` (apt-get install sctk). The texts are made from the seed, the figures are those that
`sclite` and `sc_stats` print. Without --out the result goes to the golden file of the tests.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "evaluation" / "golden" / "sctk.json"
PROGRAMS = Path("/usr/lib/sctk/bin")
RESULT = re.compile(
    r"\(# segs: (?P<segments>\d+)\).*\(mean: *(?P<mean>\S+)\) \(std dev: *(?P<deviation>\S+)\) \(Z Stat: *(?P<z>\S+)\)"
)

Texts = dict[str, str]


def systems(seed: int, utterances: int, words: int, error_rate: float) -> tuple[Texts, Texts, Texts]:
    """References and two hypotheses, the second system with two thirds of the first one's errors."""
    rng = random.Random(seed)
    # A small vocabulary makes many alignments equally cheap: the hard case.
    vocabulary = [f"w{i}" for i in range(words)]
    references: Texts = {}
    hypotheses: tuple[Texts, Texts] = ({}, {})
    for index in range(utterances):
        said = rng.choices(vocabulary, k=rng.randint(1, 30))
        references[f"spk{index % 7}-{index:04d}"] = " ".join(said)
        for texts, share in zip(hypotheses, (1.0, 0.67), strict=True):
            heard: list[str] = []
            for word in said:
                draw = rng.random()
                if draw < error_rate * share / 3:
                    continue
                heard.append(rng.choice(vocabulary) if draw < 2 * error_rate * share / 3 else word)
                while rng.random() < error_rate * share / 3:
                    heard.append(rng.choice(vocabulary))
            texts[f"spk{index % 7}-{index:04d}"] = " ".join(heard)
    return references, *hypotheses


def run(program: str, *arguments: str, folder: Path, piped: str | None = None) -> str:
    """What an sctk program prints."""
    command = [str(PROGRAMS / program), *arguments]
    return subprocess.run(command, cwd=folder, input=piped, check=True, capture_output=True, text=True).stdout


def write_trn(texts: Texts, path: Path) -> None:
    path.write_text("".join(f"{text} ({key})\n" for key, text in texts.items()))


def counts(summary: str) -> dict[str, int]:
    """Substitutions, deletions, insertions and words of sclite's raw summary."""
    line = next(line for line in summary.splitlines() if line.lstrip().startswith("| Sum"))
    _, words, _, substitutions, deletions, insertions = re.findall(r"\d+", line)[:6]
    return {
        "reference_words": int(words),
        "substitutions": int(substitutions),
        "deletions": int(deletions),
        "insertions": int(insertions),
    }


def measure(references: Texts, first: Texts, second: Texts) -> dict[str, Any]:
    """Figures of sclite for both systems, and of sc_stats for their comparison in both orders."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_trn(references, folder / "ref.trn")
        alignments: dict[str, str] = {}
        measured: dict[str, Any] = {}
        for system, texts in (("a", first), ("b", second)):
            write_trn(texts, folder / f"{system}.trn")
            files = ("-i", "spu_id", "-r", "ref.trn", "trn", "-h", f"{system}.trn", "trn")
            run("sclite", *files, "-o", "sgml", "-n", system, folder=folder)
            alignments[system] = (folder / f"{system}.sgml").read_text()
            measured[system] = counts(run("sclite", *files, "-o", "rsum", "stdout", folder=folder))
        for order in ("ab", "ba"):
            both = "".join(alignments[system] for system in order)
            run("sc_stats", "-p", "-t", "mapsswe", "-v", "-n", order, folder=folder, piped=both)
            found = RESULT.search((folder / f"{order}.stats.mapsswe").read_text())
            if found is None:
                raise ValueError(f"{order}.stats.mapsswe: expected a line MTCH_PR_RESULTS, found none")
            measured[order] = {k: (int if k == "segments" else float)(v) for k, v in found.groupdict().items()}
            unified = run("sc_stats", "-p", "-t", "mapsswe", "-u", "-n", f"{order}_u", folder=folder, piped=both)
            unified += (folder / f"{order}_u.stats.unified").read_text()
            p = re.search(r"\|\s*(?:~|\S+?\.trn)\s+(<?)\s*(\d\.\d+)", unified)
            if p is None:
                raise ValueError(f"{order}_u.stats.unified: expected a p-value, found none")
            measured[order]["p"] = "".join(p.groups())
        return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=GOLDEN, help="file to write (default: %(default)s)")
    options = parser.parse_args()
    if not (PROGRAMS / "sclite").exists():
        parser.error(f"{PROGRAMS}/sclite is not there: apt-get install sctk")
    cases = []
    for seed, utterances, words, error_rate in ((1, 60, 8, 0.3), (2, 120, 400, 0.12), (3, 40, 3, 0.6)):
        setting = {"seed": seed, "utterances": utterances, "words": words, "error_rate": error_rate}
        cases.append({"setting": setting, "measured": measure(*systems(seed, utterances, words, error_rate))})
    options.out.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
