"""Streaming equals offline for the transducer: its joint network to 1e-4 at every node, and the labels that it emits."""

from __future__ import annotations

import pytest
import torch

from asrkd.models.state import TransducerState
from asrkd.types import Frames
from tests.streaming.random_transducer import CHUNK, LEFT, make_transducer
from tests.streaming.test_recognizer import speech


@torch.no_grad()
@pytest.mark.parametrize("factor", [4, 8])
def test_chunk_by_chunk_equals_whole(factor: int) -> None:
    audio = speech(7.3)
    model = make_transducer(speech(20.0, seed=99), subsampling_factor=factor)
    features = model.features(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    output = model(features, chunk_frames=CHUNK, left_context_frames=LEFT)
    (whole,) = model.greedy(output)
    assert len(whole.tokens) > 20 and len(set(whole.tokens)) >= 4
    assert len(set(whole.times_s)) < output.encoded.values.shape[1], (
        "a model that speaks in every frame tests no blanks"
    )

    state, encoder = model.initial_state(1, left_context_frames=LEFT), model.initial_encoder_state(1, "cpu", LEFT)
    tokens, encoded, size = [], [], CHUNK * factor
    for start in range(0, features.values.shape[1], size):
        piece = features.values[:, start : start + size]
        (found,), state = model.step(piece, state)
        tokens += found.decoded(model.frame_shift_s).tokens
        values, encoder = model.step_encoder(piece, encoder)
        encoded.append(values)
    assert tuple(tokens) == whole.tokens
    assert state.context.tolist() == [list(whole.tokens[-2:])]

    streamed = Frames(torch.cat(encoded, 1), output.encoded.lengths, model.frame_shift_s)
    labels = torch.tensor([tokens[:20]]), torch.tensor([20])
    ours, theirs = (model.transducer_logits(e, *labels).log_softmax(-1) for e in (streamed, output.encoded))
    assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
    full = model(features, chunk_frames=0).encoded
    assert float((full.values - output.encoded.values).abs().max()) > 1e-2, (
        "the chunk mask must matter for this to test"
    )


@torch.no_grad()
def test_streams_are_joined_and_parted() -> None:
    model = make_transducer(speech(20.0, seed=99))
    features = [
        model.features(torch.from_numpy(speech(2.0, seed))[None], torch.tensor([32000])).values for seed in range(3)
    ]
    alone = []
    for values in features:
        (found,), _ = model.step(values, model.initial_state(1), chunk_frames=CHUNK)
        alone.append(found.decoded(0.04).tokens)
    assert len(set(alone)) == 3 and all(alone)
    states, heard = [model.initial_state(1) for _ in features], [(), (), ()]
    for start, rows in ((0, (2, 0)), (0, (1,)), (96, (0, 1, 2))):
        size = 96 if start == 0 else 200
        batch = torch.cat([features[row][:, start : start + size] for row in rows])
        found, state = model.step(batch, TransducerState.join([states[row] for row in rows]), chunk_frames=CHUNK)
        for place, row in enumerate(rows):
            states[row] = state.select(torch.tensor([place]))
            heard[row] += found[place].decoded(0.04).tokens
    assert heard == alone
