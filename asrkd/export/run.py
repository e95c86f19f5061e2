"""Run an exported student with onnxruntime, chunk by chunk, as any other engine would.

Legend: S samples, T frames, F mel bins, V tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asrkd.data.features import Fbank
from asrkd.export.write import MODEL, ExportError, read_description

_ELEMENTS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


class ExportedStudent:
    """An export, either kind.

    Args:
        folder: Of the export.
        threads: Of onnxruntime.

    Raises:
        ExportError: If it is no export, or onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ExportError("export: onnxruntime is not installed: pip install 'asrkd[export]'") from None
        self.description = read_description(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(Path(folder) / MODEL), options, providers=["CPUExecutionProvider"]
        )
        self._fbank = Fbank(self.description["sample_rate_hz"], self.description["num_mel_bins"])
        self._is_step = self.description["to"] == "onnx"

    @property
    def chunk_features(self) -> int:
        """Feature frames of a chunk."""
        return int(self.description["chunk_frames"] * self.description["subsampling_factor"])

    def initial_state(self) -> dict[str, NDArray[Any]]:
        """Zeros for every input that is state, by its name, for one stream."""
        fixed = {"features", "lengths", "x", "offset", "required_cache_size", "attn_mask"}
        return {
            value.name: np.zeros([n if isinstance(n, int) else 1 for n in value.shape], _ELEMENTS[value.type])
            for value in self._session.get_inputs()
            if value.name not in fixed
        }

    def step(
        self, features: NDArray[np.float32], length: int, state: dict[str, NDArray[Any]]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """One chunk ``(1, S, F)`` of raw log-mel, of which ``length`` frames are valid; log-probabilities and the next state."""
        names = list(state)
        if self._is_step:
            given = {"features": features, "lengths": np.array([length], dtype=np.int64)}
        else:
            frames = self.description["chunk_frames"]
            cache = frames * self.description["num_left_chunks"]
            given = {"x": features, "offset": np.zeros(1, np.int64), "required_cache_size": np.array([cache], np.int64)}
            given["attn_mask"] = np.ones((1, 1, cache + frames), np.bool_)
        log_probs, *after = self._session.run(None, {**given, **state})
        return log_probs, dict(zip(names, after, strict=True))

    def log_probs(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(T, V)`` of a whole utterance, streamed.

        The end is padded with zeros of the normalised features where the contract knows lengths, and with silence of a
        chunk's length where it does not (the frames that this adds are cut off).

        Args:
            audio: ``(S,)`` samples in [-1, 1] at the model's rate.
        """
        samples = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))[None]
        shift = self._fbank.shift
        valid = int(self._fbank.num_frames(torch.tensor(samples.shape[1])))
        if not self._is_step:
            samples = torch.nn.functional.pad(samples, (0, self.chunk_features * shift))
        features = self._fbank(samples, torch.tensor([samples.shape[1]])).values.numpy()
        size, state, found = self.chunk_features, self.initial_state(), []
        for start in range(0, valid, size):
            chunk = features[:, start : start + size]
            length = chunk.shape[1]
            if length < size:
                chunk = np.pad(chunk, ((0, 0), (0, size - length), (0, 0)))
            log_probs, state = self.step(np.ascontiguousarray(chunk), length, state)
            found.append(log_probs[0])
        frames = -(-valid // self.description["subsampling_factor"])
        empty = np.zeros((0, len(self.description["tokens"])), np.float32)
        return np.concatenate(found)[:frames] if found else empty
