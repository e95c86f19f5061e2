"""Streaming equals offline: the student chunk by chunk against the whole utterance, to 1e-4 in float32."""

from __future__ import annotations

import pytest
import torch

from asrkd.data.text import train_tokenizer
from asrkd.models.conformer import StreamingConformer, StreamingConformerConfig
from asrkd.models.state import StudentState
from asrkd.types import Frames


def student(**changes: object) -> StreamingConformer:
    torch.manual_seed(1)
    tokenizer = train_tokenizer(["the quick brown fox jumps over a lazy dog"], kind="char")
    numbers = {"d_model": 48, "num_layers": 3, "num_heads": 4, "ffn_dim": 64, "subsampling_channels": 8}
    model = StreamingConformer(StreamingConformerConfig.model_validate({**numbers, **changes}), tokenizer)
    # Larger weights than at the start of training, so that what should differ does.
    with torch.no_grad():
        model.ctc_head.weight.mul_(20.0)
    return model.eval()


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize(
    ("chunk", "left", "num_features"), [(1, 5, 61), (4, 16, 200), (8, 3, 257), (16, 64, 1301), (16, 0, 130)]
)
@torch.no_grad()
def test_step_equals_forward(chunk: int, left: int, num_features: int, factor: int) -> None:
    model = student(subsampling_factor=factor)
    features = torch.randn(2, num_features, 80)
    lengths = torch.full((2,), num_features)
    offline = model(Frames(features, lengths, 0.01), chunk_frames=chunk, left_context_frames=left).ctc_logits
    state = model.initial_state(2, left_context_frames=left)
    pieces = []
    for start in range(0, num_features, chunk * factor):
        logits, state = model.step(features[:, start : start + chunk * factor], state)
        pieces.append(logits)
    streamed = torch.cat(pieces, dim=1)
    assert streamed.shape == offline.values.shape
    assert float((streamed - offline.values).abs().max()) < 1e-4
    full = model(Frames(features, lengths, 0.01), chunk_frames=0).ctc_logits
    if chunk > 1:
        assert float((full.values - offline.values).abs().max()) > 1e-2, "the chunk mask must matter for this to test"


@torch.no_grad()
def test_several_chunks_in_one_step_equal_chunk_by_chunk() -> None:
    model, chunk, left = student(), 4, 10
    features = torch.randn(1, 211, 80)
    offline = model(
        Frames(features, torch.tensor([211]), 0.01), chunk_frames=chunk, left_context_frames=left
    ).ctc_logits
    state, pieces, start = model.initial_state(1, left_context_frames=left), [], 0
    for chunks in (3, 1, 5, 2, 9):
        stop = start + chunks * chunk * 4
        logits, state = model.step(features[:, start:stop], state, chunk_frames=chunk)
        pieces.append(logits)
        start = stop
    streamed = torch.cat(pieces, dim=1)
    assert streamed.shape == offline.values.shape
    assert float((streamed - offline.values).abs().max()) < 1e-4


@torch.no_grad()
def test_streams_that_start_and_end_at_different_times_share_a_batch() -> None:
    model, chunk, left = student(), 4, 8
    lengths = [90, 41, 64]
    begins = [0, 2, 1]
    audio = [torch.randn(1, length, 80) for length in lengths]
    offline = [
        model(Frames(x, torch.tensor([x.shape[1]]), 0.01), chunk_frames=chunk, left_context_frames=left) for x in audio
    ]
    states: list[StudentState] = [model.initial_state(1, left_context_frames=left) for _ in audio]
    pieces: list[list[torch.Tensor]] = [[] for _ in audio]
    for tick in range(10):
        active = []
        for stream, begin in enumerate(begins):
            start = (tick - begin) * chunk * 4
            if 0 <= start < lengths[stream]:
                active.append((stream, start))
        if not active:
            continue
        batch = torch.randn(len(active), chunk * 4, 80)  # garbage beyond the streams' ends
        valid = torch.zeros(len(active), dtype=torch.int64)
        for row, (stream, start) in enumerate(active):
            piece = audio[stream][0, start : start + chunk * 4]
            batch[row, : len(piece)] = piece
            valid[row] = len(piece)
        logits, state = model.step(batch, StudentState.join([states[s] for s, _ in active]), valid)
        for row, (stream, _) in enumerate(active):
            states[stream] = state.select(torch.tensor([row]))
            pieces[stream].append(logits[row, : -(-int(valid[row]) // 4)])
    for stream, whole in enumerate(offline):
        streamed = torch.cat(pieces[stream])
        assert streamed.shape == whole.ctc_logits.values[0].shape
        assert float((streamed - whole.ctc_logits.values[0]).abs().max()) < 1e-4


@torch.no_grad()
def test_features_and_encoder_chunk_by_chunk_equal_whole_audio() -> None:
    model, chunk, left = student(), 8, 16
    model.set_feature_statistics(torch.full((80,), 6.0), torch.full((80,), 4.0))
    audio = 0.1 * torch.randn(1, 30011)
    offline = model(
        model.features(audio, torch.tensor([audio.shape[1]])), chunk_frames=chunk, left_context_frames=left
    ).ctc_logits.values
    feature_state, state = model.fbank.initial_state(1), model.initial_state(1, left_context_frames=left)
    waiting, pieces = torch.zeros(1, 0, 80), []
    for start in range(0, audio.shape[1], 777):
        final = start + 777 >= audio.shape[1]
        values, feature_state = model.fbank.step(audio[:, start : start + 777], feature_state, final)
        waiting = torch.cat((waiting, model.normalise(values)), dim=1)
        while waiting.shape[1] >= chunk * 4 or (final and waiting.shape[1]):
            logits, state = model.step(waiting[:, : chunk * 4], state)
            waiting = waiting[:, chunk * 4 :]
            pieces.append(logits)
    streamed = torch.cat(pieces, dim=1)
    assert streamed.shape == offline.shape
    assert float((streamed - offline).abs().max()) < 1e-4
