"""Whether a teacher's tokens and a student's are the same, and what can be done where they are not.

Dimension legend: B utterances, T frames, V tokens, K kept entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from asrkd.types import Hypothesis, TeacherTargets, TopK, Vocabulary

Relation = Literal["same", "permuted", "contained", "different"]

SPECIAL = frozenset(
    {"<unk>", "<s>", "</s>", "<pad>", "[UNK]", "[PAD]", "[CLS]", "[SEP]", "<sos>", "<eos>", "<bos>", "<sos/eos>"}
)
"""Tokens that no transcript is made of; a teacher's may be left out where the student has none like it."""


@dataclass(frozen=True)
class Match:
    """How a teacher's tokens stand to a student's.

    Args:
        relation: ``same`` ids; ``permuted``: the same tokens, other ids; ``contained``: every token of the teacher that text
            is made of is one of the student's; ``different``.
        student_ids: For each id of the teacher the student's, or -1 for marks that the student has not; ``None`` where
            ``different``.
        reason: One line for people: what is possible, and why no more.
    """

    relation: Relation
    student_ids: tuple[int, ...] | None
    reason: str


def match(teacher: Vocabulary, student: Vocabulary) -> Match:
    """Compare identity of tokens and order, never just the size.

    The blank is the blank under any name, and ``|``, ``▁`` and a plain space are one word separator.

    Args:
        teacher: Of the targets.
        student: Of the model to be trained.
    """
    if teacher.identity == student.identity:
        return Match(
            "same", tuple(range(len(teacher))), "frame level and sequence level: the same tokens in the same order"
        )
    ours = {_plain(student, i): i for i in range(len(student))}
    ids = tuple(ours.get(_plain(teacher, i), -1) for i in range(len(teacher)))
    missing = [teacher.tokens[i] for i, own in enumerate(ids) if own < 0 and teacher.tokens[i] not in SPECIAL]
    if missing or len(set(ids) - {-1}) < 2:
        shown = ", ".join(map(repr, missing[:5])) + (" …" if len(missing) > 5 else "")
        return Match(
            "different",
            None,
            f"sequence level through text, frame level through time-aligned text: the student has no {shown or 'token'} "
            f"({len(missing)} of the teacher's {len(teacher)} tokens)",
        )
    if -1 in ids or len(teacher) != len(student):
        return Match(
            "contained",
            ids,
            f"frame level and sequence level: the teacher's {len(teacher)} tokens are among the student's {len(student)}",
        )
    return Match("permuted", ids, "frame level and sequence level: the same tokens in another order")


def renumber(targets: TeacherTargets, student: Vocabulary, found: Match) -> TeacherTargets:
    """Targets in the student's ids.

    Posteriors get no mass on tokens that only the student has; mass on marks that only the teacher has is taken away and the
    rest normalised. Decoder posteriors are renumbered alike.

    Args:
        targets: Of the teacher.
        student: Vocabulary of the student.
        found: What :func:`match` says of the two.

    Raises:
        ValueError: If they are ``different``.
    """
    if found.student_ids is None:
        raise ValueError(f"vocabulary: {found.reason}")
    if found.relation == "same":
        return targets
    ids = torch.tensor(found.student_ids)
    posteriors = targets.posteriors
    if isinstance(posteriors, TopK):
        posteriors = _renumber_topk(posteriors, ids, len(student))
    elif posteriors is not None:
        posteriors = replace(posteriors, values=_renumber_dense(posteriors.values, ids, len(student)))
    decoder, forced = targets.decoder, targets.decoder_tokens
    if decoder is not None:
        decoder = replace(decoder, values=_renumber_dense(decoder.values, ids, len(student)))
    if forced is not None:
        forced = (ids.to(forced[0].device)[forced[0]].clamp(min=0), forced[1])
    nbest = targets.nbest
    if nbest is not None:
        nbest = tuple(tuple(_renumber_hypothesis(h, found.student_ids) for h in one) for one in nbest)
    return TeacherTargets(student, posteriors, nbest, targets.hidden, decoder, forced)


def _plain(vocabulary: Vocabulary, token: int) -> str:
    if token == vocabulary.blank_id:
        return "\0blank"
    text = vocabulary.tokens[token]
    return "▁" if text in ("|", " ") else text


def _renumber_dense(log_probs: Tensor, ids: Tensor, vocab_size: int) -> Tensor:
    ids = ids.to(log_probs.device)
    known = ids >= 0
    result = log_probs.new_full((*log_probs.shape[:-1], vocab_size), -math.inf)
    result[..., ids[known]] = log_probs[..., known]
    return result if bool(known.all()) else result.log_softmax(-1)


def _renumber_topk(sparse: TopK, ids: Tensor, vocab_size: int) -> TopK:
    own = ids.to(sparse.ids.device)[sparse.ids]
    used = torch.isfinite(sparse.log_probs) & (own >= 0)
    log_probs = sparse.log_probs.masked_fill(~used, -math.inf)
    if bool((ids < 0).any()):
        log_z = torch.cat((log_probs, sparse.tail_log_prob.unsqueeze(-1)), -1).logsumexp(-1)
        valid = torch.isfinite(log_z)
        log_z = log_z.masked_fill(~valid, 0.0)
        tail = sparse.tail_log_prob - log_z
        log_probs = log_probs - log_z.unsqueeze(-1)
    else:
        tail = sparse.tail_log_prob
    return replace(
        sparse, ids=own.masked_fill(~used, 0), log_probs=log_probs, tail_log_prob=tail, vocab_size=vocab_size
    )


def _renumber_hypothesis(hypothesis: Hypothesis, ids: tuple[int, ...]) -> Hypothesis:
    kept = [place for place, token in enumerate(hypothesis.tokens) if ids[token] >= 0]
    times, sure = hypothesis.times_s, hypothesis.confidences
    return replace(
        hypothesis,
        tokens=tuple(ids[hypothesis.tokens[place]] for place in kept),
        times_s=None if times is None else tuple(times[place] for place in kept),
        confidences=None if sure is None else tuple(sure[place] for place in kept),
    )
