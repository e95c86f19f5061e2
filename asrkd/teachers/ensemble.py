"""Several teachers as one (Gao et al. 2021): one student, one store.

Dimension legend: M members, B utterances, T frames, V tokens.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal

import jiwer
import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.teachers.base import TEXT_ONLY, Teacher, confidence
from asrkd.teachers.vocabulary import Match, match, renumber
from asrkd.types import Frames, Hypothesis, NBest, SpeechBatch, TeacherTargets

Combine = Literal["mean", "log_mean", "best"]
Weighting = Literal["equal", "fixed", "confidence", "error"]


class Ensemble:
    """Members' posteriors brought together frame by frame, and their N-best lists transcript by transcript.

    - ``mean``: ``log Σ_m w_m p_m(v | t)``; ``log_mean``: ``Σ_m w_m log p_m(v | t)``, normalised; ``best``: the member with the
      largest weight, utterance by utterance.
    - Weights: ``equal``; ``fixed`` (given); ``confidence``: softmax over members of the mean log-probability of spoken frames,
      divided by ``temperature``; ``error``: softmax of the negative word error rate of each member's 1-best against the
      reference, divided by ``temperature`` (``confidence`` where an utterance has no reference).

    The first member's vocabulary is the ensemble's; the others' must hold the same tokens, in any order. Members' frame
    shifts may differ by whole factors: a faster one gives the frame with the least blank of each group, so that no spike is
    lost; the slowest sets the clock.

    With ``by_text`` members may be of any kind and any tokens: the ensemble gives lists of transcripts alone. Confidence is the
    score of a member's 1-best for each of its characters then.

    Args:
        members: At least two teachers.
        combine: See above.
        weighting: See above.
        weights: One for each member, for ``fixed``.
        temperature: Of ``confidence`` and ``error``; the smaller, the harder the choice.
        by_text: Bring transcripts together and nothing else.

    Raises:
        ValueError: If members or options do not fit together.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        *,
        combine: Combine = "mean",
        weighting: Weighting = "equal",
        weights: Sequence[float] | None = None,
        temperature: float = 0.1,
        by_text: bool = False,
    ) -> None:
        _check(members, combine, weighting, weights, temperature)
        self.members = tuple(members)
        self.combine = combine
        self.weighting = weighting
        self.temperature = temperature
        self._fixed = torch.ones(len(members)) if weights is None else torch.tensor(list(weights), dtype=torch.float32)
        self.by_text = by_text
        self.sample_rate_hz = max(member.sample_rate_hz for member in members)
        if by_text:
            self.vocabulary, self.frame_shift_s = TEXT_ONLY, 0.0
        else:
            self.vocabulary = members[0].vocabulary
            self.frame_shift_s = max(member.frame_shift_s for member in members)
            self._matches = [self._checked(place, member) for place, member in enumerate(members)]
        options = f"{combine} {weighting} {self._fixed.tolist()} {temperature}" + " by text" * by_text
        text = " ".join([options, *(member.identity for member in members)])
        self.identity = hashlib.sha256(text.encode()).hexdigest()

    def _checked(self, place: int, member: Teacher) -> Match:
        found = match(member.vocabulary, self.vocabulary)
        if found.relation not in ("same", "permuted"):
            raise ValueError(
                f"members.{place}: expected the tokens of members.0 (or by_text: true, for transcripts alone); {found.reason}"
            )
        _factor(member.frame_shift_s, self.frame_shift_s, f"members.{place}")
        return found

    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """Every member is asked; hidden states are the first member's.

        Raises:
            ValueError: If transcripts are to be brought together and a member gives none.
        """
        if self.by_text:
            return self._transcripts(batch)
        said = [
            renumber(member(batch).to("cpu"), self.vocabulary, found)
            for member, found in zip(self.members, self._matches, strict=True)
        ]
        weights = self._weights(said, batch)
        posteriors = None
        if all(isinstance(one.posteriors, Frames) for one in said):
            posteriors = self._together([one.posteriors for one in said], weights)  # type: ignore[misc]
        nbest = None
        if all(one.nbest is not None for one in said):
            nbest = tuple(
                _merged([one.nbest[row] for one in said], weights[:, row].tolist(), self.combine)  # type: ignore[index]
                for row in range(len(batch.ids))
            )
        return TeacherTargets(self.vocabulary, posteriors, nbest, said[0].hidden)

    def _transcripts(self, batch: SpeechBatch) -> TeacherTargets:
        said = []
        for place, member in enumerate(self.members):
            nbest = member(batch).nbest
            if nbest is None:
                raise ValueError(f"members.{place}: expected N-best lists, to bring transcripts together; found none")
            plain = tuple(tuple(Hypothesis((), h.text, h.score) for h in one) for one in nbest)
            said.append(TeacherTargets(TEXT_ONLY, None, plain))
        weights = self._weights(said, batch)
        lists = [one.nbest for one in said if one.nbest is not None]
        rows = range(len(batch.ids))
        merged = tuple(_merged([one[row] for one in lists], weights[:, row].tolist(), self.combine) for row in rows)
        return TeacherTargets(TEXT_ONLY, None, merged)

    def _weights(self, said: Sequence[TeacherTargets], batch: SpeechBatch) -> Tensor:
        """``(M, B)``, each column a distribution over members."""
        if self.weighting in ("equal", "fixed"):
            return (self._fixed / self._fixed.sum()).unsqueeze(1).expand(-1, len(batch.ids))
        scores = torch.stack([self._confidences(one) for one in said])
        if self.weighting == "error":
            for row, reference in enumerate(batch.texts):
                if reference.strip():
                    scores[:, row] = torch.tensor([-_error(reference, _best(one, row).text) for one in said])
        # A member that hears nothing but blank is sure of silence, and no better than the others at it.
        return (scores.clamp(min=-1e4) / self.temperature).softmax(0)

    def _confidences(self, targets: TeacherTargets) -> Tensor:
        if isinstance(targets.posteriors, Frames):
            return confidence(targets.posteriors, self.vocabulary.blank_id)
        if targets.nbest is None:
            raise ValueError("weighting: confidence needs posteriors or N-best lists of every member")
        best = [_best(targets, row) for row in range(len(targets.nbest))]
        return torch.tensor([one.score / max(1, len(one.text)) for one in best])

    def _together(self, posteriors: Sequence[Frames], weights: Tensor) -> Frames:
        blank = self.vocabulary.blank_id
        same_clock = [on_slower_clock(one, self.frame_shift_s, blank) for one in posteriors]
        lengths = torch.stack([one.lengths for one in same_clock]).amin(0)
        frames = int(lengths.max())
        values = torch.stack([one.values[:, :frames].float() for one in same_clock])  # (M, B, T, V)
        if self.combine == "best":
            chosen = weights.argmax(0)
            return Frames(values[chosen, torch.arange(values.shape[1])], lengths, self.frame_shift_s)
        log_weights = weights.clamp(min=1e-30).log()[:, :, None, None]
        if self.combine == "mean":
            return Frames((values + log_weights).logsumexp(0), lengths, self.frame_shift_s)
        product = (values.clamp(min=-1e4) * weights[:, :, None, None]).sum(0)
        return Frames(product.log_softmax(-1), lengths, self.frame_shift_s)


