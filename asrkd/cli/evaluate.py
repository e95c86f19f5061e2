"""``asrkd evaluate``: word errors, speed and delay of a model package on test sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.progress import console, stages

if TYPE_CHECKING:
    from lhotse import CutSet

_MANIFESTS = "cuts_*.jsonl.gz"


def evaluate(
    package: Annotated[
        Path,
        typer.Argument(help="Model package (a folder), of a teacher or a student; or the recipe (YAML) it came of."),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Test set: a manifest (cuts_PART.jsonl.gz), a part of a prepared corpus (CORPUS/PART), or a prepared "
            "corpus with all its parts but train. May be given several times. Default: what the recipe evaluates on."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; default: PACKAGE/evaluation.")] = None,
    normaliser: Annotated[str, typer.Option(help="none, librispeech or whisper-english; of both texts.")] = "none",
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Decode with the live recogniser, chunk by chunk, instead of the mask.")
    ] = False,
    joint: Annotated[bool, typer.Option("--joint", help="Decode by joint CTC/attention beam search.")] = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Decode in two passes: CTC beam search, then the attention decoder.")
    ] = False,
    chunk_frames: Annotated[
        int | None, typer.Option(help="Output frames of a chunk; 0: full context. Default: the model's own.")
    ] = None,
    left_context_frames: Annotated[
        int | None, typer.Option(help="Output frames that a chunk may look back. Default: the model's own.")
    ] = None,
    speed: Annotated[bool, typer.Option(help="Measure real-time factors.")] = True,
    streams: Annotated[
        bool, typer.Option("--streams", help="Also measure how many live streams this device holds.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads while speed is measured.", min=1)] = 1,
    card: Annotated[
        bool, typer.Option("--card", help="Also put the figures into the package's model card and metrics.json.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name in tables; default: the package's folder.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure PACKAGE on test sets: WER and CER with intervals, real-time factors, latency, size.

    Writes result.json, utterances.jsonl (every alignment), report.md, report.html and metrics.json. Killed at any moment, the same
    command continues; what is already measured is not measured again.
    """
    from asrkd.evaluation.card import write_card
    from asrkd.evaluation.decode import DecodingOptions
    from asrkd.evaluation.evaluate import EvaluationOptions
    from asrkd.evaluation.evaluate import evaluate as run_evaluation
    from asrkd.evaluation.html import write_page
    from asrkd.evaluation.normalise import normaliser as find_normaliser
    from asrkd.evaluation.report import Entry, console_table, headline
    from asrkd.evaluation.write import write_report

    find_normaliser(normaliser)
    if joint + streaming + rescore > 1:
        raise ValueError("--joint, --streaming, --rescore: expected one of them, found more")
    decoding = DecodingOptions(
        method="joint" if joint else "streaming" if streaming else "rescore" if rescore else "greedy",
        chunk_frames=chunk_frames,
        left_context_frames=left_context_frames,
    )
    package, data = _of_recipe(package, data or [])
    if not data:
        raise ValueError("--data: expected at least one test set, found none")
    parts = read_parts(data)
    folder = out or package / "evaluation"
    with stages() as stage:
        bar = stage("evaluate")
        result = run_evaluation(
            package,
            parts,
            folder,
            EvaluationOptions(normaliser=normaliser, decoding=decoding, speed=speed, streams=streams, threads=threads),
            name=name,
            device=choose_device(device),
            report=bar,
        )
    entries = [Entry(result)]
    write_report(entries, [], folder)
    write_page(entries, [], folder, parts)
    if card:
        write_card(package, result)
    console().print(console_table(headline(entries)))
    typer.echo(folder)


def _of_recipe(path: Path, data: list[str]) -> tuple[Path, list[str]]:
    """The package and the test sets of a recipe; of a package what was given."""
    if path.suffix not in (".yaml", ".yml"):
        return path, data
    from asrkd.training.recipe import load_recipe
    from asrkd.training.run import package_dir

    recipe = load_recipe(path)
    own = recipe.evaluate.parts if recipe.evaluate else ()
    return package_dir(recipe), data or [str(recipe.path(part)) for part in own]


def read_parts(data: list[str]) -> dict[str, CutSet]:
    """The cuts of each test set that ``--data`` names, by the part's name.

    Args:
        data: Manifests, parts of prepared corpora (``CORPUS/PART``) or prepared corpora.

    Raises:
        ValueError: If one names nothing, or two have the same name.
    """
    from lhotse import CutSet

    parts: dict[str, CutSet] = {}
    for given in data:
        for manifest in _manifests(Path(given)):
            part = manifest.name.removeprefix("cuts_").removesuffix(".gz").removesuffix(".jsonl")
            if part in parts:
                raise ValueError(f"--data {given}: expected test sets of different names, found {part} twice")
            parts[part] = CutSet.from_file(manifest)
    return parts


def _manifests(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [m for m in sorted(path.glob(_MANIFESTS)) if not m.name.startswith("cuts_train")]
        if not found:
            raise ValueError(f"--data {path}: expected {_MANIFESTS} of a prepared corpus, found none")
        return found
    part = path.parent / f"cuts_{path.name}.jsonl.gz"
    if part.is_file():
        return [part]
    known = ", ".join(m.name.removeprefix("cuts_").removesuffix(".jsonl.gz") for m in path.parent.glob(_MANIFESTS))
    raise ValueError(
        f"--data {path}: no such manifest or prepared corpus" + (f"; known parts: {known}" if known else "")
    )
