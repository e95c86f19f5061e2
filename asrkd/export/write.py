"""Write a student as ONNX folders: for onnxruntime with explicit state, and for sherpa-onnx as it is.

``export.json`` says what the graph cannot: the features it takes, chunk and context, names, tokens, and the weights it was
made of.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from asrkd.data.files import write_atomically
from asrkd.data.text import UNKNOWN_ID
from asrkd.export.graphs import StepGraph, WenetGraph
from asrkd.models.base import Recogniser
from asrkd.models.conformer import StreamingConformer

SCHEMA_VERSION = 1
MODEL, TOKENS, DESCRIPTION, CARD = "model.onnx", "tokens.txt", "export.json", "README.md"
Target = Literal["onnx", "sherpa"]
OPSET = 18
BLANK = "<blk>"


class ExportError(ValueError):
    """A model that cannot be exported so, or an export that does not hold."""


def export(
    model: Recogniser,
    folder: str | Path,
    to: Target,
    *,
    chunk_frames: int | None = None,
    left_context_frames: int | None = None,
) -> dict[str, Any]:
    """Write ``model.onnx``, ``tokens.txt``, ``export.json`` and a README, replacing an earlier export when complete.

    Args:
        model: A streaming student.
        folder: Of the export; it must not be there, be empty, or hold an earlier export.
        to: ``onnx``: B streams, explicit state; ``sherpa``: one stream in sherpa-onnx's contract ``wenet_ctc``.
        chunk_frames: Output frames of a chunk; ``None``: the model's default.
        left_context_frames: Output frames that a chunk looks back; ``None``: the model's default.

    Returns:
        The description, as in ``export.json``.

    Raises:
        ExportError: If the model cannot be exported so, or the folder holds something else.
        OSError: If it cannot be written.
    """
    student = _checked(model, to, chunk_frames)
    chunk = student.config.chunk_frames if chunk_frames is None else chunk_frames
    left = student.config.left_context_frames if left_context_frames is None else left_context_frames
    target = Path(folder)
    if target.exists() and not (target.is_dir() and ((target / DESCRIPTION).is_file() or not any(target.iterdir()))):
        raise ExportError(f"{target}: is there and is no export; not replaced")
    description = _description(student, to, chunk, left)
    if to == "onnx":
        graph: StepGraph | WenetGraph = StepGraph(student, chunk, left).eval()
        content = _traced_step(graph)  # type: ignore[arg-type]
    else:
        graph = WenetGraph(student, chunk, math.ceil(left / chunk)).eval()
        graph.left_context_frames = left
        if graph.carried_elements() > graph.room_elements():
            raise ExportError(
                f"left_context_frames: expected a cache of at least {graph.carried_elements()} numbers for what the subsampling "
                f"remembers, found {graph.room_elements()}; take more chunks of context"
            )
        content = _traced_wenet(graph, description["metadata"])
    description["model_sha256"] = hashlib.sha256(content).hexdigest()
    files = {MODEL: content, TOKENS: tokens_file(student).encode()}
    files[DESCRIPTION] = (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode()
    files[CARD] = card(description).encode()
    replace_folder(target, files)
    return description


def replace_folder(target: Path, files: dict[str, bytes]) -> None:
    """Put a folder of these files in place of ``target`` once all of them are written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    partial.mkdir()
    try:
        for name, content in files.items():
            write_atomically(partial / name, content)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def read_description(folder: str | Path) -> dict[str, Any]:
    """``export.json`` of a folder whose graph is the one that it describes.

    Raises:
        ExportError: If it is no export, of another schema, or the graph was changed.
    """
    root = Path(folder)
    try:
        description: dict[str, Any] = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
        content = (root / MODEL).read_bytes()
    except (OSError, ValueError) as error:
        raise ExportError(f"{root}: expected an export with {DESCRIPTION} and {MODEL}; {error}") from None
    if description.get("schema_version") != SCHEMA_VERSION:
        found = description.get("schema_version")
        raise ExportError(f"{root / DESCRIPTION}: expected schema_version {SCHEMA_VERSION}, found {found!r}")
    if (sha := hashlib.sha256(content).hexdigest()) != description.get("model_sha256"):
        raise ExportError(f"{root / MODEL}: wrong SHA-256: found {sha[:16]}…")
    return description


def tokens_file(model: Recogniser) -> str:
    """One ``symbol id`` a line, the blank under the name that sherpa-onnx looks for.

    Raises:
        ExportError: If a token holds white space or is the blank's name itself.
    """
    vocabulary = model.vocabulary
    lines = []
    for number, token in enumerate(vocabulary.tokens):
        # Engines print what stands here: the unknown token as asrkd does.
        symbol = BLANK if number == vocabulary.blank_id else "⁇" if number == UNKNOWN_ID else token
        if number != vocabulary.blank_id and (token == BLANK or not token or any(c.isspace() for c in token)):
            raise ExportError(f"vocabulary: expected tokens without white space, none called {BLANK}; found {token!r}")
        lines.append(f"{symbol} {number}\n")
    return "".join(lines)


