"""Live recognition by a transducer against its search over whole utterances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from asrkd.decoding.ctc import DecodedTokens
from asrkd.models.transducer import StreamingTransducer
from asrkd.streaming.events import Final, Partial, WordHeard, words_of
from asrkd.streaming.recognizer import EndpointRules, Recognizer, RecognizerOptions
from asrkd.streaming.transcribe import text_of, transcribe
from tests.streaming.random_transducer import CHUNK, LEFT, make_transducer
from tests.streaming.test_recognizer import options, run, speech


@pytest.fixture(scope="module")
def student() -> StreamingTransducer:
    return make_transducer(speech(20.0, seed=99))


@torch.no_grad()
def offline(model: StreamingTransducer, audio: np.ndarray) -> DecodedTokens:
    features = model.features(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
    return model.greedy(model(features, chunk_frames=CHUNK, left_context_frames=LEFT))[0]


def test_the_model_says_different_things_and_is_mostly_silent(student: StreamingTransducer) -> None:
    found = offline(student, speech(5.37))
    assert len(set(found.tokens)) >= 4 and 10 < len(set(found.times_s)) < 0.5 * 5.37 / 0.04


@pytest.mark.parametrize("sizes", [None, [16000], [1601, 7, 0, 333], [40000, 1]])
def test_equals_whole_utterance_however_the_audio_is_cut(student: StreamingTransducer, sizes: list[int] | None) -> None:
    audio = speech(5.37)
    expected = offline(student, audio)
    events = run(Recognizer(student, options()), audio, itertools.cycle(sizes) if sizes else None)
    final = events[-1]
    assert isinstance(final, Final) and final.reason == "end"
    assert final.text == student.tokenizer.decode(expected.tokens)
    words = words_of(expected, student.tokenizer)
    assert [w.text for w in final.words] == [w.text for w in words]
    assert [w.start_s for w in final.words] == pytest.approx([w.start_s for w in words])
    assert [w.end_s for w in final.words] == pytest.approx([w.end_s for w in words])
    assert [w.confidence for w in final.words] == pytest.approx([w.confidence for w in words], abs=1e-3)
    assert student.tokenizer.decode(expected.tokens) == text_of(
        e for e in transcribe(student, [audio], options()) if isinstance(e, Final)
    )


def test_events_tell_one_story(student: StreamingTransducer) -> None:
    events = run(Recognizer(student, options()), speech(6.0, seed=1), itertools.cycle([1600]))
    final = events[-1]
    assert isinstance(final, Final)
    told = [event.word.text for event in events if isinstance(event, WordHeard)]
    assert told == [word.text for word in final.words] and " ".join(told) == final.text
    partials = [event.text for event in events if isinstance(event, Partial)]
    assert len(partials) > 3 and all(final.text.startswith(text) for text in partials)


def test_sessions_at_different_points_share_a_batch(student: StreamingTransducer) -> None:
    audio = [speech(seconds, seed) for seed, seconds in enumerate((3.1, 1.2, 4.0))]
    recognizer = Recognizer(student, options())
    sessions = [recognizer.session() for _ in audio]
    for tick in range(50):
        row = tick % 7 % 3  # uneven paces
        together = [row, (row + 1) % 3] if tick % 2 else [row]
        recognizer.accept([sessions[r] for r in together], [audio[r][:1700] for r in together])
        for r in together:
            audio[r] = audio[r][1700:]
    recognizer.accept(sessions, audio)
    events = recognizer.finish(sessions)
    for seed, seconds in enumerate((3.1, 1.2, 4.0)):
        final = events[seed][-1]
        assert isinstance(final, Final)
        assert final.text == student.tokenizer.decode(offline(student, speech(seconds, seed)).tokens)


def test_endpoints_part_the_labels_and_change_none(student: StreamingTransducer) -> None:
    audio = np.concatenate((speech(2.0, 1), 1e-5 * speech(2.0, 7), speech(1.5, 2)))
    rules = EndpointRules(silence_s=0.6, silence_after_speech_s=0.2, segment_s=1.0, pause_s=0.08)
    finals = [e for e in run(Recognizer(student, options(endpoints=rules)), audio) if isinstance(e, Final)]
    assert len(finals) > 2 and {final.reason for final in finals} >= {"end"}
    heard = "".join(final.text.replace(" ", "") for final in finals)
    assert heard == student.tokenizer.decode(offline(student, audio).tokens).replace(" ", "")
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(finals))


def test_a_beam_is_refused(student: StreamingTransducer) -> None:
    with pytest.raises(
        ValueError, match="expected none for a streaming_transducer, whose search is greedy; found beam 4"
    ):
        Recognizer(student, RecognizerOptions(beam=4))
