"""The server: a page, what it needs, and a WebSocket for audio. Everything is bounded, nothing asks anybody outside.

A page on another site must not be able to use a server on somebody's own machine: requests must name a host that is
allowed (against DNS rebinding), and a WebSocket that says where it comes from must come from this server's own page.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from asrkd.evaluation.latency import algorithmic_ms
from asrkd.serving import protocol
from asrkd.serving.engine import Ended, Engine, Limits, SlowReader, Stream

PAGE = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
    "/worklet.js": ("worklet.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self' blob:; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
BAD_DATA, TOO_MUCH, TRY_LATER = 1007, 1008, 1013
"""WebSocket close codes (RFC 6455, IANA registry)."""


@dataclass(frozen=True)
class Server:
    """What the requests share.

    Args:
        engines: By the model's name, in the order of the command line.
        limits: Of every client.
    """

    engines: Mapping[str, Engine]
    limits: Limits

    @property
    def num_streams(self) -> int:
        return sum(len(engine.streams) for engine in self.engines.values())

    def describe(self) -> dict[str, Any]:
        """What the page shows of the models."""
        return {
            "models": [_describe(name, engine) for name, engine in self.engines.items()],
            "streams": self.num_streams,
            "limits": vars(self.limits),
        }


def _describe(name: str, engine: Engine) -> dict[str, Any]:
    recognizer, model = engine.recognizer, engine.recognizer.model
    return {
        "name": name,
        "kind": model.kind,
        "parameters": model.num_parameters,
        "sample_rate_hz": model.sample_rate_hz,
        "chunk_ms": round(1000 * engine.chunk_s),
        "latency_ms": round(algorithmic_ms(model, recognizer.chunk_frames)),
        "beam": recognizer.options.beam,
        "device": recognizer.device.type,
    }


def make_app(engines: Mapping[str, Engine], limits: Limits, hosts: Sequence[str]) -> Starlette:
    """The application.

    Args:
        engines: At least one; they are stopped when the application ends.
        limits: Of every client.
        hosts: Host names by which it may be called, without ports.
    """
    server = Server(engines, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for engine in engines.values():
            engine.stop()

    async def info(request: Request) -> Response:
        return JSONResponse(server.describe(), headers=HEADERS)

    async def stream(socket: WebSocket) -> None:
        await _Connection(server, socket).run()

    routes = [Route(path, _file(*file)) for path, file in FILES.items()]
    return Starlette(
        routes=[*routes, Route("/info", info), WebSocketRoute("/stream", stream)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        lifespan=lifespan,
    )


def _file(name: str, media_type: str) -> Any:
    body = (PAGE / name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(body, media_type=media_type, headers=HEADERS)

    return send


class _Connection:
    """One WebSocket from its handshake to its end; whatever ends it, its stream is freed."""

    def __init__(self, server: Server, socket: WebSocket) -> None:
        self.server, self.socket = server, socket

    async def run(self) -> None:
        origin, host = self.socket.headers.get("origin"), self.socket.headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            await self.socket.close(TOO_MUCH)  # before accepting: the handshake is answered with 403
            return
        await self.socket.accept()
        if self.server.num_streams >= self.server.limits.sessions:
            await self._error(f"busy: {self.server.limits.sessions} streams already", TRY_LATER)
            return
        stream: Stream | None = None
        tasks: list[asyncio.Task[None]] = []
        try:
            start = await self._start()
            engine = self._engine(start.model)
            stream = engine.open()
            await self._send(json.dumps({"event": "ready", "model": start.model or next(iter(self.server.engines))}))
            tasks = [asyncio.create_task(self._hear(stream, start)), asyncio.create_task(self._tell(stream))]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except (protocol.ProtocolError, ValueError) as error:
            await self._error(str(error), BAD_DATA)
        except (TimeoutError, SlowReader) as error:
            await self._error(str(error) or f"expected audio within {self.server.limits.idle_s:g} s", TOO_MUCH)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the client is gone: starlette says RuntimeError where something is sent after that
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if stream is not None:
                stream.abandon()

    def _engine(self, name: str) -> Engine:
        engines = self.server.engines
        if not name:
            return next(iter(engines.values()))
        if name not in engines:
            raise protocol.ProtocolError(f"model: expected one of {', '.join(engines)}, found {name[:80]!r}")
        return engines[name]

    async def _receive(self) -> str | bytes:
        message = await asyncio.wait_for(self.socket.receive(), self.server.limits.idle_s)
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        text: str | None = message.get("text")
        return text if text is not None else bytes(message.get("bytes") or b"")

    async def _start(self) -> protocol.Start:
        first = await self._receive()
        if isinstance(first, bytes):
            raise protocol.ProtocolError("expected a text message first that says what the audio is, found audio")
        start = protocol.read_text(first)
        if start is None:
            raise protocol.ProtocolError("expected a text message first that says what the audio is, found its end")
        return start

    async def _hear(self, stream: Stream, start: protocol.Start) -> None:
        """Take audio until the client says that it ends; afterwards only wait for the client to close."""
        while True:
            message = await self._receive()
            if isinstance(message, bytes):
                await stream.feed(protocol.read_audio(message, start), start.sample_rate_hz)
            elif protocol.read_text(message) is None:
                stream.finish()
                return
            else:
                raise protocol.ProtocolError('expected audio or {"event": "end"}, found another start')

    async def _tell(self, stream: Stream) -> None:
        while True:
            message = await stream.next()
            await self._send(protocol.write(message))
            if isinstance(message, Ended):
                await self.socket.close()
                raise WebSocketDisconnect(1000)

    async def _send(self, text: str) -> None:
        await asyncio.wait_for(self.socket.send_text(text), self.server.limits.idle_s)

    async def _error(self, reason: str, code: int) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            if self.socket.client_state is WebSocketState.CONNECTED:
                await self._send(json.dumps({"event": "error", "reason": reason}))
                await self.socket.close(code)
