"""CTC against enumeration, N-best against separate calls, and the objective's one normalisation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from asrkd.losses import (
    LossInputs,
    NBestCTC,
    Objective,
    attention_ce,
    ctc,
    hypothesis_ctc,
    listwise_kl,
    mwer,
    nbest_ctc,
    validate_terms,
)
from asrkd.losses.lattice import edit_distances
from asrkd.types import Frames, Hypothesis, TeacherTargets, Vocabulary


def collapsed(path: tuple[int, ...], blank_id: int) -> tuple[int, ...]:
    return tuple(k for k, _ in itertools.groupby(path) if k != blank_id)


def slow_ctc(log_probs: torch.Tensor, labels: tuple[int, ...], blank_id: int) -> float:
    frames, vocab = log_probs.shape
    total = sum(
        math.exp(sum(float(log_probs[t, v]) for t, v in enumerate(path)))
        for path in itertools.product(range(vocab), repeat=frames)
        if collapsed(path, blank_id) == labels
    )
    return -math.log(total) if total > 0 else 0.0


@pytest.mark.parametrize("blank_id", [0, 1, 2])
def test_ctc_equals_enumeration(blank_id: int) -> None:
    torch.manual_seed(blank_id)
    logits = torch.randn(3, 4, 3, dtype=torch.float64)
    others = [v for v in range(3) if v != blank_id]
    labels = [(others[0], others[1]), (), (others[0], others[0])]
    lengths = torch.tensor([4, 3, 2])  # the last does not fit: a repetition needs a blank between
    tokens = torch.tensor([[*row, 0, 0][:2] for row in labels])
    found = ctc(logits, lengths, tokens, torch.tensor([2, 0, 2]), blank_id=blank_id, reduction="none")
    for b in range(3):
        expected = slow_ctc(logits[b, : lengths[b]].log_softmax(-1), labels[b], blank_id)
        assert float(found[b]) == pytest.approx(expected, abs=1e-5)


def hypotheses(*rows: tuple[tuple[int, ...], float]) -> tuple[Hypothesis, ...]:
    return tuple(Hypothesis(tokens, "", score) for tokens, score in rows)


def test_nbest_is_the_weighted_sum_of_single_losses_with_its_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 9, 5, requires_grad=True)
    lengths = torch.tensor([9, 7, 5])
    lists = (
        hypotheses(((1, 2, 3), -1.0), ((1, 2), -2.5), ((4,), -4.0)),
        (),
        hypotheses(((2,), -0.5), ((3, 3), -0.7)),
    )
    found = nbest_ctc(logits, lengths, lists, blank_id=0, sequence_temperature=2.0)
    expected = torch.zeros(())
    for b, hypothesis_list in enumerate(lists):
        weights = [math.exp(h.score / 2.0) for h in hypothesis_list]
        for h, w in zip(hypothesis_list, weights, strict=True):
            one = ctc(
                logits[b : b + 1],
                lengths[b : b + 1],
                torch.tensor([h.tokens]),
                torch.tensor([len(h.tokens)]),
                blank_id=0,
            )
            expected = expected + w / sum(weights) * one
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for fast, slow in zip(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


LISTS = (
    hypotheses(((1, 2, 3), -1.0), ((1, 2), -2.5), ((4,), -4.0)),
    (),
    hypotheses(((2,), -0.5), ((3, 3), -0.7)),
)


def student_posteriors(logits: torch.Tensor, lengths: torch.Tensor, row: int, temperature: float) -> torch.Tensor:
    """The student's posterior over its list, from one CTC loss a hypothesis."""
    scores = [
        -ctc(
            logits[row : row + 1],
            lengths[row : row + 1],
            torch.tensor([h.tokens]),
            torch.tensor([len(h.tokens)]),
            blank_id=0,
        )
        for h in LISTS[row]
    ]
    return (torch.stack(scores) / temperature).softmax(0)


