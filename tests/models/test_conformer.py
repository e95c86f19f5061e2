"""The streaming student: geometry, padding, masks, decoder head, configuration."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.models.blocks import rotary_table, rotate
from asrkd.models.conformer import SIZES, StreamingConformer, StreamingConformerConfig, chunk_mask
from asrkd.types import Frames


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over a lazy dog"], kind="char")


def small(tokenizer: Tokenizer, **changes: object) -> StreamingConformer:
    torch.manual_seed(0)
    numbers = {"d_model": 32, "num_layers": 2, "num_heads": 2, "ffn_dim": 48, "subsampling_channels": 8}
    config = StreamingConformerConfig.model_validate({**numbers, "dropout": 0.0, "conv_kernel_frames": 5, **changes})
    return StreamingConformer(config, tokenizer).eval()


@pytest.mark.parametrize(("factor", "shift_s"), [(4, 0.04), (8, 0.08)])
def test_output_length_is_the_ceiling(tokenizer: Tokenizer, factor: int, shift_s: float) -> None:
    model = small(tokenizer, subsampling_factor=factor)
    for num_frames in (1, 2, factor - 1, factor, factor + 1, 37):
        out = model(Frames(torch.randn(1, num_frames, 80), torch.tensor([num_frames]), 0.01))
        expected = -(-num_frames // factor)
        assert out.ctc_logits.values.shape == (1, expected, len(tokenizer.vocabulary))
        assert out.ctc_logits.lengths.tolist() == [expected]
        assert out.ctc_logits.frame_shift_s == pytest.approx(shift_s)


@pytest.mark.parametrize("chunk_frames", [0, 4])
def test_padding_and_neighbours_do_not_matter(tokenizer: Tokenizer, chunk_frames: int) -> None:
    model = small(tokenizer)
    lengths = torch.tensor([61, 30, 7, 0])
    features = torch.randn(4, 61, 80)
    garbage = features.clone()
    for row, length in enumerate(lengths.tolist()):
        garbage[row, length:] = float("nan")
    batched = model(Frames(garbage, lengths, 0.01), chunk_frames=chunk_frames).ctc_logits
    assert torch.isfinite(batched.values).all()
    for row, length in enumerate(lengths.tolist()[:3]):
        alone = model(Frames(features[row : row + 1, :length], lengths[row : row + 1], 0.01), chunk_frames=chunk_frames)
        valid = int(alone.ctc_logits.lengths[0])
        torch.testing.assert_close(batched.values[row, :valid], alone.ctc_logits.values[0], atol=1e-5, rtol=0)


def test_future_chunks_and_far_past_are_not_seen(tokenizer: Tokenizer) -> None:
    model = small(tokenizer, num_layers=1)
    chunk, left, lengths = 4, 8, torch.tensor([40 * 4])
    features = torch.randn(1, 160, 80)
    whole = model(Frames(features, lengths, 0.01), chunk_frames=chunk, left_context_frames=left).ctc_logits.values
    changed = features.clone()
    changed[:, 20 * 4 :] += 1.0
    future = model(Frames(changed, lengths, 0.01), chunk_frames=chunk, left_context_frames=left).ctc_logits.values
    torch.testing.assert_close(whole[:, :20], future[:, :20], atol=1e-5, rtol=0)
    assert (whole[:, 20:] - future[:, 20:]).abs().amax() > 1e-3
    # One block sees the left context, the convolution's kernel and what the subsampling reaches back: no more.
    changed = features.clone()
    changed[:, : 4 * 4] += 1.0
    past = model(Frames(changed, lengths, 0.01), chunk_frames=chunk, left_context_frames=left).ctc_logits.values
    torch.testing.assert_close(whole[:, 24:], past[:, 24:], atol=1e-5, rtol=0)
    assert (whole[:, 4:8] - past[:, 4:8]).abs().amax() > 1e-3


def test_mask_by_definition() -> None:
    mask = chunk_mask(torch.tensor([10, 3]), 12, 4, 2)[:, 0]
    for row, length in enumerate((10, 3)):
        for query in range(12):
            start = query // 4 * 4
            for key in range(12):
                seen = (start - 2 <= key < start + 4 and key < length) or key == query
                assert bool(mask[row, query, key]) == seen


def test_rotary_depends_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    cos, sin = rotary_table(4000, 16, torch.device("cpu"))

    def score(query_at: int, key_at: int) -> float:
        turned_q = rotate(q, cos[query_at : query_at + 1], sin[query_at : query_at + 1])
        turned_k = rotate(k, cos[key_at : key_at + 1], sin[key_at : key_at + 1])
        return float((turned_q * turned_k).sum())

    assert score(3999, 3990) == pytest.approx(score(9, 0), abs=1e-5)
    assert abs(score(9, 0) - score(0, 9)) > 1e-3


def test_hidden_layers_by_name(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    features = Frames(torch.randn(2, 40, 80), torch.tensor([40, 20]), 0.01)
    out = model(features, want_hidden=("layer.0", "layer.1"))
    assert set(out.hidden) == {"layer.0", "layer.1"}
    torch.testing.assert_close(out.hidden["layer.1"].values, out.encoded.values)
    with pytest.raises(ValueError, match=r"unknown layer\.2; known: layer\.0 to layer\.1"):
        model(features, want_hidden=("layer.2",))


def test_decoder_is_causal_and_shares_the_encoder(tokenizer: Tokenizer) -> None:
    model = small(tokenizer, decoder_layers=2, decoder_dim=24, decoder_heads=2, decoder_ffn_dim=32)
    encoded = model(Frames(torch.randn(2, 40, 80), torch.tensor([40, 25]), 0.01)).encoded
    tokens, lengths = torch.randint(4, 20, (2, 6)), torch.tensor([6, 3])
    logits = model.decoder_logits(encoded, tokens, lengths)
    assert logits.shape == (2, 7, len(tokenizer.vocabulary))
    changed = tokens.clone()
    changed[:, 3:] = -1
    cut = model.decoder_logits(encoded, changed, torch.tensor([3, 3]))
    torch.testing.assert_close(logits[:, :4], cut[:, :4], atol=1e-5, rtol=0)
    # Three label sequences over two utterances give what each utterance gives alone, whatever it is padded with.
    rows = torch.tensor([1, 0, 1])
    listed = model.decoder_logits(encoded, tokens[rows], lengths[rows], rows)
    torch.testing.assert_close(listed, logits[rows], atol=1e-5, rtol=0)
    valid = int(encoded.lengths[1])
    alone = Frames(encoded.values[1:, :valid], encoded.lengths[1:], encoded.frame_shift_s)
    alone_logits = model.decoder_logits(alone, tokens[1:], lengths[1:])
    torch.testing.assert_close(alone_logits, logits[1:], atol=1e-5, rtol=0)


def test_no_decoder_says_so(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    assert not model.has_decoder
    encoded = model(Frames(torch.randn(1, 8, 80), torch.tensor([8]), 0.01)).encoded
    with pytest.raises(ValueError, match="no attention decoder"):
        model.decoder_logits(encoded, torch.zeros(1, 1, dtype=torch.long), torch.tensor([1]))


def test_starts_with_half_its_mass_on_blank(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    out = model(Frames(torch.randn(4, 80, 80), torch.full((4,), 80), 0.01)).ctc_logits
    blank = out.values.detach().softmax(-1)[..., tokenizer.vocabulary.blank_id]
    assert 0.4 < float(blank.mean()) < 0.6


def test_feature_statistics(tokenizer: Tokenizer) -> None:
    model = small(tokenizer)
    audio = torch.randn(2, 16000) * 0.1
    lengths = torch.tensor([16000, 9000])
    raw = model.fbank(audio, lengths)
    model.set_feature_statistics(torch.full((80,), 3.0), torch.full((80,), 2.0))
    frames = model.features(audio, lengths)
    torch.testing.assert_close(frames.values[0], (raw.values[0] - 3.0) / 2.0)
    assert frames.frame_shift_s == pytest.approx(0.01)
    with pytest.raises(ValueError, match=r"std: expected shape \(80,\), found \(40,\)"):
        model.set_feature_statistics(torch.zeros(80), torch.zeros(40))
    with pytest.raises(ValueError, match="mean: expected finite"):
        model.set_feature_statistics(torch.full((80,), float("nan")), torch.ones(80))


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 0.6), ("xs", 2.0), ("s", 10.0), ("m", 30.0)], ids=["tiny", "xs", "s", "m"]
)
def test_sizes_are_what_they_say(tokenizer: Tokenizer, size: str, millions: float) -> None:
    assert size in SIZES
    model = StreamingConformer(StreamingConformerConfig.model_validate({"size": size}), tokenizer)
    assert model.num_parameters / 1e6 == pytest.approx(millions, rel=0.1)


def test_configuration_is_strict() -> None:
    explicit = StreamingConformerConfig.model_validate({"size": "tiny", "num_layers": 3})
    assert (explicit.d_model, explicit.num_layers) == (SIZES["tiny"]["d_model"], 3)
    assert StreamingConformerConfig.model_validate(explicit.model_dump()) == explicit
    with pytest.raises(ValidationError, match="layers_num"):
        StreamingConformerConfig.model_validate({"size": "tiny", "layers_num": 3})
    with pytest.raises(ValidationError, match="multiple of 2"):
        StreamingConformerConfig.model_validate({"size": "tiny", "num_heads": 5})
    with pytest.raises(ValidationError):
        StreamingConformerConfig.model_validate({"size": "huge"})


def test_gradients_are_finite_with_odd_lengths(tokenizer: Tokenizer) -> None:
    model = small(tokenizer).train()
    out = model(Frames(torch.randn(3, 50, 80), torch.tensor([50, 1, 0]), 0.01)).ctc_logits
    out.values.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is not None for p in model.parameters())
