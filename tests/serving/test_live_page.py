"""The live page in a real browser: a file and a microphone become words, two models side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrkd.models import package
from asrkd.streaming.events import Final
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions
from tests.serving.browser import CHROMIUM, browsing
from tests.serving.server import running
from tests.streaming.babble import make_student, speech

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
TEXT = "[...document.querySelectorAll('[data-model=\"{}\"] .word')].map(w => w.textContent)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live")
    package.save(make_student(), folder / "one" / "package")
    package.save(make_student(chunk_frames=8), folder / "two" / "package")
    soundfile.write(folder / "speech.flac", np.clip(speech(5.0), -1, 1), 16000)
    soundfile.write(folder / "microphone.wav", np.clip(speech(30.0), -1, 1), 48000)
    return folder


def words(folder: Path) -> list[str]:
    audio, _ = soundfile.read(folder.parent.parent / "speech.flac", dtype="int16")
    session = Recognizer(package.load(folder), RecognizerOptions()).session()
    events = [*session.accept(audio), *session.finish()]
    return [word.text for event in events if isinstance(event, Final) for word in event.words]


def test_a_file_becomes_clickable_words(folder: Path, tmp_path: Path) -> None:
    both = [folder / "one" / "package", folder / "two" / "package"]
    with running(*both) as address, browsing(f"http://{address}/", tmp_path / "browser") as page:
        page.until("document.body?.dataset.state === 'ready'")
        page.ask("document.getElementById('pace').click()")  # as fast as it goes
        page.choose_file("#file", folder / "speech.flac")
        page.until("document.body.dataset.state === 'done'")
        for name, package_folder in zip(("one", "two"), both, strict=True):
            assert page.ask(TEXT.format(name)) == words(package_folder)
        assert page.ask("document.querySelector('[data-figure=heard]').textContent") == "5.0 s"
        assert float(page.ask("document.querySelector('[data-figure=rtf]').textContent")) > 0
        start_s = page.ask("(w => { w.click(); return +w.dataset.start; })(document.querySelectorAll('.word')[5])")
        page.until("!document.getElementById('player').paused")
        assert page.ask("document.getElementById('player').currentTime") >= start_s - 0.06
        drawn = "new Set(document.getElementById('wave').getContext('2d').getImageData(0, 0, 200, 60).data).size"
        assert page.ask(drawn) > 2
        for width, dark in ((1000, False), (390, True)):
            assert page.screenshot(tmp_path / f"{width}.png", width, dark=dark).stat().st_size > 5000
            assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        assert page.complaints == []


def test_a_microphone_is_heard_while_it_speaks(folder: Path, tmp_path: Path) -> None:
    flag = f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}"
    with (
        running(folder / "one" / "package") as address,
        browsing(f"http://{address}/", tmp_path / "browser", flag) as page,
    ):
        page.until("document.body?.dataset.state === 'ready'")
        page.ask("document.getElementById('speak').click()")
        page.until("document.querySelector('.settled').textContent || document.querySelector('.partial').textContent")
        page.until("document.querySelectorAll('.word').length > 3")
        assert page.ask("document.getElementById('level').value") > 0
        page.ask("document.getElementById('stop').click()")
        page.until("document.body.dataset.state === 'done'")
        page.until("document.getElementById('player').readyState > 0")
        assert page.ask("document.getElementById('player').duration") > 0.5
        assert page.complaints == []


def test_a_file_that_is_none_is_one_line(folder: Path, tmp_path: Path) -> None:
    broken = folder / "broken.wav"
    broken.write_bytes(b"RIFF" + bytes(200))
    with running(folder / "one" / "package") as address, browsing(f"http://{address}/", tmp_path / "browser") as page:
        page.until("document.body?.dataset.state === 'ready'")
        page.choose_file("#file", broken)
        page.until("document.getElementById('status').textContent.includes('cannot decode')")
