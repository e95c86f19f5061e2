"""The model card of a package, written from what was measured and from nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asrkd.data.files import write_atomically
from asrkd.evaluation.report import Entry, headline, how_measured, speed_cells, table_cells
from asrkd.evaluation.result import EvaluationResult
from asrkd.models import package

_MARK = "<!-- measured by asrkd evaluate -->"


def write_card(folder: str | Path, result: EvaluationResult) -> None:
    """Put an evaluation's figures into a package: a table in ``README.md``, numbers in ``metrics.json``.

    What the card says above the table stays; an earlier evaluation's figures are replaced.

    Args:
        folder: Of the package that was evaluated.
        result: Of it.

    Raises:
        PackageError: If ``folder`` is no package.
        OSError: If it cannot be written.
    """
    root = Path(folder)
    config, metrics = package.read_config(root), package.read_metrics(root)
    card = root / package.CARD
    told = card.read_text(encoding="utf-8") if card.is_file() else f"# {result.name}\n"
    body = _without_front_matter(told).partition(_MARK)[0].strip()
    text = f"{_front_matter(config['licence'], result)}\n{body}\n\n{_MARK}\n{_figures(result)}"
    write_atomically(card, text.encode())
    numbers = {**metrics, "evaluation": _numbers(result)}
    write_atomically(root / package.METRICS, (json.dumps(numbers, indent=2, ensure_ascii=False) + "\n").encode())


def _front_matter(licence: str, result: EvaluationResult) -> str:
    """What the hub reads (https://huggingface.co/docs/hub/model-cards); JSON is YAML."""
    measured = [
        {
            "task": {"type": "automatic-speech-recognition"},
            "dataset": {"type": part, "name": part},
            "metrics": [{"type": "wer", "name": "WER", "value": round(100 * found.errors.wer, 2)}],
        }
        for part, found in result.parts.items()
        if found.errors.wer is not None
    ]
    fields: dict[str, Any] = {
        "license": licence,
        "library_name": "asrkd",
        "pipeline_tag": "automatic-speech-recognition",
        "model-index": [{"name": result.name, "results": measured}],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _without_front_matter(text: str) -> str:
    if not text.startswith("---\n"):
        return text
    return text.partition("\n---\n")[2]


def _figures(result: EvaluationResult) -> str:
    entry = Entry(result)
    blocks = ["## Measured", _table(*table_cells(headline([entry])))]
    headings, cells = speed_cells([entry])
    if cells:
        blocks += [_table(headings, cells)]
    return "\n\n".join([*blocks, *how_measured([entry])]) + "\n"


def _table(headings: list[str], cells: list[list[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *cells]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _numbers(result: EvaluationResult) -> dict[str, Any]:
    return {
        "normaliser": result.normaliser,
        "created": result.created,
        "parameters": result.model.parameters,
        "size_bytes": result.model.size_bytes,
        "algorithmic_latency_ms": result.model.algorithmic_latency_ms,
        "wer": {part: found.interval.model_dump(mode="json") for part, found in result.parts.items()},
        "speed": [timing.model_dump(mode="json") for timing in result.speed],
    }
