"""torchaudio's ASR bundles as teachers: wav2vec 2.0, HuBERT and WavLM with a CTC head over characters, and transducers.

Dimension legend: B utterances, S samples, T frames, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
import torchaudio
from torch import Tensor
from torchaudio.pipelines import RNNTBundle, Wav2Vec2ASRBundle

from asrkd.teachers.base import CtcTeacher, Precision, characters_to_text, stack
from asrkd.teachers.torchaudio_rnnt import RnntTeacher
from asrkd.types import Vocabulary


def bundle_names() -> tuple[str, ...]:
    """Names of the ASR bundles that the installed torchaudio has."""
    found = vars(torchaudio.pipelines).items()
    return tuple(sorted(name for name, value in found if isinstance(value, (Wav2Vec2ASRBundle, RNNTBundle))))


def torchaudio_teacher(bundle: str, **options: Any) -> TorchaudioTeacher | RnntTeacher:
    """The teacher that fits a bundle.

    Args:
        bundle: A name in ``torchaudio.pipelines``.
        **options: Of :class:`TorchaudioTeacher` or :class:`RnntTeacher`.

    Raises:
        ValueError: If there is no such bundle.
        OSError: If its weights are neither cached nor to be had.
    """
    if bundle not in bundle_names():
        raise ValueError(f"bundle: expected one of {', '.join(bundle_names())}; found {bundle!r}")
    found = getattr(torchaudio.pipelines, bundle)
    return RnntTeacher(found, **options) if isinstance(found, RNNTBundle) else TorchaudioTeacher(found, **options)


class TorchaudioTeacher(CtcTeacher):
    """Log-probabilities of a ``Wav2Vec2ASRBundle``; weights are fetched by torchaudio into torch.hub's cache.

    Utterances whose statistics padding would change (a group norm over time in the first convolution, WavLM) are heard one by
    one; waveforms are normalised one by one in any case, as torchaudio does with a batch of one.

    Args:
        bundle: Of ``torchaudio.pipelines``.
        device: See :class:`CtcTeacher`, as all further arguments.

    Raises:
        OSError: If its weights are neither cached nor to be had.
    """

    def __init__(
        self,
        bundle: Wav2Vec2ASRBundle,
        *,
        device: str = "cpu",
        nbest: int = 0,
        beam: int = 8,
        precision: Precision = "fp32",
    ) -> None:
        model = bundle.get_model()
        self._normalise = hasattr(model, "normalize_waveform") and bool(model.normalize_waveform)
        self._model = (model.model if self._normalise else model).to(device).eval()
        self._alone = bundle._model_type != "Wav2Vec2" or bundle._params["extractor_mode"] == "group_norm"
        self._labels = bundle.get_labels()
        layers = bundle._params["extractor_conv_layer_config"]
        stride = 1
        for _, _, step in layers:
            stride *= step
        rate = int(bundle.sample_rate)
        super().__init__(
            Vocabulary(tuple(self._labels), 0),
            rate,
            stride / rate,
            self._model,
            device=device,
            nbest=nbest,
            beam=beam,
            precision=precision,
        )
        self._min_samples = 1
        for _, kernel, step in reversed(layers):
            self._min_samples = (self._min_samples - 1) * step + kernel

    def _hear(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = [self._prepared(audio[row, :length]) for row, length in enumerate(lengths.tolist())]
        if self._alone:
            return *stack([self._model(row[None])[0][0] for row in rows]), {}
        padded, samples = stack([row[:, None] for row in rows])
        scores, frames = self._model(padded.squeeze(2), samples)
        return scores, frames, {}

    def _prepared(self, samples: Tensor) -> Tensor:
        if self._normalise:
            samples = F.layer_norm(samples, samples.shape)
        return F.pad(samples, (0, max(0, self._min_samples - len(samples))))

    def _text(self, tokens: Sequence[int]) -> str:
        return characters_to_text([self._labels[token] for token in tokens])
