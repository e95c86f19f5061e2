"""Second pass: N-best lists of the CTC search rescored by an attention decoder.

Dimension legend: N hypotheses, U labels, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asrkd.decoding.ctc import DecodedTokens


@torch.no_grad()
def rescore(
    nbest: Sequence[DecodedTokens],
    decoder_logits: Callable[[Tensor, Tensor], Tensor],
    end_id: int,
    attention_weight: float,
    device: torch.device | str = "cpu",
) -> tuple[DecodedTokens, ...]:
    """Order hypotheses by ``(1 - w) * log p_ctc + w * log p_attention`` (Zhang et al. 2020, section 2.2).

    Args:
        nbest: Hypotheses of one utterance; ``score`` is log p_ctc.
        decoder_logits: From tokens ``(N, U)`` and lengths ``(N,)`` to logits ``(N, U+1, V)`` under teacher forcing.
        end_id: Id of ``</s>``.
        attention_weight: w, from 0 (CTC alone) to 1.
        device: Of the tensors that ``decoder_logits`` is given.

    Returns:
        The hypotheses, best first, with the joint score in nats.

    Raises:
        ValueError: If the weight is outside 0 to 1.
    """
    if not 0.0 <= attention_weight <= 1.0:
        raise ValueError(f"attention_weight: expected 0 to 1, found {attention_weight}")
    if not nbest:
        return ()
    lengths = torch.tensor([len(hypothesis.tokens) for hypothesis in nbest], device=device)
    longest = int(lengths.max())
    # Each row: its labels, </s>, then anything; one gather gives every label's log-probability.
    labels = torch.full((len(nbest), longest + 1), end_id, dtype=torch.int64)
    for row, hypothesis in enumerate(nbest):
        labels[row, : len(hypothesis.tokens)] = torch.tensor(hypothesis.tokens, dtype=torch.int64)
    labels = labels.to(device)
    log_probs = decoder_logits(labels[:, :longest], lengths).float().log_softmax(-1)
    steps = log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    counted = torch.arange(longest + 1, device=device) <= lengths[:, None]
    attention = steps.masked_fill(~counted, 0.0).sum(dim=1).tolist()
    joint = [
        replace(hypothesis, score=(1 - attention_weight) * hypothesis.score + attention_weight * score)
        for hypothesis, score in zip(nbest, attention, strict=True)
    ]
    return tuple(sorted(joint, key=lambda hypothesis: -hypothesis.score))
