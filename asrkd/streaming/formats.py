"""Transcripts as people and programs want them: text, JSON, SubRip, WebVTT, NIST's CTM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import PurePath

from asrkd.streaming.events import Event, Final, Partial, Word, WordHeard
from asrkd.streaming.transcribe import text_of

FORMATS = ("text", "json", "srt", "vtt", "ctm")
MAX_CUE_S, MAX_CUE_CHARACTERS = 6.0, 80


def write_text(name: str, finals: Sequence[Final]) -> str:
    """``name<TAB>text``."""
    return f"{name}\t{text_of(finals)}\n"


def write_json(name: str, finals: Sequence[Final], duration_s: float) -> str:
    """One JSON object on one line: path, duration, text, and segments with their words."""
    segments = [
        {
            "start_s": round(final.start_s, 3),
            "end_s": round(final.end_s, 3),
            "text": final.text,
            "alternatives": list(final.alternatives),
            "words": [_rounded(word) for word in final.words],
        }
        for final in finals
    ]
    record = {"path": name, "duration_s": round(duration_s, 3), "text": text_of(finals), "segments": segments}
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_ctm(name: str, finals: Sequence[Final]) -> str:
    """One line a word: recording, channel, start, duration, word, confidence (NIST sctk, ``ctm.5``)."""
    recording = PurePath(name).stem.replace(" ", "_")
    return "".join(
        f"{recording} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.text} {word.confidence:.3f}\n"
        for final in finals
        for word in final.words
    )


def write_srt(finals: Sequence[Final]) -> str:
    """SubRip subtitles."""
    return "".join(
        f"{number}\n{_clock(cue[0].start_s, ',')} --> {_clock(cue[-1].end_s, ',')}\n{_line(cue)}\n\n"
        for number, cue in enumerate(cues(finals), start=1)
    )


def write_vtt(finals: Sequence[Final]) -> str:
    """WebVTT subtitles (W3C)."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue[0].start_s, '.')} --> {_clock(cue[-1].end_s, '.')}\n{_escaped(_line(cue))}\n\n"
        for cue in cues(finals)
    )


def write_event(name: str, event: Event, as_json: bool) -> str:
    """One live event on one line; empty for what the text format leaves out.

    As text: ``name<TAB>partial|final<TAB>seconds heard<TAB>text``.
    """
    if as_json:
        kind = {Partial: "partial", WordHeard: "word", Final: "final"}[type(event)]
        return json.dumps({"path": name, "event": kind, **asdict(event)}, ensure_ascii=False) + "\n"
    if isinstance(event, WordHeard):
        return ""
    kind = "partial" if isinstance(event, Partial) else "final"
    return f"{name}\t{kind}\t{event.end_s:.2f}\t{event.text}\n"


def cues(finals: Sequence[Final]) -> list[tuple[Word, ...]]:
    """Words in groups that one subtitle holds: never over a segment's end, bounded in time and length."""
    groups: list[tuple[Word, ...]] = []
    for final in finals:
        group: list[Word] = []
        for word in final.words:
            longer = _line((*group, word))
            if group and (word.end_s - group[0].start_s > MAX_CUE_S or len(longer) > MAX_CUE_CHARACTERS):
                groups.append(tuple(group))
                group = []
            group.append(word)
        if group:
            groups.append(tuple(group))
    return groups


def _line(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _rounded(word: Word) -> dict[str, str | float]:
    return {
        "text": word.text,
        "start_s": round(word.start_s, 3),
        "end_s": round(word.end_s, 3),
        "confidence": round(word.confidence, 4),
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
