"""Files that appear whole or not at all, on a full disk too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asrkd.data.files import atomic_path, write_atomically


def test_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file size are POSIX")
@pytest.mark.parametrize("what", ["file", "corpus"])
def test_a_full_disk_is_named_and_spoils_nothing(tmp_path: Path, what: str) -> None:
    # A limit on file size stands in for a full disk: the same system call fails in the same way.
    good = tmp_path / "good.bin"
    good.write_bytes(b"good")
    call = {
        "file": f"from asrkd.data.files import write_atomically; write_atomically(Path({str(good)!r}), bytes(100000))",
        "corpus": "from asrkd.data.spoken_numbers import synthesise; "
        f"synthesise({str(tmp_path / 'out')!r}, train_minutes=0.1, dev_minutes=0.1, test_minutes=0.1)",
    }[what]
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))\n"
        f"try:\n    {call}\nexcept OSError as error:\n    print(error); sys.exit(7)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 7, result.stderr
    assert ("good.bin" if what == "file" else ".flac") in result.stdout
    assert good.read_bytes() == b"good"
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
    assert not list(tmp_path.rglob("*.flac"))
