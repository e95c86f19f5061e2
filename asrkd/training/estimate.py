"""What the steps of an experiment will need, from a measurement of seconds on this machine and the hours of audio.

A few training steps and forward passes are done on noise with the very models of the recipes; everything else is proportion.
Left out, and named so where it is shown: loading audio from slow disks, the teacher's beam search, downloads.
"""

from __future__ import annotations

import json
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

from asrkd.data.download import disk_need_bytes
from asrkd.data.librispeech import PUBLISHED_UTTERANCES
from asrkd.data.shar import read_manifest
from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.losses.transducer import rnnt
from asrkd.models import package
from asrkd.models.base import Recogniser
from asrkd.teachers.config import PackageSpec
from asrkd.training.pipeline import Step
from asrkd.training.recipe import Recipe, load_recipe
from asrkd.training.sections import PrepareLibriSpeech

UTTERANCE_S = 10.0
LABELS_PER_S = 14
PUBLISHED_UTTERANCE_S = 12.3
"""Mean length of LibriSpeech's utterances: 960.9 h in 281,241."""
POSTERIORS_MB_PER_H, NBEST_MB_PER_H = 0.9, 0.45
"""Measured; docs/benchmarks.md."""
OPTIMISER_BYTES = 12
"""Of a parameter in a checkpoint: itself and AdamW's two moments in float32."""


@dataclass(frozen=True)
class Need:
    """Seconds (``None``: unknown), MB written, and MB of memory of one step."""

    seconds: float | None = None
    disk_mb: float = 0.0
    memory_mb: float = 0.0

    def __str__(self) -> str:
        length = "unknown time" if self.seconds is None else f"{self.seconds / 60:.1f} min"
        return f"{length}, disk {self.disk_mb:.0f} MB, memory {self.memory_mb:.0f} MB"


@dataclass(frozen=True)
class Rate:
    """Audio seconds a second of training and of listening, parameters, and the memory they took in MB."""

    train: float
    listen: float
    parameters: int
    memory_mb: float


def estimate(steps: Sequence[Step], device: str) -> list[Need]:
    """One answer a step; what is done needs nothing.

    Args:
        steps: Of ``asrkd.training.pipeline.plan``.
        device: ``"cpu"`` or ``"cuda"``; where rates are measured.
    """
    return [Need() if step.done else _need(step, device) for step in steps]


def _need(step: Step, device: str) -> Need:
    recipe, verb = step.recipe, step.command[0]
    hours = _hours(recipe, (*recipe.data.train, *recipe.data.unlabelled))
    if verb == "prepare":
        settings = recipe.prepare
        download = isinstance(settings, PrepareLibriSpeech) and settings.download
        assert settings is not None
        need = disk_need_bytes(settings.root, settings.parts or None) if download else 0  # type: ignore[union-attr]
        return Need(None, need / 1e6)
    if verb in ("export", "compare"):
        return Need()
    speeds = len(recipe.data.speeds)
    if verb == "train":
        rate = measure_rate(model_config(recipe), recipe.training.precision, recipe.data.max_duration_s, device)
        seconds = None if hours is None else recipe.training.epochs * hours * speeds * 3600 / rate.train
        kept_mb = checkpoints_mb(rate.parameters, recipe.training.average)
        return Need(seconds, kept_mb, rate.memory_mb + recipe.data.cache_mb)
    if verb == "label":
        teacher = teacher_config(recipe)
        per_hour = POSTERIORS_MB_PER_H + (NBEST_MB_PER_H if recipe.targets and recipe.targets.nbest else 0)
        if teacher is None or hours is None:
            return Need(None, (hours or 0) * speeds * per_hour)
        rate = measure_rate(teacher, "fp32", UTTERANCE_S, device)
        return Need(hours * speeds * 3600 / rate.listen, hours * speeds * per_hour, rate.memory_mb)
    assert recipe.evaluate is not None
    rate = measure_rate(model_config(recipe), "fp32", UTTERANCE_S, device)
    heard = _hours(recipe, recipe.evaluate.parts)
    return Need(None if heard is None else heard * 3600 / rate.listen, 1.0, rate.memory_mb)


def checkpoints_mb(parameters: int, average: int) -> float:
    """Of the checkpoints that a run keeps (those to average and the last), and of its package."""
    return parameters * (OPTIMISER_BYTES * (average + 1) + 4) / 1e6


def model_config(recipe: Recipe) -> str:
    """The recipe's model as :func:`measure_rate` takes it."""
    return json.dumps(recipe.model, sort_keys=True)


