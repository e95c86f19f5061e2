"""The streaming student: a cache-aware chunked Conformer, and its form with a CTC head.

Dimension legend: B utterances, T output frames, F mel bins, C frames of a chunk, L frames of left context, H heads,
D hidden units, N layers, K kernel width, V tokens.

Sources: Gulati et al. 2020 (Conformer); Chen et al. 2021, "Developing real-time streaming Transformer Transducer"
(chunk-wise mask); Zhang et al. 2020, "Unified streaming and non-streaming two-pass end-to-end model" (dynamic chunks);
Su et al. 2021 (rotary positions).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asrkd.data.text import START_ID, Tokenizer
from asrkd.models.base import ModelConfig, Recogniser, check_hidden_names, frame_mask
from asrkd.models.blocks import ConformerBlock, rotary_table
from asrkd.models.heads import AttentionDecoder, blank_first
from asrkd.models.state import StudentState
from asrkd.models.subsampling import CausalSubsampling, pad_to_multiple
from asrkd.types import Frames, ModelOutput

SIZES: dict[str, dict[str, int]] = {
    # About 0.6, 2, 10 and 30 million parameters with a vocabulary of a few hundred tokens.
    "tiny": {"d_model": 96, "num_layers": 4, "num_heads": 4, "ffn_dim": 192, "subsampling_channels": 24},
    "xs": {"d_model": 144, "num_layers": 6, "num_heads": 4, "ffn_dim": 288, "subsampling_channels": 32},
    "s": {"d_model": 256, "num_layers": 8, "num_heads": 4, "ffn_dim": 768, "subsampling_channels": 32},
    "m": {"d_model": 384, "num_layers": 10, "num_heads": 6, "ffn_dim": 1280, "subsampling_channels": 48},
}


class ChunkedConformerConfig(ModelConfig):
    """Numbers of a :class:`ChunkedConformer`.

    ``size`` fills what is not given from ``SIZES``; every number may be given beside it.

    Attributes:
        size: A name in ``SIZES``, or ``None`` where all numbers are given.
        d_model: Width of the encoder.
        num_layers: Conformer blocks.
        num_heads: Attention heads; ``d_model / num_heads`` must be even.
        ffn_dim: Hidden units of each of a block's two feed-forward modules.
        subsampling_channels: Channels of the convolutions in front.
        subsampling_factor: Feature frames for each output frame, 4 (40 ms) or 8 (80 ms).
        conv_kernel_frames: Width of the causal depthwise convolution.
        dropout: In every module.
        chunk_frames: Output frames of a chunk unless the caller says otherwise.
        left_context_frames: Output frames of the past that a chunk attends to unless the caller says otherwise.
    """

    size: Literal["tiny", "xs", "s", "m"] | None = None
    d_model: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    ffn_dim: int = Field(gt=0)
    subsampling_channels: int = Field(gt=0)
    subsampling_factor: Literal[4, 8] = 4
    conv_kernel_frames: int = Field(default=15, ge=2)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    chunk_frames: int = Field(default=16, ge=0)
    left_context_frames: int = Field(default=64, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("size") in SIZES:
            return {**SIZES[values["size"]], **values}
        return values

    @model_validator(mode="after")
    def _check_width(self) -> ChunkedConformerConfig:
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model: expected a multiple of 2 * num_heads = {2 * self.num_heads}, found {self.d_model}"
            )
        return self


class StreamingConformerConfig(ChunkedConformerConfig):
    """Numbers of a :class:`StreamingConformer`; those of the encoder as of :class:`ChunkedConformerConfig`.

    Attributes:
        decoder_layers: Layers of the attention decoder; 0: none.
        decoder_heads: Its attention heads.
        decoder_dim: Its width.
        decoder_ffn_dim: Its feed-forward hidden units.
    """

    kind: Literal["streaming_conformer"] = "streaming_conformer"
    decoder_layers: int = Field(default=0, ge=0)
    decoder_heads: int = Field(default=4, gt=0)
    decoder_dim: int = Field(default=144, gt=0)
    decoder_ffn_dim: int = Field(default=576, gt=0)

    @model_validator(mode="after")
    def _check_decoder_width(self) -> StreamingConformerConfig:
        if self.decoder_layers and self.decoder_dim % (2 * self.decoder_heads):
            raise ValueError(
                f"decoder_dim: expected a multiple of 2 * decoder_heads = {2 * self.decoder_heads}, "
                f"found {self.decoder_dim}"
            )
        return self


class ChunkedConformer(Recogniser):
    """Conformer encoder that gives the same whether it hears whole utterances or chunk after chunk; its heads are others' matter.

    Attention is limited to chunks with bounded left context, every convolution is causal and no norm depends on the
    batch, so that :meth:`step_encoder` with its explicit state equals :meth:`encode`.

    Args:
        config: Numbers of the model.
        tokenizer: Gives the vocabulary of the heads.
    """

    config: ChunkedConformerConfig

    def __init__(self, config: ChunkedConformerConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer, config.subsampling_factor)
        self.subsampling = CausalSubsampling(
            config.num_mel_bins, config.subsampling_channels, config.d_model, config.subsampling_factor, config.dropout
        )
        self.blocks = nn.ModuleList(
            ConformerBlock(config.d_model, config.num_heads, config.ffn_dim, config.conv_kernel_frames, config.dropout)
            for _ in range(config.num_layers)
        )

    def encode(
        self,
        features: Frames,
        chunk_frames: int | None = None,
        left_context_frames: int | None = None,
        want_hidden: tuple[str, ...] = (),
    ) -> tuple[Frames, dict[str, Frames]]:
        """Encoder output ``(B, T, D)`` and hidden layers; arguments and errors as of :meth:`Recogniser.forward`.

        ``chunk_frames=0``: unlimited attention; convolutions stay causal.
        """
        chunk = self.config.chunk_frames if chunk_frames is None else chunk_frames
        left = self.config.left_context_frames if left_context_frames is None else left_context_frames
        if chunk < 0 or left < 0:
            raise ValueError(f"chunk_frames, left_context_frames: expected at least 0, found {chunk}, {left}")
        check_hidden_names(want_hidden, len(self.blocks))
        values = pad_to_multiple(features.values, features.lengths, self.subsampling_factor)
        lengths = self.output_lengths(features.lengths)
        x, _ = self.subsampling(values)
        num_frames = x.shape[1]
        mask = chunk_mask(lengths, num_frames, chunk, left)
        rotary = rotary_table(num_frames, self.config.d_model // self.config.num_heads, x.device)
        hidden: dict[str, Frames] = {}
        for index, block in enumerate(self.blocks):
            x, _ = block(x, rotary, mask)
            if f"layer.{index}" in want_hidden:
                hidden[f"layer.{index}"] = Frames(x, lengths, self.frame_shift_s)
        return Frames(x, lengths, self.frame_shift_s), hidden

    def initial_encoder_state(
        self, batch: int, device: torch.device | str = "cpu", left_context_frames: int | None = None
    ) -> StudentState:
        """The encoder's state before the first chunk.

        Args:
            batch: B, independent streams.
            device: Of the tensors.
            left_context_frames: L; ``None``: the model's default.
        """
        config = self.config
        left = config.left_context_frames if left_context_frames is None else left_context_frames
        head_dim = config.d_model // config.num_heads
        past = torch.zeros(config.num_layers, batch, config.num_heads, left, head_dim, device=device)
        return StudentState(
            subsampling=self.subsampling.initial_caches(batch, device),
            keys=past,
            values=past.clone(),
            conv=torch.zeros(config.num_layers, batch, config.d_model, config.conv_kernel_frames - 1, device=device),
            cached_frames=torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def step_encoder(
        self, features: Tensor, state: StudentState, lengths: Tensor | None = None, chunk_frames: int | None = None
    ) -> tuple[Tensor, StudentState]:
        """The next chunk of B independent streams, or several chunks at once.

        Args:
            features: ``(B, n * C * subsampling_factor, F)`` normalised features; the end of a stream may be shorter.
            state: From :meth:`initial_encoder_state` or the previous step.
            lengths: ``(B,)`` valid feature frames, where some rows hold the end of their stream; such a row's new
                state is of no further use. ``None``: all are valid.
            chunk_frames: C, output frames that see each other; ``None``: all that are given, one chunk.

        Returns:
            Encoder output ``(B, n * C, D)`` and the next state.
        """
        batch, num_features = features.shape[:2]
        if lengths is None:
            lengths = torch.full((batch,), num_features, dtype=torch.int64, device=features.device)
        x, subsampling = self.subsampling(
            pad_to_multiple(features, lengths, self.subsampling_factor), state.subsampling
        )
        num_frames, left = x.shape[1], state.keys.shape[3]
        mask = self._step_mask(state.cached_frames, self.output_lengths(lengths), num_frames, left, chunk_frames)
        rotary = rotary_table(left + num_frames, self.config.d_model // self.config.num_heads, x.device)
        keys, values, conv = [], [], []
        for index, block in enumerate(self.blocks):
            past = (state.keys[index], state.values[index], state.conv[index])
            x, (layer_keys, layer_values, layer_conv) = block(x, rotary, mask, past)
            keys.append(layer_keys)
            values.append(layer_values)
            conv.append(layer_conv)
        return x, StudentState(
            subsampling=subsampling,
            keys=torch.stack(keys),
            values=torch.stack(values),
            conv=torch.stack(conv),
            cached_frames=(state.cached_frames + num_frames).clamp(max=left),
        )

    @staticmethod
    def _step_mask(
        cached_frames: Tensor, valid_frames: Tensor, num_frames: int, left: int, chunk_frames: int | None
    ) -> Tensor:
        """``(B, 1, T or 1, L + T)``. Positions count from the window's first frame, whenever the stream began."""
        position = torch.arange(left + num_frames, device=cached_frames.device)
        query = position[left:, None]
        seen = (position >= left - cached_frames[:, None]) & (position < left + valid_frames[:, None])
        mask = seen[:, None, None, :]
        if chunk_frames is not None and chunk_frames < num_frames:
            start = (query - left) // chunk_frames * chunk_frames
            mask = mask & (position >= start) & (position < start + left + chunk_frames)
        return mask | (position == query)


