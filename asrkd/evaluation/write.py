"""``report.md`` and ``metrics.json``: the same content for people and for programs. docs/evaluation.md has the schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asrkd.data.files import write_atomically
from asrkd.evaluation.compare import Comparison
from asrkd.evaluation.diagnostics import Diagnostics
from asrkd.evaluation.report import (
    Entry,
    Row,
    breakdown_cells,
    diagnostics_cells,
    gap_closed_over_seeds,
    headline,
    how_measured,
    most_frequent,
    percent,
    sentence,
    speed_cells,
    table_cells,
)
from asrkd.evaluation.result import EvaluationResult, IntervalRecord

SCHEMA_VERSION = 1


def write_report(
    entries: Sequence[Entry],
    comparisons: Sequence[Comparison],
    folder: str | Path,
    diagnostics: Mapping[str, Diagnostics] | None = None,
) -> list[Row]:
    """Writes ``report.md`` and ``metrics.json``.

    Args:
        entries: In the order of the table.
        comparisons: Usually `comparisons_of`.
        folder: Made where it is missing.
        diagnostics: Of students beside their teacher, by name.

    Returns:
        The rows of the table.

    Raises:
        ValueError: As `headline`.
        OSError: If a file cannot be written.
    """
    rows = headline(entries)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = gap_closed_over_seeds(entries)
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "normaliser": entries[0].result.normaliser,
        "machine": entries[0].result.machine.model_dump(mode="json"),
        "rows": [row.model_dump(mode="json") for row in rows],
        "comparisons": [c.model_dump(mode="json") for c in comparisons],
        "gap_closed_over_seeds": seeds and seeds.model_dump(mode="json"),
        "speed": {e.result.name: _speed_record(e.result) for e in entries},
        "parts": {
            e.result.name: {part: f.model_dump(mode="json") for part, f in e.result.parts.items()} for e in entries
        },
        "diagnostics": {name: seen.model_dump(mode="json") for name, seen in (diagnostics or {}).items()},
    }
    write_atomically(folder / "metrics.json", (json.dumps(metrics, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(folder / "report.md", _markdown(rows, entries, comparisons, seeds, diagnostics or {}).encode())
    return rows


def _speed_record(result: EvaluationResult) -> dict[str, Any]:
    return {
        "timings": [timing.model_dump(mode="json") for timing in result.speed],
        "footprint": result.footprint and result.footprint.model_dump(mode="json"),
        "streams": result.streams and result.streams.model_dump(mode="json"),
        "macs_per_audio_second": result.model.macs_per_audio_second,
    }


def _markdown(
    rows: Sequence[Row],
    entries: Sequence[Entry],
    comparisons: Sequence[Comparison],
    seeds: IntervalRecord | None,
    diagnostics: Mapping[str, Diagnostics],
) -> str:
    headings, cells = table_cells(rows)
    lines = ["# Evaluation", "", _markdown_row(headings), _markdown_row(["---", *["---:"] * (len(headings) - 1)])]
    lines += [_markdown_row(line) for line in cells]
    if comparisons:
        lines += ["", "## Comparisons", ""]
        lines += [f"- {sentence(c, part, test)}" for c in comparisons for part, test in c.tests.items()]
    if seeds is not None:
        lines += ["", f"Gap closed over {seeds.blocks} seeds: {percent(seeds, digits=0)}."]
    lines += ["", "## Counts", "", _markdown_row(["System", "Test set", "Utterances", "Words", "S", "D", "I", "CER"])]
    lines.append(_markdown_row(["---", "---", *["---:"] * 6]))
    for entry in entries:
        for part, found in entry.result.parts.items():
            e = found.errors
            cer = "–" if e.cer is None else f"{100 * e.cer:.2f} %"
            counts = (e.utterances, e.reference_words, e.substitutions, e.deletions, e.insertions)
            lines.append(_markdown_row([entry.result.name, part, *map(str, counts), cer]))
    headings, cells = speed_cells(entries)
    if cells:
        lines += ["", "## Speed and memory", "", *_markdown_table(headings, cells)]
    headings, cells = diagnostics_cells(diagnostics)
    if cells:
        lines += ["", "## Delay and agreement with the teacher", "", *_markdown_table(headings, cells)]
    lines += ["", "## Most frequent errors", ""]
    for entry in entries:
        for part, found in entry.result.parts.items():
            said = [f"{a or '∅'} → {b or '∅'} ({n})" for a, b, n in most_frequent(found)]
            lines.append(f"- {entry.result.name}, {part}: {', '.join(said) or 'none'}")
    headings, cells = breakdown_cells(entries)
    if cells:
        lines += ["", "## By length and noise", "", *_markdown_table(headings, cells)]
    lines += ["", "## How this was measured", "", *(f"- {line}" for line in how_measured(entries))]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown_table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [_markdown_row(headings), _markdown_row(rule), *(_markdown_row(line) for line in cells)]
