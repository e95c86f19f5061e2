"""Dropout whose masks are quick to draw on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ByteDropout(nn.Dropout):
    """Dropout with one random byte an element, drawn eight at a time, instead of one random double each.

    torch draws masks one element after the other on a CPU, which takes a sixth of a small Conformer's training step. A byte
    rounds the probability to 1/256; the scale follows what is really kept, so that the expectation is exact. Reproducible
    from ``torch.manual_seed``. Elsewhere than in training on a CPU it is ``nn.Dropout``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As of ``nn.Dropout``."""
        threshold = round(256 * self.p)
        if not self.training or not 0 < threshold < 256 or input.device.type != "cpu":
            return super().forward(input)
        words = torch.empty((input.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: input.numel()].view(input.shape) >= threshold
        return input * (kept.to(input.dtype) * (256 / (256 - threshold)))


def quicken_dropout(model: nn.Module) -> None:
    """Put :class:`ByteDropout` in place of every ``nn.Dropout`` of a model, in place; parameters and names stay."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p).train(child.training))
