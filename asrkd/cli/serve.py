"""``asrkd serve``: live recognition over a WebSocket, with a page to see and hear it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asrkd.cli.device import DeviceOption, choose_device
from asrkd.cli.search import (
    BeamOption,
    BoostOption,
    ChunkOption,
    HotwordsOption,
    LexiconOption,
    LmOption,
    LmWeightOption,
    WordScoreOption,
    search_options,
)

if TYPE_CHECKING:
    from asrkd.serving.engine import Engine, Limits

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def serve(
    packages: Annotated[
        list[str], typer.Argument(help="Model packages of streaming students; two are shown side by side.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one and says which.")] = 8765,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further host name by which the server may be called.")
    ] = None,
    chunk_ms: ChunkOption = None,
    beam: BeamOption = 1,
    hotwords: HotwordsOption = None,
    hotword_boost: BoostOption = 1.5,
    lm: LmOption = None,
    lexicon: LexiconOption = None,
    lm_weight: LmWeightOption = 0.5,
    word_score: WordScoreOption = 0.0,
    device: DeviceOption = "auto",
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of each model.")] = 1,
    sessions: Annotated[int, typer.Option(min=1, help="Streams at once.")] = 32,
    idle_s: Annotated[float, typer.Option(min=0.1, help="A stream that brings nothing for so long is ended.")] = 30.0,
    message_kib: Annotated[int, typer.Option(min=1, help="Largest WebSocket message.")] = 1024,
) -> None:
    """Recognise live: open the address it prints in a browser, pick a file or speak.

    Programs use the WebSocket at /stream, see docs/live.md. Example: asrkd serve exp/alone/package exp/distilled/package
    """
    from asrkd.serving.engine import Limits

    limits = Limits(sessions=sessions, idle_s=idle_s, message_bytes=message_kib << 10)
    _check_installed()
    search: dict[str, Any] = {
        "beam": beam, "lm": lm, "lexicon": lexicon, "lm_weight": lm_weight, "word_score": word_score,
        "hotwords": hotwords, "hotword_boost": hotword_boost,
    }  # fmt: skip
    engines = _engines(packages, chunk_ms, search, choose_device(device), threads, limits)
    _run(engines, limits, host, port, [*LOOPBACK, host, *(allow_host or [])])


def _check_installed() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise ValueError(f"serve: {error.name} is not installed: pip install 'asrkd[serve]'") from None


def _engines(
    packages: Sequence[str], chunk_ms: int | None, search: dict[str, Any], device: str, threads: int, limits: Limits
) -> dict[str, Engine]:
    import torch

    from asrkd.models.package import load
    from asrkd.serving.engine import Engine
    from asrkd.streaming.recognizer import Recognizer, RecognizerOptions, chunk_frames_of

    torch.set_num_threads(threads)
    names = _names(packages)
    recognizers = []
    for package in packages:
        model = load(package, device)
        chunk_frames = None if chunk_ms is None else chunk_frames_of(model, chunk_ms)
        found = search_options(model, **search)
        recognizers.append(Recognizer(model, RecognizerOptions(chunk_frames=chunk_frames, **found)))
    return {name: Engine(recognizer, limits) for name, recognizer in zip(names, recognizers, strict=True)}


def _names(packages: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell the packages apart; ``package`` says nothing, its folder does.

    Raises:
        ValueError: If one is named twice.
    """
    parts = [Path(package).absolute().parts for package in packages]
    parts = [path[:-1] if path[-1] == "package" and len(path) > 2 else path for path in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"PACKAGES: expected each once, found {', '.join(packages)}")


def _run(engines: dict[str, Engine], limits: Limits, host: str, port: int, hosts: Sequence[str]) -> None:
    import socket

    import uvicorn

    from asrkd.serving.app import make_app

    config = uvicorn.Config(
        make_app(engines, limits, hosts),
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=limits.message_bytes,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        limit_concurrency=2 * limits.sessions + 32,
        timeout_graceful_shutdown=3,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ValueError(f"--host {host} --port {port}: {error.strerror or error}") from None
        listening.listen(128)
        bound = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{bound}:{listening.getsockname()[1]}/  ({', '.join(engines)}; Ctrl-C ends it)")
        uvicorn.Server(config).run(sockets=[listening])