def on_slower_clock(posteriors: Frames, frame_shift_s: float, blank_id: int) -> Frames:
    """Of each group of frames the one with the least blank, which carries the spike.

    Args:
        posteriors: ``(B, T, V)`` log-probabilities.
        frame_shift_s: A whole multiple of theirs.
        blank_id: Of their vocabulary.

    Raises:
        ValueError: If it is none.
    """
    factor = _factor(posteriors.frame_shift_s, frame_shift_s, "posteriors")
    if factor == 1:
        return posteriors
    batch, frames, vocab_size = posteriors.values.shape
    groups = -(-frames // factor)
    padded = F.pad(posteriors.values, (0, 0, 0, groups * factor - frames))
    beyond = torch.arange(groups * factor, device=padded.device) >= posteriors.lengths[:, None]
    blank = padded[..., blank_id].masked_fill(beyond, math.inf).view(batch, groups, factor)
    place = blank.argmin(2) + torch.arange(groups, device=padded.device) * factor
    values = padded.gather(1, place.unsqueeze(-1).expand(-1, -1, vocab_size))
    return Frames(values, -(-posteriors.lengths // factor), frame_shift_s)


def _factor(own_s: float, wanted_s: float, name: str) -> int:
    if own_s == wanted_s:
        return 1
    factor = round(wanted_s / own_s) if own_s else 0
    if factor < 1 or abs(wanted_s / own_s - factor) > 1e-6:
        raise ValueError(f"{name}: frame shift: expected a whole part of {wanted_s:g} s, found {own_s:g} s")
    return factor


def _merged(lists: Sequence[NBest], weights: Sequence[float], combine: Combine) -> NBest:
    """Transcripts of all members; each member's list is a distribution, and its weight what it counts."""
    if combine == "best":
        return lists[max(range(len(lists)), key=weights.__getitem__)]
    total: dict[str, float] = {}
    first: dict[str, Hypothesis] = {}
    for nbest, weight in zip(lists, weights, strict=True):
        shares = torch.tensor([h.score for h in nbest], dtype=torch.float64).softmax(0).tolist()
        for hypothesis, share in zip(nbest, shares, strict=True):
            first.setdefault(hypothesis.text, hypothesis)
            total[hypothesis.text] = total.get(hypothesis.text, 0.0) + weight * share
    order = sorted(total, key=lambda text: -total[text])[: max(map(len, lists))]
    return tuple(
        Hypothesis(h.tokens, h.text, math.log(max(total[h.text], 1e-300)), h.times_s, h.confidences)
        for h in (first[text] for text in order)
    )


def _best(targets: TeacherTargets, row: int) -> Hypothesis:
    """Of an utterance; nothing said where its list is empty."""
    assert targets.nbest is not None
    return targets.nbest[row][0] if targets.nbest[row] else Hypothesis((), "", -math.inf)


def _error(reference: str, hypothesis: str) -> float:
    return float(jiwer.wer(reference, hypothesis))


def _check(
    members: Sequence[Teacher], combine: str, weighting: str, weights: Sequence[float] | None, temperature: float
) -> None:
    if len(members) < 2:
        raise ValueError(f"members: expected at least 2, found {len(members)}")
    if combine not in ("mean", "log_mean", "best"):
        raise ValueError(f"combine: expected mean, log_mean or best; found {combine!r}")
    if weighting not in ("equal", "fixed", "confidence", "error"):
        raise ValueError(f"weighting: expected equal, fixed, confidence or error; found {weighting!r}")
    if (weights is not None) != (weighting == "fixed"):
        raise ValueError(f"weights: expected with weighting fixed and only then; found weighting {weighting}")
    if weights is not None and (len(weights) != len(members) or min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(f"weights: expected {len(members)} numbers of 0 or more, found {list(weights)}")
    if combine == "best" and weighting == "equal":
        raise ValueError("combine: best needs weighting fixed, confidence or error; found equal")
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, found {temperature}")
