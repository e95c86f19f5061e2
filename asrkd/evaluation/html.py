"""``report.html``: the report as one page to look at and listen to, without a single outside request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from lhotse import CutSet

from asrkd.data.files import write_atomically
from asrkd.evaluation import plots
from asrkd.evaluation.compare import Comparison
from asrkd.evaluation.diagnostics import Diagnostics, diagnose
from asrkd.evaluation.listening import Item, Posteriors, items
from asrkd.evaluation.report import (
    Entry,
    Row,
    breakdown_cells,
    diagnostics_cells,
    headline,
    how_measured,
    sentence,
    speed_cells,
    table_cells,
)
from asrkd.evaluation.result import EvaluationResult
from asrkd.models import package
from asrkd.models.base import Recogniser

UTTERANCES = 10
DIAGNOSED = 48
_CONTENT = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_page(
    entries: Sequence[Entry],
    comparisons: Sequence[Comparison],
    folder: str | Path,
    cuts: Mapping[str, CutSet] | None = None,
    diagnostics: Mapping[str, Diagnostics] | None = None,
) -> Path:
    """Write ``report.html``.

    Args:
        entries: As of ``asrkd.evaluation.write.write_report``.
        comparisons: The same.
        folder: Must be there.
        cuts: Of each test set, for the utterances to listen to; their models are read from the packages that the results
            name, where those are still there.
        diagnostics: Of students by name; as of `diagnostics_of`.

    Returns:
        The page.

    Raises:
        OSError: If it cannot be written.
    """
    rows = headline(entries)
    results = [entry.result for entry in entries]
    heard = items(results, cuts, _models(entries), UTTERANCES) if cuts else []
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    sections = [
        _headline(rows),
        _section("Word error rate", _bars(rows)),
        _section("What accuracy costs", _pareto(rows)),
        _section("Speed and memory", _speed(entries)),
        _section("Comparisons", _comparisons(comparisons)),
        _section("Delay and agreement with the teacher", _diagnostics(diagnostics or {})),
        _section("Most frequent errors", "".join(_confusions(result) for result in results)),
        _section("By length, noise and speaker", "".join(_breakdown(entry) for entry in entries)),
        _section("Listen", "".join(_item(item) for item in heard)),
        _section("How this was measured", _list(how_measured(entries))),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(results[-1].name)}: evaluation</title><link rel="icon" href="data:,"><style>{style}</style></head>'
        f"<body>{''.join(sections)}<script>{script}</script></body></html>\n"
    )
    target = Path(folder) / "report.html"
    write_atomically(target, page.encode())
    return target


def diagnostics_of(entries: Sequence[Entry], cuts: Mapping[str, CutSet]) -> dict[str, Diagnostics]:
    """Students beside their teacher on evenly spaced utterances of the first test set; empty without a teacher.

    Args:
        entries: Whose packages are still where the results say.
        cuts: Of each test set.
    """
    models = _models(entries)
    teacher = next((e.result.name for e in entries if e.role == "teacher" and e.result.name in models), None)
    everything = list(next(iter(cuts.values()), ()))
    if teacher is None or not everything:
        return {}
    few = CutSet.from_cuts(everything[:: max(1, len(everything) // DIAGNOSED)])
    judge = models[teacher][0]
    return {
        name: diagnose(model, judge, few, chunk_frames=chunk)
        for name, (model, chunk) in models.items()
        if name != teacher and model.vocabulary.identity == judge.vocabulary.identity
    }


def _models(entries: Sequence[Entry]) -> dict[str, tuple[Recogniser, int | None]]:
    """CTC models of the packages that are still there and still the same, with the chunk they were decoded in.

    A transducer's posteriors stand on a lattice: there is no picture of them, and no frame to compare with a teacher's.
    """
    found: dict[str, tuple[Recogniser, int | None]] = {}
    for entry in entries:
        facts = entry.result.model
        if facts.package is None or not (Path(facts.package) / package.CONFIG).exists():
            continue
        if package.read_config(Path(facts.package))["weights_sha256"] == facts.weights_sha256:
            model = package.load(facts.package)
            if not model.has_transducer:
                found[entry.result.name] = model, entry.result.decoding.chunk_frames
    return found


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line).replace('`', '')}</li>" for line in lines) + "</ul>" if lines else ""


def _table(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in line) + "</tr>" for line in cells)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _headline(rows: Sequence[Row]) -> str:
    parts = ", ".join(dict.fromkeys(part for row in rows for part in row.wer))
    return f'<h1>Evaluation</h1><p class="sub">{len(rows)} systems on {escape(parts)}</p>{_table(*table_cells(rows))}'


def _bars(rows: Sequence[Row]) -> str:
    parts = dict.fromkeys(part for row in rows for part in row.wer)
    groups = {part: [(row.name, row.role, row.wer[part]) for row in rows if part in row.wer] for part in parts}
    return f"<figure>{plots.error_bars(groups)}</figure>"


def _pareto(rows: Sequence[Row]) -> str:
    def points(cost: Mapping[str, float | None]) -> list[plots.Point]:
        made = []
        for row in rows:
            errors = [i.estimate for i in row.wer.values() if i.estimate is not None]
            x = cost[row.name]
            if errors and x:
                made.append(plots.Point(row.name, row.role, x, 100 * sum(errors) / len(errors)))
        return made

    drawn = [
        plots.scatter(
            points({r.name: r.rtf_streaming or r.rtf_offline for r in rows}),
            "RTF (streaming where it streams)",
            logarithmic=True,
        ),
        plots.scatter(points({r.name: r.size_bytes / 1e6 for r in rows}), "MB on disk", logarithmic=True),
        plots.scatter(points({r.name: r.algorithmic_latency_ms for r in rows}), "algorithmic latency, ms"),
    ]
    figures = "".join(f"<figure>{svg}</figure>" for svg in drawn if svg)
    note = '<p class="note">WER is the mean over test sets. The line joins systems that no other beats in both.</p>'
    return f'<div class="plots">{figures}</div>{note}' if figures else ""


def _speed(entries: Sequence[Entry]) -> str:
    headings, cells = speed_cells(entries)
    return _table(headings, cells) if cells else ""


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    return _list([sentence(c, part, test) for c in comparisons for part, test in c.tests.items()])


def _diagnostics(found: Mapping[str, Diagnostics]) -> str:
    figures = []
    for name, seen in found.items():
        role = "distilled" if "distilled" in name else "alone" if "alone" in name else None
        delays: dict[float, int] = {}
        for delay in seen.emission_delays_ms:
            binned = round(delay / 40) * 40.0
            delays[binned] = delays.get(binned, 0) + 1
        offsets = {seen.frame_shift_ms * k: n for k, n in seen.spike_offsets.items()}
        figures += [
            plots.histogram(delays, f"{name}: emission delay of words, ms", role),
            plots.histogram(offsets, f"{name}: spikes behind the teacher's, ms", role),
        ]
    if not figures:
        return ""
    drawn = "".join(f"<figure>{svg}</figure>" for svg in figures if svg)
    return f'{_table(*diagnostics_cells(found))}<div class="plots">{drawn}</div>'


def _confusions(result: EvaluationResult) -> str:
    cells = []
    for part, found in result.parts.items():
        for kind in ("substitutions", "deletions", "insertions"):
            said = [f"{a or '∅'} → {b or '∅'} ({n})" for a, b, n in getattr(found, kind)[:8]]
            cells.append([part, kind, ", ".join(said) or "none"])
    lines = "".join(f'<p class="words"><b>{escape(part)}, {kind}</b> {escape(text)}</p>' for part, kind, text in cells)
    return f"<details><summary>{escape(result.name)}</summary><div>{lines}</div></details>"


def _breakdown(entry: Entry) -> str:
    table = _table(*breakdown_cells([entry], speakers=8))
    note = "<small>(speakers: the eight worst)</small>"
    return f"<details><summary>{escape(entry.result.name)} {note}</summary><div>{table}</div></details>"


def _item(item: Item) -> str:
    lines = []
    for name, utterance in item.heard:
        words = " ".join(_word(e.operation, e.reference, e.hypothesis) for e in utterance.score.alignment)
        lines.append(f'<p class="words"><b>{escape(name)}</b> {words}</p>')
    reference = item.heard[0][1].reference
    pictures = "".join(_posteriors(p) for p in item.posteriors)
    return (
        f"<details><summary>{escape(item.part)}/{escape(item.id)} <small>{escape(item.note)}</small></summary>"
        f'<div class="item" data-seconds="{item.seconds:.4f}"><p class="words"><b>reference</b> {escape(reference)}</p>'
        f'{"".join(lines)}<div class="time">{_waveform(item.waveform)}<img alt="mel spectrogram" src="{item.spectrogram}">'
        f'{pictures}<div class="cursor"></div></div><audio controls preload="metadata" src="{item.audio}"></audio></div></details>'
    )


def _word(operation: str, reference: str, hypothesis: str) -> str:
    if operation == "equal":
        return escape(hypothesis)
    shown = reference if operation == "delete" else hypothesis
    meant = f"{reference or '∅'} → {hypothesis or '∅'}"
    return f'<span class="{operation}" title="{escape(meant)}">{escape(shown)}</span>'


def _posteriors(seen: Posteriors) -> str:
    spikes = "".join(f'<span style="left:{100 * at:.2f}%">{escape(token)}</span>' for at, token in seen.spikes)
    rows = escape(" ".join(seen.tokens))
    return (
        f'<figcaption>{escape(seen.name)}: posteriors <span title="{rows}">({len(seen.tokens)} tokens, blank at the bottom)</span>'
        f'</figcaption><div class="lane">{spikes}</div><img class="post" alt="posteriors of {escape(seen.name)}" src="{seen.image}">'
    )


def _waveform(heights: Sequence[float]) -> str:
    top = max(max(heights), 1e-3)
    upper = "".join(f"L{x} {20 - 19 * h / top:.1f}" for x, h in enumerate(heights))
    lower = "".join(f"L{x} {20 + 19 * heights[x] / top:.1f}" for x in range(len(heights) - 1, -1, -1))
    path = f'<path d="M0 20{upper}{lower}Z"/>'
    return f'<svg class="wave" viewBox="0 0 {len(heights)} 40" preserveAspectRatio="none" role="img" aria-label="waveform">{path}</svg>'
