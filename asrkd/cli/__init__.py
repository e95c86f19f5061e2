"""The command line: one file a verb, each thin. Heavy imports happen inside the verbs, so that ``--help`` is quick."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

import typer

app = typer.Typer(
    name="asrkd",
    help="Distil large speech recognisers into small streaming ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


# What a wrong command line raises; newer typer carries its own click, so that click's name for it may not be the one.
_USAGE_ERROR: Any = typer.BadParameter.__bases__[0]


def _register() -> None:
    from asrkd.cli.compare import compare
    from asrkd.cli.demo import demo
    from asrkd.cli.evaluate import evaluate
    from asrkd.cli.export import export
    from asrkd.cli.filter import filter_labels
    from asrkd.cli.inspect import inspect
    from asrkd.cli.label import label
    from asrkd.cli.listen import listen
    from asrkd.cli.losses import losses
    from asrkd.cli.prepare import prepare
    from asrkd.cli.push import push
    from asrkd.cli.run import run
    from asrkd.cli.serve import serve
    from asrkd.cli.sweep import sweep
    from asrkd.cli.train import train
    from asrkd.cli.transcribe import transcribe

    app.command()(demo)
    app.add_typer(prepare, name="prepare")
    for verb in (run, train, label, sweep, inspect, evaluate, compare, transcribe, listen, serve, export, push, losses):
        app.command()(verb)
    app.command("filter")(filter_labels)


_register()


def main() -> None:
    """Run the command line; user errors are one line on standard error and exit code 2, traceback only for bugs."""
    level = os.environ.get("ASRKD_LOG", "ERROR").upper()
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.setLevel(level)  # SpeechBrain sets its own loggers to INFO; the handler has the last word
    if level == "ERROR":
        warnings.filterwarnings("ignore")
    try:
        status = app(standalone_mode=False)
    except _USAGE_ERROR as error:
        error.show()
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write("asrkd: interrupted; the same command continues\n")
        sys.exit(130)
    except (ValueError, OSError) as error:
        if level == "DEBUG":
            raise
        sys.stderr.write(f"asrkd: {_one_line(error)}\n")
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(error: ValueError | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