class StreamingConformer(ChunkedConformer):
    """A :class:`ChunkedConformer` with a CTC head and, where its configuration says so, an attention decoder.

    Args:
        config: Numbers of the model.
        tokenizer: Gives the vocabulary of the CTC head.
    """

    kind: ClassVar[str] = "streaming_conformer"
    config: StreamingConformerConfig

    def __init__(self, config: StreamingConformerConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        self.ctc_head = blank_first(nn.Linear(config.d_model, len(self.vocabulary)), self.vocabulary.blank_id)
        self.has_decoder = config.decoder_layers > 0
        if self.has_decoder:
            self.decoder = AttentionDecoder(
                len(self.vocabulary),
                config.d_model,
                config.decoder_dim,
                config.decoder_heads,
                config.decoder_ffn_dim,
                config.decoder_layers,
                config.dropout,
                START_ID,
            )

    def forward(
        self,
        features: Frames,
        *,
        chunk_frames: int | None = None,
        left_context_frames: int | None = None,
        want_hidden: tuple[str, ...] = (),
    ) -> ModelOutput:
        """See :meth:`Recogniser.forward` and :meth:`encode`."""
        encoded, hidden = self.encode(features, chunk_frames, left_context_frames, want_hidden)
        logits = Frames(self.ctc_head(encoded.values), encoded.lengths, self.frame_shift_s)
        return ModelOutput(logits, encoded, hidden)

    def decoder_logits(
        self, encoded: Frames, tokens: Tensor, token_lengths: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """See :meth:`Recogniser.decoder_logits`."""
        if not self.has_decoder:
            return super().decoder_logits(encoded, tokens, token_lengths, rows)
        # What stands beyond a sequence's end may be any padding mark; the embedding needs a valid id.
        tokens = tokens.masked_fill(~frame_mask(token_lengths, tokens.shape[1]), 0)
        return self.decoder(encoded, tokens, rows)

    def initial_state(
        self, batch: int, device: torch.device | str = "cpu", left_context_frames: int | None = None
    ) -> StudentState:
        """The state before the first chunk, as of :meth:`initial_encoder_state`."""
        return self.initial_encoder_state(batch, device, left_context_frames)

    def step(
        self, features: Tensor, state: StudentState, lengths: Tensor | None = None, chunk_frames: int | None = None
    ) -> tuple[Tensor, StudentState]:
        """:meth:`step_encoder` and the CTC head.

        Returns:
            Logits ``(B, n * C, V)`` and the next state.
        """
        encoded, state = self.step_encoder(features, state, lengths, chunk_frames)
        return self.ctc_head(encoded), state


def chunk_mask(lengths: Tensor, num_frames: int, chunk_frames: int, left_context_frames: int) -> Tensor:
    """Which keys each query may attend to.

    A query in the chunk that starts at c attends to ``c - left <= k < c + chunk``; always to itself, so that no
    padded query is left with nothing (whose softmax would be NaN).

    Args:
        lengths: ``(B,)`` valid frames.
        num_frames: T.
        chunk_frames: C; 0: every valid frame is seen.
        left_context_frames: L.

    Returns:
        Bool ``(B, 1, T, T)``, or ``(B, 1, 1, T)`` for full context; true where attended.
    """
    position = torch.arange(num_frames, device=lengths.device)
    valid = position < lengths.clamp(min=1)[:, None]
    if chunk_frames == 0:
        return valid[:, None, None, :]
    start = (position // chunk_frames * chunk_frames)[:, None]
    window = (position >= start - left_context_frames) & (position < start + chunk_frames)
    itself = position == position[:, None]
    return ((window & valid[:, None, :]) | itself).unsqueeze(1)
