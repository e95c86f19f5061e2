"""The streaming transducer: the chunked Conformer, a stateless prediction network and a small joint network.

Dimension legend: B utterances, T output frames, F mel bins, U labels, V tokens, C context labels, D hidden units of the
encoder, P of the prediction network, J of the joint network.

Sources: Graves 2012 (RNN-T); Ghodsi et al. 2020, "RNN-Transducer with stateless prediction network".
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from asrkd.data.text import Tokenizer
from asrkd.decoding.ctc import DecodedTokens
from asrkd.decoding.transducer import Emissions, greedy
from asrkd.models.base import frame_mask
from asrkd.models.conformer import ChunkedConformer, ChunkedConformerConfig
from asrkd.models.heads import blank_first
from asrkd.models.state import TransducerState
from asrkd.types import Frames, ModelOutput


class StreamingTransducerConfig(ChunkedConformerConfig):
    """Numbers of a :class:`StreamingTransducer`; those of the encoder as of :class:`ChunkedConformerConfig`.

    Attributes:
        context_labels: C, labels that the prediction network sees.
        predictor_dim: P.
        joiner_dim: J.
        ctc_head: Whether there is a CTC head beside, for losses; the model is decoded as a transducer all the same.
    """

    kind: Literal["streaming_transducer"] = "streaming_transducer"
    context_labels: int = Field(default=2, ge=1)
    predictor_dim: int = Field(default=256, gt=0)
    joiner_dim: int = Field(default=256, gt=0)
    ctc_head: bool = False


class StatelessPredictor(nn.Module):
    """A convolution over the last labels; with nothing else to remember, its state is those labels.

    Args:
        vocab_size: V.
        dim: P.
        joiner_dim: J.
        context_labels: C.
        dropout: On its output.
    """

    def __init__(self, vocab_size: int, dim: int, joiner_dim: int, context_labels: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.convolution = nn.Conv1d(dim, dim, context_labels)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(dim, joiner_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """From ``(B, C - 1 + n)`` labels to ``(B, n, J)``: row i has seen labels i to i + C - 1."""
        x = self.convolution(self.embedding(labels).transpose(1, 2)).transpose(1, 2)
        return self.projection(self.dropout(F.silu(x)))


class StreamingTransducer(ChunkedConformer):
    """A :class:`ChunkedConformer` as transducer.

    Args:
        config: Numbers of the model.
        tokenizer: Gives the vocabulary.
    """

    kind: ClassVar[str] = "streaming_transducer"
    config: StreamingTransducerConfig
    has_transducer = True

    def __init__(self, config: StreamingTransducerConfig, tokenizer: Tokenizer) -> None:
        super().__init__(config, tokenizer)
        vocab_size, blank_id = len(self.vocabulary), self.vocabulary.blank_id
        self.predictor = StatelessPredictor(
            vocab_size, config.predictor_dim, config.joiner_dim, config.context_labels, config.dropout
        )
        self.encoder_projection = nn.Linear(config.d_model, config.joiner_dim)
        self.joiner = blank_first(nn.Linear(config.joiner_dim, vocab_size), blank_id)
        self.ctc_head = blank_first(nn.Linear(config.d_model, vocab_size), blank_id) if config.ctc_head else None

    def forward(
        self,
        features: Frames,
        *,
        chunk_frames: int | None = None,
        left_context_frames: int | None = None,
        want_hidden: tuple[str, ...] = (),
    ) -> ModelOutput:
        """See :meth:`Recogniser.forward` and :meth:`encode`; :meth:`transducer_logits` takes what it gives further."""
        encoded, hidden = self.encode(features, chunk_frames, left_context_frames, want_hidden)
        ctc = None
        if self.ctc_head is not None:
            ctc = Frames(self.ctc_head(encoded.values), encoded.lengths, self.frame_shift_s)
        return ModelOutput(ctc, encoded, hidden)

    def transducer_logits(self, encoded: Frames, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """See :meth:`Recogniser.transducer_logits`.

        Memory is that of the lattice, ``B (U+1) T (J + V)`` numbers for the padded batch.
        """
        tokens = tokens.masked_fill(~frame_mask(token_lengths, tokens.shape[1]), self.vocabulary.blank_id)
        labels = F.pad(tokens, (self.config.context_labels, 0), value=self.vocabulary.blank_id)
        projected, predicted = self.encoder_projection(encoded.values), self.predictor(labels)
        logits: Tensor = self.joiner(torch.tanh(projected.unsqueeze(2) + predicted.unsqueeze(1)))
        return logits

    def greedy(self, output: ModelOutput) -> list[DecodedTokens]:
        """Best path of each utterance through the lattice."""
        encoded = output.encoded
        found, _ = self._search(encoded.values, encoded.lengths, self._no_labels(len(encoded.lengths)))
        return [emissions.decoded(encoded.frame_shift_s) for emissions in found]

    def initial_state(
        self, batch: int, device: torch.device | str = "cpu", left_context_frames: int | None = None
    ) -> TransducerState:
        """The state before the first chunk; arguments as of :meth:`initial_encoder_state`."""
        encoder = self.initial_encoder_state(batch, device, left_context_frames)
        return TransducerState(encoder, self._no_labels(batch).to(device))

    def step(
        self, features: Tensor, state: TransducerState, lengths: Tensor | None = None, chunk_frames: int | None = None
    ) -> tuple[list[Emissions], TransducerState]:
        """:meth:`step_encoder` and the greedy search, which goes on where it stood.

        Returns:
            What was emitted in the new frames of each stream, and the next state.
        """
        if lengths is None:
            lengths = torch.full((len(features),), features.shape[1], dtype=torch.int64, device=features.device)
        encoded, encoder = self.step_encoder(features, state.encoder, lengths, chunk_frames)
        found, context = self._search(encoded, self.output_lengths(lengths), state.context)
        return found, TransducerState(encoder, context)

    def _no_labels(self, batch: int) -> Tensor:
        shape = (batch, self.config.context_labels)
        return torch.full(shape, self.vocabulary.blank_id, dtype=torch.int64, device=self.feature_mean.device)

    def _search(self, encoded: Tensor, lengths: Tensor, context: Tensor) -> tuple[list[Emissions], Tensor]:
        """Greedy search over encoder output ``(B, T, D)``."""

        def joint(projected: Tensor, labels: Tensor) -> Tensor:
            logits: Tensor = self.joiner(torch.tanh(projected + self.predictor(labels)))
            return logits

        return greedy(self.encoder_projection(encoded), lengths, context, joint, self.vocabulary.blank_id)
