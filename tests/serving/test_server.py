"""The server as clients meet it: equal to the recogniser, many at once, and nobody can hurt the others."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from socket import SHUT_RDWR

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from asrkd.models import package
from asrkd.streaming.events import Final
from asrkd.streaming.recognizer import Recognizer, RecognizerOptions
from tests.serving.server import pcm, rest, running, stream
from tests.streaming.babble import make_student, speech

SESSIONS = 6


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("served")
    package.save(make_student(), folder / "one" / "package")
    package.save(make_student(chunk_frames=8), folder / "two" / "package")
    return [folder / "one" / "package", folder / "two" / "package"]


@pytest.fixture(scope="module")
def address(packages: list[Path]):
    with running(*packages, "--sessions", SESSIONS, "--idle-s", 20, "--message-kib", 256) as where:
        yield where


def expected(folder: Path, audio: np.ndarray) -> list[Final]:
    session = Recognizer(package.load(folder), RecognizerOptions()).session()
    events = [*session.accept(np.frombuffer(pcm(audio), "<i2")), *session.finish()]
    return [event for event in events if isinstance(event, Final)]


def finals(events: list[dict]) -> list[dict]:
    return [event for event in events if event["event"] == "final"]


def send_all(socket, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        socket.send(data[start : start + size])
    socket.send('{"event": "end"}')


def test_a_stream_says_what_the_recogniser_says(address: str, packages: list[Path]) -> None:
    audio = speech(6.0)
    for name, folder in zip(("one", "two"), packages, strict=True):
        with stream(address, model=name) as socket:
            send_all(socket, pcm(audio), 3001 * 2)
            events = rest(socket)
        wanted = expected(folder, audio)
        assert [e["text"] for e in finals(events)] == [f.text for f in wanted] and wanted[0].text
        assert [w["start_s"] for w in finals(events)[-1]["words"]] == [w.start_s for w in wanted[-1].words]
        assert events[-1] == {"event": "ended", "reason": "finished"}
        told = [e["word"]["text"] for e in events if e["event"] == "word"]
        assert told == [w.text for f in wanted for w in f.words]
        progress = [e for e in events if e["event"] == "progress"]
        assert progress[-1]["decoded_s"] == pytest.approx(6.0) and progress[-1]["rtf"] > 0
        assert all(e["latency_ms"] > 0 for e in progress)


def test_many_at_once_each_get_their_own(address: str, packages: list[Path]) -> None:
    audios = [speech(3.0 + index, seed=index) for index in range(SESSIONS)]
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(stream(address, model="one")) for _ in audios]
        for start in range(0, max(map(len, audios)), 1600):
            for socket, audio in zip(sockets, audios, strict=True):
                if start < len(audio):
                    socket.send(pcm(audio[start : start + 1600]))
        for socket in sockets:
            socket.send('{"event": "end"}')
        for socket, audio in zip(sockets, audios, strict=True):
            assert [e["text"] for e in finals(rest(socket))] == [f.text for f in expected(packages[0], audio)]


def test_encodings_channels_and_rates(address: str) -> None:
    audio = speech(3.0)
    texts = []
    for encoding, data in (
        ("s16le", pcm(audio)),
        ("f32le", (np.frombuffer(pcm(audio), "<i2") / 32768).astype("<f4").tobytes()),
        ("s32le", (np.frombuffer(pcm(audio), "<i2").astype("<i4") * 65536).tobytes()),
    ):
        with stream(address, encoding=encoding, sample_rate_hz=16000) as socket:
            send_all(socket, data, 64_000)
            texts.append(finals(rest(socket))[-1]["text"])
    assert len(set(texts)) == 1 and texts[0]
    with stream(address, channels=2) as socket:
        send_all(socket, np.repeat(np.frombuffer(pcm(audio), "<i2"), 2).tobytes(), 64_000)
        assert finals(rest(socket))[-1]["text"] == texts[0]
    with stream(address, sample_rate_hz=8000) as socket:
        send_all(socket, pcm(audio[::2]), 64_000)
        assert rest(socket)[-1]["event"] == "ended"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (["no json"], "expected JSON"),
        (["[1]"], "expected a JSON object"),
        (['{"rate": 8000}'], "unknown key 'rate'"),
        (['{"sample_rate_hz": 1}'], "sample_rate_hz: expected 1000 to 768000, found 1"),
        (['{"sample_rate_hz": true}'], "sample_rate_hz"),
        (['{"encoding": "mp3"}'], "encoding: expected one of s16le"),
        (['{"channels": 0}'], "channels"),
        (['{"model": "three"}'], "model: expected one of one, two, found 'three'"),
        (["[" * 100_000], "expected JSON"),
        ([b"\x00\x00"], "expected a text message first"),
        (['{"event": "end"}'], "expected a text message first"),
        (["{}", b"\x00"], "expected a multiple of 2 bytes"),
        (["{}", "{}"], "found another start"),
        (["{}", b"\x00\x00", "\x00garbage\xff"], "expected JSON"),
    ],
)
def test_garbage_ends_only_its_own_stream(address: str, packages: list[Path], messages: list, said: str) -> None:
    audio = speech(2.0)
    with stream(address, model="one") as good:
        half = len(audio) // 2
        good.send(pcm(audio[:half]))
        with connect(f"ws://{address}/stream", proxy=None) as bad:
            for message in messages:
                bad.send(message)
            events = rest_of_broken(bad)
        assert events[-1]["event"] == "error" and said in events[-1]["reason"]
        send_all(good, pcm(audio[half:]), 64_000)
        assert [e["text"] for e in finals(rest(good))] == [f.text for f in expected(packages[0], audio)]


def rest_of_broken(socket) -> list[dict]:
    events = []
    try:
        while True:
            events.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return events


def test_nan_clipping_and_tiny_messages(address: str) -> None:
    audio = speech(1.5).astype("<f4")
    audio[1000:1100] = np.nan
    audio[2000:2100] = 1e30
    audio[3000] = -np.inf
    with stream(address, encoding="f32le") as socket:
        socket.send(b"")
        for sample in audio[:5000]:
            socket.send(sample.tobytes())
        send_all(socket, audio[5000:].tobytes(), 4000)
        events = rest(socket)
    assert events[-1] == {"event": "ended", "reason": "finished"}
    assert np.isfinite([e["latency_ms"] for e in events if e["event"] == "progress"]).all()


def test_too_large_a_message_is_refused(address: str) -> None:
    with stream(address) as socket:
        socket.send(b"\x00" * (300 << 10))
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=60)
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009


def test_no_more_than_there_may_be_and_whoever_vanishes_makes_room(address: str) -> None:
    def streams() -> int:
        return json.load(urllib.request.urlopen(f"http://{address}/info"))["streams"]

    wait_until(lambda: streams() == 0)
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(stream(address)) for _ in range(SESSIONS)]
        assert streams() == SESSIONS
        with connect(f"ws://{address}/stream", proxy=None) as late:
            assert "busy" in rest_of_broken(late)[-1]["reason"]
        for socket in sockets:
            socket.send(b"\x00\x00" * 1600)
            socket.socket.shutdown(SHUT_RDWR)  # no goodbye
        wait_until(lambda: streams() == 0)
    with stream(address) as socket:
        socket.send('{"event": "end"}')
        assert rest(socket)[-1]["event"] == "ended"


def wait_until(condition, tries: int = 2000) -> None:
    """Asks the server again and again; each question is a request that it answers in its own time."""
    for _ in range(tries):
        if condition():
            return
    raise AssertionError("the condition never held")


def test_who_is_idle_is_ended(packages: list[Path]) -> None:
    with running(packages[0], "--idle-s", 0.5) as where, stream(where) as socket:
        events = rest_of_broken(socket)
        assert events[-1] == {"event": "error", "reason": "expected audio within 0.5 s"}


def test_a_sender_faster_than_the_model_waits_and_loses_nothing(address: str, packages: list[Path]) -> None:
    audio = np.concatenate([speech(20.0, seed=s) for s in range(4)])  # eight times the backlog
    with stream(address, model="one") as socket:
        send_all(socket, pcm(audio), 128_000)
        events = rest(socket)
    assert [e["text"] for e in finals(events)] == [f.text for f in expected(packages[0], audio)]
    heard = [e["heard_s"] - e["decoded_s"] for e in events if e["event"] == "progress"]
    assert max(heard) < 10.0 + 4.1  # the backlog and one message


def test_pages_of_other_sites_are_kept_out(address: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws://{address}/stream", origin="http://evil.example", proxy=None)
    assert caught.value.response.status_code == 403
    with connect(f"ws://{address}/stream", origin=f"http://{address}", proxy=None) as own:
        own.send("{}")
        own.send('{"event": "end"}')
        assert rest(own)[-1]["event"] == "ended"
    request = urllib.request.Request(f"http://{address}/info", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400


def test_the_page_asks_nobody_else(address: str) -> None:
    for path in ("/", "/app.js", "/app.css", "/worklet.js"):
        with urllib.request.urlopen(f"http://{address}{path}") as answer:
            text = answer.read().decode()
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "http:" not in text and "https:" not in text.replace('"https:"', "")
    info = json.load(urllib.request.urlopen(f"http://{address}/info"))
    assert [m["name"] for m in info["models"]] == ["one", "two"]
    assert info["models"][0]["chunk_ms"] == 160 and info["models"][1]["chunk_ms"] == 320
