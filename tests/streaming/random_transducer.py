"""A transducer with random weights that says something, for tests of the live recogniser."""

from __future__ import annotations

import numpy as np
import torch

from asrkd.data.text import train_tokenizer
from asrkd.models.transducer import StreamingTransducer, StreamingTransducerConfig

CHUNK, LEFT = 4, 8


@torch.no_grad()
def make_transducer(audio: np.ndarray, blank_bias: float = 11.0, **changes: object) -> StreamingTransducer:
    """A model whose labels depend on the frame and on what was said before, blank in most frames of ``audio``'s kind."""
    torch.manual_seed(5)
    numbers = {"d_model": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 32, "subsampling_channels": 4}
    heads = {"predictor_dim": 16, "joiner_dim": 16, "chunk_frames": CHUNK, "left_context_frames": LEFT}
    config = StreamingTransducerConfig.model_validate({**numbers, **heads, "conv_kernel_frames": 5, **changes})
    model = StreamingTransducer(config, train_tokenizer(["a bc de", "c ab"], kind="char")).eval()
    heard, length = torch.from_numpy(audio)[None], torch.tensor([len(audio)])
    raw = model.fbank(heard, length).values[0]
    model.set_feature_statistics(raw.mean(0), raw.std(0))
    # What an untrained encoder says hardly moves: taken about its own mean and enlarged, it says many things.
    encoded = model(model.features(heard, length)).encoded.values[0]
    model.encoder_projection.weight.mul_(6.0 / encoded.std(0).mean())
    model.encoder_projection.bias.copy_(-model.encoder_projection.weight @ encoded.mean(0))
    model.predictor.projection.weight.mul_(6.0)
    model.joiner.weight.normal_(std=1.5)
    model.joiner.bias.zero_()
    model.joiner.bias[:4] = torch.tensor([blank_bias, -500.0, -500.0, -500.0])
    return model
