"""Every loss by the name that recipes use, with what it needs, its options and its source."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrkd.losses import alignment, attention, consistency, delay, frame, hidden, mvq, sequence, supervised, transducer
from asrkd.losses import entries as entry
from asrkd.losses.inputs import LossInputs


class _Required:
    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()
"""Default of an option that a recipe must give."""

GIVEN = frozenset({"blank_id", "student_frame_shift_s", "reduction", "end_id", "device"})
"""Keywords of the loss functions that the batch gives, not the recipe."""

LAYERS: Mapping[str, Any] = {"student_layer": REQUIRED, "teacher_layer": REQUIRED}
PROJECTED: Mapping[str, Any] = {**LAYERS, "student_dim": None, "teacher_dim": None}
CODES: Mapping[str, Any] = {**LAYERS, "student_dim": REQUIRED, "num_codebooks": REQUIRED, "codebook_size": 256}

RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (1e-6, 1e6),
    "sequence_temperature": (1e-6, 1e6),
    "blank_threshold": (1e-6, 1),
    "label_smoothing": (0, 0.999),
    "max_hypotheses": (1, 1e6),
    "heads": (1, 1e6),
    "student_dim": (1, 1e6),
    "teacher_dim": (1, 1e6),
    "num_codebooks": (1, 1e6),
    "codebook_size": (2, 256),
}
"""Smallest and largest value of options; numbers not named here may be 0 or more."""


def _no_head(options: Mapping[str, Any]) -> nn.Module | None:
    return None


def _projection(options: Mapping[str, Any]) -> nn.Module | None:
    """A learned map from the student's width to the teacher's, where a recipe names both."""
    if options.get("student_dim") is None or options.get("teacher_dim") is None:
        return None
    return nn.Linear(options["student_dim"], options["teacher_dim"])


def _code_head(options: Mapping[str, Any]) -> nn.Module | None:
    return nn.Linear(options["student_dim"], options["num_codebooks"] * options.get("codebook_size", 256))


@dataclass(frozen=True)
class LossSpec:
    """One line of the catalogue.

    Args:
        compute: ``(inputs, **options) -> (sum, count)``; with a head also ``head=``.
        function: The pure function that does the work; its keyword arguments are the options.
        needs: What must be in :class:`LossInputs`: ``tokens``, ``ctc_logits``, ``decoder_logits``, ``decode``,
            ``transducer_logits``, ``targets.posteriors``, ``targets.nbest``, ``targets.decoder``, ``targets.lattice``,
            ``other_view``, ``other_view.full_context``.
        summary: One line.
        source: Paper.
        more_options: Options that the function itself does not have, with their defaults.
        head: Makes the learned part of the loss from its options, or ``None``.
    """

    compute: entry.Entry
    function: Callable[..., Tensor]
    needs: frozenset[str]
    summary: str
    source: str
    more_options: Mapping[str, Any] = field(default_factory=dict)
    head: Callable[[Mapping[str, Any]], nn.Module | None] = _no_head

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of what a recipe may set; ``REQUIRED`` for what it must."""
        parameters = inspect.signature(self.function).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in GIVEN}
        return {**self.more_options, **own}

    def choices(self, option: str) -> tuple[str, ...]:
        """The names that an option may take; empty if it is no choice."""
        if option == "transcript":
            return ("reference", "hypothesis")
        hint = typing.get_type_hints(self.function).get(option)
        return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()

    def needs_of(self, options: Mapping[str, Any]) -> frozenset[str]:
        """What must be in the inputs under these options; layers as ``hidden:NAME`` and ``targets.hidden:NAME``."""
        more = set()
        if "student_layer" in self.more_options:
            more = {f"hidden:{options['student_layer']}", f"targets.hidden:{options['teacher_layer']}"}
        if "transcript" in self.more_options:
            more = {"targets.nbest" if options.get("transcript") == "hypothesis" else "tokens"}
        return self.needs | more


def missing(inputs: LossInputs, needs: frozenset[str]) -> list[str]:
    """Which of ``needs`` the inputs lack."""
    targets = inputs.targets
    there = {
        "tokens": inputs.tokens is not None and inputs.token_lengths is not None,
        "encoded": inputs.encoded is not None,
        "ctc_logits": inputs.ctc_logits is not None,
        "decoder_logits": inputs.decoder_logits is not None,
        "decode": inputs.decode is not None,
        "other_view": inputs.other_view is not None,
        "other_view.full_context": inputs.other_view is not None,
        "transducer_logits": inputs.transducer_logits is not None,
        "targets.posteriors": targets is not None and targets.posteriors is not None,
        "targets.nbest": targets is not None and targets.nbest is not None,
        "targets.decoder": targets is not None and targets.decoder is not None,
        "targets.lattice": targets is not None and targets.lattice is not None,
    }
    there |= {f"hidden:{name}": True for name in inputs.hidden}
    there |= {f"targets.hidden:{name}": True for name in (targets.hidden if targets is not None else ())}
    return sorted(need for need in needs if not there.get(need, False))


def zero(inputs: LossInputs) -> Tensor:
    """A differentiable zero on the batch's device."""
    for frames in (inputs.ctc_logits, inputs.encoded):
        if frames is not None:
            return frames.values[:0].float().sum()
    return torch.zeros(())


def _spec(
    compute: entry.Entry, function: Callable[..., Tensor], needs: str, summary: str, source: str, **more: Any
) -> LossSpec:
    return LossSpec(compute, function, frozenset(needs.split()), summary, source, **more)


def _hidden(function: Callable[..., Tensor], summary: str, source: str, projected: bool = False) -> LossSpec:
    compute = entry.hidden_pair(function)
    if projected:
        return _spec(compute, function, "", summary, source, more_options=PROJECTED, head=_projection)
    return _spec(compute, function, "", summary, source, more_options=LAYERS)


