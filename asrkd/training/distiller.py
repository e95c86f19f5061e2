"""The training engine: a ``speechbrain.Brain`` that trains a recogniser alone or under a teacher.

The unit of work is a group of micro-batches (one optimiser step of one rank). Every loss term is a sum over the batch and is
divided once by the number of student frames in the global batch (all ranks, all micro-batches), so that one process with two
micro-batches and two processes with one each make the same gradient. All randomness is derived from
``(seed, step, micro-batch, utterance)``, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
import yaml
from rapidfuzz.distance import Levenshtein
from speechbrain.utils.distributed import if_main_process
from torch import Tensor

from asrkd.data.augment import SpecAugment, add_noise
from asrkd.losses.diagnostics import Diagnostics, diagnose
from asrkd.losses.inputs import LossInputs
from asrkd.losses.objective import Objective, ObjectiveOutput
from asrkd.models.base import Recogniser
from asrkd.teachers.base import Teacher
from asrkd.training.checkpoints import AtomicCheckpointer
from asrkd.training.cpu import quicken_dropout, recurring
from asrkd.training.loader import Group, GroupSampler
from asrkd.training.logs import Progress, RunLog, no_progress
from asrkd.training.recipe import Recipe
from asrkd.training.schedule import learning_rate
from asrkd.types import Frames, ModelOutput, SpeechBatch

logger = logging.getLogger(__name__)

LOG_EVERY_STEPS = 20


@dataclass
class _Window:
    """What has happened since the last line of the log."""

    sums: dict[str, float]
    counts: dict[str, float]
    audio_s: float = 0.0
    padded_s: float = 0.0
    started: float = 0.0
    waited_s: float = 0.0
    seen: Diagnostics = field(default_factory=Diagnostics)

    @classmethod
    def new(cls) -> _Window:
        return cls(defaultdict(float), defaultdict(float), started=time.perf_counter())


class NonFiniteLossError(ValueError):
    """The loss was not finite too often."""


@sb.utils.checkpoints.register_checkpoint_hooks
class Distiller(sb.Brain):
    """Trains ``model`` on what ``recipe`` says.

    Args:
        model: The recogniser to train.
        recipe: The resolved recipe.
        total_steps: Optimiser steps of the whole run, for the schedules.
        folder: Where checkpoints and logs go.
        device: ``"cpu"`` or ``"cuda[:N]"``.
        teacher: A live teacher, asked at every step for batches that carry no targets.
        progress: Called as steps are done.
    """

    def __init__(
        self,
        model: Recogniser,
        recipe: Recipe,
        *,
        total_steps: int,
        folder: Path,
        device: str = "cpu",
        teacher: Teacher | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.recipe = recipe
        self.settings = recipe.training
        if device == "cpu":
            quicken_dropout(model)
        self.model = model
        self.teacher = teacher
        self.total_steps = total_steps
        self.progress = progress
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # for the losses' own projections
            self.objective = Objective.from_config([dict(term) for term in recipe.losses], total_steps=total_steps)
        self._on_references = self.objective.on_references_alone()
        self.log = RunLog(folder)
        self.rate = learning_rate(self.settings.optimiser, total_steps)
        spec = recipe.augment.spec
        self.spec_augment = None if spec is None else SpecAugment(**spec.model_dump())
        if not self.objective.needs & {"decoder_logits", "decode"} and model.has_decoder:
            raise ValueError("model: expected a loss for its attention decoder (attention_ce); found none")
        self.skipped_steps = 0
        self.best_wer = math.inf
        self.epochs_since_best = 0
        self.epoch_counter = sb.utils.epoch_loop.EpochCounter(self.settings.epochs)
        checkpointer = AtomicCheckpointer(folder / "checkpoints", {"model": model, "epochs": self.epoch_counter})
        modules: dict[str, torch.nn.Module] = {"model": model}
        if any(True for _ in self.objective.parameters()):
            checkpointer.add_recoverable("objective", self.objective)
            modules["objective"] = self.objective  # learned projections: over all ranks, as the model
        super().__init__(
            modules=modules,
            run_opts={
                "device": device,
                "precision": self.settings.precision,
                "noprogressbar": True,
                "optimizer_step_limit": self.settings.max_steps,
                "ckpt_interval_minutes": 0,
                "ckpt_interval_steps": self.settings.checkpoint_every_steps,
                "compile": self.settings.compile,
                "distributed_backend": "nccl" if device.startswith("cuda") else "gloo",
            },
            checkpointer=checkpointer,
        )
        self._window = _Window.new()
        self._valid_errors = self._valid_words = 0
        self._validates = True

    # Randomness -------------------------------------------------------------------------------------------------------

    @property
    def _world(self) -> tuple[int, int]:
        """Rank and number of ranks."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _reseed(self, micro: int) -> random.Random:
        """Seed torch (dropout) and a Python generator from the place of this micro-batch in the whole run."""
        rank, ranks = self._world
        place = random.Random(f"{self.recipe.seed}/{self.optimizer_step}/{micro * ranks + rank}")
        torch.manual_seed(place.getrandbits(63))
        return place

    # Forward ----------------------------------------------------------------------------------------------------------

    def compute_forward(self, batch: SpeechBatch, stage: sb.Stage) -> tuple[ModelOutput, LossInputs]:
        """Audio to student outputs and everything that the objective may ask for."""
        training = stage == sb.Stage.TRAIN
        audio, place = batch.audio, self._place
        noise = self.recipe.augment.noise
        if training and noise.probability and self._augmenting:
            audio = add_noise(
                audio,
                batch.audio_lengths,
                batch.ids,
                snr_db=noise.snr_db,
                probability=noise.probability,
                sample_rate_hz=batch.sample_rate_hz,
                seed=(self.recipe.seed, self.optimizer_step),
            )
        with torch.no_grad(), torch.autocast(self.device_type, enabled=False):
            clean = self.model.features(audio, batch.audio_lengths)
            if training and self.device_type == "cpu":
                clean = recurring(clean)
            heard = self._augment(clean, batch.ids, view=0) if training else clean
        chunk = place.choice(self.settings.chunk_frames) if training and self.settings.chunk_frames else None
        output: ModelOutput = self.modules.model(
            heard,
            chunk_frames=chunk,
            left_context_frames=self.settings.left_context_frames,
            want_hidden=tuple(sorted(n.split(":", 1)[1] for n in self.objective.needs if n.startswith("hidden:"))),
        )
        return output, self._loss_inputs(batch, output, clean, chunk)

    @property
    def _augmenting(self) -> bool:
        return self.optimizer_step >= self.recipe.augment.start_step

    def _augment(self, features: Frames, ids: tuple[str, ...], view: int) -> Frames:
        if self.spec_augment is None or not self._augmenting:
            return features
        return self.spec_augment(features, ids, seed=(self.recipe.seed, self.optimizer_step, view))

    def _loss_inputs(self, batch: SpeechBatch, output: ModelOutput, clean: Frames, chunk: int | None) -> LossInputs:
        needs = self.objective.needs
        targets = batch.targets
        if targets is None and self.teacher is not None and self.modules.training:
            with torch.no_grad():
                targets = self.teacher(batch).to(self.device)
        decoder_logits = transducer_logits = None
        assert batch.tokens is not None and batch.token_lengths is not None  # the loader's batches have labels
        if "decoder_logits" in needs:
            decoder_logits = self.model.decoder_logits(output.encoded, batch.tokens, batch.token_lengths)
        if "transducer_logits" in needs:
            transducer_logits = self.model.transducer_logits(output.encoded, batch.tokens, batch.token_lengths)
        return LossInputs(
            ctc_logits=output.ctc,
            vocabulary=self.model.vocabulary,
            tokens=batch.tokens,
            token_lengths=batch.token_lengths,
            labelled=torch.tensor([bool(text) for text in batch.texts], device=self.device),
            encoded=output.encoded,
            hidden=output.hidden,
            decoder_logits=decoder_logits,
            decode=self._decode_rows(output) if "decode" in needs else None,
            targets=targets,
            transducer_logits=transducer_logits,
            other_view=self._other_view(needs, batch, clean, chunk) if self.modules.training else None,
        )

    def _decode_rows(self, output: ModelOutput) -> Any:
        def decode(rows: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
            return self.model.decoder_logits(output.encoded, tokens, lengths, rows=rows)

        return decode

    def _other_view(self, needs: frozenset[str], batch: SpeechBatch, clean: Frames, chunk: int | None) -> Frames | None:
        """A second pass of the same weights: full context (in-place dual mode), or other masks (CR-CTC)."""
        if "other_view.full_context" in needs:
            return self.modules.model(self._augment(clean, batch.ids, view=0), chunk_frames=0).ctc_logits
        if "other_view" in needs:
            left = self.settings.left_context_frames
            heard = self._augment(clean, batch.ids, view=1)
            return self.modules.model(heard, chunk_frames=chunk, left_context_frames=left).ctc_logits
        return None

    def compute_objectives(self, predictions: Any, batch: SpeechBatch, stage: sb.Stage) -> Tensor:
        """The weighted sum of all terms over this micro-batch, by the global number of frames."""
        output, inputs = predictions
        training = stage == sb.Stage.TRAIN
        objective = getattr(self.modules, "objective", self.objective) if training else self._on_references
        result: ObjectiveOutput = objective(inputs, step=self.optimizer_step, normaliser=self._normaliser)
        if training:
            for name, term in result.terms.items():
                self._window.sums[name] += float(term.sum)
                self._window.counts[name] += float(term.count)
            if (self.optimizer_step + 1) % LOG_EVERY_STEPS == 0:
                self._look_closer(inputs, output)
        return result.total

    def _look_closer(self, inputs: LossInputs, output: ModelOutput) -> None:
        """What costs too much for every step: agreement with the teacher and, on request, gradient shares of the terms."""
        targets, logits = inputs.targets, output.ctc
        if targets is not None and targets.posteriors is not None and logits is not None:
            self._window.seen += diagnose(
                logits.values,
                logits.lengths,
                targets.posteriors,
                blank_id=inputs.vocabulary.blank_id,
                student_frame_shift_s=logits.frame_shift_s,
            )
        if self.settings.log_gradient_shares:
            shares = self.objective.gradient_shares(inputs, step=self.optimizer_step, by=output.encoded.values)
            for name, share in shares.items():
                self._window.sums[f"gradient_share.{name}"] += share
                self._window.counts[f"gradient_share.{name}"] += 1

    # One optimiser step -----------------------------------------------------------------------------------------------

    def _frames(self, batch: SpeechBatch) -> float:
        return float(batch.audio_lengths.sum()) / batch.sample_rate_hz / self.model.frame_shift_s

    def fit_batch(self, batch: Group) -> Tensor:
        """One optimiser step over a group of micro-batches; a step whose loss is not finite is skipped by all ranks."""
        started = time.perf_counter()
        self._window.waited_s += started - self._last_step_ended
        group = [micro.to(self.device) for micro in batch]
        _, ranks = self._world
        frames = self._sum_over_ranks(sum(self._frames(micro) for micro in group))
        # DDP takes the mean over ranks of what are shares of one sum, hence the factor.
        self._normaliser = max(1.0, frames) / ranks
        total = torch.zeros((), device=self.device)
        for index, micro in enumerate(group):
            self._place = self._reseed(index)
            with self.no_sync(index + 1 < len(group)):
                with self.training_ctx:
                    outputs = self.compute_forward(micro, sb.Stage.TRAIN)
                    loss = self.compute_objectives(outputs, micro, sb.Stage.TRAIN)
                self.scaler.scale(loss).backward()
            total += loss.detach()
            self._window.audio_s += float(micro.audio_lengths.sum()) / micro.sample_rate_hz
            self._window.padded_s += micro.audio.numel() / micro.sample_rate_hz
        mean = self._sum_over_ranks(float(total)) / ranks
        if math.isfinite(mean):
            self.optimizers_step()
        else:
            self._skip(mean)
        self._after_step()
        return torch.tensor(mean)

    def _sum_over_ranks(self, value: float) -> float:
        if self._world[1] == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        return float(tensor)

    def _skip(self, loss: float) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self.skipped_steps += 1
        self.log.write({"kind": "skipped", "step": self.optimizer_step, "loss": repr(loss)})
        logger.warning("step %d: the loss is %s; step skipped", self.optimizer_step, loss)
        if self.skipped_steps > self.settings.nonfinite_patience:
            raise NonFiniteLossError(
                f"{self.recipe.name}: the loss was not finite at {self.skipped_steps} steps (training.nonfinite_patience: "
                f"{self.settings.nonfinite_patience}); last at step {self.optimizer_step}: {loss}. Try a lower "
                "training.optimiser.peak_lr or precision: fp32"
            )

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        everything = itertools.chain(self.model.parameters(), self.objective.parameters())
        return [p for p in everything if p.requires_grad]

    def init_optimizers(self) -> None:
        """AdamW without decay on vectors (norms and biases); it joins the checkpoint."""
        settings = self.settings.optimiser
        parameters = self._trained
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.peak_lr, betas=settings.betas, fused=True)
        self.optimizers_dict = {"optimizer": self.optimizer}
        self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def optimizers_step(self) -> None:
        """Clip over all parameters together, then step at this step's rate."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.optimizer_step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1
        self._window.sums["grad_norm"] += float(norm)
        self._window.counts["grad_norm"] += 1

    def _after_step(self) -> None:
        self._last_step_ended = time.perf_counter()
        self.progress(self.optimizer_step, self.total_steps, f"epoch {self.epoch_counter.current}")
        if self.optimizer_step % LOG_EVERY_STEPS or not if_main_process():
            return
        window = self._window
        elapsed = time.perf_counter() - window.started
        record: dict[str, Any] = {"kind": "train", "step": self.optimizer_step, "epoch": self.epoch_counter.current}
        record["lr"] = self.rate(self.optimizer_step - 1)
        record |= {name: window.sums[name] / max(1.0, window.counts[name]) for name in window.sums}
        if window.seen.frames:
            record |= window.seen.summary()
        record |= {"audio_s_per_s": window.audio_s / elapsed, "data_wait_share": window.waited_s / elapsed}
        record["padding_share"] = 1.0 - window.audio_s / window.padded_s
        self.log.write(record)
        self._window = _Window.new()

    # Epochs -----------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.log.resume_from(self.optimizer_step)
        self.progress(self.optimizer_step, self.total_steps, "")
        self._last_step_ended = time.perf_counter()
        self._window = _Window.new()

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        self._valid_errors = self._valid_words = 0

    @torch.no_grad()
    def evaluate_batch(self, batch: Group, stage: sb.Stage) -> Tensor:
        """Objective and word errors of the model's default streaming mode, best path."""
        loss = torch.zeros(())
        for micro in (m.to(self.device) for m in batch):
            self._place = random.Random(0)
            self._normaliser = max(1.0, self._frames(micro))
            with self.evaluation_ctx:
                output, _ = predictions = self.compute_forward(micro, stage)
                loss = loss + self.compute_objectives(predictions, micro, stage).detach().cpu()
            for reference, hypothesis in zip(micro.texts, self.model.greedy(output), strict=True):
                words = reference.split()
                self._valid_errors += Levenshtein.distance(
                    words, self.model.tokenizer.decode(hypothesis.tokens).split()
                )
                self._valid_words += len(words)
        return loss / max(1, len(batch))

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage == sb.Stage.TRAIN:
            self._train_loss = stage_loss
            if not self._validates:  # otherwise after the development data
                self._keep({"epoch": epoch}, max_keys=["epoch"])
            return
        wer = self._sum_over_ranks(self._valid_errors) / max(1.0, self._sum_over_ranks(self._valid_words))
        record = {"kind": "valid", "step": self.optimizer_step, "epoch": epoch, "loss": float(stage_loss), "wer": wer}
        if if_main_process():
            self.log.write(record | {"train_loss": float(self._train_loss)})
        self.epochs_since_best = 0 if wer < self.best_wer else self.epochs_since_best + 1
        self.best_wer = min(wer, self.best_wer)
        patience = self.settings.early_stop_epochs
        if patience is not None and self.epochs_since_best >= patience:
            self.epoch_counter.limit = self.epoch_counter.current
        self._keep({"wer": wer, "epoch": epoch}, min_keys=["wer"])

    def _keep(self, meta: dict[str, Any], **keys: list[str]) -> None:
        """Save a checkpoint and keep those that are averaged, and the last."""
        self.checkpointer.save_and_keep_only(
            meta=meta, **keys, num_to_keep=self.settings.average, verbosity=logging.DEBUG
        )
        self._last_step_ended = time.perf_counter()

    @sb.utils.checkpoints.mark_as_saver
    def _save(self, path: str) -> None:
        state = {
            "step": self.step,
            "avg_train_loss": float(self.avg_train_loss),
            "optimizer_step": self.optimizer_step,
            "skipped_steps": self.skipped_steps,
            "best_wer": self.best_wer,
            "epochs_since_best": self.epochs_since_best,
            "epoch_limit": self.epoch_counter.limit,
        }
        Path(path).write_text(yaml.safe_dump(state), encoding="utf-8")

    @sb.utils.checkpoints.mark_as_loader
    def _recover(self, path: str, end_of_epoch: bool) -> None:
        state = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        self.step = 0 if end_of_epoch else state["step"]
        self.avg_train_loss = state["avg_train_loss"]
        self.optimizer_step = state["optimizer_step"]
        self.skipped_steps = state["skipped_steps"]
        self.best_wer = state["best_wer"]
        self.epochs_since_best = state["epochs_since_best"]
        self.epoch_counter.limit = state["epoch_limit"]

    def train(self, train_loader: Any, valid_loader: Any, sampler: GroupSampler) -> None:
        """Fit, from the last whole checkpoint if there is one."""
        self.train_sampler = sampler
        self._validates = valid_loader is not None
        sampler.start = lambda: self.step
        self.fit(self.epoch_counter, train_loader, valid_loader)
        self.log.close()
