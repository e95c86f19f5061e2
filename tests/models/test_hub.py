"""Packages go to the hub and come back, over the hub's own protocol as its client speaks it, from a hub on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from asrkd.models import package
from tests.streaming.babble import make_student

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository, ``org/tiny``, in memory; files come inside the commit, as small ones do."""

    files: dict[str, bytes]
    private: bool | None
    tokens: set[str]

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, content: Any = None, status: int = 200, body: bytes | None = None, **headers: str) -> None:
        data = json.dumps(content).encode() if body is None else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            self.server.private = asked.get("private") or asked.get("visibility") == "private"
            self.answer({"url": f"http://{self.headers['Host']}/org/tiny", "name": "org/tiny"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.startswith("/api/models/org/tiny/preupload/"):
            names = [file["path"] for file in json.loads(data)["files"]]
            self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif self.path.startswith("/api/models/org/tiny/commit/"):
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/org/tiny/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "success": True,
                }
            )
        else:
            self.answer({"error": "not found"}, 404)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/tiny/revision/") or self.path == "/api/models/org/tiny":
            siblings = [{"rfilename": name} for name in self.server.files]
            self.answer(
                {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings, "private": False}
            )
        elif self.path.startswith("/api/models/org/tiny/tree/"):
            tree = [{"type": "file", "path": n, "size": len(b), "oid": "0"} for n, b in self.server.files.items()]
            self.answer(tree)
        elif "/resolve/" in self.path and (name := self.path.split("/", 5)[5].split("?")[0]) in self.server.files:
            body = self.server.files[name]
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
            self.answer(body=body, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        else:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.private, server.tokens = {"notes.txt": b"not of the package"}, None, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def run(hub: ThreadingHTTPServer, home: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_test",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "*",
        **more,
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


LOAD = "import asrkd; m = asrkd.load('hf://org/tiny'); print(m.num_parameters, m.tokenizer.identity)"


def test_there_and_back(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    model, folder = make_student(), tmp_path / "package"
    package.save(model, folder)
    (folder / "private_notes.txt").write_text("mine")
    refused = run(hub, tmp_path / "home", "-m", "asrkd", "push", str(folder), "org/tiny")
    assert refused.returncode == 2 and "licence: expected one to be stated" in refused.stderr
    pushed = run(
        hub, tmp_path / "home", "-m", "asrkd", "push", str(folder), "org/tiny", "--licence", "CC-BY-4.0", "--private"
    )
    assert pushed.returncode == 0, pushed.stderr
    assert COMMIT in pushed.stdout and hub.private is True and "Bearer hf_test" in hub.tokens
    assert {"config.json", "model.safetensors", "README.md", "tokenizer/tokenizer.json"} <= set(hub.files)
    assert "private_notes.txt" not in hub.files
    assert "license: CC-BY-4.0" in hub.files["README.md"].decode()

    expected = f"{model.num_parameters} {model.tokenizer.identity}\n"
    loaded = run(hub, tmp_path / "other", "-c", LOAD)
    assert loaded.stdout == expected, loaded.stderr
    assert not list((tmp_path / "other").rglob("notes.txt"))
    offline = run(hub, tmp_path / "other", "-c", LOAD, HF_HUB_OFFLINE="1")
    assert offline.stdout == expected, offline.stderr
    transcribed = run(hub, tmp_path / "other", "-m", "asrkd", "transcribe", "hf://org/tiny", str(tmp_path / "no.wav"))
    assert transcribed.returncode == 1 and "no.wav" in transcribed.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://org/none", "hf:"),
        ("hf://nonsense", "expected hf://org/name"),
        ("hf://org/../..", "expected hf://org/name"),
    ],
)
def test_what_is_not_there_is_one_line(hub: ThreadingHTTPServer, tmp_path: Path, name: str, said: str) -> None:
    answer = run(hub, tmp_path / "home", "-m", "asrkd", "transcribe", name, "a.wav")
    assert answer.returncode == 2 and said in answer.stderr and len(answer.stderr.strip().splitlines()) == 1


def test_a_changed_weight_on_the_hub_is_refused(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    package.save(make_student(), tmp_path / "package", licence="CC0-1.0")
    assert run(hub, tmp_path / "home", "-m", "asrkd", "push", str(tmp_path / "package"), "org/tiny").returncode == 0
    damaged = bytearray(hub.files["model.safetensors"])
    damaged[-1] ^= 1
    hub.files["model.safetensors"] = bytes(damaged)
    answer = run(hub, tmp_path / "other", "-m", "asrkd", "transcribe", "hf://org/tiny", "a.wav")
    assert answer.returncode == 2 and "wrong SHA-256" in answer.stderr
