"""Listening: the same words as from a file, a status that says how it goes, and one line where there is no microphone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asrkd.cli.listen import Block, hear
from asrkd.models import package
from asrkd.streaming.events import Final
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions
from tests.streaming.babble import make_student, speech


def test_blocks_become_the_words_of_the_whole() -> None:
    recognizer = Recognizer(make_student(), RecognizerOptions())
    audio = np.clip(np.round(32768 * speech(6.0)), -32768, 32767).astype(np.int16)
    session = recognizer.session()
    wanted = [e.text for e in [*session.accept(audio), *session.finish()] if isinstance(e, Final)]
    shown: list[tuple[str, str, str]] = []
    blocks = [Block(audio[start : start + 640], 0.0, lost=start == 6400) for start in range(0, len(audio), 640)]
    hear(blocks, 16000, recognizer.session(), lambda *line: shown.append(line))
    assert [final for final, _, _ in shown if final] == wanted and wanted[0]
    partials = [partial for _, partial, _ in shown if partial]
    assert partials and any(wanted[0].startswith(partial) for partial in partials)
    statuses = [status for _, _, status in shown if status]
    assert len(statuses) == len(blocks)
    assert "lost audio 1 times" in statuses[-1] and "lost" not in statuses[0] and "#" in statuses[-1]


def has_microphone() -> bool:
    try:
        import sounddevice

        sounddevice.query_devices(None, "input")
    except Exception:
        return False
    return True


@pytest.mark.skipif(has_microphone(), reason="there is a microphone")
def test_without_a_microphone_it_says_so(tmp_path: Path) -> None:
    package.save(make_student(), tmp_path / "package")
    command = [sys.executable, "-m", "asrkd", "listen", str(tmp_path / "package")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert answer.returncode == 2
    assert "microphone" in answer.stderr or "sounddevice" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
