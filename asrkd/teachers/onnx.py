"""ONNX models with a described contract as teachers (extra ``onnx``).

A folder holds ``model.onnx`` (and its external data, if any) and ``contract.json``, which says what the graph cannot::

    {"schema_version": 1,
     "sample_rate_hz": 16000,
     "input": "x",                         # samples (B, S) or features (B, T, F), float32
     "input_lengths": "x_lens",            # (B,) int64 or int32; left out where the model hears one utterance at a time
     "output": "log_probs",                # scores or log-probabilities (B, T, V)
     "output_lengths": "log_probs_lens",   # (B,); left out where there is none
     "features": {"kind": "fbank", "num_mel_bins": 80, "normalise": "none", "sample_scale": 1},
     "tokens": ["<blank>", "▁THE", ...],
     "blank_id": 0,
     "frame_shift_s": 0.04}                # of the output

Dimension legend: B utterances, S samples, T frames, F mel bins, V tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from asrkd.data.features import Fbank
from asrkd.teachers.base import CtcTeacher, Precision, stack
from asrkd.types import Vocabulary

MODEL = "model.onnx"
CONTRACT = "contract.json"
_FBANK_SCALE = 32768.0  # what asrkd.data.features multiplies samples by

logger = logging.getLogger(__name__)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplesFeatures(_Strict):
    """The waveform itself. ``utterance`` takes its mean away and divides by its deviation, as wav2vec 2.0's extractor does."""

    kind: Literal["samples"]
    normalise: Literal["none", "utterance"] = "none"


class FbankFeatures(_Strict):
    """Kaldi's log-mel filterbank (see :class:`asrkd.data.features.Fbank`).

    Args:
        num_mel_bins: F.
        sample_scale: What samples in [-1, 1] are multiplied by first: 32768 as Kaldi, 1 as lhotse and icefall.
        normalise: ``none``; ``utterance``: each bin to mean 0 and deviation 1 over the utterance; ``stored``: by ``mean`` and
            ``deviation``.
        mean: ``(F,)`` for ``stored``.
        deviation: ``(F,)`` for ``stored``.
    """

    kind: Literal["fbank"]
    num_mel_bins: int = Field(80, ge=4)
    sample_scale: float = Field(_FBANK_SCALE, gt=0)
    normalise: Literal["none", "utterance", "stored"] = "none"
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None


class Contract(_Strict):
    """``contract.json``; see the top of this file."""

    schema_version: Literal[1] = 1
    sample_rate_hz: int = Field(gt=0)
    input: str
    input_lengths: str | None = None
    output: str
    output_lengths: str | None = None
    features: Annotated[SamplesFeatures | FbankFeatures, Field(discriminator="kind")]
    tokens: tuple[str, ...] = Field(min_length=2)
    blank_id: int = Field(0, ge=0)
    frame_shift_s: float = Field(gt=0)


def read_contract(folder: str | Path) -> Contract:
    """The checked contract of a folder.

    Raises:
        ValueError: One line naming each wrong key.
        OSError: If there is none.
    """
    path = Path(folder) / CONTRACT
    try:
        contract = Contract.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{path}: {wrong}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text") from None
    features = contract.features
    if isinstance(features, FbankFeatures):
        stored = features.normalise == "stored"
        for key in ("mean", "deviation"):
            values = getattr(features, key)
            if (len(values) if values is not None else 0) != (features.num_mel_bins if stored else 0):
                expected = f"{features.num_mel_bins} numbers" if stored else f"none with normalise {features.normalise}"
                found = "none" if values is None else len(values)
                raise ValueError(f"{path}: features.{key}: expected {expected}, found {found}")
    return contract


