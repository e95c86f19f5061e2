"""The guide's recipe lines are lines that a recipe takes, and its contract one that is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from asrkd.teachers.config import check_teacher, parse_teacher
from asrkd.teachers.onnx import Contract
from asrkd.training.recipe import TargetsConfig

GUIDE = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_recipe_lines(block: str) -> None:
    lines = yaml.safe_load(block)
    assert lines.keys() <= {"teacher", "targets"}
    if "teacher" in lines:
        teacher = lines["teacher"]
        assert parse_teacher(teacher) if isinstance(teacher, str) else check_teacher(teacher)
    if "targets" in lines:
        TargetsConfig.model_validate(lines["targets"])


def test_contract() -> None:
    (block,) = blocks("json")
    assert Contract.model_validate(json.loads(block)).features.kind == "fbank"


def test_every_kind_is_shown() -> None:
    shown = {
        line["kind"] for line in (yaml.safe_load(b).get("teacher") for b in blocks("yaml")) if isinstance(line, dict)
    }
    assert shown == {"package", "torchaudio", "speechbrain", "huggingface", "onnx", "ensemble"}
