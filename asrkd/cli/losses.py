"""``asrkd losses``: the catalogue."""

from __future__ import annotations


def losses() -> None:
    """List every loss that a recipe may name: what it does, its options with their defaults, and its source."""
    from rich.console import Console
    from rich.table import Table

    from asrkd.losses import LOSSES

    table = Table("loss", "what it does", "needs", "options (default)", "source", show_lines=True)
    for name, spec in sorted(LOSSES.items()):
        options = ", ".join(f"{key} ({value!r})" for key, value in spec.options.items())
        table.add_row(name, spec.summary, ", ".join(sorted(spec.needs)), options or "none", spec.source)
    Console().print(table)
