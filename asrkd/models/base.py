"""The one face of everything that can be trained here.

Dimension legend: B utterances, S samples, T frames, F mel bins, V tokens, U labels, D hidden units, M forced sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from asrkd.data.features import FRAME_SHIFT_S, Fbank
from asrkd.data.text import Tokenizer
from asrkd.decoding.ctc import DecodedTokens, greedy
from asrkd.types import Frames, ModelOutput, Vocabulary


class ModelConfig(BaseModel):
    """What every model's configuration holds; each kind adds its own literal numbers.

    Attributes:
        kind: Name of the model's kind, its key in ``asrkd.models.package.MODELS``.
        sample_rate_hz: Of the audio that :meth:`Recogniser.features` takes.
        num_mel_bins: Mel bins of the features.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    sample_rate_hz: int = Field(default=16000, gt=0)
    num_mel_bins: int = Field(default=80, gt=0)


class Recogniser(nn.Module, ABC):
    """A model from audio to CTC or transducer posteriors, with its features, its normalisation and its tokenizer.

    Args:
        config: The model's configuration.
        tokenizer: Gives the vocabulary of the outputs.
        subsampling_factor: Feature frames for each output frame.

    Attributes:
        frame_shift_s: Seconds from one output frame to the next; output frame j stands at ``j * frame_shift_s``.
        has_decoder: Whether :meth:`decoder_logits` works.
        has_transducer: Whether :meth:`transducer_logits` works; :meth:`greedy` is then the transducer's.
    """

    kind: ClassVar[str]
    config: ModelConfig
    feature_mean: Tensor
    feature_inverse_std: Tensor
    has_decoder: bool = False
    has_transducer: bool = False

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, subsampling_factor: int) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.vocabulary: Vocabulary = tokenizer.vocabulary
        self.sample_rate_hz = config.sample_rate_hz
        self.subsampling_factor = subsampling_factor
        self.frame_shift_s = FRAME_SHIFT_S * subsampling_factor
        self.fbank = Fbank(sample_rate_hz=config.sample_rate_hz, num_mel_bins=config.num_mel_bins)
        self.register_buffer("feature_mean", torch.zeros(config.num_mel_bins))
        self.register_buffer("feature_inverse_std", torch.ones(config.num_mel_bins))

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the global feature statistics of the training data.

        Args:
            mean: ``(F,)`` mean of each mel bin, in the units of ``Fbank``.
            std: ``(F,)`` standard deviation of each mel bin; values below 1e-3 count as 1e-3.

        Raises:
            ValueError: If a shape differs or a value is not finite.
        """
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != self.feature_mean.shape:
                expected, found = tuple(self.feature_mean.shape), tuple(values.shape)
                raise ValueError(f"{name}: expected shape {expected}, found {found}")
            if not torch.isfinite(values).all():
                raise ValueError(f"{name}: expected finite values, found NaN or infinity")
        self.feature_mean.copy_(mean)
        self.feature_inverse_std.copy_(1.0 / std.clamp(min=1e-3))

    def normalise(self, features: Tensor) -> Tensor:
        """Raw log-mel ``(B, T, F)`` to zero mean and unit variance under the stored statistics."""
        return (features - self.feature_mean) * self.feature_inverse_std

    @torch.no_grad()
    def features(self, audio: Tensor, audio_lengths: Tensor) -> Frames:
        """Normalised log-mel features, what :meth:`forward` takes.

        Args:
            audio: ``(B, S)`` float samples in ``[-1, 1]`` at ``sample_rate_hz``.
            audio_lengths: ``(B,)`` valid samples.

        Returns:
            ``(B, T, F)`` float32 at 10 ms, always computed in float32.
        """
        with torch.autocast(audio.device.type, enabled=False):
            frames: Frames = self.fbank(audio.float(), audio_lengths)
            return Frames(self.normalise(frames.values), frames.lengths, frames.frame_shift_s)

    def output_lengths(self, feature_lengths: Tensor) -> Tensor:
        """Output frames ``(B,)`` of as many feature frames: ``ceil(T / subsampling_factor)``."""
        return (feature_lengths + self.subsampling_factor - 1) // self.subsampling_factor

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @abstractmethod
    def forward(
        self,
        features: Frames,
        *,
        chunk_frames: int | None = None,
        left_context_frames: int | None = None,
        want_hidden: tuple[str, ...] = (),
    ) -> ModelOutput:
        """Posteriors of whole utterances.

        Args:
            features: Normalised features ``(B, T, F)`` of :meth:`features`.
            chunk_frames: Output frames that may see each other; ``None``: the model's default, ``0``: full context.
            left_context_frames: Output frames before the chunk that it may attend to; ``None``: the model's default.
            want_hidden: Names of hidden layers to return, ``"layer.0"`` the first block's output.

        Raises:
            ValueError: For a negative chunk or context, or an unknown hidden layer.
        """

    def decoder_logits(
        self, encoded: Frames, tokens: Tensor, token_lengths: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Attention decoder under teacher forcing.

        Args:
            encoded: ``ModelOutput.encoded`` of B utterances.
            tokens: ``(M, U)`` label ids without sentence marks; anything beyond ``token_lengths``.
            token_lengths: ``(M,)`` labels.
            rows: ``(M,)`` the utterance of each label sequence, so that an N-best list shares one encoder output;
                ``None``: one sequence for each utterance in order, M = B.

        Returns:
            ``(M, U+1, V)`` logits: row u predicts label u, the row after the last label predicts ``</s>``.

        Raises:
            ValueError: If the model has no attention decoder.
        """
        raise ValueError(f"decoder_logits: this {self.kind} has no attention decoder")

    def transducer_logits(self, encoded: Frames, tokens: Tensor, token_lengths: Tensor) -> Tensor:
        """The joint network at every node of the lattice, forced on labels.

        Args:
            encoded: ``ModelOutput.encoded`` of B utterances.
            tokens: ``(B, U)`` label ids; anything beyond ``token_lengths``.
            token_lengths: ``(B,)`` labels.

        Returns:
            ``(B, T, U+1, V)`` logits: node (t, u) predicts what follows the first u labels at frame t.

        Raises:
            ValueError: If the model is no transducer.
        """
        raise ValueError(f"transducer_logits: this {self.kind} has no joint network")

    def greedy(self, output: ModelOutput) -> list[DecodedTokens]:
        """Best path of each utterance under the head that the model is decoded with, here CTC.

        Args:
            output: Of :meth:`forward`.
        """
        logits = output.ctc_logits
        log_probs = Frames(logits.values.float().log_softmax(-1), logits.lengths, logits.frame_shift_s)
        return greedy(log_probs, self.vocabulary)


def check_hidden_names(want_hidden: tuple[str, ...], num_layers: int) -> None:
    """Refuse names of hidden layers that the model does not have.

    Raises:
        ValueError: Naming the unknown ones and the known range.
    """
    known = {f"layer.{index}" for index in range(num_layers)}
    unknown = sorted(set(want_hidden) - known)
    if unknown:
        raise ValueError(f"want_hidden: unknown {', '.join(unknown)}; known: layer.0 to layer.{num_layers - 1}")


def frame_mask(lengths: Tensor, num_frames: int) -> Tensor:
    """``(B, T)`` bool, true on valid frames."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]
