"""SpeechBrain's parts with what they lack: padding kept out of convolutions, a beam search that ends exactly.

Apart from ``transformer.py`` because importing SpeechBrain takes a second, which only its own models should pay.

Dimension legend: B utterances, T frames, V tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from speechbrain.decoders import CTCScorer, S2STransformerBeamSearcher, ScorerBuilder
from speechbrain.lobes.models.transformer.Conformer import ConvolutionModule
from torch import Tensor

from asrkd.data.text import END_ID, START_ID
from asrkd.models.base import frame_mask
from asrkd.types import Frames, Hypothesis, NBest

if TYPE_CHECKING:
    from asrkd.models.transformer import SpeechBrainConformer


WIDE_VOCABULARY = 8
"""Tokens for each place of the beam above which the CTC scorer looks at twice the beam of them only."""


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
    """SpeechBrain's searcher with cached keys and values, an exact end, and without its padding hypotheses.

    SpeechBrain runs its decoder over the whole prefix at every step and projects the encoder's output anew for every
    beam; here each step computes one label, and the encoder's output is projected once.

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
        self._cross: list[tuple[Tensor, Tensor]] = []

    def set_n_out(self) -> int:
        return self.fc.out_features

    def reset_mem(self, batch_size: int, device: torch.device) -> None:
        self._cross = []

    def permute_mem(self, memory: Tensor, index: Tensor) -> Tensor:
        return memory.index_select(2, index)

    def forward_step(
        self, inp_tokens: Tensor, memory: Tensor | None, enc_states: Tensor, enc_lens: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        """One label: ``(B * beam, V)`` log-probabilities and the keys and values ``(layers, 2, B * beam, H, u, D/H)``."""
        layers = self.model.decoder.layers
        if memory is None:
            self._project_encoder(enc_states[:: self.beam_size], enc_lens[:: self.beam_size])
        position = 0 if memory is None else memory.shape[4]
        table = getattr(self.model, "positional_encoding_decoder", self.model.positional_encoding).pe
        x = self.model.custom_tgt_module(inp_tokens.unsqueeze(1)) + table[:, position : position + 1]
        cached = []
        for index, layer in enumerate(layers):
            attention = layer.self_attn.att
            inner = F.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
            q, k, v = (_heads(part, attention.num_heads) for part in inner.chunk(3, dim=-1))
            if memory is not None:
                k, v = torch.cat((memory[index, 0], k), dim=2), torch.cat((memory[index, 1], v), dim=2)
            cached.append(torch.stack((k, v)))
            x = x + attention.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + self._attend_encoder(layer, layer.norm2(x), *self._cross[index])
            x = x + layer.pos_ffn(layer.norm3(x))
        logits = self.fc(self.model.decoder.norm(x)).squeeze(1)
        return self.softmax(logits / self.temperature), torch.stack(cached), None

    def _project_encoder(self, encoded: Tensor, lengths: Tensor) -> None:
        """Keys and values of the encoder's output, once for each utterance and layer."""
        self._valid = frame_mask(lengths, encoded.shape[1])[:, None, None, :]
        for layer in self.model.decoder.layers:
            attention = layer.multihead_attn.att
            width = encoded.shape[-1]
            inner = F.linear(encoded, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
            k, v = (_heads(part, attention.num_heads) for part in inner.chunk(2, dim=-1))
            self._cross.append((k, v))

    def _attend_encoder(self, layer: Any, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All beams of an utterance are the queries of one attention: ``(B * beam, 1, D)`` in and out."""
        attention, width = layer.multihead_attn.att, x.shape[-1]
        q = F.linear(x, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
        q = _heads(q.view(len(k), self.beam_size, width), attention.num_heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=self._valid)
        return attention.out_proj(attended.transpose(1, 2).reshape(x.shape))

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


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """``(N, L, D)`` to ``(N, H, L, D / H)``."""
    return x.view(x.shape[0], x.shape[1], num_heads, -1).transpose(1, 2)


def joint_search(
    model: SpeechBrainConformer, encoded: Frames, n: int, beam: int, ctc_weight: float
) -> tuple[NBest, ...]:
    """See :meth:`asrkd.models.transformer.SpeechBrainConformer.nbest`."""
    lengths = encoded.lengths.clamp(min=1)
    # SpeechBrain makes its masks from the longest row, so nothing may lie beyond it.
    values = encoded.values[:, : int(lengths.max())].float()
    ctc = CTCScorer(model.ctc_head, model.vocabulary.blank_id, END_ID)
    if len(model.vocabulary) > WIDE_VOCABULARY * beam:
        # With many tokens the CTC scores only those that the attention decoder holds likely (Watanabe et al. 2017, 2.4).
        scorer = ScorerBuilder(partial_scorers=[ctc], weights={"ctc": ctc_weight}, scorer_beam_scale=2)
    else:
        scorer = ScorerBuilder(full_scorers=[ctc], weights={"ctc": ctc_weight})
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
