"""Live recognition against whole-utterance decoding, however the audio is cut, mixed, resampled or damaged."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import soxr
import torch

from asrkd.data.text import train_tokenizer
from asrkd.decoding.ctc import greedy
from asrkd.decoding.prefix_beam import prefix_beam_search
from asrkd.models.conformer import StreamingConformer
from asrkd.models.transformer import SpeechBrainConformer, SpeechBrainConformerConfig
from asrkd.streaming.events import Event, Final, Partial, WordHeard, words_of
from asrkd.streaming.recognizer import EndpointRules, Recognizer, RecognizerOptions
from asrkd.types import Frames
from tests.streaming.babble import CHUNK, LEFT, make_student, speech


@pytest.fixture(scope="module")
def student() -> StreamingConformer:
    return make_student()


@torch.no_grad()
def offline(model: StreamingConformer, audio: np.ndarray) -> Frames:
    features = model.features(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    logits = model(features, chunk_frames=CHUNK, left_context_frames=LEFT).ctc_logits
    return Frames(logits.values.log_softmax(-1), logits.lengths, logits.frame_shift_s)


def run(
    recognizer: Recognizer, audio: np.ndarray, sizes: itertools.cycle | None = None, rate: int | None = None
) -> list[Event]:
    session, events, start = recognizer.session(), [], 0
    while start < len(audio):
        size = len(audio) if sizes is None else next(sizes)
        events += session.accept(audio[start : start + size], rate)
        start += size
    return events + session.finish()


def text_of(events: list[Event]) -> str:
    return " ".join(event.text for event in events if isinstance(event, Final) and event.text)


def options(**changes: object) -> RecognizerOptions:
    return RecognizerOptions(**{"endpoints": None, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [None, [16000], [1601, 7, 0, 333], [160], [40000, 1]])
def test_greedy_equals_whole_utterance_however_the_audio_is_cut(
    student: StreamingConformer, sizes: list[int] | None
) -> None:
    audio = speech(5.37)
    (expected,) = greedy(offline(student, audio), student.vocabulary)
    events = run(Recognizer(student, options()), audio, itertools.cycle(sizes) if sizes else None)
    final = events[-1]
    assert isinstance(final, Final)
    assert final.reason == "end"
    assert final.text == student.tokenizer.decode(expected.tokens)
    assert len(expected.tokens) > 5, "a silent model would test nothing"
    words = words_of(expected, student.tokenizer)
    assert [w.text for w in final.words] == [w.text for w in words]
    assert [w.start_s for w in final.words] == pytest.approx([w.start_s for w in words])
    assert [w.end_s for w in final.words] == pytest.approx([w.end_s for w in words])
    assert [w.confidence for w in final.words] == pytest.approx([w.confidence for w in words], abs=1e-3)


def test_events_tell_one_story(student: StreamingConformer) -> None:
    audio = speech(6.0, seed=1)
    for beam in (1, 6):
        events = run(Recognizer(student, options(beam=beam)), audio, itertools.cycle([1600]))
        final = events[-1]
        assert isinstance(final, Final)
        told = [event.word.text for event in events if isinstance(event, WordHeard)]
        assert told == [word.text for word in final.words]
        assert " ".join(told) == final.text
        partials = [event for event in events if isinstance(event, Partial)]
        assert len(partials) > 3
        assert all(a.text != b.text for a, b in itertools.pairwise(partials))
        assert all(a.end_s < b.end_s for a, b in itertools.pairwise(partials))
        first_word = next(place for place, event in enumerate(events) if isinstance(event, WordHeard))
        assert first_word < len(events) - len(told), "words are told before the end"
    quiet = run(Recognizer(student, options(partials=False)), audio)
    assert [type(event) for event in quiet] == [Final]


def test_beam_equals_whole_utterance_beam(student: StreamingConformer) -> None:
    audio = speech(4.2, seed=2)
    (nbest,) = prefix_beam_search(offline(student, audio), student.vocabulary, beam=8, n=3)
    events = run(Recognizer(student, options(beam=8, nbest=3)), audio, itertools.cycle([2000, 5]))
    final = events[-1]
    assert isinstance(final, Final)
    assert final.text == student.tokenizer.decode(nbest[0].tokens)
    assert final.alternatives == tuple(student.tokenizer.decode(h.tokens) for h in nbest[1:])
    words = words_of(nbest[0], student.tokenizer)
    assert [w.start_s for w in final.words] == pytest.approx([w.start_s for w in words])


def test_rescoring_orders_by_the_joint_score() -> None:
    model = make_student(decoder_layers=1, decoder_dim=16, decoder_heads=2, decoder_ffn_dim=16)
    with torch.no_grad():
        model.decoder.output.weight.mul_(30.0)
    audio, weight = speech(3.0, seed=3), 0.9
    posteriors = offline(model, audio)
    (nbest,) = prefix_beam_search(posteriors, model.vocabulary, beam=8, n=8)
    with torch.no_grad():
        features = model.features(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        encoded = model(features).encoded
        scored = []
        for hypothesis in nbest:
            tokens = torch.tensor([hypothesis.tokens], dtype=torch.long).reshape(1, -1)
            steps = model.decoder_logits(encoded, tokens, torch.tensor([len(hypothesis.tokens)])).log_softmax(-1)[0]
            attention = sum(float(steps[u, label]) for u, label in enumerate((*hypothesis.tokens, 3)))
            scored.append(((1 - weight) * hypothesis.score + weight * attention, hypothesis.tokens))
    best = max(scored)[1]
    assert best != nbest[0].tokens, "the decoder must change the order for this to test"
    recognizer = Recognizer(model, options(beam=8, attention_weight=weight))
    assert text_of(run(recognizer, audio, itertools.cycle([3200]))) == model.tokenizer.decode(best)
    with pytest.raises(ValueError, match="no attention decoder"):
        Recognizer(make_student(), options(beam=8, attention_weight=0.5))


def test_many_desynchronised_sessions_equal_each_alone(student: StreamingConformer) -> None:
    dice = random.Random(0)
    recognizer = Recognizer(student, options())
    audio = [speech(seconds, seed=10 + n) for n, seconds in enumerate((3.1, 0.7, 5.0, 0.05, 2.0))]
    alone = [text_of(run(recognizer, samples)) for samples in audio]
    waiting = {n: (recognizer.session(), 0) for n in range(len(audio))}
    heard: dict[int, list[Event]] = {n: [] for n in waiting}
    while waiting:
        chosen = dice.sample(sorted(waiting), dice.randint(1, len(waiting)))
        done = [n for n in chosen if waiting[n][1] >= len(audio[n])]
        fed = [n for n in chosen if n not in done]
        pieces = [audio[n][waiting[n][1] : waiting[n][1] + dice.choice([0, 1, 777, 5000, 20000])] for n in fed]
        for n, piece, events in zip(fed, pieces, recognizer.accept([waiting[n][0] for n in fed], pieces), strict=True):
            heard[n] += events
            waiting[n] = (waiting[n][0], waiting[n][1] + len(piece))
        for n, events in zip(done, recognizer.finish([waiting[n][0] for n in done]), strict=True):
            heard[n] += events
            del waiting[n]
    assert [text_of(heard[n]) for n in range(len(audio))] == alone
    assert any(alone)


def test_integers_channels_and_rates(student: StreamingConformer) -> None:
    recognizer = Recognizer(student, options())
    audio = (np.round(speech(3.0, seed=4) * 20000).clip(-32767, 32767) / 32768).astype(np.float32)
    expected = text_of(run(recognizer, audio))
    as_int16 = (audio * 32768).astype(np.int16)
    assert text_of(run(recognizer, as_int16, itertools.cycle([999]))) == expected
    assert text_of(run(recognizer, as_int16.astype(np.int32) * 65536)) == expected
    assert text_of(run(recognizer, np.stack((audio, audio), axis=1).astype(np.float64))) == expected
    at_48k = soxr.resample(audio, 16000, 48000)
    whole = soxr.resample(at_48k, 48000, 16000)
    (decoded,) = greedy(offline(student, whole), student.vocabulary)
    assert text_of(run(recognizer, at_48k, itertools.cycle([480, 4001]), 48000)) == student.tokenizer.decode(
        decoded.tokens
    )
    session = recognizer.session()
    session.accept(at_48k[:48000], 48000)
    session.accept(audio[16000:32000])
    session.accept(soxr.resample(audio[32000:], 16000, 8000), 8000)
    session.finish()
    assert session.heard_s == pytest.approx(3.0, abs=0.01)


def test_one_sample_at_a_time_in_bounded_memory(student: StreamingConformer) -> None:
    audio = speech(1.0, seed=6)
    recognizer = Recognizer(student, options())
    assert text_of(run(recognizer, audio, itertools.cycle([1]))) == text_of(run(recognizer, audio))


def test_damaged_samples_do_not_poison_the_stream(student: StreamingConformer) -> None:
    audio = speech(3.0, seed=7)
    broken = audio.copy()
    broken[8000:8100] = np.nan
    broken[9000] = np.inf
    mended = np.where(np.isfinite(broken), broken, 0.0).astype(np.float32)
    recognizer = Recognizer(student, options())
    session = recognizer.session()
    events = session.accept(broken) + session.finish()
    assert session.repaired_samples == 101
    assert text_of(events) == text_of(run(recognizer, mended))
    assert text_of(run(recognizer, np.full(32000, 32767, dtype=np.int16))) is not None


def test_refusals_leave_the_session_usable(student: StreamingConformer) -> None:
    recognizer = Recognizer(student, options())
    session = recognizer.session()
    for pcm, rate, because in (
        (np.zeros(10, dtype=np.uint8), None, "found uint8"),
        (np.zeros((2, 2, 2), dtype=np.float32), None, "expected shape"),
        (np.zeros(10, dtype=np.float32), 10, "sample_rate_hz: expected 1000"),
    ):
        with pytest.raises(ValueError, match=because):
            session.accept(pcm, rate)
    audio = speech(2.0, seed=8)
    assert text_of(session.accept(audio) + session.finish()) == text_of(run(recognizer, audio))
    with pytest.raises(ValueError, match="is finished"):
        session.accept(audio)
    with pytest.raises(ValueError, match="another recogniser"):
        Recognizer(student).accept([recognizer.session()], [audio])


def test_empty_and_tiny_streams_end_well(student: StreamingConformer) -> None:
    for count in (0, 1, 79, 80, 400, 800):
        events = run(Recognizer(student, options()), speech(1.0)[:count], itertools.cycle([100]))
        assert isinstance(events[-1], Final)


def _slow_endpoints(ids: list[int], shift_s: float, rules: EndpointRules) -> list[tuple[int, str]]:
    """Frames at which segments end, by the rules' words, on the best path of the whole recording."""
    ends, begin = [], 0
    for stop in range(CHUNK, len(ids) + CHUNK, CHUNK):
        stop = min(stop, len(ids))
        segment = ids[begin:stop]
        before = ids[begin - 1] if begin else 0
        spoken = any(t != 0 and t != p for t, p in zip(segment, [before, *segment[:-1]], strict=True))
        silence = len(list(itertools.takewhile(lambda token: token == 0, reversed(segment)))) * shift_s
        length = len(segment) * shift_s
        if silence >= (rules.silence_after_speech_s if spoken else rules.silence_s):
            ends.append((stop, "silence" if spoken else ""))
        elif length >= rules.segment_s and (silence >= rules.pause_s or length >= 1.5 * rules.segment_s):
            ends.append((stop, "length"))
        else:
            continue
        begin = stop
    return [end for end in ends if end[1]]


