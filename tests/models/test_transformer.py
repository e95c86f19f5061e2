"""SpeechBrain's Conformer: clock, padding, decoder, joint beam search."""

from __future__ import annotations

import itertools

import pytest
import torch

from asrkd.data.text import END_ID, Tokenizer, train_tokenizer
from asrkd.models.transformer import SpeechBrainConformer, SpeechBrainConformerConfig
from asrkd.types import Frames


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["ab ba"], kind="char")


def small(tokenizer: Tokenizer, **changes: object) -> SpeechBrainConformer:
    torch.manual_seed(3)
    numbers = {"d_model": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 48, "decoder_layers": 1}
    config = {**numbers, "subsampling_channels": 8, "conv_kernel_frames": 7, **changes}
    return SpeechBrainConformer(SpeechBrainConformerConfig.model_validate(config), tokenizer).eval()


def test_same_clock_as_the_student(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    for num_frames in (1, 3, 4, 5, 38):
        out = model(Frames(torch.randn(1, num_frames, 80), torch.tensor([num_frames]), 0.01)).ctc_logits
        assert out.lengths.tolist() == [-(-num_frames // 4)]
        assert out.values.shape[1] == -(-num_frames // 4)
        assert out.frame_shift_s == pytest.approx(0.04)


@pytest.mark.parametrize("attention", ["regularMHA", "RoPEMHA", "RelPosMHAXL"])
@torch.no_grad()
def test_padding_does_not_matter(tokenizer: Tokenizer, attention: str) -> None:
    model = small(tokenizer, attention=attention)
    lengths = torch.tensor([90, 41])
    features = torch.randn(2, 90, 80)
    features[1, 41:] = float("nan")
    batched = model(Frames(features, lengths, 0.01))
    alone = model(Frames(features[1:, :41], lengths[1:], 0.01))
    assert torch.isfinite(batched.ctc_logits.values).all()
    torch.testing.assert_close(batched.ctc_logits.values[1, :11], alone.ctc_logits.values[0], atol=2e-5, rtol=0)
    tokens, token_lengths = torch.tensor([[4, 5, 4], [5, 4, -1]]), torch.tensor([3, 2])
    logits = model.decoder_logits(batched.encoded, tokens, token_lengths)
    alone_logits = model.decoder_logits(alone.encoded, tokens[1:, :2], token_lengths[1:])
    torch.testing.assert_close(logits[1, :3], alone_logits[0], atol=2e-5, rtol=0)
    rows = torch.tensor([1, 1, 0])
    listed = model.decoder_logits(batched.encoded, tokens[rows], token_lengths[rows], rows)
    torch.testing.assert_close(listed, logits[rows], atol=2e-5, rtol=0)


def test_hidden_layers_are_the_blocks_outputs(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    seen: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda *a: seen.append(a[2][0])) for layer in model.transformer.encoder.layers
    ]
    out = model(Frames(torch.randn(1, 20, 80), torch.tensor([20]), 0.01), want_hidden=("layer.0", "layer.1"))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(out.hidden["layer.0"].values, seen[0])
    torch.testing.assert_close(out.hidden["layer.1"].values, seen[1])
    with pytest.raises(ValueError, match="hears whole utterances"):
        model(Frames(torch.randn(1, 20, 80), torch.tensor([20]), 0.01), chunk_frames=4)


def _joint_score(model: SpeechBrainConformer, encoded: Frames, ids: tuple[int, ...], weight: float) -> float:
    """The definition, by torch's own CTC and teacher forcing."""
    tokens = torch.tensor([ids], dtype=torch.long)
    lengths = torch.tensor([len(ids)])
    ctc = model.ctc_head(encoded.values).log_softmax(-1).transpose(0, 1)
    log_ctc = -torch.nn.functional.ctc_loss(ctc, tokens, encoded.lengths, lengths, reduction="sum", blank=0)
    steps = model.decoder_logits(encoded, tokens, lengths).log_softmax(-1)[0]
    log_attention = sum(steps[u, token] for u, token in enumerate((*ids, END_ID)))
    return float(weight * log_ctc + (1 - weight) * log_attention)


@torch.no_grad()
def test_nbest_finds_what_enumeration_finds(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    # Sharper outputs, so that the best hypotheses are short and stand apart.
    model.ctc_head.weight.mul_(30.0)
    model.decoder_head.weight.mul_(4.0)
    model.decoder_head.bias[END_ID] += 2.0
    features = Frames(torch.randn(2, 14, 80), torch.tensor([14, 9]), 0.01)
    encoded = model(features).encoded
    vocab_size = len(tokenizer.vocabulary)
    lists = model.nbest(encoded, n=3, beam=24, ctc_weight=0.4)
    for row in range(2):
        length = int(encoded.lengths[row])
        alone = Frames(encoded.values[row : row + 1, :length], encoded.lengths[row : row + 1], 0.04)
        usable = [token for token in range(1, vocab_size) if token != END_ID]
        scored = sorted(
            (
                (_joint_score(model, alone, ids, 0.4), ids)
                for count in range(length + 1)
                for ids in itertools.product(usable, repeat=count)
            ),
            reverse=True,
        )
        assert lists[row][0].tokens == scored[0][1]
        for hypothesis in lists[row]:
            assert hypothesis.score == pytest.approx(_joint_score(model, alone, hypothesis.tokens, 0.4), abs=1e-3)
            assert hypothesis.text == tokenizer.decode(hypothesis.tokens)
        assert [h.score for h in lists[row]] == sorted((h.score for h in lists[row]), reverse=True)
        assert len({h.tokens for h in lists[row]}) == len(lists[row])


@torch.no_grad()
def test_scores_are_as_defined_with_many_tokens_too() -> None:
    many = train_tokenizer(["abcdefghijklmnopqrstuvwxyz0123456789"], kind="char")
    model = small(many)
    model.ctc_head.weight.mul_(30.0)
    encoded = model(Frames(torch.randn(2, 40, 80), torch.tensor([40, 31]), 0.01)).encoded
    lists = model.nbest(encoded, n=2, beam=3)
    for row, nbest in enumerate(lists):
        length = int(encoded.lengths[row])
        alone = Frames(encoded.values[row : row + 1, :length], encoded.lengths[row : row + 1], 0.04)
        for hypothesis in nbest:
            assert hypothesis.score == pytest.approx(_joint_score(model, alone, hypothesis.tokens, 0.4), abs=2e-3)


@torch.no_grad()
def test_nbest_of_a_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    encoded = model(Frames(torch.randn(3, 60, 80), torch.tensor([60, 33, 0]), 0.01)).encoded
    together = model.nbest(encoded, n=4, beam=6)
    assert together[2][0].tokens == ()
    for row in range(2):
        length = int(encoded.lengths[row])
        alone = Frames(encoded.values[row : row + 1, :length], encoded.lengths[row : row + 1], 0.04)
        (single,) = model.nbest(alone, n=4, beam=6)
        assert [h.tokens for h in together[row]] == [h.tokens for h in single]
        assert [h.score for h in together[row]] == pytest.approx([h.score for h in single], abs=1e-3)


def test_training_mode_is_left_as_it_was(tokenizer: Tokenizer) -> None:
    model = small(tokenizer).train()
    encoded = model(Frames(torch.randn(1, 20, 80), torch.tensor([20]), 0.01)).encoded
    model.nbest(encoded, n=1, beam=2)
    assert model.training
    with pytest.raises(ValueError, match="expected 1 to beam=2, found 3"):
        model.nbest(encoded, n=3, beam=2)


def test_demo_size(tokenizer: Tokenizer) -> None:
    model = SpeechBrainConformer(SpeechBrainConformerConfig.model_validate({"size": "demo"}), tokenizer)
    assert 3.5e6 < model.num_parameters < 4.5e6
