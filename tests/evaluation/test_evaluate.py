import pytest
import torch
from lhotse import CutSet

from asrkd.data.batching import load_batch
from asrkd.decoding.prefix_beam import prefix_beam_search
from asrkd.evaluation.compare import compare
from asrkd.evaluation.decode import DecodingOptions, decode
from asrkd.evaluation.evaluate import EvaluationOptions, evaluate
from asrkd.evaluation.result import load
from asrkd.evaluation.wer import score
from asrkd.models import package
from asrkd.models.package import build
from asrkd.types import Frames

from .conftest import make_student

FAST = EvaluationOptions(speed=False, draws=200)


def figures(result):
    return result.model_dump(exclude={"created", "machine", "speed", "identity", "model"}), result.utterances


def test_a_package_and_a_model_give_the_same_figures(student, cuts, tmp_path):
    package.save(student, tmp_path / "student")
    of_package = evaluate(tmp_path / "student", {"tones": cuts}, tmp_path / "result", FAST, name="x")
    of_model = evaluate(student, {"tones": cuts}, None, FAST, name="x")
    assert figures(of_package) == figures(of_model)
    assert load(tmp_path / "result") == of_package
    assert of_package.model.size_bytes > of_package.model.parameters * 4
    assert not (tmp_path / "result" / "decoding.jsonl").exists()


def test_counts_are_those_of_the_decoded_texts(student, cuts):
    result = evaluate(student, {"tones": cuts}, None, FAST)
    texts = {d.id: d.text for batch in decode(student, cuts, DecodingOptions()) for d in batch}
    expected = score({c.id: c.supervisions[0].text for c in cuts}, texts)
    assert result.parts["tones"].errors.wer == expected.wer
    assert any(texts.values())
    assert result.parts["tones"].audio_s == pytest.approx(sum(c.duration for c in cuts))
    assert set(result.parts["tones"].by_speaker) == {"s0", "s1", "s2"}


def test_batches_do_not_change_the_texts(student, cuts):
    one_by_one, together = (
        {d.id: (d.text, d.audio_sha256) for b in decode(student, cuts, DecodingOptions(batch_audio_s=s)) for d in b}
        for s in (0.1, 100)
    )
    assert one_by_one == together
    assert len({sha for _, sha in together.values()}) == len(together)


def test_the_live_recogniser_gives_the_same_texts(student, cuts):
    options = FAST.model_copy(update={"decoding": DecodingOptions(method="streaming", chunk_frames=4)})
    live = evaluate(student, {"tones": cuts}, None, options)
    options = FAST.model_copy(update={"decoding": DecodingOptions(chunk_frames=4)})
    masked = evaluate(student, {"tones": cuts}, None, options)
    assert [u.hypothesis for u in live.utterances] == [u.hypothesis for u in masked.utterances]
    assert compare(masked, live).overall.difference.estimate == 0
    assert [w.text for w in live.utterances[-1].words] == live.utterances[-1].hypothesis.split()


def test_teacher_by_joint_search(teacher, cuts):
    few = CutSet.from_cuts(list(cuts)[:2])
    options = EvaluationOptions(speed=False, draws=10, decoding=DecodingOptions(method="joint", beam=2))
    result = evaluate(teacher, {"tones": few}, None, options)
    assert result.model.algorithmic_latency_ms is None
    assert result.decoding.method == "joint"
    assert len(result.utterances) == 2


def test_two_passes(student, cuts):
    """With the first pass alone deciding, its best; with the decoder alone, the list's likeliest under the decoder."""
    torch.manual_seed(0)
    size = {"d_model": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 16, "subsampling_channels": 4}
    decoder = {"decoder_layers": 1, "decoder_heads": 2, "decoder_dim": 16, "decoder_ffn_dim": 16}
    model = build({"kind": "streaming_conformer", **size, **decoder}, student.tokenizer).eval()
    few = CutSet.from_cuts(list(cuts)[:2])

    def texts(ctc_weight: float) -> list[str]:
        decoding = DecodingOptions(method="rescore", beam=4, ctc_weight=ctc_weight)
        result = evaluate(model, {"tones": few}, None, EvaluationOptions(speed=False, draws=10, decoding=decoding))
        return [u.hypothesis for u in result.utterances]

    batch = load_batch(few, None, sample_rate_hz=16000)
    with torch.no_grad():
        output = model(model.features(batch.audio, batch.audio_lengths))
    logits = output.ctc_logits
    log_probs = Frames(logits.values.log_softmax(-1), logits.lengths, logits.frame_shift_s)
    lists = prefix_beam_search(log_probs, model.vocabulary, 4, n=4)
    assert sorted(texts(1.0)) == sorted(model.tokenizer.decode(nbest[0].tokens) for nbest in lists)
    expected = []
    for row, nbest in enumerate(lists):
        scores = []
        for hypothesis in nbest:
            tokens, end = torch.tensor([hypothesis.tokens]).long(), model.vocabulary.tokens.index("</s>")
            with torch.no_grad():
                steps = model.decoder_logits(
                    output.encoded, tokens, torch.tensor([tokens.shape[1]]), rows=torch.tensor([row])
                ).log_softmax(-1)
            labels = [*hypothesis.tokens, end]
            scores.append(sum(float(steps[0, u, label]) for u, label in enumerate(labels)))
        expected.append(model.tokenizer.decode(nbest[max(range(len(nbest)), key=scores.__getitem__)].tokens))
    assert sorted(texts(0.0)) == sorted(expected)