def test_endpoints_follow_the_rules_and_leave_no_seam() -> None:
    model = make_student(blank_bias=14.0)
    audio = np.concatenate([speech(4.0, 20), np.zeros(16000, np.float32), speech(7.0, 21), np.zeros(9000, np.float32)])
    rules = EndpointRules(silence_s=0.4, silence_after_speech_s=0.3, segment_s=1.2, pause_s=0.08)
    posteriors = offline(model, audio)
    ids = posteriors.values[0].argmax(-1).tolist()
    expected = _slow_endpoints(ids, posteriors.frame_shift_s, rules)
    assert {reason for _, reason in expected} == {"silence", "length"}, "both rules must come up for this to test"
    (whole,) = greedy(posteriors, model.vocabulary)
    for sizes in (None, itertools.cycle([1600, 3])):
        events = run(Recognizer(model, RecognizerOptions(endpoints=rules)), audio, sizes)
        finals = [event for event in events if isinstance(event, Final)]
        ended = [(round(f.end_s / 0.04), f.reason) for f in finals if f.reason != "end"]
        assert ended == expected
        assert "".join(f.text for f in finals).replace(" ", "") == model.tokenizer.decode(whole.tokens).replace(" ", "")
        assert all(f.start_s - 1e-6 <= w.start_s < w.end_s <= f.end_s + 1e-6 for f in finals for w in f.words)


def test_model_that_cannot_stream_is_refused() -> None:
    config = {"d_model": 32, "num_layers": 1, "num_heads": 2, "ffn_dim": 32, "subsampling_channels": 4}
    model = SpeechBrainConformer(
        SpeechBrainConformerConfig.model_validate({**config, "decoder_layers": 0}), train_tokenizer(["a"], kind="char")
    )
    with pytest.raises(ValueError, match="cannot stream"):
        Recognizer(model)
    with pytest.raises(ValueError, match="chunk_frames: expected at least 1"):
        Recognizer(make_student(), RecognizerOptions(chunk_frames=0))