def _checked(model: Recogniser, to: Target, chunk_frames: int | None) -> StreamingConformer:
    if to not in ("onnx", "sherpa"):
        raise ExportError(f"to: expected onnx or sherpa, found {to!r}")
    if not isinstance(model, StreamingConformer):
        raise ExportError(f"model: expected a streaming_conformer, found a {model.kind}")
    chunk = model.config.chunk_frames if chunk_frames is None else chunk_frames
    if chunk < 1:
        raise ExportError(f"chunk_frames: expected at least 1, found {chunk}")
    if to == "sherpa":
        if model.subsampling_factor != 4:
            raise ExportError(
                f"subsampling_factor: expected 4 for sherpa-onnx (its times assume it), found {model.subsampling_factor}"
            )
        if (model.sample_rate_hz, model.config.num_mel_bins) != (16000, 80):
            found = f"{model.sample_rate_hz} Hz and {model.config.num_mel_bins} bins"
            raise ExportError(f"features: expected 16000 Hz and 80 mel bins for sherpa-onnx, found {found}")
    return model.cpu().eval()


def _description(model: StreamingConformer, to: Target, chunk: int, left: int) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    config = model.config
    description: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "to": to,
        "state_sha256": digest.hexdigest(),
        "precision": "float32",
        "sample_rate_hz": model.sample_rate_hz,
        "num_mel_bins": config.num_mel_bins,
        "features": "Kaldi log-mel, samples times 32768, snip_edges false, dither 0, high_freq -400; normalised in the graph",
        "subsampling_factor": model.subsampling_factor,
        "frame_shift_ms": round(1000 * model.frame_shift_s),
        "chunk_frames": chunk,
        "left_context_frames": left,
        "tokens": list(model.vocabulary.tokens),
        "blank_id": model.vocabulary.blank_id,
    }
    if to == "sherpa":
        description["num_left_chunks"] = math.ceil(left / chunk)
        description["metadata"] = {
            "model_type": "wenet_ctc",
            "head": config.num_heads,
            "num_blocks": config.num_layers + 1,
            "output_size": config.d_model,
            "cnn_module_kernel": config.conv_kernel_frames,
            "right_context": model.subsampling_factor - 1,
            "subsampling_factor": model.subsampling_factor,
            "vocab_size": len(model.vocabulary),
        }
    return description


def _traced_step(graph: StepGraph) -> bytes:
    model = graph.model
    state = graph.initial_state(2)
    frames = graph.chunk_frames * model.subsampling_factor
    features, lengths = torch.zeros(2, frames, model.config.num_mel_bins), torch.full((2,), frames)
    streams = torch.export.Dim("streams", min=1, max=4096)
    places = [1, 1, 1, 0, *([0] * (len(state) - 4))]  # where each state tensor has its streams
    shapes = ({0: streams}, {0: streams}, tuple({place: streams} for place in places))
    names = graph.state_names()
    return _traced(
        graph,
        (features, lengths, *state),
        ["features", "lengths", *names],
        ["log_probs", *(f"next_{name}" for name in names)],
        {"chunk_frames": graph.chunk_frames, "left_context_frames": graph.left_context_frames},
        shapes,
    )


def _traced_wenet(graph: WenetGraph, metadata: dict[str, Any]) -> bytes:
    model = graph.model
    attention, conv = graph.initial_caches()
    features = torch.zeros(1, graph.chunk_frames * model.subsampling_factor, model.config.num_mel_bins)
    mask = torch.ones(1, 1, graph.cache_frames + graph.chunk_frames, dtype=torch.bool)
    offset, size = torch.zeros(1, dtype=torch.int64), torch.full((1,), graph.cache_frames)
    inputs = ["x", "offset", "required_cache_size", "attn_cache", "conv_cache", "attn_mask"]
    outputs = ["log_probs", "next_attn_cache", "next_conv_cache"]
    return _traced(graph, (features, offset, size, attention, conv, mask), inputs, outputs, metadata, None)


def _traced(
    graph: nn.Module,
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    metadata: dict[str, Any],
    shapes: Any,
) -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"export: {error.name} is not installed: pip install 'asrkd[export]'") from None
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    found = [value.name for value in proto.graph.input]
    if found != inputs:
        raise ExportError(f"graph: expected the inputs {', '.join(inputs)}; found {', '.join(found)}")
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=str(value))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter speaks of packages that it could use; users of a student need not hear it."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def sherpa_arguments(description: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``sherpa_onnx.OnlineRecognizer.from_wenet_ctc`` beside ``model`` and ``tokens``."""
    return {"chunk_size": description["chunk_frames"], "num_left_chunks": description["num_left_chunks"]}


def card(description: dict[str, Any]) -> str:
    """README of an export: what it is, and for sherpa-onnx the line that loads it."""
    lines = [f"# A streaming CTC model for {'sherpa-onnx' if description['to'] == 'sherpa' else 'onnxruntime'}", ""]
    lines += [f"- {key}: {description[key]}" for key in _shown(description)]
    if description["to"] == "sherpa":
        options = ", ".join(f"{key}={value}" for key, value in sherpa_arguments(description).items())
        lines += [
            "",
            "```python",
            "import sherpa_onnx",
            "",
            f'recogniser = sherpa_onnx.OnlineRecognizer.from_wenet_ctc(model="{MODEL}", tokens="{TOKENS}", {options})',
            "```",
            "",
            "Give every stream at least a chunk of zeros at its end, or its last chunk is not decoded.",
        ]
    return "\n".join(lines) + "\n"


def _shown(description: dict[str, Any]) -> Sequence[str]:
    return [key for key in description if key not in ("tokens", "metadata", "schema_version")]
