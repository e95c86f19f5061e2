"""Transducer losses. Legend: B utterances, T frames, U labels, V tokens; node (t, u) has emitted u labels by frame t.

Sources: Graves 2012 (RNN-T); Panchapagesan et al. 2021 (collapsed lattice); Yang et al. 2022 (one-best path); Yu et al. 2021
(FastEmit, 2010.11148).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkd.losses.clock import FLOOR, Events
from asrkd.losses.reduction import Reduction, reduce, valid_frames, working
from asrkd.losses.rows import DenseDivergence, Measure, Pairs
from asrkd.losses.stored import kept_log_probs, stored_divergence
from asrkd.losses.supervised import check_tokens

_NEVER = -1e9  # score of a path that does not exist; finite, so that gradients are


def rnnt(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    *,
    blank_id: int,
    fastemit: float = 0.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """RNN-T: ``-log p(tokens | logits)`` summed over all alignments.

    Only the two columns that each node reads (label next, blank) enter the lattice. FastEmit scales the gradient that
    flows into label emissions by ``1 + λ`` and leaves blank's, so that labels come earlier; the value is that of RNN-T.

    Args:
        logits: ``(B, T, U+1, V)`` of the joint network.
        lengths: ``(B,)`` frames, at least 1.
        tokens: ``(B, U)`` labels.
        token_lengths: ``(B,)``.
        blank_id: Of the vocabulary.
        fastemit: λ.
        reduction: ``sum`` in nats, ``mean`` by labels, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths or ids that do not fit.
    """
    _check(logits, lengths, tokens, token_lengths, blank_id)
    if fastemit < 0:
        raise ValueError(f"fastemit: expected 0 or more, found {fastemit}")
    events = _label_and_blank(logits, lengths, tokens, token_lengths, blank_id)
    losses: Tensor = _LatticeLoss.apply(events, lengths, token_lengths, fastemit)  # type: ignore[no-untyped-call]
    return reduce(losses, token_lengths, reduction)


def collapsed(logits: Tensor, tokens: Tensor, token_lengths: Tensor, *, blank_id: int) -> Tensor:
    """``(B, T, U+1, 3)`` log-probabilities of {label next, blank, rest}: all of a transducer teacher that need be kept.

    Args:
        logits: ``(B, T, U+1, V)`` of the teacher's joint network.
        tokens: ``(B, U)`` labels.
        token_lengths: ``(B,)``; where no label is left, its probability is part of the rest.
        blank_id: Of the vocabulary.
    """
    log_probs = working(logits.detach()).log_softmax(-1)
    ids = _node_ids(logits, tokens, blank_id)
    kept = log_probs.gather(3, ids)
    has_label = _has_label(logits, token_lengths)
    label = torch.where(has_label, kept[..., 0], FLOOR)
    named = torch.logaddexp(label, kept[..., 1]).exp().clamp(max=1 - torch.finfo(log_probs.dtype).eps)
    return torch.stack((label, kept[..., 1], torch.log1p(-named)), -1).clamp(min=FLOOR)


def collapsed_kl(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    teacher: Tensor,
    *,
    blank_id: int,
    temperature: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Collapsed lattice: ``Σ_{t,u} KL`` over {label next, blank, rest} instead of all V tokens.

    Args:
        logits: ``(B, T, U+1, V)`` of the student's joint network.
        lengths: ``(B,)`` frames.
        tokens: ``(B, U)`` labels.
        token_lengths: ``(B,)``.
        teacher: ``(B, T, U+1, 3)`` from :func:`collapsed`, at the student's frame shift.
        blank_id: Of the vocabulary.
        temperature: τ, on the three events of both sides; the loss is scaled by τ².
        reduction: ``sum`` in nats, ``mean`` by nodes, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths or ids that do not fit.
    """
    _check(logits, lengths, tokens, token_lengths, blank_id)
    if teacher.shape != (*logits.shape[:3], 3):
        raise ValueError(f"teacher: expected shape {(*logits.shape[:3], 3)}, found {tuple(teacher.shape)}")
    nodes = _nodes(logits, lengths, token_lengths)
    flat = logits.flatten(1, 2)
    pairs = Pairs(nodes.flatten(1), torch.arange(flat.shape[1], device=flat.device).expand(flat.shape[:2]))
    targets = working(teacher.detach()).clamp(min=FLOOR).flatten(1, 2)
    ids = _node_ids(logits, tokens, blank_id).flatten(1, 2)
    events = Events(targets, ids, targets[..., 1], lengths)
    losses = stored_divergence(flat, events, pairs, Measure(temperature=temperature), blank_id)
    return reduce(losses.sum(1), nodes.sum((1, 2)), reduction)