def test_listwise_kl_and_mwer_equal_single_losses_with_their_gradients() -> None:
    torch.manual_seed(1)
    logits = torch.randn(3, 9, 5, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([9, 7, 5])
    references = torch.tensor([[1, 2, 3], [4, 0, 0], [3, 2, 0]])
    reference_lengths = torch.tensor([3, 1, 2])
    divergence = risk = torch.zeros((), dtype=torch.float64)
    errors = {0: [0, 1, 3], 2: [1, 1]}  # of the lists above, counted by hand
    for row in (0, 2):
        teacher = torch.tensor([h.score for h in LISTS[row]], dtype=torch.float64).div(2).softmax(0)
        student = student_posteriors(logits, lengths, row, 2.0)
        divergence = divergence + (teacher * (teacher / student).log()).sum()
        own, wrong = student_posteriors(logits, lengths, row, 1.0), torch.tensor(errors[row], dtype=torch.float64)
        risk = risk + (own * (wrong - wrong.mean())).sum()
    found = listwise_kl(logits, lengths, LISTS, blank_id=0, sequence_temperature=2.0)
    torch.testing.assert_close(found, divergence)
    torch.testing.assert_close(*(torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (found, divergence)))
    found = mwer(logits, lengths, LISTS, references, reference_lengths, blank_id=0)
    torch.testing.assert_close(found, risk)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (found, risk)))


def test_listwise_kl_is_zero_where_the_student_ranks_as_the_teacher() -> None:
    torch.manual_seed(2)
    logits, lengths = torch.randn(3, 9, 5, dtype=torch.float64), torch.tensor([9, 7, 5])
    agreed = tuple(
        tuple(
            Hypothesis(h.tokens, "", math.log(float(p)))
            for h, p in zip(
                LISTS[row], student_posteriors(logits, lengths, row, 1.0) if LISTS[row] else (), strict=True
            )
        )
        for row in range(3)
    )
    assert float(listwise_kl(logits, lengths, agreed, blank_id=0)) == pytest.approx(0.0, abs=1e-9)


def test_one_best_is_ctc_on_the_first_hypothesis() -> None:
    torch.manual_seed(3)
    logits, lengths = torch.randn(3, 9, 5), torch.tensor([9, 7, 5])
    expected = ctc(
        logits[[0, 2]], lengths[[0, 2]], torch.tensor([[1, 2, 3], [2, 0, 0]]), torch.tensor([3, 1]), blank_id=0
    )
    torch.testing.assert_close(hypothesis_ctc(logits, lengths, LISTS, blank_id=0), expected)
    torch.testing.assert_close(NBestCTC(0, max_hypotheses=1)(logits, lengths, LISTS), expected)


def test_edit_distances_equal_a_recursion() -> None:
    def distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        if not a or not b:
            return len(a) + len(b)
        same = distance(a[1:], b[1:]) + (a[0] != b[0])
        return min(same, distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    words = [w for n in range(4) for w in itertools.product((1, 2), repeat=n)]
    for reference in words:
        assert edit_distances([words], [reference]) == [[distance(w, reference) for w in words]]


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (LISTS[:2], "nbest: expected 3 lists, found 2"),
        ((*LISTS[:2], hypotheses(((0, 1), -1.0))), "nbest: expected ids 0 to 4 without blank 0, found 0"),
        ((*LISTS[:2], hypotheses(((7,), -1.0))), "nbest: expected ids 0 to 4 without blank 0, found 7"),
    ],
)
def test_wrong_lists_are_named(lists: tuple[tuple[Hypothesis, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nbest_ctc(torch.randn(3, 9, 5), torch.tensor([9, 7, 5]), lists, blank_id=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": torch.tensor([[1, 9]])}, "tokens: expected 0 to 4, found 1 to 9"),
        ({"tokens": torch.tensor([[1, 0]])}, "tokens: expected no blank among the labels, found blank_id 0"),
        ({"token_lengths": torch.tensor([3])}, "token_lengths: expected at most U = 2, found 3"),
        ({"lengths": torch.tensor([0.5])}, "lengths: expected whole frames, found floats"),
        ({"blank_id": 5}, "blank_id: expected 0 to 4, found 5"),
    ],
)
def test_wrong_ctc_input_is_named(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "lengths": torch.tensor([4]),
        "tokens": torch.tensor([[1, 2]]),
        "token_lengths": torch.tensor([2]),
        "blank_id": 0,
    }
    with pytest.raises(ValueError, match=message):
        ctc(torch.randn(1, 4, 5), **{**given, **change})  # type: ignore[arg-type]


def test_attention_ce_equals_loops() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, dtype=torch.float64)
    tokens, lengths = torch.tensor([[4, 5, 4], [5, 9, 9]]), torch.tensor([3, 1])
    tokens[1, 1:] = 0
    expected = 0.0
    for b, labels in enumerate([[4, 5, 4, 3], [5, 3]]):
        log_probs = logits[b].log_softmax(-1)
        for u, label in enumerate(labels):
            expected -= 0.9 * float(log_probs[u, label]) + 0.1 * float(log_probs[u].mean())
    found = attention_ce(logits, tokens, lengths, end_id=3, label_smoothing=0.1)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def inputs(batch: slice, vocabulary: Vocabulary) -> LossInputs:
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 8, 5)[batch], torch.randn(4, 8, 5).log_softmax(-1)[batch]
    lengths, tokens = torch.tensor([8, 6, 7, 3])[batch], torch.randint(1, 5, (4, 2))[batch]
    nbest = tuple(hypotheses((tuple(row), -1.0)) for row in tokens.tolist())
    return LossInputs(
        vocabulary=vocabulary,
        ctc_logits=Frames(logits, lengths, 0.04),
        tokens=tokens,
        token_lengths=torch.full((len(tokens),), 2),
        targets=TeacherTargets(vocabulary, Frames(teacher, lengths, 0.04), nbest),
    )


