"""Distillation losses: tensors in, loss out. Imports torch alone, so that any ASR code can take them."""

from asrkd.losses.catalogue import LOSSES, LossSpec
from asrkd.losses.frame import FrameKL, frame_kl
from asrkd.losses.inputs import LossInputs
from asrkd.losses.linear import linear_frame_kl
from asrkd.losses.objective import Objective, ObjectiveOutput, validate_terms
from asrkd.losses.sequence import NBestCTC, nbest_ctc
from asrkd.losses.supervised import CTC, AttentionCE, attention_ce, ctc

__all__ = [
    "CTC",
    "LOSSES",
    "AttentionCE",
    "FrameKL",
    "LossInputs",
    "LossSpec",
    "NBestCTC",
    "Objective",
    "ObjectiveOutput",
    "attention_ce",
    "ctc",
    "frame_kl",
    "linear_frame_kl",
    "nbest_ctc",
    "validate_terms",
]
