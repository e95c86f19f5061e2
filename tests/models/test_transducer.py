"""The streaming transducer: its lattice node by node, padding, start, what it refuses."""

from __future__ import annotations

import pytest
import torch

from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.models.package import build
from asrkd.models.transducer import StreamingTransducer, StreamingTransducerConfig
from asrkd.types import Frames


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over a lazy dog"], kind="char")


def small(tokenizer: Tokenizer, **changes: object) -> StreamingTransducer:
    torch.manual_seed(0)
    numbers = {"d_model": 32, "num_layers": 1, "num_heads": 2, "ffn_dim": 48, "subsampling_channels": 8}
    heads = {"predictor_dim": 12, "joiner_dim": 20, "ctc_head": True}
    return StreamingTransducer(
        StreamingTransducerConfig.model_validate({**numbers, **heads, **changes}), tokenizer
    ).eval()


@torch.no_grad()
def test_each_node_sees_its_frame_and_the_last_labels_alone(tokenizer: Tokenizer) -> None:
    """Node by node from the layers' definitions, with tokens padded by anything and blank before the first."""
    model = small(tokenizer)
    encoded = Frames(torch.randn(2, 5, 32), torch.tensor([5, 3]), 0.04)
    tokens, lengths = torch.tensor([[4, 7, 5, 9], [6, -1, 999, -1]]), torch.tensor([4, 1])
    logits = model.transducer_logits(encoded, tokens, lengths)
    assert logits.shape == (2, 5, 5, len(tokenizer.vocabulary))
    predictor = model.predictor
    for row, labels in enumerate([[4, 7, 5, 9], [6]]):
        for u in range(len(labels) + 1):
            last = [0, 0, *labels[:u]][-2:]
            vectors = predictor.embedding.weight[last]  # (C, P)
            convolved = predictor.convolution.bias + sum(
                predictor.convolution.weight[:, :, place] @ vectors[place] for place in range(2)
            )
            predicted = predictor.projection(torch.nn.functional.silu(convolved))
            for t in range(int(encoded.lengths[row])):
                joined = torch.tanh(model.encoder_projection(encoded.values[row, t]) + predicted)
                torch.testing.assert_close(logits[row, t, u], model.joiner(joined), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_does_not_see_padding_or_neighbours(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    model.joiner.weight.normal_(std=1.5)
    model.joiner.bias.zero_()
    lengths = torch.tensor([121, 60, 7, 0])
    features = 3 * torch.randn(4, 121, 80)
    garbage = features.clone()
    for row, length in enumerate(lengths.tolist()):
        garbage[row, length:] = float("nan")
    batched = model.greedy(model(Frames(garbage, lengths, 0.01)))
    for row, length in enumerate(lengths.tolist()[:3]):
        one = Frames(features[row : row + 1, :length], lengths[row : row + 1], 0.01)
        (alone,) = model.greedy(model(one))
        assert alone.tokens == batched[row].tokens and alone.tokens
    assert batched[3].tokens == ()


@torch.no_grad()
def test_starts_with_half_its_mass_on_blank(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    output = model(Frames(torch.randn(2, 80, 80), torch.full((2,), 80), 0.01))
    logits = model.transducer_logits(output.encoded, torch.randint(4, 20, (2, 6)), torch.tensor([6, 6]))
    assert 0.4 < float(logits.softmax(-1)[..., 0].mean()) < 0.6


def test_without_a_ctc_head(tokenizer: Tokenizer) -> None:
    model = small(tokenizer, ctc_head=False)
    assert not [name for name in model.state_dict() if "ctc" in name]
    output = model(Frames(torch.randn(1, 40, 80), torch.tensor([40]), 0.01))
    assert output.ctc is None
    with pytest.raises(ValueError, match=r"expected one with a CTC head; found a transducer without"):
        _ = output.ctc_logits


def test_another_model_is_no_transducer(tokenizer: Tokenizer) -> None:
    other = build({"kind": "streaming_conformer", "size": "tiny"}, tokenizer)
    encoded = Frames(torch.zeros(1, 2, 96), torch.tensor([2]), 0.04)
    with pytest.raises(ValueError, match="this streaming_conformer has no joint network"):
        other.transducer_logits(encoded, torch.zeros(1, 1, dtype=torch.long), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"context_labels: .*greater than or equal to 1.*\(known: .*joiner_dim"):
        build({"kind": "streaming_transducer", "size": "tiny", "context_labels": 0}, tokenizer)
