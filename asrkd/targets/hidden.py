"""Hidden states on disk: float16, or the indexes of a multi-codebook quantiser that is fitted to the teacher's states.

Legend: B utterances, T frames, N states, D units, C codebooks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from asrkd.data.files import write_atomically
from asrkd.losses.mvq import MultiCodebookQuantiser, train_quantiser
from asrkd.types import Frames

QUANTISERS = "quantisers.safetensors"
HiddenKind = Literal["fp16", "mvq"]


@dataclass(frozen=True)
class Layer:
    """A hidden layer as stored.

    Args:
        size: Its units; of codes, the codebooks.
        frame_shift_s: Seconds from one frame to the next.
        quantiser: Hash of the quantisers that made codes of it; empty for float16.
    """

    size: int
    frame_shift_s: float
    quantiser: str = ""


@dataclass(frozen=True)
class HiddenCodec:
    """How hidden states are kept.

    Args:
        kind: ``fp16``, or ``mvq`` for codes: ``num_codebooks`` bytes a frame.
        num_codebooks: C.
        codebook_size: Codes of each, 2 to 256.
        fit_states: States of each layer that the quantiser is fitted to, at least ``codebook_size``.
        seed: Of the fit.

    Raises:
        ValueError: If an argument is out of range.
    """

    kind: HiddenKind = "fp16"
    num_codebooks: int = 8
    codebook_size: int = 256
    fit_states: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("fp16", "mvq"):
            raise ValueError(f"hidden.kind: expected fp16 or mvq, found {self.kind!r}")
        if self.num_codebooks < 1:
            raise ValueError(f"hidden.num_codebooks: expected at least 1, found {self.num_codebooks}")
        if not 2 <= self.codebook_size <= 256:
            raise ValueError(f"hidden.codebook_size: expected 2 to 256, found {self.codebook_size}")
        if self.fit_states < self.codebook_size:
            raise ValueError(
                f"hidden.fit_states: expected at least codebook_size = {self.codebook_size}, found {self.fit_states}"
            )


@dataclass(frozen=True)
class Quantisers:
    """The quantiser of each layer, as a store's folder keeps them.

    Args:
        layers: By name.
        errors: Share of the variance that each loses on states that it was not fitted to.
        identity: Hash of the file.
    """

    layers: dict[str, MultiCodebookQuantiser]
    errors: dict[str, float]
    identity: str

    def encode(self, name: str, states: Tensor) -> NDArray[np.uint8]:
        """Codes ``(T, C)`` of states ``(T, D)``."""
        return self.layers[name].encode(states.float().cpu()).to(torch.uint8).numpy()


def read_quantisers(folder: Path) -> Quantisers | None:
    """The quantisers of a store; ``None`` where there are none or the file is damaged."""
    try:
        data = (folder / QUANTISERS).read_bytes()
        with safe_open(folder / QUANTISERS, framework="pt") as file:
            errors: dict[str, float] = json.loads(file.metadata()["errors"])
            layers = {
                name: MultiCodebookQuantiser(file.get_tensor(f"{name}.mean"), file.get_tensor(f"{name}.codebooks"))
                for name in errors
            }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return Quantisers(layers, errors, hashlib.sha256(data).hexdigest()[:16])


def fit_quantisers(folder: Path, states: Mapping[str, Tensor], codec: HiddenCodec) -> None:
    """Fit a quantiser to each layer and write them to a store's folder.

    A tenth of the states is held out, to say what the quantiser loses.

    Args:
        folder: Of the store.
        states: ``(N, D)`` of each layer.
        codec: With kind ``mvq``.

    Raises:
        ValueError: If there are too few states.
        OSError: If they cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for name, values in states.items():
        fitted, held_out = values[len(values) // 10 :], values[: len(values) // 10]
        if len(fitted) < codec.codebook_size:
            raise ValueError(
                f"hidden states of {name}: expected at least {codec.codebook_size} frames to fit a quantiser to, found "
                f"{len(fitted)}; take a smaller codebook_size or more audio"
            )
        quantiser = train_quantiser(
            fitted, num_codebooks=codec.num_codebooks, codebook_size=codec.codebook_size, seed=codec.seed
        )
        tensors |= {f"{name}.mean": quantiser.mean.contiguous(), f"{name}.codebooks": quantiser.codebooks.contiguous()}
        errors[name] = round(quantiser.relative_error(held_out if len(held_out) else fitted), 6)
    write_atomically(folder / QUANTISERS, save(tensors, metadata={"errors": json.dumps(errors)}))


def some_states(hear: Callable[[int], Mapping[str, Frames]], batches: int, wanted: int) -> dict[str, Tensor]:
    """States of each layer from as many batches as are needed.

    Args:
        hear: Number of a batch to its hidden states.
        batches: How many there are.
        wanted: States of each layer.
    """
    rows: dict[str, list[Tensor]] = {}
    for number in range(batches):
        for name, frames in hear(number).items():
            valid = torch.arange(frames.values.shape[1], device=frames.lengths.device) < frames.lengths[:, None]
            rows.setdefault(name, []).append(frames.values[valid].float().cpu())
        if rows and all(sum(map(len, some)) >= wanted for some in rows.values()):
            break
    return {name: torch.cat(some)[:wanted] for name, some in rows.items()}


def pack_hidden(values: NDArray[np.float32]) -> bytes:
    """Hidden states ``(T, D)`` as float16; what is beyond its range becomes its largest value."""
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype("<f2").tobytes()


def padded_hidden(packed: Sequence[bytes], layer: Layer) -> Frames:
    """Stored states ``(B, T, D)`` as float32, or codes ``(B, T, C)`` as uint8."""
    kind: Any = "u1" if layer.quantiser else "<f2"
    arrays = [np.frombuffer(data, kind).reshape(-1, layer.size) for data in packed]
    shape = (len(arrays), max(map(len, arrays), default=0), layer.size)
    values = np.zeros(shape, np.uint8 if layer.quantiser else np.float32)
    for row, array in enumerate(arrays):
        values[row, : len(array)] = array
    return Frames(
        torch.from_numpy(values), torch.tensor([len(a) for a in arrays], dtype=torch.int64), layer.frame_shift_s
    )
