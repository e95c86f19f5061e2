"""The report's page: complete, self-contained, and alive in a real browser."""

import base64
import io
import re
import shutil
import subprocess

import pytest
import soundfile
from lhotse import CutSet

from asrkd.evaluation.evaluate import EvaluationOptions, evaluate
from asrkd.evaluation.html import diagnostics_of, write_page
from asrkd.evaluation.plots import Point, error_bars, histogram, scatter
from asrkd.evaluation.report import Entry, comparisons_of
from asrkd.evaluation.result import IntervalRecord
from asrkd.models import package

from .conftest import make_student

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(teacher, tokenizer, cuts, tmp_path_factory):
    """A page of a small random teacher and two students."""
    folder = tmp_path_factory.mktemp("page")
    few = CutSet.from_cuts(list(cuts)[:5])
    models = {"teacher": teacher, "alone": make_student(tokenizer, 0), "distilled": make_student(tokenizer, 1)}
    entries = []
    for name, model in models.items():
        package.save(model, folder / name)
        options = EvaluationOptions(draws=50, speed_audio_s=2, repeats=1, batch=2)
        result = evaluate(folder / name, {"tones <&>": few}, folder / f"{name}.result", options, name=name)
        entries.append(Entry(result, name, 1))
    parts = {"tones <&>": few}
    return write_page(entries, comparisons_of(entries), folder, parts, diagnostics_of(entries, parts))


def test_it_holds_everything_and_asks_nobody(page):
    text = page.read_text(encoding="utf-8")
    assert all(f"<h2>{title}</h2>" in text for title in (
        "Word error rate", "What accuracy costs", "Comparisons", "Delay and agreement with the teacher",
        "Most frequent errors", "By length, noise and speaker", "Listen", "How this was measured",
    ))  # fmt: skip
    targets = re.findall(r'(?:src|href)="([^"]{0,5})', text) + re.findall(r"url\(([^)]{0,5})", text)
    assert targets and set(targets) == {"data:"}
    assert "<h2>Listen" in text and text.count('class="item"') == 5
    assert text.count('class="post"') == 15  # three models each
    assert "tones &lt;&amp;&gt;" in text and "tones <&>" not in text
    assert page.stat().st_size < 5e6


def test_its_audio_is_the_utterance(page):
    items = re.findall(r'data-seconds="([\d.]+)".*?src="data:audio/[a-z]+;base64,([^"]+)"', page.read_text("utf-8"))
    assert len(items) == 5
    for seconds, encoded in items:
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
        assert len(samples) / rate_hz == pytest.approx(float(seconds), abs=0.15)
        assert samples.std() > 0.05


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_it_without_complaint(page, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    flags += ["--virtual-time-budget=8000", "--window-size=400,800", "--dump-dom"]
    answer = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in answer.stderr, answer.stderr
    assert 'data-items="5"' in answer.stdout  # the script ran to its end
    assert len(re.findall(r"<svg", answer.stdout)) >= 6


def interval(estimate, low, high):
    return IntervalRecord(estimate=estimate, low=low, high=high, level=0.95, blocks=3, draws=10, unit="utterances")


def test_bars_are_as_long_as_the_errors():
    svg = error_bars({"a": [("x", "teacher", interval(0.1, 0.05, 0.15)), ("y", None, interval(0.2, 0.1, 0.4))]})
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)" height="14"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert "role-teacher" in svg and "role-other" in svg
    assert error_bars({}) == ""


def test_the_front_joins_what_nothing_beats():
    points = [Point("a", None, 1, 10), Point("b", None, 2, 12), Point("c", None, 3, 5)]
    svg = scatter(points, "cost", logarithmic=True)
    line = re.search(r'<path d="M([^"]*)" class="front"', svg)
    assert line is not None and line[1].count("L") == 1  # a and c, not b
    circles = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert circles[0][0] < circles[1][0] < circles[2][0] and circles[2][1] > circles[0][1] > circles[1][1]


def test_a_histogram_is_as_tall_as_its_counts():
    tall = [
        float(h)
        for h in re.findall(r'height="([\d.]+)" class="role-alone"', histogram({0.0: 4, 40.0: 2}, "ms", "alone"))
    ]
    assert tall[0] == pytest.approx(2 * tall[1], abs=0.2)
    assert histogram({}, "ms", None) == ""
