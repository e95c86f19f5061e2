"""SpeechBrain's Conformer ``TransformerASR`` with joint CTC and attention: the teacher that is trained here.

Dimension legend: B utterances, T output frames, V tokens, U labels, D hidden units, M forced sequences.

Sources: Gulati et al. 2020 (Conformer); Watanabe et al. 2017 (joint CTC/attention).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from asrkd.data.text import START_ID, Tokenizer
from asrkd.models.base import ModelConfig, Recogniser, check_hidden_names, frame_mask
from asrkd.models.heads import blank_first
from asrkd.models.subsampling import CausalSubsampling, pad_to_multiple
from asrkd.types import Frames, ModelOutput, NBest

SIZES: dict[str, dict[str, int]] = {
    # About 1, 4.2, 13 and 100 million parameters with a vocabulary of a few hundred tokens.
    "tiny": {
        "d_model": 96,
        "num_layers": 4,
        "num_heads": 4,
        "ffn_dim": 288,
        "decoder_layers": 1,
        "subsampling_channels": 32,
    },
    "demo": {
        "d_model": 192,
        "num_layers": 4,
        "num_heads": 4,
        "ffn_dim": 768,
        "decoder_layers": 1,
        "subsampling_channels": 32,
    },
    "s": {
        "d_model": 256,
        "num_layers": 8,
        "num_heads": 4,
        "ffn_dim": 768,
        "decoder_layers": 3,
        "subsampling_channels": 64,
    },
    "l": {  # as SpeechBrain's recipe conformer_large
        "d_model": 512,
        "num_layers": 12,
        "num_heads": 8,
        "ffn_dim": 2048,
        "decoder_layers": 6,
        "subsampling_channels": 64,
    },
}


class SpeechBrainConformerConfig(ModelConfig):
    """Numbers of a :class:`SpeechBrainConformer`.

    ``size`` fills what is not given from ``SIZES``; every number may be given beside it.

    Attributes:
        size: A name in ``SIZES``, or ``None`` where all numbers are given.
        d_model: Width of encoder and decoder.
        num_layers: Conformer blocks of the encoder.
        num_heads: Attention heads.
        ffn_dim: Hidden units of the feed-forward modules.
        decoder_layers: Transformer layers of the attention decoder; 0: none.
        subsampling_channels: Channels of the convolutions in front.
        conv_kernel_frames: Width (odd) of the centred depthwise convolution.
        dropout: In every module.
        attention: SpeechBrain's name of the encoder's self-attention.
    """

    kind: Literal["speechbrain_conformer"] = "speechbrain_conformer"
    size: Literal["tiny", "demo", "s", "l"] | None = None
    d_model: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    ffn_dim: int = Field(gt=0)
    decoder_layers: int = Field(ge=0)
    subsampling_channels: int = Field(gt=0)
    conv_kernel_frames: int = Field(default=15, ge=3)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    attention: Literal["regularMHA", "RoPEMHA", "RelPosMHAXL"] = "RoPEMHA"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("size") in SIZES:
            return {**SIZES[values["size"]], **values}
        return values

    @model_validator(mode="after")
    def _check_widths(self) -> SpeechBrainConformerConfig:
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model: expected a multiple of 2 * num_heads = {2 * self.num_heads}, found {self.d_model}"
            )
        if self.conv_kernel_frames % 2 == 0:
            raise ValueError(f"conv_kernel_frames: expected an odd number, found {self.conv_kernel_frames}")
        return self


class SpeechBrainConformer(Recogniser):
    """Full-context Conformer with a CTC head and an attention decoder, on the same 40 ms clock as the student.

    Output frame j is aligned with feature frame 4 j, as in :class:`asrkd.models.conformer.StreamingConformer`.

    Args:
        config: Numbers of the model.
        tokenizer: Gives the vocabulary of both heads.
    """

    kind: ClassVar[str] = "speechbrain_conformer"
    config: SpeechBrainConformerConfig

    def __init__(self, config: SpeechBrainConformerConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer, subsampling_factor=4)
        # SpeechBrain takes a second to import: only those who build such a model pay it.
        from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR

        from asrkd.models.speechbrain_parts import PaddedConvolution

        vocab_size = len(self.vocabulary)
        self.subsampling = CausalSubsampling(
            config.num_mel_bins, config.subsampling_channels, config.d_model, self.subsampling_factor, config.dropout
        )
        self.transformer = TransformerASR(
            tgt_vocab=vocab_size,
            input_size=config.d_model,
            d_model=config.d_model,
            nhead=config.num_heads,
            num_encoder_layers=config.num_layers,
            num_decoder_layers=config.decoder_layers,
            d_ffn=config.ffn_dim,
            dropout=config.dropout,
            activation=nn.GELU,
            encoder_module="conformer",
            attention_type=config.attention,
            # SpeechBrain's relative attention refuses a second positional encoding beside its own.
            positional_encoding="fixed_abs_sine",
            normalize_before=True,
            kernel_size=config.conv_kernel_frames,
            causal=False,
            output_hidden_states=True,
        )
        for layer in self.transformer.encoder.layers:
            layer.convolution_module = PaddedConvolution(
                config.d_model, config.conv_kernel_frames, dropout=config.dropout
            )
        self.ctc_head = blank_first(nn.Linear(config.d_model, vocab_size), self.vocabulary.blank_id)
        self.has_decoder = config.decoder_layers > 0
        if self.has_decoder:
            self.decoder_head = nn.Linear(config.d_model, vocab_size)

    def forward(
        self,
        features: Frames,
        *,
        chunk_frames: int | None = None,
        left_context_frames: int | None = None,
        want_hidden: tuple[str, ...] = (),
    ) -> ModelOutput:
        """See :meth:`Recogniser.forward`; this model has full context only.

        Raises:
            ValueError: For a chunk length other than ``None`` and 0.
        """
        if chunk_frames:
            raise ValueError(f"chunk_frames: {self.kind} hears whole utterances, expected 0, found {chunk_frames}")
        check_hidden_names(want_hidden, self.config.num_layers)
        values = pad_to_multiple(features.values, features.lengths, self.subsampling_factor)
        lengths = self.output_lengths(features.lengths)
        x, _ = self.subsampling(values)
        encoded, hidden = self.transformer.encode(x, _relative(lengths.clamp(min=1), x.shape[1]))
        logits = Frames(self.ctc_head(encoded), lengths, self.frame_shift_s)
        # SpeechBrain's list starts with the input of the first layer.
        wanted = {
            name: Frames(hidden[int(name.removeprefix("layer.")) + 1], lengths, self.frame_shift_s)
            for name in want_hidden
        }
        return ModelOutput(logits, Frames(encoded, lengths, self.frame_shift_s), wanted)

    def decoder_logits(
        self, encoded: Frames, tokens: Tensor, token_lengths: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """See :meth:`Recogniser.decoder_logits`."""
        if not self.has_decoder:
            return super().decoder_logits(encoded, tokens, token_lengths, rows)
        memory, lengths = encoded.values, encoded.lengths.clamp(min=1)
        if rows is not None:
            memory, lengths = memory[rows], lengths[rows]
        tokens = tokens.masked_fill(~frame_mask(token_lengths, tokens.shape[1]), 0)
        inputs = F.pad(tokens, (1, 0), value=START_ID)
        model = self.transformer
        embedded = model.custom_tgt_module(inputs)
        positions = (
            model.positional_encoding if self.config.attention == "regularMHA" else model.positional_encoding_decoder
        )
        num_inputs = inputs.shape[1]
        causal = torch.ones(num_inputs, num_inputs, dtype=torch.bool, device=inputs.device).triu(1)
        decoded, _, _ = model.decoder(
            embedded + positions(embedded),
            memory,
            tgt_mask=causal,
            memory_key_padding_mask=~frame_mask(lengths, memory.shape[1]),
        )
        return self.decoder_head(decoded)

    @torch.no_grad()
    def nbest(self, encoded: Frames, n: int = 8, beam: int = 10, ctc_weight: float = 0.4) -> tuple[NBest, ...]:
        """N-best lists by SpeechBrain's joint CTC/attention beam search (Watanabe et al. 2017).

        Args:
            encoded: ``ModelOutput.encoded`` of B utterances.
            n: Hypotheses wanted of each; fewer come back where the search ended with fewer.
            beam: Beam width, at least ``n``.
            ctc_weight: w of the score ``w * log p_ctc(y | x) + (1 - w) * log p_attention(y | x)``.

        Returns:
            For each utterance its hypotheses, best first; ``score`` is the joint score above in nats, a total over
            the sequence with its end and without length normalisation.

        Raises:
            ValueError: If the model has no decoder or ``beam < n``.
        """
        if not self.has_decoder:
            raise ValueError(f"nbest: this {self.kind} has no attention decoder")
        if not 0 < n <= beam:
            raise ValueError(f"n: expected 1 to beam={beam}, found {n}")
        from asrkd.models.speechbrain_parts import joint_search

        was_training = self.training
        self.eval()
        try:
            return joint_search(self, encoded, n, beam, ctc_weight)
        finally:
            self.train(was_training)


def _relative(lengths: Tensor, num_frames: int) -> Tensor:
    """SpeechBrain's relative lengths, which it multiplies and rounds again."""
    return lengths.to(torch.float32) / num_frames
