"""A model package as teacher: a model trained here, or a student of an earlier run (born-again chains).

Dimension legend: B utterances, T frames, U labels, V tokens.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from asrkd.models.base import Recogniser
from asrkd.models.transformer import SpeechBrainConformer
from asrkd.teachers.base import Precision, at_rate, autocast, check_search, ctc_nbest, teacher_identity, with_times
from asrkd.types import Frames, Hypothesis, ModelOutput, NBest, SpeechBatch, TeacherTargets


class PackageTeacher:
    """Frame posteriors of the CTC head, if there is one, and, where asked for, N-best lists, hidden states and the lattice.

    Args:
        model: A loaded package; it is put into evaluation mode and hears whole utterances.
        device: Where it runs.
        nbest: Hypotheses of each utterance, by the model's joint CTC/attention beam search; a model without a decoder
            gives those of a CTC prefix beam search, a transducer its best path alone. 0: none.
        beam: Beam width, at least ``nbest``.
        precision: ``fp32``, or ``bf16``/``fp16`` for the matrix products of encoder and search.
        hidden: Names of hidden layers to give, ``"layer.0"`` the first block's output.
        decoder: Also give the attention decoder's posteriors, forced on the best hypothesis, or with ``nbest`` 0 on the
            reference.
        lattice: Also give a transducer's posteriors at every node, forced on the batch's labels.

    Raises:
        ValueError: If ``beam`` is smaller than ``nbest``, or something is asked of a model that has not got it.
    """

    def __init__(
        self,
        model: Recogniser,
        *,
        device: str = "cpu",
        nbest: int = 0,
        beam: int = 8,
        precision: Precision = "fp32",
        hidden: tuple[str, ...] = (),
        decoder: bool = False,
        lattice: bool = False,
    ) -> None:
        check_search(nbest, beam)
        if lattice and not model.has_transducer:
            raise ValueError(f"teacher: expected a transducer, since losses need its lattice; found a {model.kind}")
        if nbest > 1 and model.has_transducer:
            raise ValueError(f"nbest: expected 0 or 1 of a {model.kind}, whose search is greedy; found {nbest}")
        if decoder and not model.has_decoder:
            raise ValueError(f"teacher: expected a model with an attention decoder; found a {model.kind} without")
        self.model = model.to(device).eval()
        self.device = device
        self.nbest = nbest
        self.beam = beam
        self.precision = precision
        self.hidden = hidden
        self.decoder = decoder
        self.lattice = lattice
        self.vocabulary = model.vocabulary
        self.sample_rate_hz = model.sample_rate_hz
        self.frame_shift_s = model.frame_shift_s
        options = {
            "config": json.dumps(model.config.model_dump(mode="json"), sort_keys=True),
            "nbest": nbest,
            "beam": beam if nbest else 0,
            "precision": precision,
            "hidden": hidden,
            **({"decoder": True} if decoder else {}),
            **({"lattice": True} if lattice else {}),
        }
        self.identity = teacher_identity("package", model, model.vocabulary, options)

    # Not inference_mode: SpeechBrain keeps position tables for all its models, and inference tensors would spoil training.
    @torch.no_grad()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """What was asked for, in full context."""
        audio, lengths = at_rate(batch, self.sample_rate_hz)
        features = self.model.features(audio.to(self.device), lengths.to(self.device))
        with autocast(self.device, self.precision):
            output = self.model(features, chunk_frames=0, want_hidden=self.hidden)
            logits, posteriors = output.ctc, None
            if logits is not None:
                posteriors = Frames(logits.values.float().log_softmax(-1), logits.lengths, logits.frame_shift_s)
            nbest = self._nbest(output, posteriors) if self.nbest else None
            decoder, forced = self._decoder(output.encoded, batch, nbest) if self.decoder else (None, None)
            lattice = self._lattice(output.encoded, batch) if self.lattice else None
        return TeacherTargets(self.vocabulary, posteriors, nbest, output.hidden, decoder, forced, lattice)

    def _lattice(self, encoded: Frames, batch: SpeechBatch) -> Frames:
        if batch.tokens is None or batch.token_lengths is None:
            raise ValueError("batch: expected labels to force the transducer's lattice on; found none")
        tokens, lengths = batch.tokens.to(self.device), batch.token_lengths.to(self.device)
        logits = self.model.transducer_logits(encoded, tokens, lengths)
        return Frames(logits.float().log_softmax(-1), encoded.lengths, encoded.frame_shift_s)

    def _decoder(
        self, encoded: Frames, batch: SpeechBatch, nbest: tuple[NBest, ...] | None
    ) -> tuple[Frames, tuple[Tensor, Tensor]]:
        """Posteriors of the decoder ``(B, U+1, V)``, and the labels it was forced on."""
        if nbest is None:
            rows = [torch.tensor(self.model.tokenizer.encode(text), dtype=torch.long) for text in batch.texts]
        else:
            rows = [torch.tensor(one[0].tokens if one else (), dtype=torch.long) for one in nbest]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        logits = self.model.decoder_logits(encoded, tokens, lengths)
        return Frames(logits.float().log_softmax(-1), lengths + 1, self.frame_shift_s), (tokens, lengths)

    def _nbest(self, output: ModelOutput, posteriors: Frames | None) -> tuple[NBest, ...]:
        if posteriors is None or self.model.has_transducer:
            text_of = self.model.tokenizer.decode
            return tuple(
                (Hypothesis(one.tokens, text_of(one.tokens), one.score, one.times_s, one.confidences),)
                for one in self.model.greedy(output)
            )
        if isinstance(self.model, SpeechBrainConformer) and self.model.has_decoder:
            return with_times(self.model.nbest(output.encoded, self.nbest, self.beam), posteriors, self.vocabulary)
        return ctc_nbest(posteriors, self.vocabulary, self.model.tokenizer.decode, self.nbest, self.beam)