LOSSES: dict[str, LossSpec] = {
    "ctc": _spec(
        entry.supervised_ctc, supervised.ctc, "ctc_logits tokens", "CTC on the reference", "Graves et al. 2006"
    ),
    "attention_ce": _spec(
        entry.supervised_attention,
        supervised.attention_ce,
        "tokens decoder_logits",
        "cross-entropy of the attention decoder on the reference",
        "Chorowski et al. 2015",
    ),
    "rnnt": _spec(
        entry.transducer,
        transducer.rnnt,
        "tokens transducer_logits",
        "RNN-T on the reference; FastEmit favours early labels",
        "Graves 2012; Yu et al. 2021 (2010.11148)",
    ),
    "delay_penalised_ctc": _spec(
        entry.penalised_ctc,
        delay.delay_penalised_ctc,
        "ctc_logits tokens",
        "CTC whose alignments gain by emitting early, in place of ctc",
        "Yao et al. 2023",
    ),
    "frame_kl": _spec(
        entry.teacher_frames,
        frame.frame_kl,
        "ctc_logits targets.posteriors",
        "divergence from the teacher's frame posteriors, with temperature, blank policy and delay",
        "Hinton et al. 2015; Li et al. 2014",
    ),
    "alignment_kl": _spec(
        entry.teacher_alignment,
        alignment.alignment_kl,
        "ctc_logits targets.posteriors",
        "frame KL from the teacher's alignment of the reference or of its own hypothesis",
        "Graves et al. 2006; after Senior et al. 2015",
        more_options={"transcript": "reference"},
    ),
    "guided_ctc": _spec(
        entry.teacher_guide,
        alignment.guided_ctc,
        "ctc_logits targets.posteriors",
        "student spikes stand where the teacher's do",
        "Kurata & Saon 2019, 2020",
    ),
    "hypothesis_ctc": _spec(
        entry.teacher_list(sequence.hypothesis_ctc),
        sequence.hypothesis_ctc,
        "ctc_logits targets.nbest",
        "CTC on the teacher's best transcript",
        "Kim & Rush 2016",
    ),
    "nbest_ctc": _spec(
        entry.teacher_list(sequence.nbest_ctc),
        sequence.nbest_ctc,
        "ctc_logits targets.nbest",
        "CTC on the teacher's N-best list, weighted by its scores",
        "Kim & Rush 2016; Takashima et al. 2018",
    ),
    "listwise_kl": _spec(
        entry.teacher_list(sequence.listwise_kl),
        sequence.listwise_kl,
        "ctc_logits targets.nbest",
        "KL between both models' posteriors over the teacher's N-best list",
        "Huang et al. 2018",
    ),
    "mwer": _spec(
        entry.teacher_list_risk,
        sequence.mwer,
        "ctc_logits tokens targets.nbest",
        "expected token errors over the teacher's N-best list",
        "Prabhavalkar et al. 2018",
    ),
    "nbest_attention": _spec(
        entry.teacher_list_attention,
        attention.nbest_attention,
        "decode targets.nbest",
        "attention decoder on the teacher's N-best list, weighted by its scores",
        "Kim & Rush 2016",
    ),
    "decoder_kl": _spec(
        entry.teacher_decoder,
        attention.decoder_kl,
        "decode targets.decoder",
        "token KL between the attention decoders on the same labels",
        "Kim & Rush 2016",
    ),
    "dual_mode": _spec(
        entry.full_context,
        consistency.dual_mode,
        "ctc_logits other_view.full_context",
        "the same weights with full context teach the streaming mode",
        "Yu et al. 2021",
    ),
    "consistency": _spec(
        entry.two_views,
        consistency.consistency,
        "ctc_logits other_view",
        "symmetric KL between two augmented views",
        "Yao et al. 2025 (CR-CTC)",
    ),
    "other_view_ctc": _spec(
        entry.other_view_ctc,
        supervised.ctc,
        "ctc_logits tokens other_view",
        "CTC on the reference of the second view, beside dual_mode or consistency",
        "Yu et al. 2021; Yao et al. 2025",
    ),
    "hidden_mse": _hidden(hidden.hidden_mse, "squared difference of a hidden layer", "Romero et al. 2015", True),
    "hidden_l1_cosine": _hidden(
        hidden.hidden_l1_cosine, "L1 and cosine distance of a hidden layer", "Chang et al. 2022 (DistilHuBERT)", True
    ),
    "hidden_cka": _hidden(hidden.hidden_cka, "centred kernel alignment of hidden layers", "Kornblith et al. 2019"),
    "similarity_preserving": _hidden(
        hidden.similarity_preserving, "similarities among the frames of an utterance", "Tung & Mori 2019"
    ),
    "relation_kl": _hidden(
        hidden.relation_kl, "softmax relations among the frames of an utterance", "Wang et al. 2020, 2021 (MiniLM)"
    ),
    "mvq": _spec(
        entry.codebooks,
        mvq.mvq,
        "",
        "prediction of the teacher's codebook indexes",
        "Guo et al. 2022",
        more_options=CODES,
        head=_code_head,
    ),
    "collapsed_kl": _spec(
        entry.transducer_collapsed,
        transducer.collapsed_kl,
        "tokens transducer_logits targets.lattice",
        "KL over label, blank and rest at each node of the transducer's lattice",
        "Panchapagesan et al. 2021",
    ),
    "one_best_kl": _spec(
        entry.transducer_one_best,
        transducer.one_best_kl,
        "tokens transducer_logits targets.lattice",
        "full KL along the teacher's best path through the transducer's lattice",
        "Yang et al. 2022",
    ),
}
