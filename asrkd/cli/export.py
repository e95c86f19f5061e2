"""``asrkd export``: a student for onnxruntime, or for sherpa-onnx and every platform that it runs on."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.evaluate import read_parts
from asrkd.cli.progress import stages

if TYPE_CHECKING:
    import numpy as np
    from lhotse import CutSet
    from numpy.typing import NDArray

    from asrkd.models.conformer import StreamingConformer


def export(
    package: Annotated[Path, typer.Argument(help="Model package (a folder) of a streaming student.")],
    to: Annotated[
        str, typer.Option(help="onnx: many streams, explicit state; sherpa: sherpa-onnx runs it unchanged.")
    ] = "onnx",
    out: Annotated[Path | None, typer.Option(help="Folder of the export; default: PACKAGE/../TO.")] = None,
    chunk_frames: Annotated[
        int | None, typer.Option(help="Output frames of a chunk; default: the model's.", min=1)
    ] = None,
    left_context_frames: Annotated[
        int | None, typer.Option(help="Output frames that a chunk looks back; default: the model's.", min=0)
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights in 8 bits; what it costs in WER is measured on --data.")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(help="Test sets for --int8 and --check, as of asrkd evaluate.")
    ] = None,
    max_loss: Annotated[float, typer.Option(help="Largest relative loss of WER that --int8 may cost.")] = 0.02,
    normaliser: Annotated[str, typer.Option(help="Of both texts when WER is measured.")] = "none",
    finetune: Annotated[
        list[str] | None,
        typer.Option(
            help="Audio (as --data) to fine-tune the student on, under its own posteriors, when int8 costs too much."
        ),
    ] = None,
    finetune_steps: Annotated[int, typer.Option(min=1, help="Batches of that fine-tuning.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Write the int8 export whatever it costs.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare an export that is there with its package.")
    ] = False,
) -> None:
    """Write PACKAGE as ONNX, checked against the package over whole utterances before it is put in place.

    The int8 export is refused where it costs more than --max-loss of the WER, unless forced. With --finetune the student then first
    learns to say in int8 what it said in float32; the fine-tuned package is put beside the export.
    """
    from asrkd.export.check import check as compare
    from asrkd.export.write import ExportError
    from asrkd.export.write import export as write
    from asrkd.models import package as packages
    from asrkd.models.conformer import StreamingConformer

    if int8 and not check and not data and not force:
        raise ExportError("--int8: expected --data to measure what it costs (or --force); found none")
    model = packages.load(package)
    parts = read_parts(data or [])
    target = out or package.parent / to
    if not isinstance(model, StreamingConformer):
        raise ExportError(f"{package}: expected a streaming_conformer, found a {model.kind}")
    if check:
        typer.echo(
            f"{target}: largest difference of log-probabilities {compare(target, model, _audios(model, parts)):.2g}"
        )
        return
    with tempfile.TemporaryDirectory(dir=_parent(target)) as scratch:
        made = Path(scratch) / "export"
        write(model, made, to, chunk_frames=chunk_frames, left_context_frames=left_context_frames)  # type: ignore[arg-type]
        difference = compare(made, model, _audios(model, parts))
        typer.echo(f"float32: largest difference of log-probabilities {difference:.2g}")
        if int8:
            gate = _Gate(model, parts, max_loss, normaliser)
            smaller = gate.quantised(made, model)
            if not gate.passed and finetune:
                tuned = _finetuned(model, read_parts(finetune), finetune_steps)
                write(tuned, made, to, chunk_frames=chunk_frames, left_context_frames=left_context_frames)  # type: ignore[arg-type]
                smaller = gate.quantised(made, tuned)
                if gate.passed or force:
                    licence = packages.read_config(package)["licence"]
                    packages.save(tuned, target.with_name(f"{target.name}-package"), licence=licence)
            if not (gate.passed or force):
                raise ExportError(gate.refusal)
            made = smaller
        _put(made, target)
    typer.echo(target)


class _Gate:
    """What int8 costs, and whether that is too much."""

    def __init__(self, model: StreamingConformer, parts: dict[str, CutSet], max_loss: float, normaliser: str) -> None:
        self.model, self.parts, self.max_loss, self.normaliser = model, parts, max_loss, normaliser
        self.passed, self.refusal = True, ""

    def quantised(self, made: Path, source: StreamingConformer) -> Path:
        """The int8 form of an export that was made of ``source``, measured beside the model as it came."""
        from lhotse import CutSet

        from asrkd.export.check import cost, quantise

        smaller = made.with_name("int8")
        quantise(made, smaller)
        if not self.parts:
            return smaller
        cuts = CutSet.from_cuts([cut for part in self.parts.values() for cut in part])
        with stages() as stage:
            found = cost(
                smaller, source, cuts, normaliser=self.normaliser, reference=self.model, progress=stage("int8")
            )
        typer.echo(f"int8: {found}")
        self.passed = found.relative <= self.max_loss
        self.refusal = (
            f"int8: expected to lose at most {100 * self.max_loss:g} % of the WER, found {100 * found.relative:.1f} %; "
            "--finetune CUTS may mend it, --force writes it all the same"
        )
        return smaller


def _finetuned(model: StreamingConformer, parts: dict[str, CutSet], steps: int) -> StreamingConformer:
    from lhotse import CutSet

    from asrkd.export.finetune import finetune

    cuts = CutSet.from_cuts([cut for part in parts.values() for cut in part])
    with stages() as stage:
        return finetune(model, cuts, steps=steps, progress=stage("fine-tuning"))


def _audios(model: StreamingConformer, parts: dict[str, CutSet]) -> list[NDArray[np.float32]]:
    """A few utterances of the test sets, or noise where none are named."""
    import numpy as np
    from lhotse import CutSet

    from asrkd.data.batching import load_batch

    cuts = [cut for part in parts.values() for cut in part][:8]
    if not cuts:
        rng = np.random.default_rng(0)
        return [
            (0.1 * rng.standard_normal(round(s * model.sample_rate_hz))).astype(np.float32) for s in (0.3, 2.0, 5.1)
        ]
    return [load_batch(CutSet.from_cuts([c]), None, sample_rate_hz=model.sample_rate_hz).audio[0].numpy() for c in cuts]


def _parent(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def _put(made: Path, target: Path) -> None:
    from asrkd.export.write import DESCRIPTION, ExportError, replace_folder

    if target.exists() and not (target.is_dir() and ((target / DESCRIPTION).is_file() or not any(target.iterdir()))):
        raise ExportError(f"{target}: is there and is no export; not replaced")
    replace_folder(target, {path.name: path.read_bytes() for path in made.iterdir()})
