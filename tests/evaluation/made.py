"""Results made from texts alone, for tests of what happens after decoding."""

import hashlib
import random

from asrkd.evaluation.decode import DecodingOptions
from asrkd.evaluation.evaluate import EvaluationOptions, part_result
from asrkd.evaluation.machine import describe
from asrkd.evaluation.result import EvaluationResult, ModelFacts, Utterance
from asrkd.evaluation.rtf import Timing
from asrkd.evaluation.wer import score
from asrkd.streaming.events import Word

WORDS = [f"w{i}" for i in range(50)]


def references(count=60, seed=0):
    rng = random.Random(seed)
    return {f"u{i:03d}": " ".join(rng.choices(WORDS, k=rng.randint(2, 12))) for i in range(count)}


def recognised(texts, error_rate, seed):
    rng = random.Random(seed)
    return {
        key: " ".join(rng.choice(WORDS) if rng.random() < error_rate else word for word in text.split())
        for key, text in texts.items()
    }


def timing(mode, rtf, batch=1):
    extra = {"chunk_ms": 320, "chunk_median_ms": 9, "chunk_p99_ms": 11, "chunk_slowest_ms": 14}
    return Timing(
        mode=mode,
        device="cpu",
        threads=1,
        batch=batch,
        precision="float32",
        utterances=4,
        audio_s=20,
        repeats=3,
        rtf=rtf,
        rtf_low=rtf * 0.9,
        rtf_high=rtf * 1.1,
        **(extra if mode == "streaming" else {}),
    )


def result(name, hypotheses, texts=None, *, normaliser="none", streaming=True, parameters=650_000, speed=True):
    """``hypotheses`` and ``texts`` by test set, then by utterance."""
    texts = texts or {part: references() for part in hypotheses}
    utterances = []
    for part, heard in hypotheses.items():
        for index, counted in enumerate(score(texts[part], heard, normaliser).utterances):
            key = counted.id
            utterances.append(
                Utterance(
                    part,
                    key,
                    f"s{index % 5}",
                    1.0 + index % 17,
                    5.0 * (index % 4) or None,
                    texts[part][key],
                    heard[key],
                    counted,
                    (Word("w1", 0.04, 0.28, 0.9),),
                    hashlib.sha256(key.encode()).hexdigest()[:16],
                )
            )
    options = EvaluationOptions(normaliser=normaliser, draws=500)
    timings = (timing("offline", 0.01 if streaming else 0.04), timing("offline", 0.005, 16))
    return EvaluationResult(
        identity=hashlib.sha256(name.encode()).hexdigest(),
        created="2026-01-01T00:00:00+00:00",
        name=name,
        model=ModelFacts(
            kind="streaming_conformer" if streaming else "speechbrain_conformer",
            package=None,
            weights_sha256="0" * 64,
            parameters=parameters,
            size_bytes=4 * parameters,
            vocabulary_size=60,
            sample_rate_hz=16000,
            frame_shift_ms=40,
            chunk_ms=320 if streaming else None,
            algorithmic_latency_ms=327.5 if streaming else None,
            macs_per_audio_second=2e7,
        ),
        machine=describe(),
        normaliser=normaliser,
        decoding=DecodingOptions(),
        parts={part: part_result([u for u in utterances if u.part == part], options) for part in hypotheses},
        speed=(*timings, timing("streaming", 0.02))[: 3 if streaming else 2] if speed else (),
        utterances=tuple(utterances),
    )


def three(seed=None, distilled_rate=0.13):
    """Teacher, student alone and distilled student on two test sets."""
    texts = {"test-clean": references(60, 0), "test-other": references(50, 1)}

    def heard(rate, salt):
        return {part: recognised(t, rate, salt + i) for i, (part, t) in enumerate(texts.items())}

    salt = 1000 * (seed or 0)
    return (
        result("teacher", heard(0.05, 1), texts, streaming=False, parameters=3_000_000),
        result("alone", heard(0.25, 10 + salt), texts),
        result("distilled", heard(distilled_rate, 20 + salt), texts),
    )
