"""A model card holds what was measured, keeps what was said, and can be read by the hub."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from asrkd.evaluation.card import write_card
from asrkd.evaluation.evaluate import EvaluationOptions, evaluate
from asrkd.models import package

from .conftest import make_student


def test_figures_go_into_the_card_and_come_again_only_once(tokenizer, cuts, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    package.save(
        make_student(tokenizer, 0), folder, metrics={"steps": 7}, card="# Mine\n\nSaid before.\n", licence="MIT"
    )
    options = EvaluationOptions(draws=50, speed_audio_s=2, repeats=1, batch=2)
    result = evaluate(folder, {"tones": cuts}, tmp_path / "result", options, name="tiny")
    write_card(folder, result)
    once = (folder / "README.md").read_text("utf-8")
    write_card(folder, result)
    assert (folder / "README.md").read_text("utf-8") == once
    assert once.count("Said before.") == 1 and once.count("## Measured") == 1
    front = yaml.safe_load(once.split("---\n")[1])
    assert front["license"] == "MIT" and front["library_name"] == "asrkd"
    wer = result.parts["tones"].errors.wer
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == round(100 * wer, 2)
    assert f"{100 * wer:.2f} %" in once
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == 7 and metrics["evaluation"]["wer"]["tones"]["estimate"] == wer
    assert package.load(folder).num_parameters == result.model.parameters
    package.set_licence(folder, "CC0-1.0")
    assert yaml.safe_load((folder / "README.md").read_text("utf-8").split("---\n")[1])["license"] == "CC0-1.0"
