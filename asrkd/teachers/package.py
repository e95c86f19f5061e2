"""A model package as teacher: a model trained here, or a student of an earlier run (born-again chains)."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import torch

from asrkd.decoding.ctc import greedy
from asrkd.models.base import Recogniser
from asrkd.models.transformer import SpeechBrainConformer
from asrkd.types import Frames, Hypothesis, NBest, SpeechBatch, TeacherTargets

Precision = Literal["fp32", "bf16", "fp16"]


class PackageTeacher:
    """Frame posteriors of the CTC head and, where asked for, N-best lists.

    Args:
        model: A loaded package; it is put into evaluation mode and hears whole utterances.
        device: Where it runs.
        nbest: Hypotheses of each utterance, by the model's joint CTC/attention beam search; a model without a decoder
            gives its greedy transcript. 0: none.
        beam: Beam width, at least ``nbest``.
        precision: ``fp32``, or ``bf16``/``fp16`` for the matrix products of encoder and search.

    Raises:
        ValueError: If ``beam`` is smaller than ``nbest``.
    """

    def __init__(
        self,
        model: Recogniser,
        *,
        device: str = "cpu",
        nbest: int = 0,
        beam: int = 8,
        precision: Precision = "fp32",
    ) -> None:
        if nbest and beam < nbest:
            raise ValueError(f"beam: expected at least nbest = {nbest}, found {beam}")
        self.model = model.to(device).eval()
        self.device = device
        self.nbest = nbest
        self.beam = beam
        self.precision = precision
        self.vocabulary = model.vocabulary
        self.sample_rate_hz = model.sample_rate_hz
        self.frame_shift_s = model.frame_shift_s
        self.identity = _identity(model, nbest, beam, precision)

    @torch.inference_mode()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """Log-probabilities ``(B, T, V)`` in full context, and the N-best lists."""
        if batch.sample_rate_hz != self.sample_rate_hz:
            raise ValueError(
                f"sample_rate_hz: expected the teacher's {self.sample_rate_hz}, found {batch.sample_rate_hz}"
            )
        features = self.model.features(batch.audio.to(self.device), batch.audio_lengths.to(self.device))
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        with torch.autocast(torch.device(self.device).type, half, enabled=half is not None):
            output = self.model(features, chunk_frames=0)
            logits = output.ctc_logits
            posteriors = Frames(logits.values.float().log_softmax(-1), logits.lengths, logits.frame_shift_s)
            nbest = self._nbest(output.encoded, posteriors)
        return TeacherTargets(self.vocabulary, posteriors, nbest)

    def _nbest(self, encoded: Frames, posteriors: Frames) -> tuple[NBest, ...] | None:
        if self.nbest == 0:
            return None
        if isinstance(self.model, SpeechBrainConformer):
            return self.model.nbest(encoded, self.nbest, self.beam)
        decode = self.model.tokenizer.decode
        return tuple(
            (Hypothesis(d.tokens, decode(d.tokens), d.score, d.times_s, d.confidences),)
            for d in greedy(posteriors, self.vocabulary)
        )


def _identity(model: Recogniser, nbest: int, beam: int, precision: str) -> str:
    digest = hashlib.sha256(model.vocabulary.identity.encode())
    digest.update(json.dumps(model.config.model_dump(mode="json"), sort_keys=True).encode())
    digest.update(f"nbest {nbest} beam {beam if nbest else 0} {precision}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
