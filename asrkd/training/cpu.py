"""What makes training quick on a CPU: dropout masks that are quick to draw, and shapes that come again."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkd.types import Frames

ROUND_FRAMES = 32
"""Feature frames to whose multiple a batch is padded on a CPU."""
PRIMITIVES = 3_000
"""Compiled kernels that oneDNN keeps; by itself 1,024, which few dozens of shapes fill."""


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


def remember_shapes() -> None:
    """Let oneDNN keep a kernel for every shape of a training; it reads this once, before its first operation.

    oneDNN compiles a kernel for each shape of each operation. A training has hundreds of shapes, and compiling anew what
    fell out of its cache takes a fifth of a small bf16 Conformer's step.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRIMITIVES))


def recurring(features: Frames) -> Frames:
    """Padded to a multiple of ``ROUND_FRAMES``, so that shapes come again; lengths stay."""
    missing = -features.values.shape[1] % ROUND_FRAMES
    return Frames(F.pad(features.values, (0, 0, 0, missing)), features.lengths, features.frame_shift_s)
