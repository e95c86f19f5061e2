"""Distillation losses: tensors in, loss out. Imports torch alone, so that any ASR code can take them.

``LOSSES`` lists them all; ``docs/losses.md`` explains when to use which.
"""

from asrkd.losses.alignment import alignment_kl, alignment_posteriors, guided_ctc
from asrkd.losses.attention import DecoderKL, decoder_kl, nbest_attention
from asrkd.losses.catalogue import LOSSES, LossSpec
from asrkd.losses.consistency import consistency, dual_mode
from asrkd.losses.delay import delay_penalised_ctc, estimate_delay_ms
from asrkd.losses.diagnostics import Diagnostics, diagnose
from asrkd.losses.frame import FrameKL, frame_kl
from asrkd.losses.hidden import (
    attention_map_kl,
    hidden_cka,
    hidden_l1_cosine,
    hidden_mse,
    relation_kl,
    similarity_preserving,
)
from asrkd.losses.inputs import LossInputs
from asrkd.losses.linear import linear_frame_kl
from asrkd.losses.mvq import MultiCodebookQuantiser, mvq, train_quantiser
from asrkd.losses.objective import Objective, ObjectiveOutput, validate_terms
from asrkd.losses.reduction import relative_to_absolute
from asrkd.losses.sequence import NBestCTC, hypothesis_ctc, listwise_kl, mwer, nbest_ctc
from asrkd.losses.supervised import CTC, AttentionCE, attention_ce, ctc
from asrkd.losses.transducer import best_path, collapsed, collapsed_kl, one_best_kl, rnnt

__all__ = [
    "CTC",
    "LOSSES",
    "AttentionCE",
    "DecoderKL",
    "Diagnostics",
    "FrameKL",
    "LossInputs",
    "LossSpec",
    "MultiCodebookQuantiser",
    "NBestCTC",
    "Objective",
    "ObjectiveOutput",
    "alignment_kl",
    "alignment_posteriors",
    "attention_ce",
    "attention_map_kl",
    "best_path",
    "collapsed",
    "collapsed_kl",
    "consistency",
    "ctc",
    "decoder_kl",
    "delay_penalised_ctc",
    "diagnose",
    "dual_mode",
    "estimate_delay_ms",
    "frame_kl",
    "guided_ctc",
    "hidden_cka",
    "hidden_l1_cosine",
    "hidden_mse",
    "hypothesis_ctc",
    "linear_frame_kl",
    "listwise_kl",
    "mvq",
    "mwer",
    "nbest_attention",
    "nbest_ctc",
    "one_best_kl",
    "relation_kl",
    "relative_to_absolute",
    "rnnt",
    "similarity_preserving",
    "train_quantiser",
    "validate_terms",
]
