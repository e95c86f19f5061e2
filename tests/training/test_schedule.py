"""The learning rate is a pure function of the step."""

from __future__ import annotations

import pytest

from asrkd.training.schedule import learning_rate
from asrkd.training.sections import OptimiserConfig


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warms_up_peaks_and_ends(schedule: str) -> None:
    rate = learning_rate(OptimiserConfig(peak_lr=1.0, warmup_steps=10, schedule=schedule, final_share=0.1), 110)
    assert rate(0) == pytest.approx(0.1) and rate(9) == pytest.approx(1.0) and rate(10) == pytest.approx(1.0)
    assert rate(110) == pytest.approx(1.0 if schedule == "constant" else 0.1)
    assert all(rate(s + 1) <= rate(s) + 1e-12 for s in range(10, 109))
    assert rate(10_000) == rate(110)


def test_short_runs_peak_too() -> None:
    rate = learning_rate(OptimiserConfig(peak_lr=1.0, warmup_steps=500), 9)
    assert max(rate(s) for s in range(9)) == pytest.approx(1.0)


def test_no_warm_up() -> None:
    assert learning_rate(OptimiserConfig(peak_lr=1.0, warmup_steps=0), 10)(0) == pytest.approx(1.0)
