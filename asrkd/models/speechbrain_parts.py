"""SpeechBrain's parts with what they lack: padding kept out of convolutions, a beam search that ends exactly.

Apart from ``transformer.py`` because importing SpeechBrain takes a second, which only its own models should pay.

Dimension legend: B utterances, T frames, V tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from speechbrain.decoders import CTCScorer, S2STransformerBeamSearcher, ScorerBuilder
from speechbrain.lobes.models.transformer.Conformer import ConvolutionModule
from torch import Tensor

from asrkd.data.text import END_ID, START_ID
from asrkd.types import Frames, Hypothesis, NBest

if TYPE_CHECKING:
    from asrkd.models.transformer import SpeechBrainConformer


class PaddedConvolution(ConvolutionModule):
    """SpeechBrain's Conformer convolution with padded frames zeroed *before* the depthwise convolution.

    SpeechBrain masks only the output, so that up to half a kernel of padding reaches the last valid frames and an
    utterance's posteriors depend on what it was batched with.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None, dynchunktrain_config: None = None) -> Tensor:
        y = self.bottleneck(self.layer_norm(x).transpose(1, 2))
        if mask is not None:
            y = y.masked_fill(mask.transpose(1, 2), 0.0)
        return self.after_conv(self.conv(y).transpose(1, 2))


class JointSearcher(S2STransformerBeamSearcher):
    """SpeechBrain's searcher with an exact end and without its padding hypotheses.

    Scores are totals (no length normalisation), so they only fall as a hypothesis grows: an utterance is finished as
    soon as its n-th best finished hypothesis beats everything still alive, instead of after ``max_decode_ratio``.
    What was alive at the end is used only where nothing finished (SpeechBrain lists it beside the finished ones,
    with its last token cut off).

    Args:
        n: Hypotheses wanted of each utterance.
        **kwargs: Of ``S2STransformerBeamSearcher``.
    """

    def __init__(self, n: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, length_normalization=False)
        self.n = n
        self._alive_scores: Tensor | None = None

    def set_n_out(self) -> int:
        return self.fc.out_features

    def search_step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().search_step(*args, **kwargs)
        self._alive_scores = result[0].sequence_scores
        return result

    def _check_full_beams(self, hyps: list[list[Any]]) -> bool:
        if self._alive_scores is None:
            return False
        best_alive = self._alive_scores.view(len(hyps), -1).amax(dim=1).tolist()
        for finished, alive in zip(hyps, best_alive, strict=True):
            if len(finished) == self.beam_size:
                continue
            scores = sorted((float(score) for _, _, score in finished), reverse=True)
            if len(scores) < self.n or scores[self.n - 1] < alive:
                return False
        return True

    def _fill_alived_hyps_with_eos_token(self, alived_hyps: Any, hyps: list[list[Any]], scores: Tensor) -> list[Any]:
        for row, finished in enumerate(hyps):
            if not finished:
                best = row * self.beam_size + int(alived_hyps.sequence_scores.view(len(hyps), -1)[row].argmax())
                finished.append((alived_hyps.alived_seq[best], None, alived_hyps.sequence_scores[best]))
        return hyps

    def _get_topk_prediction(
        self, hyps: list[list[Any]]
    ) -> tuple[list[list[tuple[list[int], float]]], None, None, None]:
        lists = []
        for finished in hyps:
            ranked = sorted(((float(score), sequence.tolist()) for sequence, _, score in finished), reverse=True)
            lists.append([([i for i in ids if i != self.eos_index], score) for score, ids in ranked[: self.n]])
        return lists, None, None, None


def joint_search(
    model: SpeechBrainConformer, encoded: Frames, n: int, beam: int, ctc_weight: float
) -> tuple[NBest, ...]:
    """See :meth:`asrkd.models.transformer.SpeechBrainConformer.nbest`."""
    lengths = encoded.lengths.clamp(min=1)
    # SpeechBrain makes its masks from the longest row, so nothing may lie beyond it.
    values = encoded.values[:, : int(lengths.max())].float()
    scorer = ScorerBuilder(
        full_scorers=[CTCScorer(model.ctc_head, model.vocabulary.blank_id, END_ID)], weights={"ctc": ctc_weight}
    )
    searcher = JointSearcher(
        n,
        modules=[model.transformer, model.decoder_head],
        bos_index=START_ID,
        eos_index=END_ID,
        min_decode_ratio=0.0,
        max_decode_ratio=1.0,
        beam_size=beam,
        using_eos_threshold=False,
        return_topk=True,
        topk=n,
        scorer=scorer,
    )
    lists, _, _, _ = searcher(values, lengths.to(torch.float32) / values.shape[1])
    empty = Hypothesis(tokens=(), text="")
    return tuple(
        tuple(Hypothesis(tuple(ids), model.tokenizer.decode(ids), score) for ids, score in found)
        if length > 0
        else (empty,)
        for found, length in zip(lists, encoded.lengths.tolist(), strict=True)
    )
