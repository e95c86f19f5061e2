"""The weighted sum of named loss terms with schedules over the steps of a run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asrkd.losses.catalogue import LOSSES, RANGES, REQUIRED, LossSpec, missing, zero
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

    @property
    def needs(self) -> frozenset[str]:
        """What must be in the inputs."""
        return self.spec.needs_of(self.options)

    def weight_at(self, step: int) -> float:
        """The weight at optimiser step ``step``."""
        return self.weight * self.schedule.factor(step)


@dataclass(frozen=True)
class TermValue:
    """What a term gave: its sum (detached), the count of what it runs over, and the weight it went in with."""

    sum: Tensor
    count: float | Tensor
    weight: float


@dataclass(frozen=True)
class ObjectiveOutput:
    """``total`` to call backward on, and each term for the log."""

    total: Tensor
    terms: dict[str, TermValue]


class Objective(nn.Module):
    """``total = Σ_i w_i(step) · sum_i / normaliser``.

    Every term is a sum over the batch and all are divided once, by one number that the caller knows for the *global* batch
    (all ranks, all accumulated micro-batches); so the gradient does not depend on how the batch is cut up.

    Terms with a learned part (a projection, a codebook head) keep it in ``heads``: whoever trains with such terms optimises
    and saves the objective's parameters beside the model's. Without such terms there are none.

    Args:
        terms: With different names.
    """

    def __init__(self, terms: Sequence[ObjectiveTerm]) -> None:
        super().__init__()
        self.terms = tuple(terms)
        made = {term.name.replace(".", "_"): term.spec.head(term.options) for term in self.terms}
        self.heads = nn.ModuleDict({name: head for name, head in made.items() if head is not None})

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
        return frozenset().union(*(term.needs for term in self.terms))

    def on_references_alone(self) -> Objective:
        """The terms that need neither teacher nor second view: what development data can be scored with."""
        alone = {"tokens", "ctc_logits", "decoder_logits", "decode", "transducer_logits"}
        return Objective([term for term in self.terms if term.needs <= alone])

    def forward(self, inputs: LossInputs, *, step: int, normaliser: float) -> ObjectiveOutput:
        """All terms over one micro-batch.

        Args:
            inputs: What the losses see.
            step: Optimiser step, 0 for the first.
            normaliser: Frames of the global batch.

        Returns:
            The total and the terms.

        Raises:
            ValueError: If the inputs lack what a term needs, or the teacher's vocabulary is another.
        """
        total, values = None, {}
        for term in self.terms:
            weight = term.weight_at(step)
            if weight == 0.0:
                continue
            loss, count = self._computed(term, inputs)
            part = loss * (weight / normaliser)
            total = part if total is None else total + part
            values[term.name] = TermValue(loss.detach(), count, weight)
        return ObjectiveOutput(zero(inputs) if total is None else total, values)

    def gradient_shares(self, inputs: LossInputs, *, step: int, by: Tensor) -> dict[str, float]:
        """How much of the gradient each term makes: its norm by ``by``, as a share of the sum of all terms' norms.

        The terms are computed anew, so that this costs about as much as a forward and backward pass through the losses; the
        graph below ``by`` is not touched.

        Args:
            inputs: What the losses see.
            step: Optimiser step, for the weights.
            by: What the gradients are taken by, say ``inputs.ctc_logits.values`` or a shared layer's output.
        """
        norms = {}
        for term in self.terms:
            weight = term.weight_at(step)
            if weight == 0.0:
                continue
            loss, _ = self._computed(term, inputs)
            (gradient,) = torch.autograd.grad(weight * loss, by, retain_graph=True, allow_unused=True)
            norms[term.name] = 0.0 if gradient is None else float(gradient.norm())
        total = sum(norms.values())
        return {name: norm / total if total > 0 else 0.0 for name, norm in norms.items()}

    def _computed(self, term: ObjectiveTerm, inputs: LossInputs) -> tuple[Tensor, float | Tensor]:
        if lacking := missing(inputs, term.needs):
            raise ValueError(f"{term.name}: expected {', '.join(lacking)} in the batch; found none")
        of_tokens = {"targets.posteriors", "targets.nbest", "targets.decoder", "targets.lattice"} & term.needs
        targets = inputs.targets
        if of_tokens and targets is not None and targets.vocabulary != inputs.vocabulary:
            raise ValueError(
                f"{term.name}: expected the teacher's vocabulary to be the student's ({len(inputs.vocabulary)} tokens, blank "
                f"{inputs.vocabulary.blank_id}); found another ({len(targets.vocabulary)} tokens, blank "
                f"{targets.vocabulary.blank_id})"
            )
        head = term.name.replace(".", "_")
        if head in self.heads:
            return term.spec.compute(inputs, head=self.heads[head], **term.options)
        return term.spec.compute(inputs, **term.options)


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
    options = {key: value for key, value in config.items() if key not in ("loss", "weight", "name", "schedule")}
    problems += _option_problems(loss, options)
    return problems + _schedule_problems(config.get("schedule"))


def _option_problems(loss: str, options: Mapping[str, Any]) -> list[str]:
    spec = LOSSES[loss]
    known = spec.options
    problems = [
        f"{key}: expected a value; found none" for key in known if known[key] is REQUIRED and key not in options
    ]
    for key, value in options.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(f"{key}: unknown option of {loss}{hint}; known: {', '.join(known) or 'none'}")
        elif choices := spec.choices(key):
            if value not in choices:
                problems.append(f"{key}: expected {', '.join(choices[:-1])} or {choices[-1]}; found {value!r}")
        elif key in ("student_layer", "teacher_layer"):
            if not isinstance(value, str):
                problems.append(f"{key}: expected a layer's name; found {value!r}")
        else:
            problems += _number_problems(key, value, whole=not isinstance(known[key], float), default=known[key])
    if not problems and options.get("window", "none") != "none":
        low, high = options.get("delay_ms", 0), options.get("max_delay_ms", 0)
        if high < low or high == 0:
            problems.append(f"max_delay_ms: expected more than 0 and at least delay_ms = {low:g}; found {high:g}")
    return problems


def _number_problems(key: str, value: Any, *, whole: bool, default: Any) -> list[str]:
    if value is None and default is None:
        return []
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return [f"{key}: expected {kind}; found {value!r}"]
    low, high = RANGES.get(key, (0, math.inf))
    if not low <= value <= high:
        return [f"{key}: expected {low:g} to {high:g}; found {value!r}"]
    return []


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
