"""A real server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from websockets.sync.client import ClientConnection, connect


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[str]:
    """``asrkd serve`` with these arguments; gives its address ``127.0.0.1:PORT``."""
    command = [sys.executable, "-m", "asrkd", "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.match(r"http://(127\.0\.0\.1:\d+)/", line)
        assert found, line + process.stderr.read()
        try:
            yield found[1]
        finally:
            process.terminate()
            output, errors = process.communicate(timeout=30)
            assert "Traceback" not in errors, errors
            assert not output


@contextlib.contextmanager
def stream(address: str, **start: object) -> Iterator[ClientConnection]:
    """A connection that has said what it will send and was welcomed."""
    with connect(f"ws://{address}/stream", proxy=None) as socket:
        socket.send(json.dumps(start))
        assert json.loads(socket.recv(timeout=60))["event"] == "ready"
        yield socket


def rest(socket: ClientConnection) -> list[dict]:
    """Everything up to the end."""
    return [json.loads(message) for message in socket]


def pcm(audio: np.ndarray) -> bytes:
    return np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2").tobytes()
