"""Every block of code in README and docs/ is true: Python runs, YAML and JSON are taken, commands exist with their options."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from asrkd.cli import app
from asrkd.losses import LOSSES
from asrkd.teachers.config import TeacherSpec
from asrkd.teachers.onnx import Contract
from asrkd.training.recipe import Recipe, load_recipe, merge
from tests.docs.blocks import PAGES, ROOT, Block, blocks

SHELL = ("", "sh", "bash", "console")
KNOWN = {"python", "yaml", "json", *SHELL, "tsv", "text"}
WHOLE = yaml.safe_load(
    """
    name: whole
    workdir: exp
    output: whole
    data: {train: [corpus/cuts_train.jsonl.gz]}
    model: {kind: streaming_conformer, size: tiny}
    losses: [{loss: ctc}, {loss: frame_kl}, {loss: nbest_ctc}]
    teacher: exp/teacher/package
    targets: {folder: targets}
    """
)
"""What a block that shows some keys of a recipe is laid over."""


def with_ids(found: list[Block]) -> list[Any]:
    return [pytest.param(block, id=block.id) for block in found]


@pytest.mark.parametrize("block", with_ids(blocks("python")))
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extra in ("transformers", "onnxruntime", "sherpa_onnx"):
        if extra in block.text:
            pytest.importorskip(extra)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.id, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("block", with_ids(blocks("yaml")))
def test_yaml_is_a_recipe_or_keys_of_one(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if {"name", "model", "output"} <= content.keys() or "extends" in content:
        write_recipes(block, tmp_path)
        load_recipe(tmp_path / recipe_name(block))
        return
    Recipe.model_validate(merge(WHOLE, content))


@pytest.mark.parametrize("block", with_ids(blocks("json")))
def test_json_is_read(block: Block) -> None:
    assert Contract.model_validate(json.loads(block.text)).features.kind == "fbank"


@pytest.mark.parametrize("block", with_ids([b for b in blocks(*SHELL) if b.commands]))
def test_commands_exist_with_their_options(block: Block) -> None:
    group = typer.main.get_command(app)
    for words in block.commands:
        command, context, rest = group, group.make_context("asrkd", [], resilient_parsing=True), words[1:]
        while hasattr(command, "commands") and rest[:1] != ["--help"]:
            assert rest and rest[0] in command.commands, f"no such verb: {' '.join(words)}"
            command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
            if hasattr(command, "commands"):
                context = command.make_context(name, [], parent=context, resilient_parsing=True)
        if "--help" not in rest:
            command.make_context(words[1], list(rest), parent=context)  # raises for what the verb does not take


CHEAP = ["asrkd losses", "asrkd prepare lhotse list"]


@pytest.mark.parametrize("line", CHEAP)
def test_cheap_commands_run(line: str, tmp_path: Path) -> None:
    shown = {" ".join(words) for block in blocks(*SHELL) for words in block.commands}
    assert line in shown or f"`{line}`" in "".join(page.read_text(encoding="utf-8") for page in PAGES)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-m", *line.split()]
    answer = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr


def test_every_block_says_a_language_that_is_checked() -> None:
    fences = {
        language
        for page in PAGES
        for language, _ in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    }
    assert fences <= KNOWN


# What the pages have to show ----------------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_losses_are_shown_in_the_code_of_others() -> None:
    code = " ".join(block.text for block in blocks("python") if block.page == "docs/losses.md")
    assert {"speechbrain", "Wav2Vec2ForCTC", "rnnt"} <= set(re.findall(r"\w+", code))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_on_its_page(name: str) -> None:
    assert f"`{name}`" in page("losses.md")


def test_every_kind_of_teacher_is_shown() -> None:
    kinds = {spec.model_fields["kind"].annotation.__args__[0] for spec in TeacherSpec.__origin__.__args__}
    teachers = [yaml.safe_load(b.text).get("teacher") for b in blocks("yaml") if b.page == "docs/teachers.md"]
    assert kinds == {line["kind"] for line in teachers if isinstance(line, dict)}


# Recipes of the guide, by the file name in their first line ---------------------------------------------------------------


def recipe_name(block: Block) -> str:
    """``mine/student.yaml`` of ``# mine/student.yaml: …``."""
    found = re.match(r"# (\S+\.yaml)\b", block.text)
    assert found, f"{block.id}: expected the file's name as a comment in the first line of a whole recipe"
    return found[1]


def write_recipes(block: Block, folder: Path) -> None:
    """All recipes of the block's page, so that one can extend another."""
    for other in blocks("yaml"):
        if other.page == block.page and re.match(r"# (\S+\.yaml)\b", other.text):
            path = folder / recipe_name(other)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(other.text, encoding="utf-8")
