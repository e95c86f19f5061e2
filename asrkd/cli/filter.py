"""``asrkd filter``: which of a teacher's transcripts are good enough to be labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def filter_labels(
    targets: Annotated[Path, typer.Argument(help="Folder of a targets store with N-best lists.")],
    cuts: Annotated[list[Path], typer.Option(help="Manifest (cuts_PART.jsonl.gz); may be given several times.")],
    out: Annotated[Path, typer.Option(help="Manifest to write: kept cuts with the teacher's transcripts.")],
    normaliser: Annotated[str, typer.Option(help="none, librispeech or whisper-english; for the WER filter.")] = "none",
    max_wer: Annotated[float, typer.Option(help="Where there is a reference.", min=0.0)] = 0.1,
    min_confidence: Annotated[float | None, typer.Option(help="Mean confidence of the tokens.")] = None,
    min_margin: Annotated[float | None, typer.Option(help="Nats a word between the best two transcripts.")] = None,
    min_characters_per_s: Annotated[float, typer.Option(help="Less is too little text for the audio.")] = 2.0,
    max_characters_per_s: Annotated[float, typer.Option(help="More is too much.")] = 40.0,
    max_repetitions: Annotated[int, typer.Option(help="One to three words in a row.", min=1)] = 4,
) -> None:
    """Keep the utterances whose transcript by the teacher passes every filter; list the others, and why.

    The list stands beside OUT with the ending .dropped.csv.
    """
    from lhotse import CutSet

    from asrkd.data.files import atomic_path
    from asrkd.evaluation.normalise import normaliser as find_normaliser
    from asrkd.targets.filters import FilterOptions, filter_pseudo_labels
    from asrkd.targets.store import TargetsStore

    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"--out: expected a name that ends in .jsonl.gz, found {out.name}")
    options = FilterOptions(
        max_wer=max_wer,
        min_confidence=min_confidence,
        min_margin=min_margin,
        min_characters_per_s=min_characters_per_s,
        max_characters_per_s=max_characters_per_s,
        max_repetitions=max_repetitions,
    )
    everything = CutSet.from_cuts(cut for path in cuts for cut in CutSet.from_file(path))
    kept, report = filter_pseudo_labels(TargetsStore(targets), everything, options, find_normaliser(normaliser))
    listing = out.with_name(out.name.split(".jsonl")[0] + ".dropped.csv")
    report.write(listing)
    hours = sum(cut.duration for cut in kept) / 3600
    typer.echo(f"kept {len(report.kept)} of {len(report.verdicts)} utterances, {hours:.2f} h")
    for reason, count in report.dropped.items():
        typer.echo(f"dropped {count}: {reason}")
    if not report.kept:
        raise ValueError(f"nothing passed the filters; see {listing}")
    with atomic_path(out) as temporary:
        kept.to_file(temporary)
    typer.echo(f"{out}; what was dropped: {listing}")
