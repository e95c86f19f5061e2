"""docs/recipes.md names every key of every section of a recipe, with its default and its choices, and no other."""

from __future__ import annotations

import json
import re
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from asrkd.losses.objective import SCHEDULES
from asrkd.models.package import MODELS
from asrkd.teachers.config import TeacherSpec
from asrkd.training import sections
from asrkd.training.recipe import Recipe
from tests.docs.blocks import ROOT

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
OF_A_LOSS = ["loss", "weight", "name", "schedule"]


def tables() -> dict[str, dict[str, tuple[str, str]]]:
    """By heading (``training/optimiser`` for one below another): key to what stands in its other two cells."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    above = heading = ""
    for line in PAGE.splitlines():
        if title := re.match(r"(##+) `?(.+?)`?$", line):
            above = title[2] if title[1] == "##" else above
            heading = title[2] if title[1] == "##" else f"{above}/{title[2]}"
        elif row := re.match(r"\| `(\w+)` \| (.*?) \| ?(.*?) ?\|$", line):
            rows = found.setdefault(heading, {})
            assert row[1] not in rows, f"{heading}: {row[1]} stands twice"
            rows[row[1]] = row[2], row[3]
    return found


def members(union: Any, key: str) -> dict[str, type[BaseModel]]:
    """The models of a tagged union by their tag."""
    return {get_args(model.model_fields[key].annotation)[0]: model for model in get_args(get_args(union)[0])}


SECTIONS: dict[str, type[BaseModel]] = {
    "The recipe": Recipe,
    "data": sections.DataConfig,
    "tokenizer": sections.TokenizerConfig,
    "targets": sections.TargetsConfig,
    "augment": sections.AugmentConfig,
    "augment/spec": sections.SpecAugmentConfig,
    "augment/noise": sections.NoiseConfig,
    "training": sections.TrainingConfig,
    "training/optimiser": sections.OptimiserConfig,
    "evaluate": sections.EvaluateConfig,
    "export": sections.ExportConfig,
    "sweep": sections.SweepConfig,
    "sweep/range": sections.SweepRange,
    "sweep/choices": sections.SweepChoices,
    **{f"model/{kind}": config for kind, (config, _) in MODELS.items()},
    **{f"teacher/{kind}": model for kind, model in members(TeacherSpec, "kind").items()},
    **{f"prepare/{kind}": model for kind, model in members(sections.PrepareConfig, "corpus").items()},
}


def default_of(field: Any) -> str:
    """As the page writes it."""
    if field.is_required():
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel):
        return "below"
    return f"`{json.dumps(field.default)}`"


def choices_of(annotation: Any) -> list[Any]:
    """What a literal allows, also inside a union."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for part in get_args(annotation) for choice in choices_of(part)]


def test_every_section_has_its_table_and_no_table_is_left_over() -> None:
    assert tables().keys() == {*SECTIONS, "losses"}


@pytest.mark.parametrize("heading", SECTIONS)
def test_keys_defaults_and_choices(heading: str) -> None:
    fields, rows = SECTIONS[heading].model_fields, tables()[heading]
    assert set(rows) == set(fields)
    assert {key: default for key, (default, _) in rows.items()} == {k: default_of(f) for k, f in fields.items()}
    for key, field in fields.items():
        choices = choices_of(field.annotation)
        lacking = [choice for choice in choices if f"`{choice}`" not in rows[key][1]]
        assert len(choices) < 2 or not lacking, f"{heading}.{key}: {lacking}"


def test_keys_of_a_loss() -> None:
    assert list(tables()["losses"]) == OF_A_LOSS
    for kind, keys in SCHEDULES.items():
        assert f"kind: {kind}" in PAGE and all(f"`{key}`" in PAGE or f"{key}:" in PAGE for key in keys)
