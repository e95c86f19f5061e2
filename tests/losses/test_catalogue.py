"""What every loss of the catalogue promises, one property a test, over all of them."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from asrkd.losses import LOSSES, LossInputs, Objective, validate_terms
from asrkd.losses.catalogue import REQUIRED
from asrkd.types import Frames, Hypothesis, TeacherTargets, TopK, Vocabulary

VOCABULARY = Vocabulary(("<blank>", "<unk>", "<s>", "</s>", "a", "b", "c"))
SHIFT_S = 0.04
FRAMES, WIDTH = 9, 4
OPTIONS: dict[str, dict[str, Any]] = {
    name: {"student_layer": "layer.0", "teacher_layer": "layer.5"}
    for name in ("hidden_mse", "hidden_l1_cosine", "hidden_cka", "similarity_preserving", "relation_kl")
}
OPTIONS["hidden_mse"] |= {"student_dim": WIDTH, "teacher_dim": WIDTH}
OPTIONS["mvq"] = {
    "student_layer": "layer.0",
    "teacher_layer": "codes",
    "student_dim": WIDTH,
    "num_codebooks": 2,
    "codebook_size": 5,
}
LEAVES = ("ctc_logits", "decoder_logits", "transducer_logits", "hidden", "other_view")


def made(dtype: torch.dtype = torch.float64, lengths: tuple[int, ...] = (9, 6, 7), stored: bool = False) -> LossInputs:
    """A batch with everything that any loss asks for; row b does not depend on the rows beside it."""
    batch, vocab = len(lengths), len(VOCABULARY)
    generators = [torch.Generator().manual_seed(b) for b in range(batch)]

    def rand(*shape: int) -> Tensor:
        rows = [torch.randn(*shape, generator=g, dtype=torch.float64) for g in generators]
        return torch.stack(rows).to(dtype) if rows else torch.zeros(0, *shape, dtype=dtype)

    frames = torch.tensor(lengths, dtype=torch.long)
    token_lengths = torch.tensor([3, 1, 2, 0][:batch], dtype=torch.long)
    tokens = torch.tensor([[4, 5, 5], [6, 0, 0], [5, 4, 0], [0, 0, 0]])[:batch]
    nbest = (
        (Hypothesis((4, 5, 5), "", -1.0), Hypothesis((4, 5), "", -1.5), Hypothesis((4, 6, 5), "", -2.5)),
        (Hypothesis((5,), "", -0.3),),
        (Hypothesis((5, 4), "", -1.0), Hypothesis((), "", -3.0)),
        (),
    )[:batch]
    posteriors: Frames | TopK = Frames(rand(FRAMES, vocab).double().mul(2).log_softmax(-1), frames, SHIFT_S)
    if stored:
        values, ids = posteriors.values.topk(3, -1)
        posteriors = TopK(ids, values, torch.log1p(-values.exp().sum(-1)), frames, SHIFT_S, vocab)
    codes = rand(FRAMES, 2).double().abs().mul(2).clamp(max=4).floor()
    targets = TeacherTargets(
        VOCABULARY,
        posteriors,
        nbest,
        {"layer.5": Frames(rand(FRAMES, WIDTH), frames, SHIFT_S), "codes": Frames(codes, frames, SHIFT_S)},
        Frames(rand(4, vocab).double().log_softmax(-1), token_lengths + 1, 0.0),
        (tokens, token_lengths),
        Frames(rand(FRAMES, 4, vocab).double().log_softmax(-1), frames, SHIFT_S),
    )
    table = rand(5, 4, vocab)[:, 0]  # logits by number of tokens so far: a decoder that a test can see through

    def decode(rows: Tensor, labels: Tensor, _: Tensor) -> Tensor:
        steps = torch.arange(labels.shape[1] + 1)
        return table[rows][:, steps.clamp(max=4)]

    return LossInputs(
        vocabulary=VOCABULARY,
        ctc_logits=Frames(rand(FRAMES, vocab), frames, SHIFT_S),
        tokens=tokens,
        token_lengths=token_lengths,
        hidden={"layer.0": Frames(rand(FRAMES, WIDTH), frames, SHIFT_S)},
        encoded=Frames(rand(FRAMES, WIDTH), frames, SHIFT_S),
        decoder_logits=rand(4, vocab),
        decode=decode,
        targets=targets,
        other_view=Frames(rand(FRAMES, vocab), frames, SHIFT_S),
        transducer_logits=rand(FRAMES, 4, vocab),
    )


def rows(value: Any, which: slice) -> Any:
    """The utterances ``which`` of anything made above."""
    if isinstance(value, Tensor | tuple) and not isinstance(value, str):
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor):
            return tuple(rows(v, which) for v in value)
        return value[which]
    if isinstance(value, dict):
        return {k: rows(v, which) for k, v in value.items()}
    if is_dataclass(value) and not isinstance(value, Vocabulary):
        return replace(value, **{f.name: rows(getattr(value, f.name), which) for f in fields(value)})
    if callable(value):
        start = which.start or 0
        return lambda r, t, n: value(r + start, t, n)
    return value


def leaf_tensors(inputs: LossInputs) -> list[Tensor]:
    found: list[Tensor] = []
    for name in LEAVES:
        value = getattr(inputs, name)
        for part in value.values() if isinstance(value, dict) else [value]:
            found.append(part.values if isinstance(part, Frames) else part)
    return found


def objective(name: str) -> Objective:
    torch.manual_seed(0)
    built = Objective.from_config([{"loss": name, **OPTIONS.get(name, {})}], total_steps=1)
    return built.double()


def value_and_gradients(name: str, inputs: LossInputs) -> tuple[Tensor, list[Tensor]]:
    leaves = [leaf.requires_grad_() for leaf in leaf_tensors(inputs)]
    total = objective(name).to(leaves[0].dtype)(inputs, step=0, normaliser=1.0).total
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    if total.requires_grad:
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        gradients = [z if g is None else g for z, g in zip(gradients, found, strict=True)]
    return total.detach(), gradients


NAMES = sorted(LOSSES)
STORED = ["frame_kl", "alignment_kl", "guided_ctc"]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_the_sum_of_its_parts(name: str) -> None:
    whole, _ = value_and_gradients(name, made())
    parts = [value_and_gradients(name, rows(made(), which))[0] for which in (slice(0, 1), slice(1, 3))]
    assert float(whole) != 0.0
    torch.testing.assert_close(whole, parts[0] + parts[1])


def spoilt(value: Any, with_nan: bool) -> Any:
    """Garbage wherever nothing valid stands."""
    if isinstance(value, Frames):
        inside = torch.arange(value.values.shape[1]) < value.lengths[:, None]
        garbage = torch.full_like(value.values, math.nan if with_nan else 1e3)
        return replace(value, values=torch.where(inside.unsqueeze(2), value.values, garbage))
    if isinstance(value, TopK):
        inside = torch.arange(value.ids.shape[1]) < value.lengths[:, None]
        return replace(value, log_probs=torch.where(inside.unsqueeze(2), value.log_probs, 7.0))
    if isinstance(value, dict):
        return {k: spoilt(v, with_nan and k != "codes") for k, v in value.items()}
    return value


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_leak(name: str, stored: bool) -> None:
    if stored and name not in STORED:
        return
    clean, bad = made(stored=stored), made(stored=stored)
    assert bad.targets is not None
    targets = replace(
        bad.targets,
        posteriors=spoilt(bad.targets.posteriors, True),
        hidden=spoilt(bad.targets.hidden, True),
        decoder=spoilt(bad.targets.decoder, False),
    )
    past = torch.arange(3) >= bad.token_lengths[:, None]  # type: ignore[index]
    bad = replace(
        bad,
        ctc_logits=spoilt(bad.ctc_logits, True),
        other_view=spoilt(bad.other_view, True),
        hidden=spoilt(bad.hidden, False),
        tokens=torch.where(past, 6, bad.tokens),  # type: ignore[arg-type]
        targets=targets,
    )
    expected, expected_gradients = value_and_gradients(name, clean)
    found, gradients = value_and_gradients(name, bad)
    torch.testing.assert_close(found, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "consistency"])  # its targets have their gradients stopped
def test_gradient_is_the_slope(name: str, stored: bool) -> None:
    if stored and name not in STORED:
        return
    inputs = made(stored=stored)
    # The full-context view is a target too: the slope is taken in the other directions only.
    leaves = leaf_tensors(inputs)[: -1 if name == "dual_mode" else None]
    _, gradients = value_and_gradients(name, inputs)
    generator = torch.Generator().manual_seed(1)
    step = 1e-5
    direction = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for leaf, d in zip(leaves, direction, strict=True):
                leaf += sign * step * d
            values.append(float(objective(name)(inputs, step=0, normaliser=1.0).total))
            for leaf, d in zip(leaves, direction, strict=True):
                leaf -= sign * step * d
    slope = (values[0] - values[1]) / (2 * step)
    expected = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=False))
    assert slope == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if name not in ("nbest_attention", "decoder_kl"):  # the test's decoder has its own table
        assert expected != 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_any_precision_comes_near_float64(name: str, dtype: torch.dtype) -> None:
    exact, _ = value_and_gradients(name, made())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, gradients = value_and_gradients(name, made(dtype))
    assert float(found) == pytest.approx(float(exact), rel=1e-4 if dtype == torch.float32 else 0.1, abs=0.05)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_one_frame_and_empty_transcripts_stay_finite(name: str) -> None:
    inputs = made(lengths=(1, 1, 2, 1))
    inputs = replace(inputs, token_lengths=torch.tensor([1, 0, 1, 0]))
    total, gradients = value_and_gradients(name, inputs)
    assert torch.isfinite(total)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_batch_gives_zero(name: str) -> None:
    total, _ = value_and_gradients(name, made(lengths=()))
    assert float(total) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_named(name: str) -> None:
    term = objective(name).terms[0]
    bare = LossInputs(VOCABULARY)
    with pytest.raises(ValueError, match=rf"^{name}: expected .*{sorted(term.needs)[0]}.* in the batch; found none$"):
        objective(name)(bare, step=0, normaliser=1.0)


def test_another_vocabulary_is_refused() -> None:
    inputs = made()
    assert inputs.targets is not None
    other = replace(inputs.targets, vocabulary=Vocabulary(("x", "y", "z")))
    with pytest.raises(
        ValueError, match=r"frame_kl: expected the teacher's vocabulary .* \(7 tokens, blank 0\).*\(3 tokens"
    ):
        objective("frame_kl")(replace(inputs, targets=other), step=0, normaliser=1.0)


def test_gradient_shares_add_to_one_and_follow_the_weights() -> None:
    inputs = made()
    for leaf in leaf_tensors(inputs):
        leaf.requires_grad_()
    assert inputs.ctc_logits is not None
    shares = []
    for weight in (1.0, 3.0):
        terms = [{"loss": "ctc", "weight": weight}, {"loss": "frame_kl"}]
        built = Objective.from_config(terms, total_steps=1)
        shares.append(built.gradient_shares(inputs, step=0, by=inputs.ctc_logits.values))
    assert sum(shares[0].values()) == pytest.approx(1.0)
    ratios = [share["ctc"] / share["frame_kl"] for share in shares]
    assert ratios[1] == pytest.approx(3 * ratios[0])


def test_every_loss_states_its_source_and_options() -> None:
    for name, spec in LOSSES.items():
        assert spec.summary and spec.source, name
        assert not {"reduction", "blank_id"} & set(spec.options)
        given = {key: 1 for key, default in spec.options.items() if default is REQUIRED}
        given |= {key: "x" for key in given if key.endswith("layer")}
        assert validate_terms([{"loss": name, **given}]) == []


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"loss": "hidden_cka", "student_layer": "a"}, "0.teacher_layer: expected a value; found none"),
        ({"loss": "frame_kl", "divergence": "kl"}, "0.divergence: expected forward, reverse or js; found 'kl'"),
        ({"loss": "frame_kl", "temperature": 0}, "0.temperature: expected 1e-06 to 1e+06; found 0"),
        ({"loss": "frame_kl", "window": "frame"}, "0.max_delay_ms: expected more than 0"),
        ({"loss": "nbest_ctc", "max_hypotheses": 1.5}, "0.max_hypotheses: expected a whole number; found 1.5"),
        ({"loss": "alignment_kl", "transcript": "x"}, "0.transcript: expected reference or hypothesis; found 'x'"),
        ({"loss": "guided_ctc", "delay_ms": -1}, "0.delay_ms: expected 0 to inf; found -1"),
    ],
)
def test_wrong_options_are_refused_up_front(config: dict[str, Any], problem: str) -> None:
    problems = validate_terms([config])
    assert any(line.startswith(problem) for line in problems), problems
