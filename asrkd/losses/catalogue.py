"""Every loss by the name that recipes use, with what it needs, its options and its source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asrkd.losses.frame import frame_kl
from asrkd.losses.inputs import LossInputs
from asrkd.losses.sequence import nbest_ctc
from asrkd.losses.supervised import attention_ce, ctc, labelled_only

Term = tuple[Tensor, float]
"""A sum over the batch in nats, and what it runs over (frames, labels or utterances)."""


@dataclass(frozen=True)
class LossSpec:
    """One line of the catalogue.

    Args:
        compute: ``(inputs, **options) -> (sum, count)``.
        function: The pure function that does the work; its keyword arguments are the options.
        needs: What must be in :class:`LossInputs`: ``tokens``, ``decoder_logits``, ``targets.posteriors``, ``targets.nbest``,
            ``hidden:NAME``, ``other_view``, ...
        summary: One line.
        source: Paper.
    """

    compute: Callable[..., Term]
    function: Callable[..., Tensor]
    needs: frozenset[str]
    summary: str
    source: str
    own: frozenset[str] = frozenset({"blank_id", "student_frame_shift_s", "reduction", "end_id"})

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of what a recipe may set."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in self.own}


def _ctc(inputs: LossInputs, **options: Any) -> Term:
    logits, tokens, lengths = inputs.ctc_logits, inputs.tokens, inputs.token_lengths
    assert logits is not None and tokens is not None and lengths is not None
    losses = ctc(
        logits.values,
        logits.lengths,
        tokens,
        lengths,
        blank_id=inputs.vocabulary.blank_id,
        reduction="none",
        **options,
    )
    return labelled_only(losses, inputs.labelled).sum(), _labels(inputs)


def _attention_ce(inputs: LossInputs, **options: Any) -> Term:
    assert inputs.decoder_logits is not None and inputs.tokens is not None and inputs.token_lengths is not None
    losses = attention_ce(
        inputs.decoder_logits,
        inputs.tokens,
        inputs.token_lengths,
        end_id=inputs.vocabulary.tokens.index("</s>"),
        reduction="none",
        **options,
    )
    return labelled_only(losses, inputs.labelled).sum(), _labels(inputs)


def _labels(inputs: LossInputs) -> float:
    assert inputs.token_lengths is not None
    lengths = inputs.token_lengths if inputs.labelled is None else inputs.token_lengths[inputs.labelled]
    return float(lengths.sum())


def _frame_kl(inputs: LossInputs, **options: Any) -> Term:
    logits, targets = inputs.ctc_logits, inputs.targets
    assert logits is not None and targets is not None and targets.posteriors is not None
    total = frame_kl(
        logits.values,
        logits.lengths,
        targets.posteriors,
        blank_id=inputs.vocabulary.blank_id,
        student_frame_shift_s=logits.frame_shift_s,
        **options,
    )
    return total, float(logits.lengths.sum())


def _nbest_ctc(inputs: LossInputs, **options: Any) -> Term:
    logits, targets = inputs.ctc_logits, inputs.targets
    assert logits is not None and targets is not None and targets.nbest is not None
    total = nbest_ctc(logits.values, logits.lengths, targets.nbest, blank_id=inputs.vocabulary.blank_id, **options)
    return total, float(sum(len(h[0].tokens) for h in targets.nbest if h))


LOSSES: dict[str, LossSpec] = {
    "ctc": LossSpec(_ctc, ctc, frozenset({"tokens"}), "CTC on the reference", "Graves et al. 2006"),
    "attention_ce": LossSpec(
        _attention_ce,
        attention_ce,
        frozenset({"tokens", "decoder_logits"}),
        "cross-entropy of the attention decoder on the reference",
        "Chorowski et al. 2015",
    ),
    "frame_kl": LossSpec(
        _frame_kl,
        frame_kl,
        frozenset({"targets.posteriors"}),
        "divergence from the teacher's frame posteriors, with temperature, blank policy and delay",
        "Hinton et al. 2015; Li et al. 2014",
    ),
    "nbest_ctc": LossSpec(
        _nbest_ctc,
        nbest_ctc,
        frozenset({"targets.nbest"}),
        "CTC on the teacher's N-best list, weighted by its scores",
        "Kim & Rush 2016; Takashima et al. 2018",
    ),
}


def zero(inputs: LossInputs) -> Tensor:
    """A differentiable zero on the batch's device."""
    if inputs.ctc_logits is not None:
        return 0.0 * inputs.ctc_logits.values.float().sum()
    return torch.zeros(())
