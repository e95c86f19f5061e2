"""Prepared parts as lhotse Shar: tar files of audio beside their cuts, a few big files instead of very many small ones.

lhotse reads them in sequence (``CutSet.from_shar``). Here a look at the tars' headers finds where each utterance's audio lies, so
that training reads them in any order, from any position of any epoch, and in the loader's workers, as it does single files.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from lhotse import AudioSource, CutSet
from lhotse.cut import Cut
from lhotse.utils import fastcopy

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


def read_manifest(path: Path) -> CutSet:
    """The cuts of a manifest, or of a folder of Shar.

    Raises:
        ValueError: If a folder holds no Shar.
    """
    if not path.is_dir():
        return CutSet.from_file(path)
    if not (any(path.glob("cuts.*.jsonl.gz")) and any(path.glob("recording.*.tar"))):
        raise ValueError(
            f"{path}: expected a manifest, or a folder with cuts.*.jsonl.gz and recording.*.tar; found neither"
        )
    return read_shar(path)


def read_shar(folder: str | Path) -> CutSet:
    """The cuts of a Shar folder, in memory, each with the place of its audio; the audio stays where it is.

    Args:
        folder: As :func:`write_shar` or lhotse's ``to_shar`` makes it, with recordings as files in uncompressed tars.

    Raises:
        ValueError: If a shard has no tar, or its tar holds other utterances.
    """
    folder = Path(folder)
    found: list[Cut] = []
    for manifest in sorted(folder.glob("cuts.*.jsonl.gz")):
        number = manifest.name.split(".")[1]
        tar = folder / f"recording.{number}.tar"
        if not tar.is_file():
            raise ValueError(f"{manifest}: expected the tar of its recordings, {tar.name}; found none")
        cuts, audio = list(CutSet.from_file(manifest)), list(_members(tar))
        if [cut.id for cut in cuts] != [name for name, _, _ in audio]:
            raise ValueError(
                f"{tar}: expected the {len(cuts)} utterances of {manifest.name}, found {len(audio)} or others"
            )
        for cut, (_, start, size) in zip(cuts, audio, strict=True):
            source = AudioSource("shar", cut.recording.channel_ids, f"{tar}:{start}:{size}")
            found.append(fastcopy(cut, recording=fastcopy(cut.recording, sources=[source])))
    return CutSet.from_cuts(found)


def _members(tar: Path) -> Iterator[tuple[str, int, int]]:
    """Id, first byte and bytes of each recording; only headers are read."""
    try:
        with tarfile.open(tar, mode="r:") as archive:
            for member in archive:
                if not member.name.endswith((".json", ".nometa")):
                    yield str(Path(member.name).with_suffix("")), member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(f"{tar}: expected an uncompressed tar; {error}") from None
