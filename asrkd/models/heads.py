"""Heads: the attention decoder, a small Transformer decoder over the encoder's output; how an output layer starts.

Dimension legend: B utterances, M forced sequences, T frames, U labels, V tokens, H heads, D hidden units.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrkd.types import Frames


class DecoderLayer(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward (Vaswani et al. 2017)."""

    def __init__(self, d_model: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.self_norm = nn.LayerNorm(d_model)
        self.self_qkv = nn.Linear(d_model, 3 * d_model)
        self.self_out = nn.Linear(d_model, d_model)
        self.cross_norm = nn.LayerNorm(d_model)
        self.cross_q = nn.Linear(d_model, d_model)
        self.cross_kv = nn.Linear(d_model, 2 * d_model)
        self.cross_out = nn.Linear(d_model, d_model)
        self.ffn = nn.Sequential(
            nn.LayerNorm(d_model),
            nn.Linear(d_model, ffn_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(ffn_dim, d_model),
        )
        self.dropout = nn.Dropout(dropout)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``(M, L, parts * D)`` to ``parts`` tensors ``(M, H, L, D / H)``."""
        batch, length = x.shape[:2]
        return x.view(batch, length, parts, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, memory: Tensor, memory_mask: Tensor, rows: Tensor | None) -> Tensor:
        q, k, v = self._split(self.self_qkv(self.self_norm(x)), 3)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.self_out(attended.transpose(1, 2).flatten(2)))
        (q,) = self._split(self.cross_q(self.cross_norm(x)), 1)
        # Keys and values are projected once an utterance, then shared by all its label sequences.
        k, v = self._split(self.cross_kv(memory), 2)
        if rows is not None:
            k, v = k[rows], v[rows]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=memory_mask)
        x = x + self.dropout(self.cross_out(attended.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.ffn(x))


class AttentionDecoder(nn.Module):
    """Autoregressive label decoder for joint training and rescoring.

    Args:
        vocab_size: V.
        encoder_dim: D of the encoder's output.
        d_model: Width of the decoder.
        num_heads: Attention heads.
        ffn_dim: Hidden units of the feed-forward layers.
        num_layers: Layers.
        dropout: Everywhere.
        bos_id: Id of ``<s>``, the first input.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder_dim: int,
        d_model: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        dropout: float,
        bos_id: int,
    ) -> None:
        super().__init__()
        self.bos_id = bos_id
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        self.memory_projection = nn.Identity() if encoder_dim == d_model else nn.Linear(encoder_dim, d_model)
        self.layers = nn.ModuleList(DecoderLayer(d_model, num_heads, ffn_dim, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model)
        self.output = nn.Linear(d_model, vocab_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, encoded: Frames, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Teacher forcing.

        Args:
            encoded: ``(B, T, D)`` encoder output.
            tokens: ``(M, U)`` valid ids; what follows a sequence's end does not touch the rows before it.
            rows: ``(M,)`` utterance of each sequence, or ``None`` where M = B in order.

        Returns:
            ``(M, U+1, V)`` logits.
        """
        inputs = F.pad(tokens, (1, 0), value=self.bos_id)
        width = self.embedding.embedding_dim
        x = self.embedding(inputs) * math.sqrt(width) + sinusoids(inputs.shape[1], width, inputs.device)
        x = self.dropout(x)
        memory = self.memory_projection(encoded.values)
        lengths = encoded.lengths if rows is None else encoded.lengths[rows]
        # An utterance without frames attends to its first (zero) frame: a softmax over nothing would be NaN.
        valid = torch.arange(memory.shape[1], device=memory.device) < lengths.clamp(min=1)[:, None]
        for layer in self.layers:
            x = layer(x, memory, valid[:, None, None, :], rows)
        return self.output(self.norm(x))


def blank_first(head: nn.Linear, blank_id: int) -> nn.Linear:
    """A head that starts with half the mass on blank, near what training settles at, instead of climbing there from 1 / V."""
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[blank_id] = torch.log(torch.tensor(max(head.out_features - 1.0, 1.0)))
    return head


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Fixed sine and cosine positions ``(length, width)`` (Vaswani et al. 2017, section 3.5)."""
    frequencies = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :width]
