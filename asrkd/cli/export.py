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
    force: Annotated[bool, typer.Option("--force", help="Write the int8 export whatever it costs.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only compare an export that is there with its package.")
    ] = False,
) -> None:
    """Write PACKAGE as ONNX, checked against the package over whole utterances before it is put in place.

    The int8 export is refused where it costs more than --max-loss of the WER, unless forced.
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
            made = _quantised(made, model, parts, max_loss, normaliser, force)
        _put(made, target)
    typer.echo(target)


def _quantised(
    made: Path, model: StreamingConformer, parts: dict[str, CutSet], max_loss: float, normaliser: str, force: bool
) -> Path:
    from lhotse import CutSet

    from asrkd.export.check import cost, quantise
    from asrkd.export.write import ExportError

    smaller = made.with_name("int8")
    quantise(made, smaller)
    if parts:
        cuts = CutSet.from_cuts([cut for part in parts.values() for cut in part])
        with stages() as stage:
            found = cost(smaller, model, cuts, normaliser=normaliser, progress=stage("int8"))
        typer.echo(f"int8: {found}")
        if found.relative > max_loss and not force:
            raise ExportError(
                f"int8: expected to lose at most {100 * max_loss:g} % of the WER, found {100 * found.relative:.1f} %; "
                "--force writes it all the same"
            )
    return smaller


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
