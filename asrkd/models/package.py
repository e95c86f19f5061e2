"""The model package: a folder that holds a recogniser whole, and from which loading runs no code.

config.json         schema version, kind, the model's numbers, sample rate, vocabulary identity, SHA-256, licence
model.safetensors   weights and feature statistics
tokenizer/          what ``Tokenizer.save`` wrote
metrics.json        measured figures
README.md           the model card
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import asrkd
from asrkd.data.files import write_atomically
from asrkd.data.text import Tokenizer
from asrkd.models import hub
from asrkd.models.base import ModelConfig, Recogniser
from asrkd.models.conformer import StreamingConformer, StreamingConformerConfig
from asrkd.models.transducer import StreamingTransducer, StreamingTransducerConfig
from asrkd.models.transformer import SpeechBrainConformer, SpeechBrainConformerConfig

SCHEMA_VERSION = 1

MODELS: dict[str, tuple[type[ModelConfig], Callable[[Any, Tokenizer], Recogniser]]] = {
    "streaming_conformer": (StreamingConformerConfig, StreamingConformer),
    "streaming_transducer": (StreamingTransducerConfig, StreamingTransducer),
    "speechbrain_conformer": (SpeechBrainConformerConfig, SpeechBrainConformer),
}
"""Every kind of model: its configuration and its class."""

CONFIG, WEIGHTS, TOKENIZER, METRICS, CARD = "config.json", "model.safetensors", "tokenizer", "metrics.json", "README.md"


NOT_STATED = "not stated"
"""The licence of a package whose maker said none."""


class PackageError(ValueError):
    """A folder that is no loadable model package; one line says why."""


def build(config: Mapping[str, Any], tokenizer: Tokenizer) -> Recogniser:
    """Make a freshly initialised model.

    Args:
        config: ``kind`` (a key of ``MODELS``) and that kind's fields, for example
            ``{"kind": "streaming_conformer", "size": "tiny"}``.
        tokenizer: Gives the vocabulary.

    Raises:
        ValueError: One line naming each wrong key, or the kinds there are.
    """
    kind = config.get("kind")
    if kind not in MODELS:
        raise ValueError(f"kind: expected one of {', '.join(sorted(MODELS))}, found {kind!r}")
    config_class, model_class = MODELS[kind]
    try:
        parsed = config_class.model_validate(dict(config))
    except ValidationError as error:
        known = ", ".join(config_class.model_fields)
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or kind}: {e['msg']}" for e in error.errors())
        raise ValueError(f"model: {wrong} (known: {known})") from None
    return model_class(parsed, tokenizer)


def save(
    model: Recogniser,
    folder: str | os.PathLike[str],
    metrics: Mapping[str, Any] | None = None,
    card: str = "",
    licence: str = NOT_STATED,
) -> None:
    """Write a model package, replacing one that is there only when the new one is complete.

    Args:
        model: To be saved; its weights are written as float32 or as they are.
        folder: Of the package; the folders above it are made.
        metrics: JSON-able measured figures.
        card: Text of the model card in Markdown; a plain one is written where it is empty.
        licence: Licence of the weights; an SPDX name where there is one.

    Raises:
        ValueError: If ``licence`` is empty or ``folder`` holds something that is no package.
        OSError: If it cannot be written.
    """
    if not licence.strip():
        raise ValueError("licence: expected a licence name or 'not stated', found an empty string")
    target = Path(folder)
    if target.exists() and not (target.is_dir() and ((target / CONFIG).is_file() or not any(target.iterdir()))):
        raise ValueError(f"{target}: is there and is no model package; not replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    partial.mkdir()
    try:
        _write(model, partial, dict(metrics or {}), card, licence)
        _replace_folder(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load(folder: str | os.PathLike[str], device: str = "cpu") -> Recogniser:
    """Read a model package into a model in evaluation mode.

    Args:
        folder: Of the package, or ``hf://org/name[@revision]`` on the Hugging Face hub.
        device: Where the model shall live.

    Raises:
        PackageError: One line naming the folder and what does not fit.
    """
    root = locate(folder)
    config = read_config(root)
    for name in (WEIGHTS, TOKENIZER):
        if not (root / name).exists():
            raise PackageError(f"{root}: no model package: {name} is missing")
    found_hash = _sha256(root / WEIGHTS)
    if found_hash != config["weights_sha256"]:
        raise PackageError(
            f"{root / WEIGHTS}: wrong SHA-256: expected {config['weights_sha256'][:16]}…, found {found_hash[:16]}…"
        )
    try:
        tokenizer = Tokenizer.load(root / TOKENIZER)
    except (ValueError, OSError) as error:
        raise PackageError(f"{root / TOKENIZER}: {error}") from error
    if tokenizer.vocabulary.identity != config["vocabulary_identity"]:
        raise PackageError(f"{root / TOKENIZER}: not the vocabulary that the model was trained with")
    try:
        model = build(config["model"], tokenizer)
        missing, unexpected = model.load_state_dict(load_file(root / WEIGHTS), strict=False)
    except (ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise PackageError(f"{root}: the model does not fit its weights: {reason}") from error
    if missing or unexpected:
        names = ", ".join([*missing, *unexpected][:4])
        raise PackageError(f"{root / WEIGHTS}: does not fit the configuration: {names}")
    return model.to(device).eval()


def locate(name: str | os.PathLike[str]) -> Path:
    """The folder of a package; one on the hub is fetched into the hub's cache first.

    Raises:
        PackageError: If the hub does not give it.
    """
    if not hub.is_remote(name):
        return Path(name)
    try:
        return hub.fetch(name)
    except hub.HubError as error:
        raise PackageError(str(error)) from None


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked ``config.json`` of a package.

    Raises:
        PackageError: If the folder is no package or its schema or kind is unknown.
    """
    root = locate(folder)
    path = root / CONFIG
    if not root.is_dir():
        raise PackageError(
            f"{root}: no such folder" if not root.exists() else f"{root}: no model package: not a folder"
        )
    if not path.is_file():
        raise PackageError(f"{root}: no model package: {CONFIG} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackageError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise PackageError(f"{path}: no model package: expected an object with the key 'model'")
    version = config.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise PackageError(
            f"{path}: schema_version: expected at most {SCHEMA_VERSION}, found {version}: made by a newer asrkd "
            f"({config.get('asrkd_version', 'unknown')})"
        )
    if version != SCHEMA_VERSION:
        raise PackageError(f"{path}: schema_version: expected {SCHEMA_VERSION}, found {version!r}")
    kind = config["model"].get("kind")
    if kind not in MODELS:
        raise PackageError(f"{path}: kind: expected one of {', '.join(sorted(MODELS))}, found {kind!r}")
    for key in ("weights_sha256", "vocabulary_identity", "licence"):
        if not isinstance(config.get(key), str):
            raise PackageError(f"{path}: {key}: expected text, found {config.get(key)!r}")
    return config


def read_metrics(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The measured figures of a package; empty where it has none.

    Raises:
        PackageError: If ``metrics.json`` is not a JSON object.
    """
    path = locate(folder) / METRICS
    if not path.is_file():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackageError(f"{path}: not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise PackageError(f"{path}: expected an object, found {type(metrics).__name__}")
    return metrics


def set_licence(folder: str | os.PathLike[str], licence: str) -> None:
    """State a package's licence, in its configuration and its model card.

    Args:
        folder: Of the package.
        licence: An SPDX name where there is one.

    Raises:
        PackageError: If the folder is no package.
        ValueError: If ``licence`` is empty or more than a line.
    """
    if not licence.strip() or "\n" in licence:
        raise ValueError(f"licence: expected a name, found {licence!r}")
    root, config = Path(folder), read_config(folder)
    before = config["licence"]
    text = json.dumps({**config, "licence": licence}, indent=2, ensure_ascii=False) + "\n"
    card = root / CARD
    if card.is_file():
        told = card.read_text(encoding="utf-8")
        for quote in ("", '"'):  # as written here, and by the evaluation
            told = told.replace(f"license: {quote}{before}{quote}\n", f"license: {quote}{licence}{quote}\n", 1)
        write_atomically(card, told.replace(f"Licence: {before}", f"Licence: {licence}").encode())
    write_atomically(root / CONFIG, text.encode())


def _write(model: Recogniser, folder: Path, metrics: dict[str, Any], card: str, licence: str) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    model.tokenizer.save(folder / TOKENIZER)
    config = {
        "schema_version": SCHEMA_VERSION,
        "asrkd_version": asrkd.__version__,
        "kind": model.kind,
        "licence": licence,
        "sample_rate_hz": model.sample_rate_hz,
        "frame_shift_s": model.frame_shift_s,
        "vocabulary_identity": model.vocabulary.identity,
        "weights_sha256": _sha256(folder / WEIGHTS),
        "model": model.config.model_dump(mode="json"),
    }
    _write_text(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    _write_text(folder / METRICS, json.dumps(metrics, indent=2, ensure_ascii=False) + "\n")
    _write_text(folder / CARD, card or _plain_card(model, metrics, licence))
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _plain_card(model: Recogniser, metrics: Mapping[str, Any], licence: str) -> str:
    rows = "".join(f"| {key} | {value} |\n" for key, value in metrics.items() if isinstance(value, (int, float, str)))
    table = f"\n| figure | value |\n|---|---|\n{rows}" if rows else "\nNo figures were measured.\n"
    return (
        f"---\nlicense: {licence}\nlibrary_name: asrkd\n---\n\n# {model.kind}\n\n"
        f"{model.num_parameters:,} parameters, {model.sample_rate_hz} Hz, {len(model.vocabulary)} tokens, "
        f"{1000 * model.frame_shift_s:.0f} ms a frame. Licence: {licence}.\n{table}"
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _replace_folder(new: Path, target: Path) -> None:
    """Rename ``new`` to ``target``; what stood there is moved aside first and removed last."""
    if not target.exists():
        new.rename(target)
        return
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    target.rename(aside)
    try:
        new.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
