"""The plan for thousands of hours against cases computed by hand, and its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tools.plan_scale import Assumptions, Measurements, cut_bytes, main, markdown, of_log, plan, read_measurements

# One device trains 900 audio seconds a second and labels 1800; a student of 10 M parameters; 1 kB a cut, 100 B a line.
MEASURED = Measurements(
    source="by hand",
    train_audio_s_per_s=900.0,
    label_audio_s_per_s=1800.0,
    student_parameters=10_000_000,
    train_memory_mb=20_000.0,
    label_memory_mb=30_000.0,
    host_bytes_per_utterance=1000.0,
    manifest_bytes_per_utterance=100.0,
)
ASSUMED = Assumptions(
    gpus=8, gpus_per_host=4, epochs=9, views=1, efficiency=0.5, gpu_hour_price=2.0, audio_mb_per_hour=60.0,
    targets_mb_per_hour=1.5, utterance_s=12.0, checkpoints=3,
)  # fmt: skip


def test_a_thousand_hours_by_hand() -> None:
    found = plan(MEASURED, ASSUMED, 1000)
    assert found.label_h == pytest.approx(1000 / 1800 / 8)  # 0.0694 h
    assert found.train_h == pytest.approx(2.5)  # 9000 h of audio at 900 × 8 × 0.5 = 3600 times real time
    assert found.gpu_hours == pytest.approx(8 * (2.5 + 1000 / 14400))
    assert found.cost == pytest.approx(2 * 8 * (2.5 + 1000 / 14400))
    assert found.audio_tb == pytest.approx(0.06) and found.targets_tb == pytest.approx(0.0015)
    assert found.manifests_tb == pytest.approx(30e-6)  # 300,000 utterances of 100 B
    assert found.checkpoints_tb == pytest.approx(400e-6)  # 10 M × (3 × 12 + 4) B
    assert found.device_memory_gb == pytest.approx(30.0)
    assert found.host_memory_gb == pytest.approx(1.2)  # 300,000 × 1 kB in each of 4 processes


def test_ten_million_hours_are_ten_thousand_times_as_much_and_views_count() -> None:
    small, large = plan(MEASURED, ASSUMED, 1000), plan(MEASURED, ASSUMED, 10_000_000)
    for name in ("label_h", "train_h", "gpu_hours", "cost", "audio_tb", "targets_tb", "manifests_tb", "host_memory_gb"):
        assert getattr(large, name) == pytest.approx(10_000 * getattr(small, name)), name
    assert large.checkpoints_tb == small.checkpoints_tb
    three = plan(MEASURED, Assumptions(**{**ASSUMED.__dict__, "views": 3}), 1000)
    assert three.train_h == pytest.approx(7.5) and three.targets_tb == pytest.approx(0.0045)
    assert three.audio_tb == small.audio_tb and three.manifests_tb == pytest.approx(small.manifests_tb)


def test_one_device_loses_nothing_to_others() -> None:
    assert plan(MEASURED, Assumptions(gpus=1, epochs=9, efficiency=0.5), 1000).train_h == pytest.approx(10)


def test_what_was_not_measured_is_not_made_up() -> None:
    found = plan(Measurements(train_audio_s_per_s=900.0), ASSUMED, 1000)
    assert found.label_h is found.gpu_hours is found.cost is found.host_memory_gb is found.checkpoints_tb is None
    text = markdown([found], Measurements(train_audio_s_per_s=900.0), [ASSUMED])
    assert "| labelling | – |" in text and "| training | 2.5 h (9 epochs) |" in text
    assert "not in the labelling time" not in text  # nothing is said of labelling at all


def test_every_assumption_is_printed_with_its_origin() -> None:
    text = markdown([plan(MEASURED, ASSUMED, 1000)], MEASURED, [ASSUMED])
    for name in ASSUMED.__dict__:
        assert f"- {name}: " in text
    assert "| cost | 41.1 |" in text and "not in the labelling time" in text


def test_a_training_log_gives_its_median_without_the_start(tmp_path: Path) -> None:
    speeds = [1.0, 500.0, 900.0, 700.0]
    records = [
        {"kind": "train", "step": i, "audio_s_per_s": s, "data_wait_share": 0.01 * i} for i, s in enumerate(speeds)
    ]
    records.insert(2, {"kind": "valid", "step": 1, "loss": 1.0})
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    found = of_log(path, MEASURED)
    assert found.train_audio_s_per_s == 700.0 and found.data_wait_share == pytest.approx(0.02)
    assert found.label_audio_s_per_s == 1800.0
    path.write_text(json.dumps(records[0]) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="at least two records"):
        of_log(path, MEASURED)


def test_a_cut_takes_kilobytes() -> None:
    """Found once by hand: about 2 kB; an order of magnitude more or less would be a fault of the measurement."""
    host, line = cut_bytes(500)
    assert 500 < host < 20_000 and 20 < line < host


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--train-rate", "900", "--label-rate", "1800", "--gpus", "8", "--efficiency", "0.5", "--epochs", "9"])
        == 0
    )
    table = capsys.readouterr().out
    assert "| 8 devices | 1,000 h | 100,000 h | 10,000,000 h |" in table
    assert "| training | 2.5 h (9 epochs) | 10.4 days (9 epochs) | 1,042 days (9 epochs) |" in table
    for wrong in (
        [],
        ["--train-rate", "0"],
        ["--train-rate", "9", "--epochs", "1", "2"],
        ["--log", str(tmp_path / "no")],
    ):
        assert main(wrong) == 2
        assert capsys.readouterr().err.startswith("plan_scale: ")


def test_measures_this_machine(tmp_path: Path, prepared: Path) -> None:
    small = (
        "{kind: streaming_conformer, d_model: 16, num_layers: 1, num_heads: 2, ffn_dim: 16, subsampling_channels: 4}"
    )
    teacher = f"name: teacher\nworkdir: {tmp_path}\noutput: teacher\ndata: {{train: [a]}}\nmodel: {small}\nlosses: [{{loss: ctc}}]\n"
    (tmp_path / "teacher.yaml").write_text(teacher, encoding="utf-8")
    student = teacher.replace("teacher", "student").replace("[{loss: ctc}]", "[{loss: frame_kl}]")
    student += "teacher: teacher/package\nteacher_recipes: [teacher.yaml]\ntargets: {folder: t, max_duration_s: 20}\n"
    student += "training: {epochs: 4, average: 2}\n"
    (tmp_path / "student.yaml").write_text(
        student.replace("train: [a]", "train: [a], max_duration_s: 20"), encoding="utf-8"
    )
    command = [
        sys.executable,
        str(ROOT / "tools" / "plan_scale.py"),
        "--measure",
        "student.yaml",
        "--save",
        "here.json",
    ]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    measured = read_measurements(tmp_path / "here.json")
    assert measured.train_audio_s_per_s and measured.label_audio_s_per_s and measured.student_parameters
    assert measured.label_audio_s_per_s > measured.train_audio_s_per_s
    assert "(4 epochs)" in answer.stdout and "- checkpoints: 3 " in answer.stdout and "student.yaml" in answer.stdout
