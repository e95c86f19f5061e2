"""One Conformer block: macaron feed-forward, chunked self-attention, causal convolution.

Dimension legend: B utterances, T frames, L cached frames, H heads, D hidden units, K kernel width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Past = tuple[Tensor, Tensor, Tensor]
"""What a block remembers of a stream: keys and values ``(B, H, L, D/H)``, convolution inputs ``(B, D, K-1)``."""


class FeedForward(nn.Module):
    """Pre-norm feed-forward module with SiLU, without its residual."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.inner = nn.Linear(d_model, ffn_dim)
        self.outer = nn.Linear(ffn_dim, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(F.silu(self.inner(self.norm(x)))))


class ChunkAttention(nn.Module):
    """Pre-norm self-attention with rotary positions over the chunk and the cached past, without its residual."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend.

        Args:
            x: ``(B, T, D)``.
            rotary: Cosines and sines ``(L + T, D / H / 2)`` of the window's positions.
            mask: Bool, broadcast to ``(B, H, T, L + T)``, true where attended.
            past: Unrotated keys and values of the L frames before, or ``None`` (L = 0).

        Returns:
            Output ``(B, T, D)``, and the keys and values of the last L frames of the window, unrotated, so that the
            next window can turn them to its own positions.
        """
        num_frames = x.shape[1]
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        kept_k, kept_v = k, v
        if past is not None:
            left = past[0].shape[2]
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
            kept_k, kept_v = k[:, :, k.shape[2] - left :], v[:, :, v.shape[2] - left :]
        cos, sin = rotary
        q = rotate(q, cos[-num_frames:], sin[-num_frames:])
        attended = F.scaled_dot_product_attention(q, rotate(k, cos, sin), v, attn_mask=mask)
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2))), kept_k, kept_v


class CausalConvolution(nn.Module):
    """Pre-norm gated depthwise convolution that sees K-1 frames of the past and none ahead, without its residual."""

    def __init__(self, d_model: int, kernel_frames: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.gated = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, kernel_frames, groups=d_model)
        self.depthwise_norm = nn.LayerNorm(d_model)
        self.out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.past_frames = kernel_frames - 1

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolve ``(B, T, D)``; the second result is the last K-1 inputs ``(B, D, K-1)`` of the convolution."""
        y = F.glu(self.gated(self.norm(x)), dim=-1).transpose(1, 2)
        y = F.pad(y, (self.past_frames, 0)) if past is None else torch.cat((past, y), dim=2)
        kept = y[:, :, y.shape[2] - self.past_frames :]
        y = self.depthwise(y).transpose(1, 2)
        return self.dropout(self.out(F.silu(self.depthwise_norm(y)))), kept


class ConformerBlock(nn.Module):
    """Conformer block (Gulati et al. 2020), with LayerNorm in place of BatchNorm.

    Args:
        d_model: D.
        num_heads: H.
        ffn_dim: Hidden units of both feed-forward modules.
        kernel_frames: K.
        dropout: In every module.
    """

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, kernel_frames: int, dropout: float) -> None:
        super().__init__()
        self.ffn_before = FeedForward(d_model, ffn_dim, dropout)
        self.attention = ChunkAttention(d_model, num_heads, dropout)
        self.convolution = CausalConvolution(d_model, kernel_frames, dropout)
        self.ffn_after = FeedForward(d_model, ffn_dim, dropout)
        self.norm = nn.LayerNorm(d_model)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, past: Past | None = None
    ) -> tuple[Tensor, Past]:
        """One block over ``(B, T, D)``; see :class:`ChunkAttention` for ``rotary`` and ``mask``."""
        x = x + 0.5 * self.ffn_before(x)
        attended, keys, values = self.attention(x, rotary, mask, None if past is None else past[:2])
        x = x + attended
        convolved, conv = self.convolution(x, None if past is None else past[2])
        x = x + convolved
        x = x + 0.5 * self.ffn_after(x)
        return self.norm(x), (keys, values, conv)


def rotary_table(num_positions: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(num_positions, head_dim / 2)`` for :func:`rotate` (Su et al. 2021, equation 15).

    Angles are made in float64: in float32 the thousandth position is already off by 1e-4 rad.
    """
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float64) / head_dim
    position = torch.arange(num_positions, device=device, dtype=torch.float64)
    angles = position[:, None] * torch.pow(10000.0, -exponent)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of the last dimension of ``(B, H, T, D/H)`` by their positions' angles."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
