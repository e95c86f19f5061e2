"""What is quick on a CPU is the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asrkd.data.text import train_tokenizer
from asrkd.models import package
from asrkd.training.cpu import ByteDropout, quicken_dropout, recurring
from asrkd.types import Frames


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_it_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    ones = torch.ones(400, 501, requires_grad=True)
    out = ByteDropout(p)(ones)
    dropped = float((out == 0).double().mean())
    assert dropped == pytest.approx(round(256 * p) / 256, abs=5 * (p * (1 - p) / ones.numel()) ** 0.5)
    kept = out[out != 0]
    assert kept.unique().numel() == 1
    assert float(kept[0].detach()) * (1 - round(256 * p) / 256) == pytest.approx(1)
    (gradient,) = torch.autograd.grad(out.sum(), ones)
    assert torch.equal(gradient, out.detach())


def test_elements_are_dropped_independently() -> None:
    """Neighbours, elements eight apart and rows: no correlation beyond what chance gives."""
    torch.manual_seed(0)
    mask = (ByteDropout(0.5)(torch.ones(1000, 1000)) != 0).double() - 0.5
    for a, b in ((mask[:, 1:], mask[:, :-1]), (mask[:, 8:], mask[:, :-8]), (mask[1:], mask[:-1])):
        assert abs(float((a * b).mean()) / 0.25) < 5 / a.numel() ** 0.5


def test_the_seed_decides_and_evaluation_changes_nothing() -> None:
    x, dropout = torch.randn(7, 13), ByteDropout(0.3)
    torch.manual_seed(4)
    first = dropout(x)
    torch.manual_seed(4)
    assert torch.equal(first, dropout(x)) and not torch.equal(first, dropout(x))
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(ByteDropout(0.0)(x), x)
    assert ByteDropout(0.3)(torch.zeros(0, 3)).shape == (0, 3)


def test_every_dropout_of_a_model_is_replaced_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.4), nn.Dropout1d(0.1)))
    names = list(model.state_dict())
    quicken_dropout(model)
    assert [type(m) for m in model.modules() if "Dropout" in type(m).__name__] == [
        ByteDropout,
        ByteDropout,
        nn.Dropout1d,
    ]
    assert model[1].p == 0.2 and model[2][0].p == 0.4 and list(model.state_dict()) == names


def test_padding_to_recurring_shapes_changes_no_gradient() -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a b c"], kind="char")
    numbers = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4}
    model = package.build({"kind": "streaming_conformer", "chunk_frames": 4, **numbers}, tokenizer).double().eval()
    features = Frames(torch.randn(3, 69, 80, dtype=torch.float64), torch.tensor([69, 40, 3]), 0.01)
    found = []
    for padded in (features, recurring(features)):
        logits = model(padded, chunk_frames=4).ctc_logits
        valid = torch.arange(logits.values.shape[1])[None] < logits.lengths[:, None]
        model.zero_grad()
        (logits.values * valid[..., None]).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert recurring(features).values.shape[1] == 96
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
