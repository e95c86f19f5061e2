"""``asrkd push``: a model package onto the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    package: Annotated[Path, typer.Argument(help="Model package (a folder).")],
    name: Annotated[str, typer.Argument(help="org/name on the hub; hf://org/name loads it again.")],
    private: Annotated[bool, typer.Option("--private", help="Where the repository is made now.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; the main one if left out.")] = None,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights (an SPDX name), written into the package first.")
    ] = None,
) -> None:
    """Check PACKAGE whole and put it on the hub with its model card; `huggingface-cli login` gives the token.

    A package without a licence is refused: nobody may use it then.
    """
    from asrkd.models import hub
    from asrkd.models import package as packages

    if licence is not None:
        packages.set_licence(package, licence)
    stated = packages.read_config(package)["licence"]
    if stated == packages.NOT_STATED:
        raise ValueError(f"{package}: licence: expected one to be stated, found none: --licence Apache-2.0, say")
    packages.load(package)
    typer.echo(hub.push(package, name, private=private, revision=revision, message=message))