def test_a_batch_is_the_sum_of_its_parts() -> None:
    vocabulary = Vocabulary(("<b>", "a", "b", "c", "d"))
    objective = Objective.from_config(
        [{"loss": "ctc", "weight": 0.5}, {"loss": "frame_kl"}, {"loss": "nbest_ctc", "weight": 2}], total_steps=10
    )
    whole = objective(inputs(slice(0, 4), vocabulary), step=0, normaliser=24.0).total
    parts = [objective(inputs(s, vocabulary), step=0, normaliser=24.0).total for s in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(whole, parts[0] + parts[1])


def test_unlabelled_utterances_add_nothing_to_supervised_terms() -> None:
    vocabulary = Vocabulary(("<b>", "a", "b", "c", "d"))
    from dataclasses import replace

    all_four = inputs(slice(0, 4), vocabulary)
    two = replace(all_four, labelled=torch.tensor([True, True, False, False]))
    objective = Objective.from_config([{"loss": "ctc"}], total_steps=1)
    expected = objective(inputs(slice(0, 2), vocabulary), step=0, normaliser=1.0).total
    torch.testing.assert_close(objective(two, step=0, normaliser=1.0).total, expected)


@pytest.mark.parametrize(
    ("schedule", "step", "weight"),
    [
        ({"kind": "constant"}, 50, 1.0),
        ({"kind": "linear", "to": 0.0, "share": 0.5}, 25, 0.5),
        ({"kind": "linear", "to": 0.0, "share": 0.5}, 80, None),
        ({"kind": "cosine", "to": 0.2, "steps": 100}, 100, 0.2),
        ({"kind": "off_after", "steps": 10}, 9, 1.0),
        ({"kind": "off_after", "steps": 10}, 10, None),
    ],
)
def test_schedules(schedule: dict[str, object], step: int, weight: float | None) -> None:
    vocabulary = Vocabulary(("<b>", "a", "b", "c", "d"))
    objective = Objective.from_config([{"loss": "ctc", "schedule": schedule}], total_steps=100)
    terms = objective(inputs(slice(0, 4), vocabulary), step=step, normaliser=1.0).terms
    assert (terms["ctc"].weight if terms else None) == (None if weight is None else pytest.approx(weight))


def test_problems_are_all_named() -> None:
    problems = validate_terms(
        [
            {"loss": "frame_kl", "temprature": 2, "weight": -1},
            {"loss": "kl"},
            {"loss": "ctc", "schedule": {"kind": "linear"}},
            {"loss": "ctc"},
            3,
        ]
    )
    text = "\n".join(problems)
    assert "0.temprature: unknown option of frame_kl (did you mean temperature?)" in text
    assert "0.weight: expected a number of 0 or more; found -1" in text
    assert "1.loss: expected one of" in text
    assert "2.schedule: expected either steps or share" in text
    assert "3.name: expected another than 'ctc'" in text
    assert "4: expected a mapping" in text
    assert validate_terms([]) == ["expected at least one term; found none"]
