"""The guide, walked from top to bottom: its recipes with small models, its commands as they stand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lhotse import CutSet

from tests.docs.blocks import ROOT, blocks

GUIDE = "docs/guide.md"
SMALL = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4}
PARTS = {"train": "dev", "dev": "test-other", "test": "test-clean"}


def make_recordings(folder: Path, corpus: Path) -> None:
    """The tables that the guide begins with, of the small synthetic corpus."""
    (folder / "audio").mkdir(parents=True)
    for part, source in PARTS.items():
        rows = ["audio\ttext\tspeaker"]
        for cut in list(CutSet.from_file(corpus / f"cuts_{source}.jsonl.gz"))[:12]:
            audio = Path(cut.recording.sources[0].source)
            shutil.copy(audio, folder / "audio" / audio.name)
            rows.append(f"audio/{audio.name}\t{cut.supervisions[0].text}\t{cut.supervisions[0].speaker}")
        (folder / f"{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_small_recipes(folder: Path) -> None:
    """The guide's recipes, with models and schedules for a corpus of a minute."""
    for block in blocks("yaml"):
        if block.page == GUIDE:
            content = yaml.safe_load(block.text)
            if "model" in content:
                content["model"] = {"kind": content["model"]["kind"], **SMALL}
                content["model"] |= {"decoder_layers": 1} if content["name"] == "teacher" else {"chunk_frames": 16}
                content["data"] |= {"max_duration_s": 10, "buckets": 2}
                content["training"] |= {"epochs": 1, "average": 1}
            if "size" in content.get("tokenizer", {}):
                content["tokenizer"]["size"] = 40
            path = folder / block.text.split(maxsplit=2)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(content), encoding="utf-8")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_guide_can_be_walked(tmp_path: Path, prepared: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    make_recordings(tmp_path / "recordings", prepared)
    write_small_recipes(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = [line for block in blocks("") if block.page == GUIDE for line in block.text.splitlines()]
    assert len(lines) > 12
    for line in lines:
        if line.startswith("asrkd "):
            words = [sys.executable, "-m", *line.split()]
            answer = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert answer.returncode == 0, f"{line}\n{answer.stderr[-2000:]}"
    assert (tmp_path / "mine" / "report" / "report.html").is_file()
    assert (tmp_path / "mine" / "report" / "distilled" / "metrics.json").is_file()
