"""Prepared parts as lhotse Shar: tar files of audio beside their cuts, to be read in sequence from slow disks."""

from __future__ import annotations

import shutil
from pathlib import Path

from asrkd.data.corpora import corpus_parts, load_cuts
from asrkd.data.files import write_atomically


def write_shar(folder: str | Path, part: str, shard_size: int = 1000, jobs: int = 1) -> Path:
    """Writes ``<folder>/shar/<part>``, which ``lhotse.CutSet.from_shar(in_dir=…)`` reads; it appears whole.

    Args:
        folder: A prepared corpus.
        part: One of its parts.
        shard_size: Utterances in one tar file.
        jobs: Processes that write side by side.

    Returns:
        The folder. Where it was made from the same cuts already, nothing is done.

    Raises:
        ValueError: If there is no such part.
    """
    folder = Path(folder)
    cuts = load_cuts(folder, part)
    source = corpus_parts(folder)[part].sha256
    final = folder / "shar" / part
    made_from = final.with_name(f"{part}.sha256")  # beside it: lhotse takes every file within for a shard
    if final.is_dir() and made_from.is_file() and made_from.read_text() == source:
        return final
    making = final.with_name(f".making-{part}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    cuts.to_shar(making, fields={"recording": "flac"}, shard_size=shard_size, num_jobs=jobs)
    made_from.unlink(missing_ok=True)
    shutil.rmtree(final, ignore_errors=True)
    making.rename(final)
    write_atomically(made_from, source.encode())
    return final
