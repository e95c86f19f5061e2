"""SpeechBrain's ``StreamingASR`` as teacher: what the model says when it hears chunk by chunk.

Dimension legend: B utterances, S samples, T frames, V tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asrkd.teachers.base import Precision, at_rate, autocast, stack, teacher_identity, with_times
from asrkd.teachers.speechbrain_folder import blank_id, sample_rate_hz, tokens_of
from asrkd.types import Frames, Hypothesis, SpeechBatch, TeacherTargets, Vocabulary


class SpeechBrainStreamingTeacher:
    """``StreamingASR``: its transcript and, where there is a CTC layer, posteriors.

    The transcript is that of SpeechBrain's own greedy search, which gives no score: it is 0. Posteriors come from ``proj_ctc``
    among its modules or settings on the encoder's output; tokens have times then. Utterances are heard one by one, in chunks.

    SpeechBrain feeds one sample less for each frame than the front end moves on (639 rather than 640 at 40 ms), so that
    posteriors lag by a frame after 25 s.

    Args:
        model: A ``StreamingASR``.
        device: Where it runs.
        nbest: 1, or 0 for posteriors alone.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        chunk_frames: Encoder frames in a chunk.
        left_context_chunks: Chunks before it that attention sees; ``None``: all.

    Raises:
        ValueError: If more than one hypothesis is asked for, or nothing is to be had.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str = "cpu",
        nbest: int = 1,
        precision: Precision = "fp32",
        chunk_frames: int = 24,
        left_context_chunks: int | None = 8,
    ) -> None:
        from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

        self._model = model.eval()
        self._ctc = getattr(model.mods, "proj_ctc", None) or getattr(model.hparams, "proj_ctc", None)
        if nbest not in (0, 1) or (nbest == 0 and self._ctc is None):
            wanted = "1" if self._ctc is None else "0 or 1"
            raise ValueError(f"nbest: expected {wanted} of a streaming teacher with a greedy search, found {nbest}")
        self._config = DynChunkTrainConfig(chunk_frames, left_context_chunks)
        self.device = device
        self.nbest = nbest
        self.precision = precision
        self.sample_rate_hz = sample_rate_hz(model)
        self.frame_shift_s = model.filter_props.stride / self.sample_rate_hz
        vocab_size = int(model.hparams.tokenizer.get_piece_size())
        heard_by = [model.mods, model.hparams.fea_streaming_extractor]
        if self._ctc is not None:
            self._ctc = self._ctc.to(device).eval()
            heard_by.append(self._ctc)
            vocab_size = self._encoded(torch.zeros(self.sample_rate_hz))[1].shape[1]
        self.vocabulary = Vocabulary(
            tokens_of(model.hparams.tokenizer, vocab_size), blank_id(model.hparams, vocab_size)
        )
        options = {"nbest": nbest, "precision": precision, "chunk": chunk_frames, "left_context": left_context_chunks}
        self.identity = teacher_identity("StreamingASR", nn.ModuleList(heard_by), self.vocabulary, options)

    @torch.no_grad()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """Transcripts, and log-probabilities ``(B, T, V)`` where there is a CTC layer."""
        audio, lengths = at_rate(batch, self.sample_rate_hz)
        with autocast(self.device, self.precision):
            heard = [self._encoded(audio[row, :samples]) for row, samples in enumerate(lengths.tolist())]
        lists = tuple((one,) for one, _ in heard)
        if self._ctc is None:
            return TeacherTargets(self.vocabulary, None, lists)
        values, frames = stack([log_probs for _, log_probs in heard])
        posteriors = Frames(values, frames, self.frame_shift_s)
        return TeacherTargets(
            self.vocabulary, posteriors, with_times(lists, posteriors, self.vocabulary) if self.nbest else None
        )

    @torch.no_grad()
    def _encoded(self, samples: Tensor) -> tuple[Hypothesis, Tensor]:
        """Transcript and log-probabilities ``(T, V)`` (empty without a CTC layer) of one utterance."""
        size = self._model.get_chunk_size_frames(self._config)
        context = self._model.make_streaming_context(self._config)
        tail = self._model.hparams.fea_streaming_extractor.get_recommended_final_chunk_count(size)
        chunks = [*torch.split(samples, size), *[torch.zeros(size)] * tail]
        tokens: list[int] = []
        rows = []
        for chunk in chunks:
            encoded = self._model.encode_chunk(context, chunk[None])
            # Not decode_chunk: SpeechBrain 1.1.2 makes text of pieces by a call that sentencepiece 0.2.3 refuses.
            found = self._model.hparams.decoding_function(encoded, context.decoder_context)
            tokens += map(int, found[0])
            if self._ctc is not None:
                rows.append(self._ctc(encoded)[0].float().log_softmax(-1))
        count = -(-len(samples) // (self._model.filter_props.stride - 1))  # what follows is the padding's
        log_probs = torch.cat(rows)[:count] if rows else torch.zeros(0, 0)
        text = str(self._model.hparams.tokenizer.decode_ids(tokens))
        return Hypothesis(tuple(tokens), " ".join(text.split())), log_probs
