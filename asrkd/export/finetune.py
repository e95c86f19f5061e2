"""Distillation-aware fine-tuning of a student that shall run in int8.

With rounding in its way, it learns to say what it said in float32. Matrix products hear inputs and weights as onnxruntime's
dynamic quantisation will make them (weights symmetric, one scale an output channel; inputs one scale and zero point a tensor);
gradients pass the rounding unchanged (Bengio et al. 2013, straight-through; Jacob et al. 2018). The target is the frame KL to the
same student in float32, so that no transcript is needed.

Dimension legend: B utterances, T frames, D input features, V tokens.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrkd.data.batching import BatchSource, load_batch
from asrkd.losses import frame_kl
from asrkd.models.conformer import StreamingConformer
from asrkd.training.logs import Progress, no_progress
from asrkd.types import Frames


class RoundedWeight(nn.Module):
    """A weight ``(out, in)`` on the grid of int8, one symmetric scale an output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127.0
        rounded = (weight.detach() / scale).round().clamp(-127, 127) * scale
        return weight + (rounded - weight).detach()


def round_input(x: Tensor) -> Tensor:
    """A tensor on the grid of uint8 between its least and largest value, zero among them."""
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = ((high - low) / 255.0).clamp(min=1e-12)
    zero = (-low / scale).round()
    rounded = (((x.detach() / scale).round() + zero).clamp(0, 255) - zero) * scale
    return x + (rounded - x).detach()


@contextmanager
def rounding(model: nn.Module) -> Iterator[None]:
    """Every ``nn.Linear`` of ``model`` works in the arithmetic of int8 while the block lasts."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = []
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
        hooks.append(layer.register_forward_pre_hook(lambda module, inputs: (round_input(inputs[0]), *inputs[1:])))
    try:
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


def finetune(
    model: StreamingConformer,
    cuts: CutSet,
    *,
    steps: int = 200,
    peak_lr: float = 1e-4,
    max_duration_s: float = 60.0,
    seed: int = 0,
    progress: Progress = no_progress,
) -> StreamingConformer:
    """A copy of the student that loses less when it is rounded.

    Args:
        model: In evaluation mode; stays as it is, and is the teacher.
        cuts: Audio; transcripts are not looked at.
        steps: Batches.
        peak_lr: Of AdamW, falling linearly to 0.
        max_duration_s: Audio of a batch.
        seed: Of the order of batches.
        progress: Called with steps done, steps in all, and the loss.

    Returns:
        The copy, in evaluation mode and in float32.

    Raises:
        ValueError: If there is no audio.
    """
    if not any(True for _ in cuts):
        raise ValueError("cuts: expected audio to fine-tune on, found none")
    student = copy.deepcopy(model).eval()  # without dropout: the rounding is the only noise
    source = BatchSource(cuts, max_duration_s=max_duration_s, seed=seed)
    optimiser = torch.optim.AdamW(student.parameters(), lr=peak_lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0 - step / steps)
    with rounding(student):
        for done, batch in enumerate(itertools.islice(_batches(source), steps), start=1):
            audio = load_batch(CutSet.from_cuts(batch), None, sample_rate_hz=model.sample_rate_hz)
            with torch.no_grad():
                features = model.features(audio.audio, audio.audio_lengths)
                said = model(features).ctc_logits
            heard = student(features).ctc_logits
            target = Frames(said.values.log_softmax(-1), said.lengths, said.frame_shift_s)
            loss = frame_kl(
                heard.values,
                heard.lengths,
                target,
                blank_id=model.vocabulary.blank_id,
                student_frame_shift_s=heard.frame_shift_s,
                reduction="mean",
            )
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            progress(done, steps, f"KL {float(loss.detach()):.5f} nats a frame")
    return student


def _batches(source: BatchSource) -> Iterator[list[Cut]]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        yield from source.batches(epoch)
