"""A student with random weights that says many things, and sounds for it to hear."""

from __future__ import annotations

import numpy as np
import torch

from asrkd.data.text import train_tokenizer
from asrkd.models.conformer import StreamingConformer, StreamingConformerConfig

CHUNK, LEFT = 4, 8


def make_student(blank_bias: float = 0.0, **changes: object) -> StreamingConformer:
    """A student with random weights, sharp enough that its output says something."""
    torch.manual_seed(5)
    numbers = {"d_model": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "subsampling_channels": 4}
    config = {**numbers, "chunk_frames": CHUNK, "left_context_frames": LEFT, "conv_kernel_frames": 5, **changes}
    tokenizer = train_tokenizer(["a bc de", "c ab"], kind="char")
    model = StreamingConformer(StreamingConformerConfig.model_validate(config), tokenizer).eval()
    audio = torch.from_numpy(speech(20.0, seed=99))[None]
    raw = model.fbank(audio, torch.tensor([audio.shape[1]])).values[0]
    model.set_feature_statistics(raw.mean(0), raw.std(0))
    with torch.no_grad():
        # What an untrained encoder says hardly moves: taken about its own mean and enlarged, it says many things.
        encoded = model(model.features(audio, torch.tensor([audio.shape[1]]))).encoded.values[0]
        model.ctc_head.weight.mul_(60.0 / encoded.std(0).mean())
        model.ctc_head.bias.copy_(-model.ctc_head.weight @ encoded.mean(0))
        model.ctc_head.bias[:4] += torch.tensor([blank_bias, -500.0, -500.0, -500.0])
    return model


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Chords that change every tenth of a second, loud and quiet: features that are far from constant."""
    generator = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * 16000)) / 16000
    audio = np.zeros(len(time_s))
    for start in range(0, len(time_s), 1600):
        piece = slice(start, start + 1600)
        for frequency_hz in generator.uniform(80, 5000, 4):
            audio[piece] += 10 ** generator.uniform(-3, -1) * np.sin(2 * np.pi * frequency_hz * time_s[piece])
    return (audio + 1e-4 * generator.standard_normal(len(audio))).astype(np.float32)
