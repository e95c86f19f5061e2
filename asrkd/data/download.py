"""Fetching LibriSpeech from OpenSLR: resumable, checked against the known SHA-256, disk need said beforehand."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[int, int], None]

BASE_URL = "https://www.openslr.org/resources/12"
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Archive:
    """One part's ``.tar.gz``: its size as OpenSLR states it, and its SHA-256 as torchaudio 2.11 carries it."""

    size_bytes: int
    sha256: str


ARCHIVES = {
    "dev-clean": Archive(337_000_000, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": Archive(314_000_000, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": Archive(346_000_000, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": Archive(328_000_000, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": Archive(6_300_000_000, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": Archive(23_000_000_000, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": Archive(30_000_000_000, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}


def disk_need_bytes(root: str | Path, parts: Sequence[str] | None = None) -> int:
    """Space that :func:`download_librispeech` will need: all parts unpacked, and the largest archive beside them.

    Raises:
        ValueError: If a part is not known.
    """
    sizes = [ARCHIVES[part].size_bytes for part in _checked(parts) if not _is_there(Path(root), part)]
    return sum(sizes) + max(sizes, default=0)


def download_librispeech(
    root: str | Path,
    parts: Sequence[str] | None = None,
    *,
    base_url: str = BASE_URL,
    archives: dict[str, Archive] | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> Path:
    """Fetches and unpacks parts of LibriSpeech; parts that are there already are left alone.

    Args:
        root: Folder that gets ``LibriSpeech/<part>``.
        parts: Default: all seven, some 60 GB.
        base_url: Where the archives lie.
        archives: Sizes and checksums; default: LibriSpeech's.
        progress: Given a part's name, returns what is called with bytes done and their total.

    Returns:
        ``root/LibriSpeech``.

    Raises:
        ValueError: If a part is not known or what came is not what was published.
        OSError: If the disk is too small or the network fails; the same call continues where it stopped.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    archives = ARCHIVES if archives is None else archives
    missing = [part for part in _checked(parts, archives) if not _is_there(root, part)]
    need = sum(archives[p].size_bytes for p in missing) + max((archives[p].size_bytes for p in missing), default=0)
    free = shutil.disk_usage(root).free
    if free < need:
        raise OSError(f"{root}: {need / 1e9:.1f} GB needed for {', '.join(missing)}, {free / 1e9:.1f} GB free")
    for part in missing:
        archive = root / f"{part}.tar.gz"
        fetch(f"{base_url}/{part}.tar.gz", archive, archives[part].sha256, progress(part) if progress else None)
        _unpack(archive, root, part)
        archive.unlink()
    return root / "LibriSpeech"


def fetch(url: str, path: Path, sha256: str, progress: Progress | None = None) -> None:
    """Downloads a file to ``path``, continuing from ``path.part``; it appears only when its checksum is right.

    Raises:
        ValueError: If the whole came with another checksum; it is removed.
        OSError: If the network fails.
    """
    if path.is_file() and _sha256(path) == sha256:
        return
    partial = path.with_name(path.name + ".part")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if have and answer.status != 206:  # the server starts anew whatever was asked
                have = 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with partial.open("ab" if have else "wb") as file:
                while block := answer.read(_BLOCK_BYTES):
                    file.write(block)
                    have += len(block)
                    if progress:
                        progress(have, total)
        if have < total:
            raise OSError(f"{url}: the connection ended after {have} of {total} bytes; the same call continues")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing beyond what we have: it is whole
            raise OSError(f"{url}: {error.code} {error.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise OSError(f"{url}: {getattr(error, 'reason', error)}; the same call continues") from None
    found = _sha256(partial)
    if found != sha256:
        partial.unlink()
        raise ValueError(f"{url}: expected SHA-256 {sha256}, found {found}; removed, try again")
    partial.replace(path)


def _unpack(archive: Path, root: Path, part: str) -> None:
    """Unpacks ``LibriSpeech/<part>`` so that the folder appears whole."""
    staging = root / f".unpacking-{part}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(staging, filter="data")
        else:  # Python 3.10 before 3.10.12; the checksum says that it is the published archive
            tar.extractall(staging)
    final = root / "LibriSpeech" / part
    final.parent.mkdir(exist_ok=True)
    (staging / "LibriSpeech" / part).rename(final)
    shutil.rmtree(staging)


def _is_there(root: Path, part: str) -> bool:
    return (root / "LibriSpeech" / part).is_dir()


def _checked(parts: Sequence[str] | None, archives: dict[str, Archive] = ARCHIVES) -> list[str]:
    for part in parts or ():
        if part not in archives:
            raise ValueError(f"part {part!r} is not known; LibriSpeech has {', '.join(archives)}")
    return list(parts or archives)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
