"""Plots as SVG text that takes its colours from the page, so that light, dark and print look right.

Classes: ``role-teacher``, ``role-alone``, ``role-distilled``, ``role-other`` (filled by the page's style sheet).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from asrkd.evaluation.result import IntervalRecord

WIDTH = 720


@dataclass(frozen=True)
class Point:
    """One system of a scatter plot. Args: its name and role, and where it lies."""

    name: str
    role: str | None
    x: float
    y: float


def error_bars(parts: Mapping[str, Sequence[tuple[str, str | None, IntervalRecord]]]) -> str:
    """Horizontal bars of WER with their intervals, grouped by test set.

    Args:
        parts: For each test set ``(name, role, interval of the WER as a fraction)``.
    """
    rows = [(part, *line) for part, lines in parts.items() for line in lines if line[2].estimate is not None]
    if not rows:
        return ""
    top = max(max(r[3].high or 0.0, r[3].estimate or 0.0) for r in rows) or 1.0
    left, right, height = 190, 20, 22
    scale = (WIDTH - left - right) / top
    y, body, before = 8, [], None
    for part, name, role, interval in rows:
        if part != before:
            y += 20
            body.append(f'<text x="0" y="{y}" class="head">{escape(part)}</text>')
            y, before = y + 8, part
        estimate = interval.estimate or 0.0
        bar = estimate * scale
        title = f"{name} on {part}: {100 * estimate:.2f} %"
        body.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(_short(name))}</text>')
        body.append(
            f'<rect x="{left}" y="{y + 3}" width="{bar:.1f}" height="14" rx="2" class="{_class(role)}">'
            f"<title>{escape(title)}</title></rect>"
        )
        if interval.low is not None and interval.high is not None:
            a, b, middle = left + interval.low * scale, left + interval.high * scale, y + 10
            body.append(
                f'<path d="M{a:.1f} {middle}H{b:.1f}M{a:.1f} {middle - 4}v8M{b:.1f} {middle - 4}v8" class="ink"/>'
            )
        y += height
    for tick in _ticks(0, 100 * top):
        x = left + tick / 100 * scale
        body.append(f'<path d="M{x:.1f} 26V{y}" class="grid"/>')
        body.append(f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{tick:g} %</text>')
    return _svg(y + 24, body, "Word error rate with 95 % intervals")


def scatter(points: Sequence[Point], x_label: str, *, logarithmic: bool = False) -> str:
    """WER against a cost, with the line of the systems that no other beats in both.

    Args:
        points: ``y`` is the WER in percent.
        x_label: What x is, with its unit.
        logarithmic: Whether x is drawn so; all must be positive.
    """
    if not points:
        return ""
    left, right, top, bottom, height = 46, 20, 14, 40, 300
    width = 440

    def along(x: float) -> float:
        return math.log10(x) if logarithmic else x

    xs, ys = [along(p.x) for p in points], [p.y for p in points]
    low, high = (min(xs), max(xs)) if logarithmic else (0.0, max(xs) or 1.0)
    pad = 0.12 * ((high - low) or 1.0)
    low, high = (low - pad, high + pad) if logarithmic else (0.0, high + pad)
    ceiling = 1.12 * max(ys) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        share = (along(x) - low) / ((high - low) or 1.0)
        return left + share * (width - left - right), height - bottom - y / ceiling * (height - top - bottom)

    body = []
    for tick in _ticks(0, ceiling):
        _, y = place(points[0].x, tick)
        body.append(f'<path d="M{left} {y:.1f}H{width - right}" class="grid"/>')
        body.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for value in _log_ticks(low, high) if logarithmic else _ticks(low, high):
        x, _ = place(value, 0)
        body.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{value:g}</text>')
    front = _front(points)
    if len(front) > 1:
        line = "L".join("{:.1f} {:.1f}".format(*place(p.x, p.y)) for p in front)
        body.append(f'<path d="M{line}" class="front"/>')
    for point in points:
        x, y = place(point.x, point.y)
        title = f"{point.name}: {point.y:.2f} % WER at {point.x:.4g}"
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="{_class(point.role)}"><title>{escape(title)}</title></circle>'
        )
        anchor = "end" if x > 0.7 * width else "start"
        shift = -10 if anchor == "end" else 10
        body.append(
            f'<text x="{x + shift:.1f}" y="{y - 8:.1f}" text-anchor="{anchor}">{escape(_short(point.name))}</text>'
        )
    body.append(
        f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle" class="head">{escape(x_label)}</text>'
    )
    body.append('<text x="0" y="10" class="head">WER, %</text>')
    return _svg(height, body, f"WER against {x_label}", width)


def histogram(counts: Mapping[float, int], label: str, role: str | None) -> str:
    """Bars of how often each value was seen.

    Args:
        counts: By value; values lie on a grid of their own.
        label: What the values are, with their unit.
        role: For the colour.
    """
    if not counts:
        return ""
    left, right, top, bottom, height, width = 46, 16, 14, 40, 220, 440
    values = sorted(counts)
    step = min((b - a for a, b in itertools.pairwise(values)), default=1.0)
    low, high, most = values[0] - step, values[-1] + step, max(counts.values())

    def along(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    body = []
    each = max(1.5, 0.8 * (along(low + step) - left))
    for value in values:
        tall = counts[value] / most * (height - top - bottom)
        title = f"{value:g}: {counts[value]}"
        body.append(
            f'<rect x="{along(value) - each / 2:.1f}" y="{height - bottom - tall:.1f}" width="{each:.1f}" height="{tall:.1f}" '
            f'class="{_class(role)}"><title>{escape(title)}</title></rect>'
        )
    for tick in _ticks(low, high):
        body.append(f'<text x="{along(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>')
    body.append(f'<path d="M{left} {height - bottom}H{width - right}" class="ink"/>')
    body.append(f'<text x="{left - 6}" y="{top + 8}" text-anchor="end">{most}</text>')
    body.append(
        f'<text x="{(left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle" class="head">{escape(label)}</text>'
    )
    return _svg(height, body, label, width)


def _front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both, by rising x."""
    best, front = math.inf, []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if point.y < best:
            best = point.y
            front.append(point)
    return front


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from ``low`` to ``high``, four to eight of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next((m for m in (1, 2, 5, 10) if span / (m * step) <= 7), 10)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade between the exponents; all there are if that is few."""
    every = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    inside = [v for v in every if low <= math.log10(v) <= high]
    decades = [v for v in inside if f"{v:e}".startswith("1")]
    return decades if len(inside) > 7 and len(decades) > 1 else inside


def _class(role: str | None) -> str:
    return f"role-{role or 'other'}"


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"


def _svg(height: float, body: Sequence[str], title: str, width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )
