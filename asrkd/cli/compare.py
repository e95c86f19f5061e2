"""``asrkd compare``: results on the same audio against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asrkd.cli.evaluate import read_parts
from asrkd.cli.progress import console

if TYPE_CHECKING:
    from rich.text import Text

    from asrkd.evaluation.report import Entry, Role
    from asrkd.evaluation.result import EvaluationResult, Utterance
    from asrkd.evaluation.wer import UtteranceScore

_ROLES: tuple[Role, ...] = ("teacher", "alone", "distilled")


def compare(
    results: Annotated[
        list[str],
        typer.Argument(
            help="Results of asrkd evaluate (folders), the first compared with each of the others. ROLE=FOLDER with "
            "the role teacher, alone or distilled gives the gap closed and compares alone with distilled; "
            "ROLE:SEED=FOLDER for students of several seeds. A folder of results stands for all of them."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for report.md, metrics.json and report.html.")] = None,
    tests: Annotated[
        bool,
        typer.Option(help="Test differences; without, results need not be of the same audio (Pareto plots alone)."),
    ] = True,
    data: Annotated[
        list[str] | None, typer.Option(help="Test sets as of asrkd evaluate, to listen to what changed on the page.")
    ] = None,
    changed: Annotated[int, typer.Option(help="Utterances that changed most, to be shown.", min=0)] = 5,
) -> None:
    """Compare RESULTS: paired bootstrap, MAPSSWE, wins and losses, and the utterances that changed most."""
    from asrkd.evaluation.compare import compare as compare_two
    from asrkd.evaluation.compare import most_changed
    from asrkd.evaluation.html import diagnostics_of, write_page
    from asrkd.evaluation.report import comparisons_of, console_table, headline, sentence
    from asrkd.evaluation.write import write_report

    entries = [entry for given in results for entry in _entries(given)]
    names = [e.result.name for e in entries]
    if len(entries) < 2 or len(set(names)) < len(names):
        raise ValueError(f"RESULTS: expected at least two with different names, found {', '.join(names)}")
    comparisons = []
    if tests:
        comparisons = comparisons_of(entries) or [compare_two(entries[0].result, e.result) for e in entries[1:]]
    screen = console()
    screen.print(console_table(headline(entries)))
    for comparison in comparisons:
        for part, test in comparison.tests.items():
            screen.print(sentence(comparison, part, test))
        first, second = (_named(entries, name) for name in (comparison.first, comparison.second))
        for title, pairs in zip(("better", "worse"), most_changed(first, second, changed), strict=True):
            if pairs:
                screen.print(f"\n{comparison.second}: most {title}", style="bold")
            for before, after in pairs:
                screen.print(_aligned(before, after, comparison.first, comparison.second))
    if out is not None:
        parts = read_parts(data or [])
        diagnostics = diagnostics_of(entries, parts)
        write_report(entries, comparisons, out, diagnostics)
        write_page(entries, comparisons, out, parts, diagnostics)
        typer.echo(out)


def _entries(given: str) -> list[Entry]:
    """The result that is named, or all in a folder of results."""
    from asrkd.evaluation.report import Entry
    from asrkd.evaluation.result import RESULT, load

    inside = sorted(Path(given).glob(f"*/{RESULT}"))
    if inside and not (Path(given) / RESULT).exists():
        return [Entry(load(path.parent)) for path in inside]
    return [_entry(given)]


def _entry(given: str) -> Entry:
    """A result with the role and the seed that stand before its folder."""
    from asrkd.evaluation.report import Entry
    from asrkd.evaluation.result import load

    label, equals, folder = given.partition("=")
    name, _, seed = label.partition(":")
    role = next((r for r in _ROLES if r == name), None)
    if not equals or role is None:
        return Entry(load(given))
    if seed and not seed.isdigit():
        raise ValueError(f"RESULTS: expected ROLE:SEED=FOLDER with a number for the seed, found {given}")
    result = load(folder)
    named = result.model_copy(update={"name": f"{role} {seed}".strip()})
    return Entry(named, role, int(seed) if seed else None)


def _named(entries: list[Entry], name: str) -> EvaluationResult:
    return next(e.result for e in entries if e.result.name == name)


def _aligned(before: Utterance, after: Utterance, first: str, second: str) -> Text:
    """Reference and both hypotheses, one below the other; errors in capitals of colour."""
    from rich.text import Text

    width = max(len(first), len(second), len("reference"))
    text = Text(f"\n{before.part}/{before.id}: {before.score.errors} → {after.score.errors} errors\n")
    text.append(f"{'reference':>{width}}  {' '.join(before.score.reference)}\n")
    for name, score in ((first, before.score), (second, after.score)):
        text.append(f"{name:>{width}}  ")
        text.append_text(_marked(score))
        text.append("\n")
    return text


def _marked(score: UtteranceScore) -> Text:
    """Recognised words; wrong ones red, missing ones as ``(word)``, inserted ones with a plus."""
    from rich.text import Text

    text = Text()
    for edit in score.alignment:
        if edit.operation == "equal":
            text.append(edit.hypothesis)
        elif edit.operation == "substitute":
            text.append(edit.hypothesis, style="bold red")
        elif edit.operation == "delete":
            text.append(f"({edit.reference})", style="bold yellow")
        else:
            text.append(f"+{edit.hypothesis}", style="bold magenta")
        text.append(" ")
    return text
