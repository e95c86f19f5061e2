"""Distillation of an attention decoder under teacher forcing. Legend: B utterances, N hypotheses, M of all, U labels, V tokens.

Sources: Kim & Rush 2016 (word-level and sequence-level); Hinton et al. 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asrkd.losses.frame import check_choices
from asrkd.losses.reduction import Reduction, check_log_probs, check_logits, reduce, valid_frames
from asrkd.losses.rows import DenseDivergence, Measure, Pairs
from asrkd.losses.sequence import list_weights
from asrkd.losses.supervised import attention_ce
from asrkd.types import NBest


def decoder_kl(
    decoder_logits: Tensor,
    row_lengths: Tensor,
    teacher_log_probs: Tensor,
    *,
    temperature: float = 1.0,
    divergence: Literal["forward", "reverse", "js"] = "forward",
    reduction: Reduction = "sum",
) -> Tensor:
    """Token divergence of two decoders forced on the same labels: ``τ² Σ_u KL(p_T^τ(u) ‖ p_S^τ(u))``.

    Args:
        decoder_logits: ``(B, U+1, V)`` of the student; row u predicts label u, the last valid row the end of sentence.
        row_lengths: ``(B,)`` valid rows (labels + 1).
        teacher_log_probs: ``(B, U+1, V)`` of the teacher; longer or shorter padding is fine.
        temperature: τ.
        divergence: ``forward`` KL(T‖S), ``reverse`` KL(S‖T), ``js``.
        reduction: ``sum`` in nats, ``mean`` by rows, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes or options that do not fit.
    """
    check_choices({"divergence": divergence, "temperature": temperature})
    check_logits(decoder_logits, row_lengths)
    shared = min(decoder_logits.shape[1], teacher_log_probs.shape[1])
    teacher = teacher_log_probs[:, :shared].detach()
    check_log_probs(teacher, row_lengths, decoder_logits.shape[2])
    mask = valid_frames(row_lengths, shared)
    pairs = Pairs(mask, torch.arange(shared, device=mask.device).expand(mask.shape))
    if not torch.is_grad_enabled():
        decoder_logits = decoder_logits.detach()
    with torch.autocast(decoder_logits.device.type, enabled=False):
        per_utterance = DenseDivergence.apply(  # type: ignore[no-untyped-call]
            decoder_logits, teacher, pairs, Measure(divergence, temperature)
        )
    return reduce(per_utterance, mask.sum(1), reduction)


def nbest_attention(
    decode: Callable[[Tensor, Tensor, Tensor], Tensor],
    nbest: Sequence[NBest],
    *,
    end_id: int,
    device: torch.device,
    sequence_temperature: float = 1.0,
    max_hypotheses: int | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Cross-entropy of the decoder on the teacher's list: ``Σ_n w_n · CE(y_n)``, ``w = softmax(score / τ_seq)``.

    Args:
        decode: ``(rows (M,), tokens (M, U), lengths (M,)) -> (M, U+1, V)`` logits of the student's decoder for utterance
            ``rows[m]`` forced on its hypothesis; the encoder output is the caller's and used as it is.
        nbest: For each utterance the teacher's hypotheses in the student's token ids; an empty list adds nothing.
        end_id: Id of the end of sentence.
        device: Of the decoder.
        sequence_temperature: τ_seq.
        max_hypotheses: Take only so many of each list.
        label_smoothing: Share of the target spread evenly over V; off by default, the list is soft already.
        reduction: ``sum`` in nats, ``mean`` by utterances with a list, ``none`` for ``(B,)``.

    Raises:
        ValueError: For options that do not fit.
    """
    lists = [hypotheses[:max_hypotheses] for hypotheses in nbest]
    weights = list_weights(lists, sequence_temperature, device)
    flat = [(row, place, h.tokens) for row, lst in enumerate(lists) for place, h in enumerate(lst)]
    if not flat:
        return reduce(torch.zeros(len(lists), device=device), torch.zeros(len(lists), device=device), reduction)
    longest = max([1, *(len(tokens) for _, _, tokens in flat)])
    rows = torch.tensor([row for row, _, _ in flat], device=device)
    places = torch.tensor([place for _, place, _ in flat], device=device)
    tokens = torch.tensor([[*t, *[0] * (longest - len(t))] for _, _, t in flat], dtype=torch.long, device=device)
    lengths = torch.tensor([len(t) for _, _, t in flat], device=device)
    losses = attention_ce(
        decode(rows, tokens, lengths),
        tokens,
        lengths,
        end_id=end_id,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    weighted = losses * weights[rows, places].to(losses.dtype)
    per_utterance = losses.new_zeros(len(lists)).index_add(0, rows, weighted)
    has_list = torch.tensor([int(len(lst) > 0) for lst in lists], device=device)
    return reduce(per_utterance, has_list, reduction)


class DecoderKL(nn.Module):
    """Module form of :func:`decoder_kl`."""

    def __init__(self, temperature: float = 1.0, reduction: Reduction = "sum") -> None:
        super().__init__()
        self.temperature = temperature
        self.reduction: Reduction = reduction

    def forward(self, decoder_logits: Tensor, row_lengths: Tensor, teacher_log_probs: Tensor) -> Tensor:
        """See :func:`decoder_kl`."""
        return decoder_kl(
            decoder_logits, row_lengths, teacher_log_probs, temperature=self.temperature, reduction=self.reduction
        )
