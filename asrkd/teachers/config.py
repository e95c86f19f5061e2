"""Which teacher: a tagged union that a recipe or a command line names, and the one place that opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from asrkd.models import package
from asrkd.models.hub import is_remote
from asrkd.teachers.base import Precision, Teacher
from asrkd.teachers.ensemble import Combine, Ensemble, Weighting
from asrkd.teachers.package import PackageTeacher


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Precision = "fp32"


class PackageSpec(_Spec):
    """An asrkd model package. ``hidden``: layers whose states are wanted; ``decoder``: whether its decoder's posteriors are."""

    kind: Literal["package"] = "package"
    path: Path
    hidden: tuple[str, ...] = ()
    decoder: bool = False


class TorchaudioSpec(_Spec):
    """A bundle of ``torchaudio.pipelines`` by name."""

    kind: Literal["torchaudio"]
    bundle: str


class SpeechBrainSpec(_Spec):
    """A SpeechBrain folder or hub id.

    ``trust_code`` because its ``hyperparams.yaml`` can run any code; ``chunk_frames`` and ``left_context_chunks`` (``None``:
    all) are for a ``StreamingASR``.
    """

    kind: Literal["speechbrain"]
    source: str
    trust_code: bool = False
    savedir: Path | None = None
    chunk_frames: int = Field(24, ge=1)
    left_context_chunks: int | None = Field(8, ge=0)


class HuggingFaceSpec(_Spec):
    """A Hugging Face folder or hub id.

    ``hidden``: layers of a CTC model whose states are wanted; ``language`` and ``task`` are for multilingual Whisper, ``decoder``
    for any encoder-decoder: token ids, confidences and the decoder's posteriors.
    """

    kind: Literal["huggingface"]
    source: str
    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None
    hidden: tuple[str, ...] = ()
    decoder: bool = False


class OnnxSpec(BaseModel):
    """A folder with ``model.onnx`` and ``contract.json``; see :mod:`asrkd.teachers.onnx`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["onnx"]
    path: Path


class EnsembleSpec(BaseModel):
    """Several of the above; see :class:`asrkd.teachers.ensemble.Ensemble`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["ensemble"]
    members: tuple[MemberSpec, ...] = Field(min_length=2)
    combine: Combine = "mean"
    weighting: Weighting = "equal"
    weights: tuple[float, ...] | None = None
    temperature: float = Field(0.1, gt=0)
    by_text: bool = False


MemberSpec = Annotated[
    PackageSpec | TorchaudioSpec | SpeechBrainSpec | HuggingFaceSpec | OnnxSpec, Field(discriminator="kind")
]
TeacherSpec = Annotated[
    PackageSpec | TorchaudioSpec | SpeechBrainSpec | HuggingFaceSpec | OnnxSpec | EnsembleSpec,
    Field(discriminator="kind"),
]
EnsembleSpec.model_rebuild()

_ADAPTER: TypeAdapter[Any] = TypeAdapter(TeacherSpec)


def parse_teacher(text: str) -> Any:
    """A teacher as a command line names it: ``KIND:NAME``, or the folder of a package.

    Args:
        text: For example ``exp/teacher/package``, ``torchaudio:HUBERT_ASR_LARGE``, ``huggingface:openai/whisper-small``.

    Raises:
        ValueError: For an unknown kind.
    """
    kind, colon, name = text.partition(":")
    keys = {"package": "path", "torchaudio": "bundle", "speechbrain": "source", "huggingface": "source", "onnx": "path"}
    if not colon or Path(text).exists() or is_remote(text):
        return PackageSpec(path=Path(text))
    if kind not in keys:
        raise ValueError(f"teacher: expected a package's folder or {', '.join(keys)} and a colon; found {text!r}")
    return _ADAPTER.validate_python({"kind": kind, keys[kind]: name})


def teacher_name(spec: Any) -> str:
    """How a ``TeacherSpec`` is called in a line of text; for all but ensembles what :func:`parse_teacher` reads."""
    if isinstance(spec, EnsembleSpec):
        return " + ".join(map(teacher_name, spec.members))
    if isinstance(spec, PackageSpec):
        return str(spec.path)
    for name in ("bundle", "path", "source"):
        if hasattr(spec, name):
            return f"{spec.kind}:{getattr(spec, name)}"
    raise TypeError(f"expected a teacher's configuration, found {type(spec).__name__}")


def check_teacher(config: Any) -> Any:
    """A ``TeacherSpec`` from plain values.

    Raises:
        ValueError: One line naming each wrong key.
    """
    try:
        return _ADAPTER.validate_python(config)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'teacher'}: {e['msg']}" for e in error.errors())
        raise ValueError(f"teacher: {wrong}") from None


def open_teacher(
    spec: Any, *, workdir: Path = Path(), device: str = "cpu", nbest: int = 0, beam: int = 8, lattice: bool = False
) -> Teacher:
    """Load what a ``TeacherSpec`` describes.

    Args:
        spec: A member of ``TeacherSpec``.
        workdir: What relative paths are relative to; a source that is no folder there is taken for a hub id.
        device: Where it runs.
        nbest: Hypotheses of each utterance; 0: none.
        beam: Beam width, at least ``nbest``.
        lattice: Whether a transducer's posteriors at every node are wanted too, which packages alone give.

    Raises:
        ValueError: If it cannot be what is asked.
        OSError: If it is not there.
    """
    if lattice and not isinstance(spec, PackageSpec):
        raise ValueError(f"teacher.kind: expected package, to give a transducer's lattice; found {spec.kind}")
    search: dict[str, Any] = {"device": device, "nbest": nbest}
    if isinstance(spec, EnsembleSpec):
        members = [open_teacher(m, workdir=workdir, device=device, nbest=nbest, beam=beam) for m in spec.members]
        return Ensemble(
            members,
            combine=spec.combine,
            weighting=spec.weighting,
            weights=spec.weights,
            temperature=spec.temperature,
            by_text=spec.by_text,
        )
    search["beam"] = beam
    if isinstance(spec, OnnxSpec):
        from asrkd.teachers.onnx import OnnxTeacher

        return OnnxTeacher(workdir / spec.path, **search)
    search["precision"] = spec.precision
    if isinstance(spec, PackageSpec):
        wanted: dict[str, Any] = {"hidden": spec.hidden, "decoder": spec.decoder, "lattice": lattice}
        where = spec.path if is_remote(spec.path) else workdir / spec.path
        return PackageTeacher(package.load(where), **wanted, **search)
    if isinstance(spec, TorchaudioSpec):
        from asrkd.teachers.torchaudio_bundle import torchaudio_teacher

        return torchaudio_teacher(spec.bundle, **search)
    source = str(workdir / spec.source) if (workdir / spec.source).exists() else spec.source
    if isinstance(spec, SpeechBrainSpec):
        from asrkd.teachers.speechbrain_folder import speechbrain_teacher

        return speechbrain_teacher(
            source,
            trust_code=spec.trust_code,
            savedir=spec.savedir,
            chunk_frames=spec.chunk_frames,
            left_context_chunks=spec.left_context_chunks,
            **search,
        )
    from asrkd.teachers.huggingface import huggingface_teacher

    options = {key: value for key in ("language", "task", "hidden", "decoder") if (value := getattr(spec, key))}
    return huggingface_teacher(source, **search, **options)
