"""Frame KL from the encoder output and the head's weight: the full logits are never made. Legend as in ``frame.py``.

The idea of fusing the output layer with its loss is that of Wijmans et al. 2024 (Cut Your Losses) and of the Liger kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asrkd.losses.clock import Events, on_student_clock
from asrkd.losses.frame import BlankPolicy, Divergence, Pooling, Selection, check_options, shifted
from asrkd.losses.reduction import check_logits, reduce, working
from asrkd.losses.rows import Measure, Pairs, chunk_rows, divergence_rows
from asrkd.losses.stored import stored_divergence
from asrkd.types import Frames, TopK

LINEAR_ROWS = 192  # rows of logits that exist at a time: enough for the matrix products to run at full speed


def linear_frame_kl(
    encoded: Tensor,
    lengths: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: Frames | TopK,
    *,
    blank_id: int,
    student_frame_shift_s: float,
    temperature: float = 1.0,
    divergence: Divergence = "forward",
    blank: BlankPolicy = "keep",
    blank_threshold: float = 0.95,
    blank_weight: float = 1.0,
    select: Selection = "all",
    neighbourhood_frames: int = 1,
    delay_ms: float = 0.0,
    pooling: Pooling = "spikes",
    reduction: str = "sum",
) -> Tensor:
    """:func:`asrkd.losses.frame.frame_kl` of ``encoded @ weight.T + bias``, with the gradients of all three made on the way.

    Args:
        encoded: ``(B, T, D)`` encoder output.
        lengths: ``(B,)`` frames.
        weight: ``(V, D)`` of the output layer.
        bias: ``(V,)`` or ``None``.
        teacher: As in ``frame_kl``; so are the options, but that ``window`` would need the logits and is not offered.
        reduction: ``sum`` in nats or ``mean`` by frames left in.

    Raises:
        ValueError: For shapes, lengths, frame shifts or options that do not fit.
    """
    check_options(locals())
    if weight.ndim != 2 or encoded.ndim != 3 or weight.shape[1] != encoded.shape[2]:
        raise ValueError(f"weight: expected (V, D = {encoded.shape[-1]}), found shape {tuple(weight.shape)}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction: expected sum or mean; found {reduction!r}")
    check_logits(encoded, lengths, None)
    if not 0 <= blank_id < weight.shape[0]:
        raise ValueError(f"blank_id: expected 0 to {weight.shape[0] - 1}, found {blank_id}")
    events = on_student_clock(teacher, weight.shape[0], blank_id, student_frame_shift_s, pooling)
    chosen = events.chosen(blank, blank_threshold, select, neighbourhood_frames)
    pairs = shifted(chosen, lengths, round(delay_ms / 1000 / student_frame_shift_s))
    measure = Measure(divergence, temperature, blank_id if blank == "decouple" else None, blank_weight)
    with torch.autocast(encoded.device.type, enabled=False):
        total: Tensor = _LinearDivergence.apply(  # type: ignore[no-untyped-call]
            encoded, weight, bias, events, pairs, measure, blank_id
        )
    return reduce(total.unsqueeze(0), pairs.mask.sum().unsqueeze(0), "mean" if reduction == "mean" else "sum")


class _LinearDivergence(torch.autograd.Function):
    """The sum over all pairs; gradients of encoder output, weight and bias are made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        encoded: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        events: Events,
        pairs: Pairs,
        measure: Measure,
        blank_id: int,
    ) -> Tensor:
        kept = pairs.mask.flatten()
        offsets = torch.arange(encoded.shape[0], device=encoded.device).unsqueeze(1) * encoded.shape[1]
        teacher_rows = kept.nonzero().squeeze(1)
        student_rows = (pairs.student_frames + offsets).flatten()[teacher_rows]
        inputs = encoded.reshape(-1, encoded.shape[2])
        for_encoded = torch.zeros_like(inputs)
        for_weight = torch.zeros_like(weight)
        for_bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        total = torch.zeros((), dtype=working(encoded[:0]).dtype, device=encoded.device)
        for of_teacher, of_student in zip(
            torch.split(teacher_rows, LINEAR_ROWS), torch.split(student_rows, LINEAR_ROWS), strict=True
        ):
            x = inputs[of_student]
            logits = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
            losses, made = _chunk(working(logits), events, of_teacher, measure, blank_id)
            total += losses
            made = made.to(weight.dtype)
            for_encoded[of_student] = (made @ weight).to(encoded.dtype)
            for_weight.addmm_(made.T, x)
            for_bias += made.sum(0)
            del logits, made  # or they would live beside the next chunk's
        ctx.has_bias = bias is not None
        ctx.save_for_backward(for_encoded.view(encoded.shape), for_weight, for_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        for_encoded, for_weight, for_bias = ctx.saved_tensors
        if grad.device.type != "cpu" or not bool(grad == 1):
            # In place, so that no second copies are made; autograd's version check refuses a second backward.
            for made in (for_encoded, for_weight, for_bias):
                made.mul_(grad.to(made.dtype))
        return for_encoded, for_weight, for_bias if ctx.has_bias else None, None, None, None, None


def _chunk(logits: Tensor, events: Events, rows: Tensor, measure: Measure, blank_id: int) -> tuple[Tensor, Tensor]:
    """Summed divergence of ``(n, V)`` logits from the teacher's rows, and its gradient."""
    everything = events.log_probs.reshape(-1, events.log_probs.shape[2])
    if events.ids is None:
        made = torch.empty_like(logits)
        total = logits.new_zeros(())
        for part in _parts(logits):
            targets = working(everything[rows[part]]).to(logits.dtype)
            total += divergence_rows(logits[part], targets, measure, made[part]).sum()
        return total, made
    targets, ids = everything[rows], events.ids.reshape(-1, events.ids.shape[2])[rows]
    blanks = events.blank_log_prob.flatten()[rows]
    one = Events(targets.unsqueeze(0), ids.unsqueeze(0), blanks.unsqueeze(0), events.lengths[:1])
    frames = torch.arange(len(rows), device=rows.device).unsqueeze(0)
    pairs = Pairs(torch.ones_like(frames, dtype=torch.bool), frames)
    with torch.enable_grad():
        leaf = logits.unsqueeze(0).requires_grad_()
        loss = stored_divergence(leaf, one, pairs, measure, blank_id).sum()
        (made,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), made.squeeze(0)


def _parts(logits: Tensor) -> list[slice]:
    size = chunk_rows(logits.shape[1], logits.device)
    return [slice(start, start + size) for start in range(0, logits.shape[0], size)]
