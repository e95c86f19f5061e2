"""Resumed = uninterrupted after a real kill -9, two ranks = one rank at the same global batch, and torchrun starts lost ranks anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

RECIPE = """
name: tiny
workdir: {workdir}
output: {output}
data: {{train: [{corpus}/cuts_train.jsonl.gz], valid: [{corpus}/cuts_dev.jsonl.gz], max_duration_s: {batch_s}, buckets: 3}}
tokenizer: {{kind: char}}
model: {{kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4, dropout: {dropout}}}
losses: [{{loss: ctc}}]
augment: {{noise: {{probability: 0.5}}}}
training: {{epochs: 2, average: 1, accumulate: {accumulate}, chunk_frames: [4, 8], checkpoint_every_steps: 3}}
"""


def write_recipe(folder: Path, corpus: Path, output: str, *, accumulate: int = 1, dropout: float = 0.1) -> Path:
    text = RECIPE.format(
        workdir=folder, output=output, corpus=corpus, batch_s=12, accumulate=accumulate, dropout=dropout
    )
    path = folder / f"{output}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def command(recipe: Path) -> list[str]:
    return [sys.executable, "-m", "asrkd", "train", str(recipe), "--device", "cpu"]


def weights(folder: Path, output: str) -> dict[str, torch.Tensor]:
    return load_file(folder / output / "package" / "model.safetensors")


def log_lines(folder: Path, output: str) -> list[dict[str, object]]:
    path = folder / output / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in line.items() if k not in ("audio_s_per_s", "data_wait_share")} for line in lines]


def on_two_ranks(recipe: Path, *options: str) -> list[str]:
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options, "-m", "asrkd"]
    return [sys.executable, *ranks, *command(recipe)[3:]]


def test_resumed_after_kill_equals_uninterrupted(tmp_path: Path, prepared: Path) -> None:
    whole = write_recipe(tmp_path, prepared, "whole")
    subprocess.run(command(whole), check=True, capture_output=True)

    broken = write_recipe(tmp_path, prepared, "broken")
    checkpoints = tmp_path / "broken" / "checkpoints"
    run = subprocess.Popen(command(broken), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Killed as soon as there is something to resume from: in the middle of the first epoch.
    while not list(checkpoints.glob("CKPT*")):
        assert run.poll() is None, "the run ended before it could be killed"
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "broken" / "package").exists()
    subprocess.run(command(broken), check=True, capture_output=True)

    expected, found = weights(tmp_path, "whole"), weights(tmp_path, "broken")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    assert [(line["kind"], line["step"]) for line in log_lines(tmp_path, "whole")] == [
        (line["kind"], line["step"]) for line in log_lines(tmp_path, "broken")
    ]


def test_the_same_command_again_skips(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared, "once")
    subprocess.run([*command(recipe), "training.epochs=1"], check=True, capture_output=True)
    before = (tmp_path / "once" / "package" / "config.json").stat().st_mtime_ns
    again = subprocess.run([*command(recipe), "training.epochs=1"], check=True, capture_output=True, text=True)
    assert "already there" in again.stdout
    assert (tmp_path / "once" / "package" / "config.json").stat().st_mtime_ns == before
    other = subprocess.run([*command(recipe), "training.epochs=1", "seed=9"], capture_output=True, text=True)
    assert other.returncode == 2 and "seed" in other.stderr and other.stderr.count("\n") == 1


def test_two_at_once_are_refused(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared, "both")
    (tmp_path / "both").mkdir()
    with FileLock(tmp_path / "both" / ".lock"):
        answer = subprocess.run(command(recipe), capture_output=True, text=True)
    assert answer.returncode == 2 and "another process is training here" in answer.stderr
    assert not (tmp_path / "both" / "package").exists()


def test_two_ranks_equal_one(tmp_path: Path, prepared: Path) -> None:
    """Two ranks with one micro-batch each make the steps of one process that accumulates two."""
    one = write_recipe(tmp_path, prepared, "one", accumulate=2, dropout=0.1)
    subprocess.run(command(one), check=True, capture_output=True)
    two = write_recipe(tmp_path, prepared, "two", accumulate=1, dropout=0.1)
    answer = subprocess.run(on_two_ranks(two), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    expected, found = weights(tmp_path, "one"), weights(tmp_path, "two")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_without_development_data_the_last_epochs_make_the_package(tmp_path: Path, prepared: Path) -> None:
    recipe = write_recipe(tmp_path, prepared, "blind")
    answer = subprocess.run([*command(recipe), "data.valid=[]"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads((tmp_path / "blind" / "package" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["best_valid_wer"] is None and metrics["optimiser_steps"] > 10
    last = max((tmp_path / "blind" / "checkpoints").glob("CKPT*"), key=lambda folder: folder.stat().st_mtime_ns)
    expected, found = torch.load(last / "model.ckpt", weights_only=True), weights(tmp_path, "blind")
    assert found.keys() <= expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_is_started_anew_and_the_result_is_the_same(tmp_path: Path, prepared: Path, lost: int) -> None:
    """``torchrun --max-restarts``: one rank gets SIGKILL in the middle of an epoch, and nobody else does anything."""
    whole = write_recipe(tmp_path, prepared, "whole")
    answer = subprocess.run(on_two_ranks(whole), capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]

    broken = write_recipe(tmp_path, prepared, "broken")
    with (tmp_path / "errors").open("w+") as errors:
        environment = {**os.environ, "ASRKD_LOG": "INFO"}  # says what is loaded
        command_line = on_two_ranks(broken, "--max-restarts=1")
        run = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        while not list((tmp_path / "broken" / "checkpoints").glob("CKPT*")):
            assert run.poll() is None, "the run ended before a rank could be killed"
        ranks = [c for c in psutil.Process(run.pid).children() if c.environ().get("RANK") == str(lost)]
        assert len(ranks) == 1
        ranks[0].kill()
        assert not (tmp_path / "broken" / "package").exists()
        status = run.wait()
    told = (tmp_path / "errors").read_text(encoding="utf-8")
    assert status == 0, told[-3000:]
    assert "exitcode: -9" in told and "Loading a checkpoint from" in told  # lost, and continued rather than begun again

    expected, found = weights(tmp_path, "whole"), weights(tmp_path, "broken")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert [(line["kind"], line["step"]) for line in log_lines(tmp_path, "whole")] == [
        (line["kind"], line["step"]) for line in log_lines(tmp_path, "broken")
    ]


@pytest.mark.parametrize("content", ["", "nothing: here\n"])
def test_a_broken_recipe_is_exit_code_2(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content, encoding="utf-8")
    answer = subprocess.run(command(path), capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.startswith("asrkd: ") and "Traceback" not in answer.stderr
