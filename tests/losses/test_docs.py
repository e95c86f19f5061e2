"""Every example of docs/losses.md runs, and the page names every loss of the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asrkd.losses import LOSSES

PAGE = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## ([^\n]*)$|^```python\n(.*?)^```", PAGE, flags=re.M | re.S)


def examples() -> list[object]:
    title, found = "", []
    for heading, code in EXAMPLES:
        if heading:
            title = heading
        else:
            found.append(pytest.param(code, id=title))
    return found


@pytest.mark.parametrize("code", examples())
def test_example_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "transformers" in code:
        pytest.importorskip("transformers")
    exec(compile(code, "docs/losses.md", "exec"), {"__name__": "example"})


def test_there_are_examples_for_other_code() -> None:
    assert {"speechbrain", "Wav2Vec2ForCTC", "rnnt"} <= {
        w for code in examples() for w in re.findall(r"\w+", str(code))
    }


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE
