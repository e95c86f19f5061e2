"""One table of what was lost and won, and the words around it, the same wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from asrkd.evaluation import significance
from asrkd.evaluation.compare import Comparison, PairedTest, compare, paired
from asrkd.evaluation.diagnostics import Diagnostics
from asrkd.evaluation.result import EvaluationResult, IntervalRecord, PartResult, interval_record

Role = Literal["teacher", "alone", "distilled"]


@dataclass(frozen=True)
class Entry:
    """One system of a report.

    Args:
        result: Its evaluation.
        role: ``teacher``, ``alone`` (the student trained without a teacher) or ``distilled``; ``None`` for any other.
        seed: Of its training; students of one seed are compared with each other.
    """

    result: EvaluationResult
    role: Role | None = None
    seed: int | None = None


class Row(BaseModel):
    """One line of the headline table.

    Attributes:
        name: Of the system.
        role: In the distillation.
        seed: Of its training.
        parameters: Trainable parameters.
        size_bytes: On disk.
        wer: Of each test set with its interval (fractions).
        gap_closed: (alone − distilled) / (alone − teacher), all test sets pooled, drawn over utterances.
        rtf_offline: One thread, one utterance at a time, as far as the timing says.
        rtf_streaming: Chunk by chunk.
        threads: Of both.
        device: Of both.
        algorithmic_latency_ms: ``None`` for a model that waits for the end of the utterance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    role: Role | None
    seed: int | None
    parameters: int
    size_bytes: int
    wer: dict[str, IntervalRecord]
    gap_closed: IntervalRecord | None
    rtf_offline: float | None
    rtf_streaming: float | None
    threads: int | None
    device: str | None
    algorithmic_latency_ms: float | None


def headline(entries: Sequence[Entry]) -> list[Row]:
    """The rows of the headline table.

    Args:
        entries: In the order of the table.

    Raises:
        ValueError: If there is none, or a distilled student and those it is measured by were not made on the same
            audio.
    """
    if not entries:
        raise ValueError("results: expected at least one, found none")
    rows = []
    for entry in entries:
        result = entry.result
        offline, streaming = result.timing("offline", 1), result.timing("streaming")
        gap = _gap_closed(entry, entries)
        rows.append(
            Row(
                name=result.name,
                role=entry.role,
                seed=entry.seed,
                parameters=result.model.parameters,
                size_bytes=result.model.size_bytes,
                wer={part: found.interval for part, found in result.parts.items()},
                gap_closed=None if gap is None else interval_record(gap, "utterances"),
                rtf_offline=None if offline is None else offline.rtf,
                rtf_streaming=None if streaming is None else streaming.rtf,
                threads=None if offline is None else offline.threads,
                device=None if offline is None else offline.device,
                algorithmic_latency_ms=result.model.algorithmic_latency_ms,
            )
        )
    return rows


def comparisons_of(entries: Sequence[Entry]) -> list[Comparison]:
    """Alone against distilled for every seed that has both.

    Args:
        entries: Of the report.

    Raises:
        ValueError: If two were not made on the same audio and normaliser.
    """
    found = ((_partner(e, entries, "alone"), e) for e in entries if e.role == "distilled")
    return [compare(alone.result, distilled.result) for alone, distilled in found if alone is not None]


def gap_closed_over_seeds(entries: Sequence[Entry]) -> IntervalRecord | None:
    """Mean gap closed with Student's interval over seeds, all test sets pooled; ``None`` for fewer than two seeds.

    Args:
        entries: With roles and seeds.
    """
    teacher = next((e for e in entries if e.role == "teacher"), None)
    pairs = [(_partner(e, entries, "alone"), e) for e in entries if e.role == "distilled"]
    complete = [(alone, e) for alone, e in pairs if alone is not None]
    if teacher is None or len(complete) < 2:
        return None
    alone_wer = [_pooled_wer(alone.result) for alone, _ in complete]
    teacher_wer = _pooled_wer(teacher.result)
    if min(alone_wer) <= teacher_wer:
        return None
    gap = significance.gap_closed(alone_wer, [_pooled_wer(e.result) for _, e in complete], teacher_wer)
    return interval_record(gap, "seeds")


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the headline table as text, the same wherever it is shown.

    Args:
        rows: Of `headline`.
    """
    parts = list(dict.fromkeys(part for row in rows for part in row.wer))
    timed = next((row for row in rows if row.threads), None)
    where = f" ({timed.device}, {_threads(timed.threads)})" if timed else ""
    headings = [
        "System",
        "Parameters",
        "Size",
        *(f"WER {part} [95 %]" for part in parts),
        "Gap closed [95 %]",
        f"RTF offline{where}",
        f"RTF streaming{where}",
        "Latency",
    ]
    cells = [
        [
            row.name,
            f"{row.parameters / 1e6:.2f} M",
            f"{row.size_bytes / 1e6:.1f} MB",
            *(percent(row.wer.get(part)) for part in parts),
            percent(row.gap_closed, digits=0),
            "–" if row.rtf_offline is None else f"{row.rtf_offline:.4f}",
            "–" if row.rtf_streaming is None else f"{row.rtf_streaming:.4f}",
            "utterance" if row.algorithmic_latency_ms is None else f"{row.algorithmic_latency_ms:.0f} ms",
        ]
        for row in rows
    ]
    return headings, cells


def speed_cells(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of every timing, with what the process took; no cells where nothing was timed.

    Args:
        entries: Of the report.
    """
    headings = ["System", "Mode", "Batch", "Threads", "RTF [fastest, slowest repeat]", "RTFx", "Chunk", "Chunk p99"]
    headings += ["Slowest chunk", "Start-up", "Peak memory", "Multiply–adds", "Streams held"]
    cells = []
    for entry in entries:
        result = entry.result
        foot, held, macs = result.footprint, result.streams, result.model.macs_per_audio_second
        once = [
            "–" if foot is None else f"{foot.start_up_s:.1f} s",
            "–" if foot is None else f"{foot.peak_host_bytes / 1e6:.0f} MB",
            "–" if macs is None else f"{macs / 1e6:.0f} M/s",
            "–" if held is None else f"{held.streams} ({held.threads} thr.)",
        ]
        for timing in result.speed:
            chunks = (timing.chunk_ms, timing.chunk_p99_ms, timing.chunk_slowest_ms)
            ms = ["–" if value is None else f"{value:.1f} ms" for value in chunks]
            rtf = f"{timing.rtf:.4f} [{timing.rtf_low:.4f}, {timing.rtf_high:.4f}]"
            how = [timing.mode, str(timing.batch), str(timing.threads), rtf, f"{timing.rtfx:.0f}"]
            cells.append([result.name, *how, *ms, *once])
            once = ["", "", "", ""]
    return headings, cells


def diagnostics_cells(found: Mapping[str, Diagnostics]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of students beside their teacher.

    Args:
        found: By the student's name.
    """
    headings = [
        "System",
        "Emission delay median",
        "p90",
        "First partial median",
        "Words revised",
        "Agreement on spikes",
    ]
    headings += ["Blank mass (teacher)", "Blank mass"]
    cells = [
        [
            name,
            "–" if s.emission_delay_ms is None else f"{s.emission_delay_ms.median:.0f} ms",
            "–" if s.emission_delay_ms is None else f"{s.emission_delay_ms.p90:.0f} ms",
            "–" if s.first_partial_ms is None else f"{s.first_partial_ms.median:.0f} ms",
            "–" if s.revised_words is None else f"{100 * s.revised_words:.1f} %",
            "–" if s.agreement is None else f"{100 * s.agreement:.0f} %",
            f"{100 * s.teacher_blank_mass:.0f} %",
            f"{100 * s.student_blank_mass:.0f} %",
        ]
        for name, s in found.items()
    ]
    return headings, cells


def most_frequent(part: PartResult, each: int = 5) -> list[tuple[str, str, int]]:
    """The most frequent substitutions, deletions and insertions ``(reference, recognised, count)`` of a test set.

    Args:
        part: Its figures.
        each: Of each kind at most.
    """
    return [*part.substitutions[:each], *part.deletions[:each], *part.insertions[:each]]


def breakdown_cells(entries: Sequence[Entry], speakers: int = 0) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of WER by length, SNR and, worst first, speaker.

    Args:
        entries: Of the report.
        speakers: How many of them.
    """
    cells = []
    for entry in entries:
        for part, found in entry.result.parts.items():
            worst = sorted(found.by_speaker.items(), key=lambda g: -(g[1].wer or 0))[:speakers]
            for title, groups in (("length", found.by_duration), ("SNR", found.by_snr), ("speaker", dict(worst))):
                for name, rates in groups.items():
                    wer = "–" if rates.wer is None else f"{100 * rates.wer:.2f} %"
                    counts = [str(rates.utterances), str(rates.reference_words)]
                    cells.append([entry.result.name, part, title, name, *counts, wer])
    return ["System", "Test set", "By", "Group", "Utterances", "Words", "WER"], cells


def console_table(rows: Sequence[Row]) -> Table:
    """The headline table for a terminal.

    Args:
        rows: Of `headline`.
    """
    headings, cells = table_cells(rows)
    table = Table(show_lines=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    for line in cells:
        table.add_row(*line)
    return table


def percent(interval: IntervalRecord | None, digits: int = 2, sign: bool = False) -> str:
    """``12.34 % [11.90, 12.80]`` of an interval of fractions; a dash where there is none.

    Args:
        interval: To be shown.
        digits: After the point.
        sign: Whether positive numbers get a plus.
    """
    if interval is None or interval.estimate is None:
        return "–"
    plus = "+" if sign else ""
    text = f"{100 * interval.estimate:{plus}.{digits}f} %"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{100 * interval.low:{plus}.{digits}f}, {100 * interval.high:{plus}.{digits}f}]"


def p_value(p: float) -> str:
    """``p < 0.001`` or ``p = 0.023``.

    Args:
        p: Between 0 and 1.
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def sentence(comparison: Comparison, part: str, test: PairedTest) -> str:
    """One comparison on one test set in words.

    Args:
        comparison: Gives the names.
        part: Test set.
        test: Its figures.
    """
    parts = [
        f"{comparison.second} − {comparison.first} on {part}: {percent(test.difference, sign=True)} WER, "
        f"paired bootstrap over {test.difference.blocks} utterances {p_value(test.p)}"
    ]
    if test.speaker_p is not None and test.speaker_difference is not None:
        parts.append(f"over {test.speaker_difference.blocks} speakers {p_value(test.speaker_p)}")
    parts.append(f"MAPSSWE {p_value(test.mapsswe_p)} ({test.mapsswe_segments} segments)")
    return "; ".join(parts) + f"; {test.wins} won, {test.ties} tied, {test.losses} lost"


def how_measured(entries: Sequence[Entry]) -> list[str]:
    """What the figures depend on, in sentences.

    Args:
        entries: Of the report.
    """
    result = entries[0].result
    machine = result.machine
    first = next(iter(result.parts.values())).interval
    lines = [
        f"Normaliser `{result.normaliser}` for references and hypotheses alike.",
        f"Intervals: {100 * first.level:.0f} % percentile bootstrap over utterances, {first.draws} draws.",
        "Gap closed = (WER alone − WER distilled) / (WER alone − WER teacher), test sets pooled.",
        "Latency: chunk and look-ahead of the feature window; the model's computation comes on top.",
    ]
    if result.speed:
        timing = result.speed[0]
        lines.append(
            f"RTF: {timing.includes}; {timing.precision}, {_threads(timing.threads)}, {timing.device}; median of "
            f"{timing.repeats} repeats over {timing.audio_s:.0f} s of audio after a warm-up; reading audio left out."
        )
    lines.append(
        f"Machine: {machine.gpu + ', ' if machine.gpu else ''}{machine.cpu}, {machine.cpu_cores} cores, "
        f"{machine.platform}; torch {machine.torch}, asrkd {machine.asrkd} at {machine.git_commit or 'no checkout'}."
    )
    return lines


def _gap_closed(entry: Entry, entries: Sequence[Entry]) -> significance.Interval | None:
    """Gap that a distilled student closed, all test sets pooled; ``None`` without its partners or without a gap."""
    alone = _partner(entry, entries, "alone")
    teacher = next((e for e in entries if e.role == "teacher"), None)
    if entry.role != "distilled" or alone is None or teacher is None:
        return None
    if _pooled_wer(alone.result) <= _pooled_wer(teacher.result):
        return None
    taught = [(a.score.errors, b.score.errors) for a, b in paired(alone.result, entry.result)]
    teacher_errors = [b.score.errors for _, b in paired(alone.result, teacher.result)]
    return significance.gap_closed_ci([a for a, _ in taught], [b for _, b in taught], teacher_errors)


def _partner(entry: Entry, entries: Sequence[Entry], role: Role) -> Entry | None:
    return next((e for e in entries if e.role == role and e.seed == entry.seed), None)


def _pooled_wer(result: EvaluationResult) -> float:
    errors = sum(p.errors.substitutions + p.errors.deletions + p.errors.insertions for p in result.parts.values())
    return errors / max(1, sum(p.errors.reference_words for p in result.parts.values()))


def _threads(count: int | None) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
