"""torchaudio's Emformer transducers as teachers: N-best lists of the library's own beam search.

A transducer's posteriors stand on a lattice of frames and labels, not on frames, so that such a teacher teaches sequences.

Dimension legend: S samples, T frames, F mel bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.pipelines import RNNTBundle

from asrkd.teachers.base import Precision, at_rate, autocast, check_search, teacher_identity
from asrkd.types import Hypothesis, NBest, SpeechBatch, TeacherTargets, Vocabulary


class RnntTeacher:
    """An ``RNNTBundle``; weights, statistics and tokens are fetched by torchaudio into torch.hub's cache.

    Utterances are heard one by one in full, lists are in the library's order (score by length), scores are totals over all
    paths that the search kept. Tokens have no times.

    Args:
        bundle: Of ``torchaudio.pipelines``.
        device: Where it runs.
        nbest: Hypotheses of each utterance, at least 1.
        beam: Beam width, at least ``nbest``.
        precision: ``fp32``, or ``bf16``/``fp16`` for matrix products.

    Raises:
        ValueError: If ``nbest`` is not within 1 to ``beam``.
        OSError: If something of the bundle is neither cached nor to be had.
    """

    def __init__(
        self, bundle: RNNTBundle, *, device: str = "cpu", nbest: int = 1, beam: int = 8, precision: Precision = "fp32"
    ) -> None:
        if nbest < 1:
            raise ValueError(f"nbest: expected at least 1 of a teacher that gives hypotheses alone, found {nbest}")
        check_search(nbest, beam)
        self._search = bundle.get_decoder().to(device).eval()
        self._features = bundle.get_feature_extractor().eval()
        self._processor = bundle.get_token_processor()
        pieces = self._processor.sp_model
        known = pieces.id_to_piece(list(range(pieces.get_piece_size())))
        blank = bundle._blank  # the last of the tokens, as its search demands
        names = (*known[:blank], *(f"<{i}>" for i in range(len(known), blank)), "<blank>")
        self.device = device
        self.nbest = nbest
        self.beam = beam
        self.precision = precision
        self.vocabulary = Vocabulary(names, blank)
        self.sample_rate_hz = int(bundle.sample_rate)
        subsampling = self._search.model.transcriber.time_reduction.stride
        self.frame_shift_s = bundle.hop_length * subsampling / bundle.sample_rate
        self._min_samples = max(bundle.n_fft, bundle.hop_length * subsampling)  # one frame of the encoder's
        options = {"nbest": nbest, "beam": beam, "precision": precision}
        heard_by = nn.ModuleList([self._search, self._features])
        self.identity = teacher_identity("torchaudio RNN-T", heard_by, self.vocabulary, options)

    @torch.no_grad()
    def __call__(self, batch: SpeechBatch) -> TeacherTargets:
        """N-best lists."""
        audio, lengths = at_rate(batch, self.sample_rate_hz)
        lists = tuple(self._hypotheses(audio[row, :samples].cpu()) for row, samples in enumerate(lengths.tolist()))
        return TeacherTargets(self.vocabulary, None, lists)

    def _hypotheses(self, samples: Tensor) -> NBest:
        features, length = self._features(F.pad(samples, (0, max(0, self._min_samples - len(samples)))))
        with autocast(self.device, self.precision):
            found = self._search(features.to(self.device), length.to(self.device), self.beam)
        marks = self._processor.post_process_remove_list
        return tuple(
            Hypothesis(
                tuple(token for token in tokens[1:] if token not in marks),  # the search starts with a blank
                " ".join(self._processor(tokens).split()),
                float(score),
            )
            for tokens, _, _, score in found[: self.nbest]
        )