def teacher_config(recipe: Recipe) -> str | None:
    """The model of the recipe's teacher, if it is a package that is there or will be made by a named recipe."""
    if not isinstance(recipe.teacher, PackageSpec):
        return None
    folder = recipe.path(recipe.teacher.path)
    if (folder / package.CONFIG).exists():
        return json.dumps(package.load(folder).config.model_dump(mode="json"), sort_keys=True)
    for other in recipe.teacher_recipes:
        made = load_recipe(other, [f"workdir={recipe.workdir}"])
        if made.output_dir == folder.parent:
            return model_config(made)
    return None


def _hours(recipe: Recipe, manifests: Sequence[Path]) -> float | None:
    """Hours of audio, of parts of LibriSpeech that are not prepared yet by their published size."""
    total = 0.0
    for manifest in manifests:
        path = recipe.path(manifest)
        part = path.name.removeprefix("cuts_").removesuffix(".jsonl.gz")
        if path.exists():
            total += sum(cut.duration for cut in read_manifest(path)) / 3600
        elif isinstance(recipe.prepare, PrepareLibriSpeech) and part in PUBLISHED_UTTERANCES:
            total += PUBLISHED_UTTERANCES[part] * PUBLISHED_UTTERANCE_S / 3600
        else:
            return None
    return total


@cache
def measure_rate(config: str, precision: str, batch_s: float, device: str) -> Rate:
    """Training and listening of a fresh model on noise.

    Args:
        config: The model's part of a recipe as JSON, so that the same model is measured once.
        precision: Of the training steps; listening is in float32.
        batch_s: Seconds of audio in a batch.
        device: ``"cpu"`` or ``"cuda[:N]"``.
    """
    torch.manual_seed(0)
    model = package.build(json.loads(config), _tokenizer()).to(device)
    rows = max(1, round(batch_s / UTTERANCE_S))
    audio = 0.1 * torch.randn(rows, round(UTTERANCE_S * model.sample_rate_hz), device=device)
    lengths = torch.full((rows,), audio.shape[1], device=device)
    train = _audio_s_per_s(lambda: _training_step(model, audio, lengths, precision), rows, device)
    model.eval()
    listen = _audio_s_per_s(lambda: _listen(model, audio, lengths), rows, device)
    if device.startswith("cuda"):
        memory = torch.cuda.max_memory_allocated(device) / 1e6
    else:
        memory = psutil.Process().memory_info().rss / 1e6
    return Rate(train, listen, sum(p.numel() for p in model.parameters()), memory)


def _tokenizer() -> Tokenizer:
    return train_tokenizer([" ".join(string.ascii_uppercase)], kind="char")


def _audio_s_per_s(step: Callable[[], None], rows: int, device: str, repeats: int = 3) -> float:
    step()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return rows * UTTERANCE_S / sorted(times)[repeats // 2]


def _training_step(model: Recogniser, audio: torch.Tensor, lengths: torch.Tensor, precision: str) -> None:
    labels = torch.randint(
        3, len(model.vocabulary), (len(audio), round(UTTERANCE_S * LABELS_PER_S)), device=audio.device
    )
    sizes = torch.full((len(audio),), labels.shape[1], device=audio.device)
    with torch.no_grad():
        features = model.features(audio, lengths)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.bfloat16)
    with torch.autocast(audio.device.type, dtype=dtype, enabled=precision != "fp32"):
        output = model(features)
        blank_id, lengths, loss = (
            model.vocabulary.blank_id,
            output.encoded.lengths,
            torch.zeros((), device=audio.device),
        )
        if output.ctc is not None:
            log_probs = output.ctc.values.float().log_softmax(-1).transpose(0, 1)
            loss = loss + F.ctc_loss(log_probs, labels, lengths, sizes, blank=blank_id, zero_infinity=True)
        if model.has_transducer:
            joint = model.transducer_logits(output.encoded, labels, sizes)
            loss = loss + rnnt(joint, lengths, labels, sizes, blank_id=blank_id)
        if model.has_decoder:
            decoded = model.decoder_logits(output.encoded, labels, sizes)[:, :-1].float()
            loss = loss + F.cross_entropy(decoded.flatten(0, 1), labels.flatten())
    torch.autograd.backward(loss)
    torch.optim.AdamW(model.parameters(), lr=1e-12, fused=True).step()
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def _listen(model: Recogniser, audio: torch.Tensor, lengths: torch.Tensor) -> None:
    model(model.features(audio, lengths))