class OnnxTeacher(CtcTeacher):
    """Log-probabilities of an ONNX model run by onnxruntime.

    A batch is heard at once where the model takes and gives lengths and its batch size is free, else one by one. Audio is
    prepared by the adapter, on the CPU, as the contract says. Half precision is the file's own matter.

    Args:
        folder: With ``model.onnx`` and ``contract.json``.
        device: ``cpu``, or ``cuda`` where the installed onnxruntime has it; else the CPU, with a warning.
        nbest: See :class:`CtcTeacher`, as ``beam``.

    Raises:
        ValueError: If onnxruntime is not installed, or model and contract do not fit each other.
        OSError: If a file is not there.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        nbest: int = 0,
        beam: int = 8,
        precision: Precision = "fp32",
    ) -> None:
        self._folder = Path(folder)
        if precision != "fp32":
            raise ValueError(
                f"precision: expected fp32 of an ONNX teacher (its file says its own); found {precision!r}"
            )
        self._contract = read_contract(folder)
        if not (self._folder / MODEL).is_file():
            raise FileNotFoundError(f"{self._folder / MODEL}: not there")
        try:
            vocabulary = Vocabulary(self._contract.tokens, self._contract.blank_id)
        except ValueError as error:
            raise ValueError(f"{self._folder / CONTRACT}: {error}") from None
        self._session = _session(self._folder / MODEL, device)
        self._length_types = self._check()
        features = self._contract.features
        self._fbank: Fbank | None = None
        if isinstance(features, FbankFeatures):
            self._fbank = Fbank(self._contract.sample_rate_hz, features.num_mel_bins)
        super().__init__(
            vocabulary,
            self._contract.sample_rate_hz,
            self._contract.frame_shift_s,
            _files_hash(self._folder),
            device=device,
            nbest=nbest,
            beam=beam,
        )

    def _check(self) -> dict[str, Any]:
        """Refuse a contract that the graph contradicts; gives the integer type of the lengths."""
        contract, path = self._contract, self._folder / CONTRACT
        inputs = {one.name: one for one in self._session.get_inputs()}
        outputs = {one.name: one for one in self._session.get_outputs()}
        for key, known in (
            ("input", inputs),
            ("input_lengths", inputs),
            ("output", outputs),
            ("output_lengths", outputs),
        ):
            name = getattr(contract, key)
            if name is not None and name not in known:
                raise ValueError(f"{path}: {key}: expected one of {', '.join(known)}; found {name!r}")
        if unfed := sorted(set(inputs) - {contract.input, contract.input_lengths}):
            raise ValueError(f"{path}: the model has inputs that the contract does not describe: {', '.join(unfed)}")
        wanted = 3 if isinstance(contract.features, FbankFeatures) else 2
        shape = inputs[contract.input].shape
        if len(shape) != wanted:
            raise ValueError(
                f"{path}: features: {contract.features.kind} gives {wanted} dimensions; the model takes {shape}"
            )
        bins = getattr(contract.features, "num_mel_bins", None)
        if bins is not None and isinstance(shape[2], int) and shape[2] != bins:
            raise ValueError(f"{path}: features.num_mel_bins: expected {shape[2]} as the model takes, found {bins}")
        scores = outputs[contract.output].shape
        if len(scores) != 3 or (isinstance(scores[2], int) and scores[2] != len(contract.tokens)):
            raise ValueError(
                f"{path}: tokens: expected as many as in the output {scores}, found {len(contract.tokens)}"
            )
        self._at_once = (
            contract.input_lengths is not None and contract.output_lengths is not None and not isinstance(shape[0], int)
        )
        if contract.input_lengths is None:
            return {}
        kinds = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
        found = inputs[contract.input_lengths].type
        if found not in kinds:
            raise ValueError(f"{path}: input_lengths: expected a model that takes {' or '.join(kinds)}; found {found}")
        return {contract.input_lengths: kinds[found]}

    def _hear(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        audio, lengths = audio.cpu(), lengths.cpu()
        if self._at_once:
            return *self._run(*self._prepared(audio, lengths)), {}
        rows = []
        for row, samples in enumerate(lengths.tolist()):
            scores, frames = self._run(*self._prepared(audio[row : row + 1, :samples], lengths[row : row + 1]))
            rows.append(scores[0, : int(frames[0])])
        return *stack(rows), {}

    def _prepared(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the model is fed ``(B, S)`` or ``(B, T, F)``, zero beyond the lengths, and these."""
        features = self._contract.features
        if isinstance(features, SamplesFeatures):
            values = audio[:, :, None]
        else:
            assert self._fbank is not None
            frames = self._fbank(audio * (features.sample_scale / _FBANK_SCALE), lengths)
            values, lengths = frames.values, frames.lengths
        mask = (torch.arange(values.shape[1]) < lengths[:, None])[:, :, None]
        if features.normalise == "utterance":
            counts = lengths.clamp(min=1)[:, None, None]
            means = values.masked_fill(~mask, 0.0).sum(1, keepdim=True) / counts
            variances = (values - means).square().masked_fill(~mask, 0.0).sum(1, keepdim=True) / counts
            values = (values - means) / (variances + 1e-7).sqrt()
        elif isinstance(features, FbankFeatures) and features.mean is not None and features.deviation is not None:
            values = (values - torch.tensor(features.mean)) / torch.tensor(features.deviation)
        values = values.masked_fill(~mask, 0.0)
        return (values.squeeze(2) if isinstance(features, SamplesFeatures) else values), lengths

    def _run(self, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        contract = self._contract
        feed = {contract.input: values.float().contiguous().numpy()}
        for name, kind in self._length_types.items():
            feed[name] = lengths.numpy().astype(kind)
        wanted = [contract.output] + ([contract.output_lengths] if contract.output_lengths is not None else [])
        scores, *frames = self._session.run(wanted, feed)
        found = torch.from_numpy(scores)
        if frames:
            return found, torch.from_numpy(frames[0].astype(np.int64)).clamp(max=found.shape[1])
        return found, torch.full((len(found),), found.shape[1])

    def _text(self, tokens: Sequence[int]) -> str:
        pieces = "".join(self.vocabulary.tokens[token] for token in tokens)
        return " ".join(pieces.replace("▁", " ").replace("|", " ").split())


def _session(path: Path, device: str) -> Any:
    try:
        import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ValueError("teacher: ONNX models need the extra: pip install 'asrkd[onnx]'") from None
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        else:
            logger.warning("%s: this onnxruntime has no CUDA; the teacher runs on the CPU", path)
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise ValueError(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from None


def _files_hash(folder: Path) -> str:
    """SHA-256 over the contract and every file of the model (weights may lie in files beside it)."""
    digest = hashlib.sha256(json.dumps(read_contract(folder).model_dump(mode="json"), sort_keys=True).encode())
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CONTRACT and p.suffix != ".md"):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
