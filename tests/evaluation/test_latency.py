import math

import pytest
import torch

from asrkd.data.text import Tokenizer
from asrkd.evaluation.latency import algorithmic_ms, align_words, emission_delays_s, spread
from asrkd.streaming.events import Word
from asrkd.types import Frames

TOKENIZER = Tokenizer(["<blank>", "<unk>", "<s>", "</s>", "▁", "a", "b"])


def first_changed_output(model, chunk, sample, total):
    """The first output frame that a change from this sample on can alter."""
    torch.manual_seed(0)
    audio = torch.randn(1, total) * 0.1
    other = audio.clone()
    other[:, sample:] += torch.randn(1, total - sample)
    lengths = torch.tensor([total])
    with torch.inference_mode():
        a, b = (model(model.features(x, lengths), chunk_frames=chunk).ctc_logits.values[0] for x in (audio, other))
    changed = (a - b).abs().amax(dim=1) > 1e-6
    return int(changed.nonzero()[0])


@pytest.mark.parametrize("chunk", [4, 8])
def test_algorithmic_latency_is_what_the_model_needs(student, chunk):
    latency_ms = algorithmic_ms(student, chunk)
    assert latency_ms == pytest.approx(40 * chunk + 7.5)
    # The first chunk is complete exactly when that much audio is there: no later sample can change it.
    needed = round(latency_ms * 16)
    assert first_changed_output(student, chunk, needed, 32000) == chunk
    assert first_changed_output(student, chunk, needed - 1, 32000) < chunk


def test_default_chunk_and_full_context(student, teacher):
    assert algorithmic_ms(student) == algorithmic_ms(student, 8)
    assert math.isinf(algorithmic_ms(student, 0))
    assert math.isinf(algorithmic_ms(teacher))


def test_align_words_finds_the_spikes():
    # "a b" on ten frames: a at 2-3, the space at 5, b at 7.
    spikes = [0, 0, 5, 5, 0, 4, 0, 6, 0, 0]
    values = torch.full((2, 10, 7), -8.0)
    values[:, range(10), spikes] = 0.0
    log_probs = Frames(values.log_softmax(-1), torch.tensor([10, 2]), 0.04)
    found, too_short = align_words(log_probs, [(5, 4, 6), (5, 4, 6)], TOKENIZER)
    assert [w.text for w in found] == ["a", "b"]
    assert (found[0].start_s, found[0].end_s) == pytest.approx((0.08, 0.16))
    assert (found[1].start_s, found[1].end_s) == pytest.approx((0.28, 0.32))
    assert too_short is None


def test_emission_delay_of_the_words_that_both_have():
    said = [Word("one", 0.0, 0.30, 1.0), Word("two", 0.4, 0.70, 1.0), Word("six", 0.8, 1.0, 1.0)]
    heard = [Word("one", 0.2, 0.36, 1.0), Word("too", 0.4, 0.6, 1.0), Word("six", 0.9, 1.28, 1.0)]
    assert emission_delays_s(said, heard) == pytest.approx([0.06, 0.28])
    assert emission_delays_s(said, heard, chunk_s=0.64, look_ahead_s=0.0075) == pytest.approx([0.3475, 0.2875])


def test_spread():
    found = spread(range(101))
    assert (found.count, found.median, found.p90, found.p99, found.highest) == (101, 50, 90, 99, 100)
    assert spread([]) is None
