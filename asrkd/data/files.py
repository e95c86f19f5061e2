"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` with the same ending; what was written there becomes ``path`` at the end.

    Nothing is left behind, and ``path`` stays as it was, when the block raises.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix="." + path.name)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Puts ``data`` at ``path`` whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
