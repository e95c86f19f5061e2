"""``asrkd evaluate`` and ``asrkd compare`` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from asrkd.data.text import train_tokenizer
from asrkd.models import package

SIZE = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4}


def asrkd(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "asrkd", *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two random students; the first by its recipe."""
    folder = tmp_path_factory.mktemp("results")
    cuts = CutSet.from_file(prepared / "cuts_test-clean.jsonl.gz")
    tokenizer = train_tokenizer([s.text for cut in cuts for s in cut.supervisions], kind="char")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = package.build({"kind": "streaming_conformer", **SIZE, "chunk_frames": 8}, tokenizer)
        package.save(model, folder / name / "package", licence="Apache-2.0")
    recipe = {
        "name": "one",
        "workdir": str(folder),
        "output": "one",
        "data": {"train": ["none.jsonl.gz"]},
        "model": {"kind": "streaming_conformer", **SIZE},
        "losses": [{"loss": "ctc"}],
        "evaluate": {"parts": [str(prepared / "cuts_test-clean.jsonl.gz")]},
    }
    (folder / "one.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    out = folder / "evaluation"
    of_recipe = asrkd("evaluate", str(folder / "one.yaml"), "--out", str(out / "one"), "--no-speed", "--name", "one")
    assert of_recipe.returncode == 0, of_recipe.stderr
    data = ["--data", str(prepared / "test-clean")]
    assert (
        asrkd("evaluate", str(folder / "two/package"), *data, "--out", str(out / "two"), "--no-speed").returncode == 0
    )
    return out


def test_a_recipe_stands_for_its_package_and_test_sets(results: Path) -> None:
    made = {path.name for path in (results / "one").iterdir()}
    assert made >= {"result.json", "utterances.jsonl", "report.md", "report.html", "metrics.json"}
    (row,) = json.loads((results / "one" / "metrics.json").read_text())["rows"]
    assert row["name"] == "one" and list(row["wer"]) == ["test-clean"]


def test_a_folder_of_results_stands_for_all(results: Path, tmp_path: Path) -> None:
    answer = asrkd("compare", str(results), "--no-tests", "--out", str(tmp_path / "all"))
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert [row["name"] for row in metrics["rows"]] == ["one", "package"] and metrics["comparisons"] == []
    assert "MB on disk" in (tmp_path / "all" / "report.html").read_text()


def test_two_results_are_tested_and_can_be_heard(results: Path, prepared: Path, tmp_path: Path) -> None:
    words = [str(results / "one"), str(results / "two"), "--data", str(prepared / "test-clean"), "--out", str(tmp_path)]
    answer = asrkd("compare", *words)
    assert answer.returncode == 0, answer.stderr
    assert "MAPSSWE" in answer.stderr
    assert "data:audio" in (tmp_path / "report.html").read_text()


def test_without_a_test_set_it_says_so(results: Path) -> None:
    answer = asrkd("evaluate", str(results.parent / "two" / "package"))
    assert answer.returncode == 2 and "--data: expected at least one test set" in answer.stderr
