"""The student's step as modules of plain tensors, ready to be traced.

Legend: B streams, C output frames of a chunk, S feature frames of a chunk (C times the subsampling), F mel bins, N blocks,
H heads, L cached frames, D hidden units, K kernel width, V tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asrkd.data.text import END_ID, START_ID
from asrkd.models.conformer import StreamingConformer
from asrkd.models.state import StudentState

_MARKS = (START_ID, END_ID)
_NEVER = -1e4  # log-probability of what must not be the likeliest


class StepGraph(nn.Module):
    """One chunk of B streams with the state as tensors: raw log-mel in, log-probabilities out.

    Args:
        model: In evaluation mode.
        chunk_frames: C.
        left_context_frames: L.
    """

    def __init__(self, model: StreamingConformer, chunk_frames: int, left_context_frames: int) -> None:
        super().__init__()
        self.model = model
        self.chunk_frames = chunk_frames
        self.left_context_frames = left_context_frames

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """``keys, values (N, B, H, L, D/H)``, ``conv (N, B, D, K-1)``, ``cached_frames (B,)``, then the subsampling's caches."""
        return _flat(self.model.initial_state(batch, left_context_frames=self.left_context_frames))

    def state_names(self) -> tuple[str, ...]:
        """Of the tensors of :meth:`initial_state`."""
        stages = len(self.model.subsampling.stages)
        return ("keys", "values", "conv", "cached_frames", *(f"subsampling_{i}" for i in range(stages)))

    def forward(self, features: Tensor, lengths: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The next chunk.

        Args:
            features: ``(B, S, F)`` raw log-mel of ``asrkd.data.features.Fbank`` (the normalisation is in the graph).
            lengths: ``(B,)`` int64, valid feature frames; fewer than S only at a stream's end.
            state: As of :meth:`initial_state`.

        Returns:
            ``(B, C, V)`` log-probabilities and the next state.
        """
        logits, after = self.model.step(self.model.normalise(features), _state(state), lengths)
        return logits.log_softmax(-1), *_flat(after)


class WenetGraph(nn.Module):
    """One chunk of one stream in the streaming contract that sherpa-onnx calls ``wenet_ctc``.

    That contract knows attention and convolution caches of equal blocks and nothing else. What the subsampling remembers, and
    how many frames have been heard, travel in the attention cache of one more block that the metadata declare.

    Args:
        model: In evaluation mode, with 4x subsampling.
        chunk_frames: C.
        left_chunks: L is at most C times so many.
    """

    def __init__(self, model: StreamingConformer, chunk_frames: int, left_chunks: int) -> None:
        super().__init__()
        self.model = model
        self.chunk_frames = chunk_frames
        self.cache_frames = chunk_frames * left_chunks
        self.left_context_frames = min(model.config.left_context_frames, self.cache_frames)

    @property
    def num_blocks(self) -> int:
        """As declared: one more than there are."""
        return self.model.config.num_layers + 1

    def carried_elements(self) -> int:
        """What the extra block has to hold."""
        return 1 + sum(cache.numel() for cache in self.model.subsampling.initial_caches(1, "cpu"))

    def room_elements(self) -> int:
        """What the extra block can hold."""
        return self.cache_frames * 2 * self.model.config.d_model

    def initial_caches(self) -> tuple[Tensor, Tensor]:
        """As sherpa-onnx makes them: zeros ``(blocks, H, C·left, 2·D/H)`` and ``(blocks, 1, D, K-1)``."""
        config = self.model.config
        width = 2 * config.d_model // config.num_heads
        attention = torch.zeros(self.num_blocks, config.num_heads, self.cache_frames, width)
        return attention, torch.zeros(self.num_blocks, 1, config.d_model, config.conv_kernel_frames - 1)

    def forward(
        self,
        x: Tensor,
        offset: Tensor,
        required_cache_size: Tensor,
        attn_cache: Tensor,
        conv_cache: Tensor,
        attn_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next chunk; ``offset``, ``required_cache_size`` and ``attn_mask`` are part of the contract and change nothing.

        Args:
            x: ``(1, S, F)`` raw log-mel.
            offset: ``(1,)`` int64.
            required_cache_size: ``(1,)`` int64.
            attn_cache: As of :meth:`initial_caches`.
            conv_cache: The same.
            attn_mask: ``(1, 1, C·left + C)`` bool.
        """
        left = self.left_context_frames
        shapes = [cache.shape for cache in self.model.subsampling.initial_caches(1, "cpu")]
        carried = attn_cache[-1].flatten()
        cached_frames, place, subsampling = carried[:1].round().long(), 1, []
        for shape in shapes:
            subsampling.append(carried[place : place + shape.numel()].view(shape))
            place += shape.numel()
        kept = attn_cache[:-1, :, self.cache_frames - left :].unsqueeze(1)
        keys, values = kept.chunk(2, dim=-1)
        state = StudentState(tuple(subsampling), keys, values, conv_cache[:-1], cached_frames)
        logits, after = self.model.step(self.model.normalise(x), state)
        # Engines end when a declared input is missing; so that no exporter drops them, they are read, times zero.
        unread = (offset + required_cache_size).float().sum() + attn_mask.float().sum()
        log_probs = unmarked(logits.log_softmax(-1), self.model.vocabulary.blank_id) + 0.0 * unread
        both = torch.cat((after.keys, after.values), dim=-1).squeeze(1)
        both = torch.nn.functional.pad(both, (0, 0, self.cache_frames - left, 0))
        packed = torch.cat((after.cached_frames.float(), *(cache.flatten() for cache in after.subsampling)))
        packed = torch.nn.functional.pad(packed, (0, self.room_elements() - self.carried_elements()))
        attention = torch.cat((both, packed.view(1, *both.shape[1:])))
        conv = torch.cat((after.conv, torch.zeros_like(conv_cache[-1:])))
        return log_probs, attention, conv


def unmarked(log_probs: Tensor, blank_id: int) -> Tensor:
    """``(..., V)`` with the sentence marks counted as blank: asrkd leaves them out of texts, other engines would print them."""
    best = log_probs[..., [blank_id, *_MARKS]].amax(-1, keepdim=True)
    position = torch.arange(log_probs.shape[-1])
    is_mark = (position == _MARKS[0]) | (position == _MARKS[1])
    return torch.where(position == blank_id, best, log_probs.masked_fill(is_mark, _NEVER))


def _flat(state: StudentState) -> tuple[Tensor, ...]:
    return state.keys, state.values, state.conv, state.cached_frames, *state.subsampling


def _state(flat: tuple[Tensor, ...]) -> StudentState:
    keys, values, conv, cached_frames, *subsampling = flat
    return StudentState(tuple(subsampling), keys, values, conv, cached_frames)