def test_two_passes_are_refused_without_a_decoder(student, cuts):
    options = EvaluationOptions(decoding=DecodingOptions(method="rescore"))
    with pytest.raises(ValueError, match="no attention decoder"):
        evaluate(student, {"tones": cuts}, None, options)


def test_joint_search_is_refused_where_there_is_none(student, cuts):
    options = EvaluationOptions(decoding=DecodingOptions(method="joint"))
    with pytest.raises(ValueError, match="streaming_conformer has no joint CTC/attention search"):
        evaluate(student, {"tones": cuts}, None, options)


def test_speed_of_a_streaming_model(student, cuts):
    result = evaluate(student, {"tones": cuts}, None, EvaluationOptions(draws=10, speed_audio_s=3, repeats=1, batch=4))
    assert [(t.mode, t.batch) for t in result.speed] == [("offline", 1), ("offline", 4), ("streaming", 1)]
    assert all(t.rtf > 0 for t in result.speed)
    assert result.model.algorithmic_latency_ms == pytest.approx(327.5)


def test_finished_is_skipped_and_another_question_is_not(student, cuts, tmp_path):
    first = evaluate(student, {"tones": cuts}, tmp_path, FAST)
    stamp = (tmp_path / "result.json").stat().st_mtime_ns
    seen = []
    again = evaluate(student, {"tones": cuts}, tmp_path, FAST, report=lambda *progress: seen.append(progress))
    assert again == first
    assert seen == [(12, 12, "already done")]
    assert (tmp_path / "result.json").stat().st_mtime_ns == stamp
    other = evaluate(student, {"tones": cuts}, tmp_path, FAST.model_copy(update={"normaliser": "librispeech"}))
    assert other.normaliser == "librispeech"
    assert load(tmp_path) == other


def test_a_journal_is_continued(student, cuts, tmp_path):
    whole = evaluate(student, {"tones": cuts}, None, FAST)
    options = FAST.model_copy(update={"decoding": DecodingOptions(batch_audio_s=4)})

    def stop(done, total, part):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(student, {"tones": cuts}, tmp_path, options, report=stop)
    journal = tmp_path / "decoding.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 7
    journal.write_bytes(b"".join(lines)[:-20])  # the last line cut short, as a kill in the middle of a write leaves it
    seen = []
    resumed = evaluate(student, {"tones": cuts}, tmp_path, options, report=lambda d, t, p: seen.append(d))
    assert seen[0] == len(lines) - 2
    # Confidences depend on the batch in their last digits; texts and counts do not.
    assert [(u.id, u.hypothesis, u.score) for u in resumed.utterances] == [
        (u.id, u.hypothesis, u.score) for u in whole.utterances
    ]
    assert not journal.exists()


def test_journal_of_another_model_is_not_used(student, tokenizer, cuts, tmp_path):
    def stop(done, total, part):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(make_student(tokenizer, seed=5), {"tones": cuts}, tmp_path, FAST, report=stop)
    assert (
        evaluate(student, {"tones": cuts}, tmp_path, FAST).utterances
        == evaluate(student, {"tones": cuts}, None, FAST).utterances
    )


def test_bad_test_sets(student, cuts, tmp_path):
    with pytest.raises(ValueError, match="tones: expected at least one utterance, found none"):
        evaluate(student, {"tones": CutSet.from_cuts([])}, tmp_path, FAST)
    with pytest.raises(ValueError, match="parts: expected at least one test set"):
        evaluate(student, {}, tmp_path, FAST)
    with pytest.raises(ValueError, match="normaliser: expected one of none"):
        evaluate(student, {"tones": cuts}, tmp_path, EvaluationOptions(normaliser="x"))
    assert list(tmp_path.iterdir()) == []
