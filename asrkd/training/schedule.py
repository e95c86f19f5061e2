"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

from asrkd.training.sections import OptimiserConfig


def learning_rate(config: OptimiserConfig, total_steps: int) -> Callable[[int], float]:
    """The rate at each optimiser step.

    Linear from 0 to ``peak_lr`` over ``warmup_steps`` (at most a third of the run, so that short runs peak too), then
    the named schedule down to ``final_share * peak_lr`` at ``total_steps``.

    Args:
        config: The recipe's optimiser part.
        total_steps: Optimiser steps of the whole run.

    Returns:
        A function of the step (0 for the first) that gives the rate.
    """
    warmup = min(config.warmup_steps, max(1, total_steps // 3)) if config.warmup_steps else 0

    def rate(step: int) -> float:
        if step < warmup:
            return config.peak_lr * (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        if config.schedule == "constant":
            share = 1.0
        elif config.schedule == "linear":
            share = 1.0 - done
        else:
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        return config.peak_lr * (config.final_share + (1.0 - config.final_share) * share)

    return rate
