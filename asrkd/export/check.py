"""Whether an export is the model it was made of, and what its quantisation costs in words.

Legend: S samples, T frames, V tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lhotse import CutSet
from numpy.typing import NDArray

from asrkd.data.batching import load_batch, transcript
from asrkd.decoding.ctc import greedy
from asrkd.evaluation.significance import Interval, paired_bootstrap
from asrkd.evaluation.wer import score
from asrkd.export.graphs import unmarked
from asrkd.export.run import ExportedStudent
from asrkd.export.write import CARD, DESCRIPTION, MODEL, TOKENS, ExportError, card, read_description, replace_folder
from asrkd.models.conformer import StreamingConformer
from asrkd.types import Frames

TOLERANCE = 1e-4
MAX_LOSS = 0.02
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Cost:
    """What an export costs in words.

    Args:
        wer_before: Of the model, as a fraction.
        wer_after: Of the export.
        difference: After minus before, with its paired interval.
        words: Of the references.
    """

    wer_before: float
    wer_after: float
    difference: Interval
    words: int

    @property
    def relative(self) -> float:
        """Loss relative to the model's own WER (0 for a model without errors that stays so)."""
        lost = self.wer_after - self.wer_before
        return lost / self.wer_before if self.wer_before > 0 else (0.0 if lost <= 0 else float("inf"))

    def __str__(self) -> str:
        low, high = 100 * self.difference.low, 100 * self.difference.high
        return (
            f"WER {100 * self.wer_before:.2f} % before, {100 * self.wer_after:.2f} % after: {100 * self.relative:+.1f} % relative "
            f"(difference {100 * self.difference.estimate:+.2f} % [{low:+.2f}, {high:+.2f}], {self.words} words)"
        )


@torch.no_grad()
def reference_log_probs(
    model: StreamingConformer, audio: NDArray[np.float32], export: ExportedStudent
) -> NDArray[np.float32]:
    """``(T, V)`` of the model itself in the export's chunk and context.

    Args:
        model: In evaluation mode.
        audio: ``(S,)`` samples.
        export: Gives chunk and context, and whether it hears silence after the end.
    """
    shown = export.description
    samples = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))[None]
    frames = -(-int(model.fbank.num_frames(torch.tensor(samples.shape[1]))) // model.subsampling_factor)
    if shown["to"] == "sherpa":
        samples = torch.nn.functional.pad(samples, (0, export.chunk_features * model.fbank.shift))
    output = model(
        model.features(samples, torch.tensor([samples.shape[1]])),
        chunk_frames=shown["chunk_frames"],
        left_context_frames=shown["left_context_frames"],
    )
    log_probs = output.ctc_logits.values[0].log_softmax(-1)
    if shown["to"] == "sherpa":
        log_probs = unmarked(log_probs, model.vocabulary.blank_id)
    found: NDArray[np.float32] = log_probs.numpy()
    return found[:frames]


def check(folder: str | Path, model: StreamingConformer, audios: Sequence[NDArray[np.float32]]) -> float:
    """The largest difference of log-probabilities between an export and its model over whole utterances.

    Args:
        folder: Of the export.
        model: That it was made of.
        audios: ``(S,)`` samples each.

    Raises:
        ExportError: If it was made of other weights, or a float32 export differs by more than ``TOLERANCE``.
    """
    export = ExportedStudent(folder)
    _same_weights(folder, export, model)
    worst = 0.0
    for audio in audios:
        expected, found = reference_log_probs(model, audio, export), export.log_probs(audio)
        if expected.shape != found.shape:
            raise ExportError(f"{folder}: expected log-probabilities {expected.shape}, found {found.shape}")
        worst = max(worst, float(np.abs(expected - found).max(initial=0.0)))
    if export.description["precision"] == "float32" and worst > TOLERANCE:
        raise ExportError(
            f"{folder}: expected log-probabilities within {TOLERANCE:g} of the model's, found {worst:.3g}"
        )
    return worst


def cost(
    folder: str | Path,
    model: StreamingConformer,
    cuts: CutSet,
    *,
    normaliser: str = "none",
    reference: StreamingConformer | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Cost:
    """WER of an export beside its model's, greedy, both streaming, on the same audio.

    Args:
        folder: Of the export.
        model: That it was made of.
        cuts: With transcripts.
        normaliser: Of both texts.
        reference: The model that the loss counts from; ``None``: the one that the export was made of.
        progress: Called with utterances done, utterances in all, and a text.

    Raises:
        ExportError: If it was made of other weights, or there is no utterance.
    """
    export = ExportedStudent(folder)
    _same_weights(folder, export, model)
    first_model = model if reference is None else reference
    everything = list(cuts)
    references, before, after = {}, {}, {}
    for done, cut in enumerate(everything, start=1):
        audio = load_batch(CutSet.from_cuts([cut]), None, sample_rate_hz=model.sample_rate_hz).audio[0].numpy()
        references[cut.id] = transcript(cut) or ""
        before[cut.id] = text_of(model, reference_log_probs(first_model, audio, export))
        after[cut.id] = text_of(model, export.log_probs(audio))
        progress(done, len(everything), "")
    if not everything:
        raise ExportError("cuts: expected at least one utterance, found none")
    first, second = score(references, before, normaliser), score(references, after, normaliser)
    tested = paired_bootstrap(first.error_counts, second.error_counts, first.word_counts)
    words = max(1, first.reference_words)
    return Cost(first.errors / words, second.errors / words, tested.difference, first.reference_words)


def text_of(model: StreamingConformer, log_probs: NDArray[np.float32]) -> str:
    """Greedy text of ``(T, V)``."""
    frames = Frames(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]), model.frame_shift_s)
    return model.tokenizer.decode(greedy(frames, model.vocabulary)[0].tokens)


def quantise(folder: str | Path, out: str | Path) -> None:
    """An export with int8 weights for its matrix products (onnxruntime's dynamic quantisation).

    Args:
        folder: A float32 export.
        out: Of the new one.

    Raises:
        ExportError: If it is no export, or onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        raise ExportError(f"export: {error.name} is not installed: pip install 'asrkd[export]'") from None
    import tempfile

    import onnx

    source = Path(folder)
    description = read_description(source)
    with tempfile.TemporaryDirectory() as scratch:
        smaller = Path(scratch) / MODEL
        quantize_dynamic(
            source / MODEL,
            smaller,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        proto = onnx.load(smaller)
    before = onnx.load(source / MODEL)
    del proto.metadata_props[:]
    proto.metadata_props.extend(before.metadata_props)
    content = proto.SerializeToString()
    description |= {"precision": "int8 weights, dynamic", "model_sha256": hashlib.sha256(content).hexdigest()}
    files = {MODEL: content, TOKENS: (source / TOKENS).read_bytes(), CARD: card(description).encode()}
    files[DESCRIPTION] = (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode()
    replace_folder(Path(out), files)


def _same_weights(folder: str | Path, export: ExportedStudent, model: StreamingConformer) -> None:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    if digest.hexdigest() != export.description["state_sha256"]:
        raise ExportError(f"{folder}: expected an export of this package, found one of other weights")
