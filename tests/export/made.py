"""A student with random weights, and sounds."""

from __future__ import annotations

import numpy as np
import torch

from asrkd.data.text import train_tokenizer
from asrkd.models import package
from asrkd.models.conformer import StreamingConformer

SIZE = {"d_model": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "subsampling_channels": 4}
SIZE |= {"conv_kernel_frames": 5, "chunk_frames": 6, "left_context_frames": 16}


def student(**more: object) -> StreamingConformer:
    """Random weights that say something: as many tokens likely as the weights allow."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN"], kind="char")
    model = package.build({"kind": "streaming_conformer", **SIZE, **more}, tokenizer).eval()
    model.set_feature_statistics(torch.full((80,), 9.0), torch.full((80,), 3.0))
    audio = torch.from_numpy(sound(0, 4.0))[None]
    with torch.no_grad():
        encoded = model(model.features(audio, torch.tensor([audio.shape[1]]))).encoded.values[0]
        model.ctc_head.weight.normal_(std=2)  # type: ignore[union-attr,operator]
        model.ctc_head.bias.copy_(-model.ctc_head.weight @ encoded.mean(0))  # type: ignore[union-attr,operator]
    assert isinstance(model, StreamingConformer)
    return model


def sound(seed: int, seconds: float) -> np.ndarray:
    """Tones that change every fifth of a second, in a little noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(int(16000 * seconds)) / 16000
    pitch_hz = rng.uniform(150, 3000, int(5 * seconds) + 1)[(5 * time_s).astype(int)]
    return (0.3 * np.sin(2 * np.pi * pitch_hz * time_s) + 0.02 * rng.standard_normal(len(time_s))).astype(np.float32)