def one_best_kl(
    logits: Tensor,
    lengths: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    teacher_logits: Tensor,
    *,
    blank_id: int,
    temperature: float = 1.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Full KL over V tokens, only at the T + U nodes of the teacher's likeliest alignment.

    Args:
        logits: ``(B, T, U+1, V)`` of the student's joint network.
        lengths: ``(B,)`` frames.
        tokens: ``(B, U)`` labels.
        token_lengths: ``(B,)``.
        teacher_logits: ``(B, T, U+1, V)`` of the teacher's, at the student's frame shift.
        blank_id: Of the vocabulary.
        temperature: τ.
        reduction: ``sum`` in nats, ``mean`` by nodes of the paths, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes, lengths or ids that do not fit.
    """
    _check(logits, lengths, tokens, token_lengths, blank_id)
    if teacher_logits.shape != logits.shape:
        raise ValueError(f"teacher_logits: expected {tuple(logits.shape)}, found {tuple(teacher_logits.shape)}")
    path = best_path(teacher_logits, lengths, tokens, token_lengths, blank_id=blank_id)
    flat = logits.flatten(1, 2)
    pairs = Pairs(path.flatten(1), torch.arange(flat.shape[1], device=flat.device).expand(flat.shape[:2]))
    teacher = working(teacher_logits.detach()).log_softmax(-1).flatten(1, 2)
    with torch.autocast(logits.device.type, enabled=False):
        per_utterance = DenseDivergence.apply(  # type: ignore[no-untyped-call]
            flat, teacher, pairs, Measure(temperature=temperature)
        )
    return reduce(per_utterance, path.sum((1, 2)), reduction)


def best_path(logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, *, blank_id: int) -> Tensor:
    """``(B, T, U+1)`` bool: the nodes of the likeliest alignment.

    Args:
        logits: ``(B, T, U+1, V)``.
        lengths: ``(B,)`` frames.
        tokens: ``(B, U)`` labels.
        token_lengths: ``(B,)``.
        blank_id: Of the vocabulary.
    """
    with torch.no_grad():
        events = _label_and_blank(logits, lengths, tokens, token_lengths, blank_id)
    # The gradient of the best score is 1 on the arcs of the best path and 0 elsewhere.
    with torch.enable_grad():
        leaf = events.requires_grad_()
        scores = _path_scores(leaf, lengths, token_lengths, best=True)
        (arcs,) = torch.autograd.grad(scores.sum(), leaf)
    return arcs.sum(-1) > 0.5


class _LatticeLoss(torch.autograd.Function):
    """RNN-T losses ``(B,)`` by ``(B, T, U+1, 2)`` label and blank log-probabilities; label gradients scaled by 1 + λ."""

    @staticmethod
    def forward(ctx: Any, events: Tensor, lengths: Tensor, token_lengths: Tensor, fastemit: float) -> Tensor:
        with torch.enable_grad():
            leaf = events.detach().requires_grad_()
            losses = -_path_scores(leaf, lengths, token_lengths, best=False)
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        ctx.save_for_backward(gradient * gradient.new_tensor([1 + fastemit, 1.0]))
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad.view(-1, 1, 1, 1), None, None, None


def _label_and_blank(logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, blank_id: int) -> Tensor:
    """``(B, T, U+1, 2)`` log-probabilities of the next label and of blank; arcs that do not exist never happen."""
    flat = logits.flatten(1, 2)
    nodes = _nodes(logits, lengths, token_lengths)
    frames = torch.arange(flat.shape[1], device=flat.device).expand(flat.shape[:2])
    ids = _node_ids(logits, tokens, blank_id)
    used = nodes.unsqueeze(3).expand(ids.shape)
    kept = kept_log_probs(flat, ids.flatten(1, 2), used.flatten(1, 2), Pairs(nodes.flatten(1), frames)).view(ids.shape)
    exists = torch.stack((_has_label(logits, token_lengths), torch.ones_like(nodes)), 3) & nodes.unsqueeze(3)
    return torch.where(exists, kept, _NEVER)


def _path_scores(events: Tensor, lengths: Tensor, token_lengths: Tensor, best: bool) -> Tensor:
    """``(B,)`` log of the sum (or the largest) of all path weights, diagonal by diagonal.

    Node (t, u) lies on diagonal n = t + u and is reached from (t - 1, u) by blank and from (t, u - 1) by label u.
    """
    _, num_frames, num_states, _ = events.shape
    labels, blanks = (_skewed(events[..., kind]) for kind in (0, 1))  # (B, T + U, U + 1) by (n, u)
    alpha = torch.full_like(labels[:, 0], _NEVER)
    alpha = torch.where(torch.arange(num_states, device=alpha.device) == 0, 0.0, alpha)
    diagonals = [alpha]
    for n in range(1, num_frames + num_states - 1):
        stay = alpha + blanks[:, n - 1]
        move = F.pad((alpha + labels[:, n - 1])[:, :-1], (1, 0), value=_NEVER)
        alpha = torch.maximum(stay, move) if best else torch.logaddexp(stay, move)
        diagonals.append(alpha)
    rows, last = torch.arange(len(events), device=events.device), lengths - 1 + token_lengths
    return torch.stack(diagonals, 1)[rows, last, token_lengths] + blanks[rows, last, token_lengths]


def _skewed(values: Tensor) -> Tensor:
    """``(B, T, U+1)`` by (t, u) to ``(B, T+U, U+1)`` by (t + u, u); what lies outside never happens."""
    _, num_frames, num_states = values.shape
    n = torch.arange(num_frames + num_states - 1, device=values.device).unsqueeze(1)
    t = n - torch.arange(num_states, device=values.device)
    picked = values.gather(1, t.clamp(0, num_frames - 1).expand(len(values), -1, -1))
    return torch.where((t >= 0) & (t < num_frames), picked, _NEVER)


def _node_ids(logits: Tensor, tokens: Tensor, blank_id: int) -> Tensor:
    """``(B, T, U+1, 2)`` ids of the next label (0 where there is none) and of blank."""
    inside = (tokens >= 0) & (tokens < logits.shape[3])
    labels = F.pad(torch.where(inside, tokens, 0), (0, 1))
    ids = torch.stack((labels, torch.full_like(labels, blank_id)), 2)
    return ids.unsqueeze(1).expand(-1, logits.shape[1], -1, -1)


def _has_label(logits: Tensor, token_lengths: Tensor) -> Tensor:
    """``(B, T, U+1)`` bool."""
    return valid_frames(token_lengths, logits.shape[2]).unsqueeze(1).expand(logits.shape[:3])


def _nodes(logits: Tensor, lengths: Tensor, token_lengths: Tensor) -> Tensor:
    """``(B, T, U+1)`` bool: t < T_b and u <= U_b."""
    frames = valid_frames(lengths, logits.shape[1]).unsqueeze(2)
    return frames & valid_frames(token_lengths + 1, logits.shape[2]).unsqueeze(1)


def _check(logits: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor, blank_id: int) -> None:
    if logits.ndim != 4 or logits.shape[2] != tokens.shape[1] + 1:
        raise ValueError(f"logits: expected (B, T, U+1 = {tokens.shape[1] + 1}, V), found shape {tuple(logits.shape)}")
    if not 0 <= blank_id < logits.shape[3]:
        raise ValueError(f"blank_id: expected 0 to {logits.shape[3] - 1}, found {blank_id}")
    if lengths.shape != logits.shape[:1]:
        raise ValueError(f"lengths: expected shape ({logits.shape[0]},), found {tuple(lengths.shape)}")
    if lengths.device.type == "cpu" and lengths.numel():
        if int(lengths.max()) > logits.shape[1]:
            raise ValueError(f"lengths: expected at most T = {logits.shape[1]}, found {int(lengths.max())}")
        if int(lengths.min()) < 1:
            raise ValueError(f"lengths: expected at least 1 frame, found {int(lengths.min())}")
    check_tokens(tokens, token_lengths, logits.shape[0], logits.shape[3], blank_id)
