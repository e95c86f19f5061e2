"""The weighted sum of named loss terms with schedules over the steps of a run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from asrkd.losses.catalogue import LOSSES, LossSpec, zero
from asrkd.losses.inputs import LossInputs

SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("to", "steps", "share"),
    "cosine": ("to", "steps", "share"),
    "off_after": ("steps", "share"),
}
"""Schedule kinds and their keys. ``share`` is a part of the whole run, ``steps`` a number of steps; give one of them."""


@dataclass(frozen=True)
class Schedule:
    """A factor on a term's weight: 1 at the start, on its way to ``to`` after ``steps``.

    Args:
        kind: A key of ``SCHEDULES``.
        to: Factor at the end of ``linear`` and ``cosine``.
        steps: Length in optimiser steps.
    """

    kind: str = "constant"
    to: float = 0.0
    steps: int = 1

    def factor(self, step: int) -> float:
        """The factor at optimiser step ``step`` (0 for the first)."""
        if self.kind == "constant":
            return 1.0
        done = min(1.0, step / max(1, self.steps))
        if self.kind == "off_after":
            return 1.0 if step < self.steps else 0.0
        if self.kind == "cosine":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return 1.0 + (self.to - 1.0) * done


@dataclass(frozen=True)
class ObjectiveTerm:
    """One term: a loss of the catalogue under a name, with a weight, a schedule and the loss's own options."""

    name: str
    spec: LossSpec
    weight: float = 1.0
    schedule: Schedule = Schedule()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TermValue:
    """What a term gave: its sum in nats (detached), its count, and the weight it went in with."""

    sum: Tensor
    count: float
    weight: float


@dataclass(frozen=True)
class ObjectiveOutput:
    """``total`` to call backward on, and each term for the log."""

    total: Tensor
    terms: dict[str, TermValue]


class Objective:
    """``total = Σ_i w_i(step) · sum_i / normaliser``.

    Every term is a sum over the batch and all are divided once, by one number that the caller knows for the *global* batch
    (all ranks, all accumulated micro-batches); so the gradient does not depend on how the batch is cut up.

    Args:
        terms: With different names.
    """

    def __init__(self, terms: Sequence[ObjectiveTerm]) -> None:
        self.terms = tuple(terms)

    @classmethod
    def from_config(cls, configs: Sequence[Mapping[str, Any]], *, total_steps: int) -> Objective:
        """From the ``losses`` part of a recipe.

        Args:
            configs: One mapping a term: ``loss`` (a key of ``LOSSES``), ``weight``, ``name``, ``schedule``, and the loss's options.
            total_steps: Of the run; what a schedule's ``share`` is a share of.

        Raises:
            ValueError: With every problem, one a line.
        """
        if problems := validate_terms(configs):
            raise ValueError("\n".join(problems))
        terms = []
        for config in configs:
            own = dict(config)
            loss, weight = own.pop("loss"), float(own.pop("weight", 1.0))
            name = str(own.pop("name", loss))
            schedule = dict(own.pop("schedule", None) or {"kind": "constant"})
            share = schedule.pop("share", None)
            if share is not None:
                schedule["steps"] = max(1, round(share * total_steps))
            terms.append(ObjectiveTerm(name, LOSSES[loss], weight, Schedule(**schedule), own))
        return cls(terms)

    @property
    def needs(self) -> frozenset[str]:
        """Everything that any term needs to be in the inputs."""
        return frozenset().union(*(term.spec.needs for term in self.terms))

    def on_references_alone(self) -> Objective:
        """The terms that need neither teacher nor second view: what development data can be scored with."""
        alone = {"tokens", "decoder_logits", "decode"}
        return Objective([term for term in self.terms if term.spec.needs <= alone])

    def __call__(self, inputs: LossInputs, *, step: int, normaliser: float) -> ObjectiveOutput:
        """All terms over one micro-batch.

        Args:
            inputs: What the losses see.
            step: Optimiser step, 0 for the first.
            normaliser: Frames of the global batch.

        Returns:
            The total and the terms.
        """
        total = zero(inputs)
        values = {}
        for term in self.terms:
            weight = term.weight * term.schedule.factor(step)
            if weight == 0.0:
                continue
            loss, count = term.spec.compute(inputs, **term.options)
            total = total + weight * loss / normaliser
            values[term.name] = TermValue(loss.detach(), count, weight)
        return ObjectiveOutput(total, values)


def validate_terms(configs: Sequence[Any]) -> list[str]:
    """What is wrong with the ``losses`` part of a recipe, one line each with its place; empty when nothing is."""
    problems, names = [], set()
    if not configs:
        return ["expected at least one term; found none"]
    for place, config in enumerate(configs):
        if not isinstance(config, Mapping):
            problems.append(f"{place}: expected a mapping with the key loss; found {config!r}")
            continue
        problems += [f"{place}.{line}" for line in _term_problems(config)]
        name = config.get("name", config.get("loss"))
        if name in names:
            problems.append(f"{place}.name: expected another than {name!r}, which an earlier term has")
        names.add(name)
    return problems


def _term_problems(config: Mapping[str, Any]) -> list[str]:
    loss = config.get("loss")
    if loss not in LOSSES:
        return [f"loss: expected one of {', '.join(sorted(LOSSES))}; found {loss!r}"]
    problems = []
    weight = config.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        problems.append(f"weight: expected a number of 0 or more; found {weight!r}")
    known = LOSSES[loss].options
    for key, value in config.items():
        if key in ("loss", "weight", "name", "schedule"):
            continue
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(f"{key}: unknown option of {loss}{hint}; known: {', '.join(known) or 'none'}")
        elif isinstance(known[key], int | float) and not isinstance(value, int | float):
            problems.append(f"{key}: expected a number; found {value!r}")
        elif isinstance(known[key], str) and not isinstance(value, str):
            problems.append(f"{key}: expected a name; found {value!r}")
    return problems + _schedule_problems(config.get("schedule"))


def _schedule_problems(schedule: Any) -> list[str]:
    if schedule is None:
        return []
    if not isinstance(schedule, Mapping) or schedule.get("kind") not in SCHEDULES:
        return [f"schedule.kind: expected one of {', '.join(SCHEDULES)}; found {schedule!r}"]
    known = SCHEDULES[schedule["kind"]]
    problems = [
        f"schedule.{key}: unknown key of {schedule['kind']}; known: {', '.join(known) or 'none'}"
        for key in schedule
        if key != "kind" and key not in known
    ]
    if "steps" in known and (("steps" in schedule) == ("share" in schedule)):
        problems.append("schedule: expected either steps or share; found both or neither")
    return problems
