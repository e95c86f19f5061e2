"""SpeechBrain's pretrained recognisers as teachers: ``EncoderASR``, ``EncoderDecoderASR``, ``WhisperASR``, ``StreamingASR``.

A source is a local folder or a hub id, with SpeechBrain's own ``hyperparams.yaml`` and checkpoints. That file builds Python
objects: reading one runs its author's code, so the caller has to say that the source is trusted.

Dimension legend: B utterances, S samples, T frames, V tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asrkd.teachers.base import (
    TEXT_ONLY,
    CtcTeacher,
    Precision,
    at_rate,
    autocast,
    check_search,
    measured_frame_shift_s,
    stack,
    teacher_identity,
    with_times,
)
from asrkd.types import Frames, Hypothesis, NBest, SpeechBatch, TeacherTargets, Vocabulary

if TYPE_CHECKING:
    from asrkd.teachers.speechbrain_streaming import SpeechBrainStreamingTeacher


def speechbrain_teacher(
    source: str,
    *,
    trust_code: bool,
    savedir: str | Path | None = None,
    device: str = "cpu",
    nbest: int = 0,
    beam: int = 8,
    precision: Precision = "fp32",
    chunk_frames: int = 24,
    left_context_chunks: int | None = 8,
) -> SpeechBrainCtcTeacher | SpeechBrainDecoderTeacher | SpeechBrainStreamingTeacher:
    """Load a pretrained recogniser and make a teacher of it, whichever of the four interfaces it is for.

    Args:
        source: Local folder or hub id.
        trust_code: Must be true: the source's ``hyperparams.yaml`` can run any code.
        savedir: Where SpeechBrain puts what it fetches; its own cache where ``None``.
        device: Where it runs.
        nbest: Hypotheses of each utterance; 0: none.
        beam: Beam width of a CTC search; a decoder keeps the width that its file says, which must be at least ``nbest``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        chunk_frames: Of a ``StreamingASR``, see :class:`SpeechBrainStreamingTeacher`.
        left_context_chunks: Likewise.

    Raises:
        ValueError: If the source is not trusted, is for no known interface, or its beam is too narrow.
        OSError: If it is not there.
    """
    if not trust_code:
        raise ValueError(
            f"{source}: a SpeechBrain folder's hyperparams.yaml can run any code; say trust_code: true if you trust it"
        )
    if Path(source).exists() and not (Path(source) / "hyperparams.yaml").is_file():
        raise ValueError(f"{source}: expected hyperparams.yaml in a SpeechBrain folder; found none")
    from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR, StreamingASR, WhisperASR
    from speechbrain.inference.interfaces import pretrained_from_hparams

    from asrkd.teachers.speechbrain_streaming import SpeechBrainStreamingTeacher

    problems = []
    for interface in (StreamingASR, EncoderASR, EncoderDecoderASR, WhisperASR):  # the one with most settings first
        try:
            model = pretrained_from_hparams(
                interface, source, savedir=savedir, run_opts={"device": device}, freeze_params=True
            )
        except ValueError as error:  # what Pretrained raises where modules or settings are missing
            problems.append(f"{interface.__name__}: {error}")
            continue
        if interface is EncoderASR:
            return SpeechBrainCtcTeacher(model, device=device, nbest=nbest, beam=beam, precision=precision)
        if interface is StreamingASR:
            return SpeechBrainStreamingTeacher(
                model,
                device=device,
                nbest=nbest,
                precision=precision,
                chunk_frames=chunk_frames,
                left_context_chunks=left_context_chunks,
            )
        return SpeechBrainDecoderTeacher(model, device=device, nbest=nbest, precision=precision)
    raise ValueError(f"{source}: fits none of SpeechBrain's interfaces: {'; '.join(problems)}")


class SpeechBrainCtcTeacher(CtcTeacher):
    """``EncoderASR``: its ``encode_batch`` gives the log-probabilities; utterances are heard one by one.

    Args:
        model: An ``EncoderASR``.
        device: See :class:`CtcTeacher`, as all further arguments.
    """

    def __init__(
        self, model: Any, *, device: str = "cpu", nbest: int = 0, beam: int = 8, precision: Precision = "fp32"
    ) -> None:
        self._model = model.eval()
        rate = sample_rate_hz(model)
        self._device = device
        shift_s = measured_frame_shift_s(lambda audio: self._encode(audio.to(device)).shape[1], rate)
        vocab_size = self._encode(torch.zeros(1, rate, device=device)).shape[2]
        vocabulary = Vocabulary(tokens_of(model.tokenizer, vocab_size), blank_id(model.hparams, vocab_size))
        super().__init__(
            vocabulary, rate, shift_s, model.mods, device=device, nbest=nbest, beam=beam, precision=precision
        )

    @torch.no_grad()
    def _encode(self, audio: Tensor) -> Tensor:
        return self._model.encode_batch(audio, torch.ones(1, device=audio.device))

    def _hear(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        rows = [self._encode(audio[row : row + 1, :n])[0] for row, n in enumerate(lengths.tolist())]
        return *stack(rows), {}

    def _text(self, tokens: Sequence[int]) -> str:
        return _decoded(self._model.tokenizer, tokens)


class SpeechBrainDecoderTeacher:
    """``EncoderDecoderASR`` or ``WhisperASR``: N-best lists of its own search, and posteriors where it has a CTC layer.

    Posteriors come from ``ctc_lin`` among its modules or settings, where there is one, on its encoder's output. A hypothesis'
    score is the search's own, as a total where the search gives means. Utterances are heard one by one.

    Args:
        model: An ``EncoderDecoderASR`` or ``WhisperASR``.
        device: Where it runs.
        nbest: Hypotheses of each utterance; 0: none.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: If its search is too narrow for ``nbest``, or neither list nor posteriors are to be had.
    """

    def __init__(self, model: Any, *, device: str = "cpu", nbest: int = 1, precision: Precision = "fp32") -> None:
        self._model = model.eval()
        self._decoder = model.mods.decoder
        width = getattr(self._decoder, "beam_size", 1)
        check_search(nbest, width)
        if hasattr(self._decoder, "topk"):
            self._decoder.topk, self._decoder.return_topk = max(1, nbest), True
        self.device = device
        self.nbest = nbest
        self.precision = precision
        self.sample_rate_hz = sample_rate_hz(model)
        self._ctc = getattr(model.mods, "ctc_lin", None) or getattr(model.hparams, "ctc_lin", None)
        if self._ctc is None and nbest == 0:
            raise ValueError("nbest: expected at least 1 of a teacher without a CTC layer, found 0")
        self.frame_shift_s = 0.0
        self.vocabulary = TEXT_ONLY
        if self._ctc is not None:
            self._ctc = self._ctc.to(device).eval()
            self.frame_shift_s = measured_frame_shift_s(
                lambda audio: self._encode(audio.to(device)).shape[1], self.sample_rate_hz
            )
            vocab_size = self._posteriors(self._encode(torch.zeros(1, self.sample_rate_hz, device=device))).shape[2]
            self.vocabulary = Vocabulary(tokens_of(model.tokenizer, vocab_size), blank_id(model.hparams, vocab_size))
        options = {"nbest": nbest, "beam": width, "precision": precision}
        heard_by = nn.ModuleList([model.mods, self._ctc] if self._ctc is not None else [model.mods])
        self.identity = teacher_identity(type(model).__name__, heard_by, self.vocabulary, options)

    @torch.no_grad()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """N-best lists, and log-probabilities ``(B, T, V)`` where there is a CTC layer."""
        audio, lengths = at_rate(batch, self.sample_rate_hz)
        lists: list[NBest] = []
        rows: list[Tensor] = []
        with autocast(self.device, self.precision):
            for row, samples in enumerate(lengths.tolist()):
                encoded = self._encode(audio[row : row + 1, :samples].to(self.device))
                if self.nbest:
                    lists.append(self._search(encoded))
                if self._ctc is not None:
                    rows.append(self._posteriors(encoded)[0])
        posteriors = None
        if rows:
            values, frames = stack(rows)
            posteriors = Frames(values, frames, self.frame_shift_s)
            lists = list(with_times(lists, posteriors, self.vocabulary))
        return TeacherTargets(self.vocabulary, posteriors, tuple(lists) if self.nbest else None)

    @torch.no_grad()
    def _encode(self, audio: Tensor) -> Tensor:
        return self._model.encode_batch(audio, torch.ones(1, device=audio.device))

    def _posteriors(self, encoded: Tensor) -> Tensor:
        assert self._ctc is not None
        return self._ctc(encoded).float().log_softmax(-1)

    def _search(self, encoded: Tensor) -> NBest:
        hyps, lengths, scores, _ = self._decoder(encoded, torch.ones(1, device=encoded.device))
        if isinstance(hyps, Tensor):  # (1, n, U) with relative lengths
            counts = torch.round(lengths[0] * hyps.shape[2]).long().tolist()
            found = [(hyps[0, place, :count].tolist(), float(scores[0, place])) for place, count in enumerate(counts)]
        else:
            found = [(list(map(int, hyps[0])), float(torch.as_tensor(scores).flatten()[0]))]
        mean = bool(getattr(self._decoder, "length_normalization", False))
        results = []
        for tokens, score in found:
            total = score * (len(tokens) + 1) if mean else score  # the end of the sentence counts
            kept = tuple(tokens) if self._ctc is not None else ()
            results.append(Hypothesis(kept, self._text(tokens), total))
        return tuple(results)

    def _text(self, tokens: Sequence[int]) -> str:
        return _decoded(self._model.tokenizer, tokens)


def sample_rate_hz(model: Any) -> int:
    """Of the audio that a loaded SpeechBrain interface takes."""
    return int(getattr(model.hparams, "sample_rate", model.audio_normalizer.sample_rate))


def blank_id(hparams: Any, vocab_size: int) -> int:
    """Id of the CTC blank as a SpeechBrain folder's settings say it."""
    search = getattr(hparams, "decoding_function", None)
    blank = getattr(hparams, "blank_index", 0)
    if isinstance(search, functools.partial):
        blank = search.keywords.get("blank_id", blank)
    return int(blank) % vocab_size  # SpeechBrain counts -1 from the end


def tokens_of(tokenizer: Any, vocab_size: int) -> tuple[str, ...]:
    """Token strings by id; ids that the tokenizer does not know get a name of their own."""
    if hasattr(tokenizer, "id_to_piece"):
        known = {i: tokenizer.id_to_piece(i) for i in range(min(vocab_size, tokenizer.get_piece_size()))}
    else:
        known = {int(i): str(label) for i, label in tokenizer.ind2lab.items()}
    names: list[str] = []
    for i in range(vocab_size):
        name = known.get(i, f"<{i}>")
        names.append(f"<{i}>" if name in names else name)
    return tuple(names)


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    if hasattr(tokenizer, "decode_ids"):
        return str(tokenizer.decode_ids(list(tokens)))
    if hasattr(tokenizer, "decode_ndim"):
        return " ".join("".join(tokenizer.decode_ndim(list(tokens))).split())
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()
