"""What is in a targets store: coverage, size, blanks, entropy, and the teacher's errors where references exist.

Legend: T frames, K kept entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jiwer
import torch
from lhotse.cut import Cut

from asrkd.data.batching import transcript
from asrkd.targets.store import TargetsStore
from asrkd.types import TopK

_BATCH = 64


@dataclass(frozen=True)
class UtteranceErrors:
    """One utterance's 1-best against its reference. Args: id, both texts, word errors and reference words."""

    utterance: str
    reference: str
    hypothesis: str
    errors: int
    words: int


@dataclass(frozen=True)
class Inspection:
    """Figures of a store.

    Args:
        utterances: In the store.
        hours: Of their audio.
        covered: Of the cuts that were asked about, how many are in the store; ``None`` where none were.
        missing: First ids of those that are not.
        posterior_mb_per_hour: Bytes of frame posteriors.
        nbest_mb_per_hour: Bytes of N-best lists.
        hidden_mb_per_hour: Bytes of hidden states.
        frames: Of the posteriors.
        blank_mass: Mean probability of blank.
        blank_frames: Share of frames whose likeliest entry is blank.
        entropy_nats: Mean entropy of a frame over entries and tail.
        entries_per_frame: Mean number of kept entries.
        tail_mass: Mean probability outside the kept entries.
        hypotheses: Mean length of the N-best lists; 0 where there are none.
        wer: Of the teacher's 1-best over utterances with a reference; ``None`` where there are none.
        reference_words: Behind ``wer``.
        worst: Utterances with most errors for each word, worst first.
    """

    utterances: int
    hours: float
    covered: int | None
    asked: int
    missing: tuple[str, ...]
    posterior_mb_per_hour: float
    nbest_mb_per_hour: float
    hidden_mb_per_hour: float
    frames: int
    blank_mass: float
    blank_frames: float
    entropy_nats: float
    entries_per_frame: float
    tail_mass: float
    hypotheses: float
    wer: float | None
    reference_words: int
    worst: tuple[UtteranceErrors, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def inspect_store(
    store: TargetsStore,
    cuts: Iterable[Cut] | None = None,
    *,
    normalise: Callable[[str], str] = str,
    worst: int = 10,
    progress: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> Inspection:
    """Read the whole store once.

    Args:
        store: To be looked at.
        cuts: Whose coverage and references are wanted.
        normalise: Of transcripts and references before they are compared.
        worst: How many of the worst utterances to keep.
        progress: Called with utterances done, their total and a text.
    """
    asked = list(cuts) if cuts is not None else []
    have = set(store.ids)
    missing = [cut.id for cut in asked if cut.id not in have]
    sums = _FrameSums(store.vocabulary.blank_id)
    best: dict[str, str] = {}
    lists = 0
    for start in range(0, len(store), _BATCH):
        ids = store.ids[start : start + _BATCH]
        targets = store.read(ids)
        if isinstance(targets.posteriors, TopK):
            sums.add(targets.posteriors)
        if targets.nbest is not None:
            lists += sum(map(len, targets.nbest))
            best |= {i: nbest[0].text for i, nbest in zip(ids, targets.nbest, strict=True) if nbest}
        progress(min(start + _BATCH, len(store)), len(store), "")
    scored = _errors([c for c in asked if c.id in best], best, normalise)
    words = sum(one.words for one in scored)
    summary = store.summary()
    per_hour = 1e-6 / summary.hours if summary.hours else 0.0
    return Inspection(
        utterances=len(store),
        hours=summary.hours,
        covered=len(asked) - len(missing) if cuts is not None else None,
        asked=len(asked),
        missing=tuple(missing[:10]),
        posterior_mb_per_hour=summary.posterior_bytes * per_hour,
        nbest_mb_per_hour=summary.nbest_bytes * per_hour,
        hidden_mb_per_hour=summary.hidden_bytes * per_hour,
        **sums.means(),
        hypotheses=lists / len(store) if len(store) else 0.0,
        wer=sum(one.errors for one in scored) / words if words else None,
        reference_words=words,
        worst=tuple(sorted(scored, key=lambda u: (-u.errors / u.words, -u.errors, u.utterance))[:worst]),
    )


class _FrameSums:
    """Sums over all frames of a store."""

    def __init__(self, blank_id: int) -> None:
        self._blank_id = blank_id
        self._frames = 0
        self._sums = torch.zeros(5, dtype=torch.float64)

    def add(self, posteriors: TopK) -> None:
        valid = torch.arange(posteriors.ids.shape[1]) < posteriors.lengths[:, None]
        log_probs = posteriors.log_probs[valid]
        ids, tail = posteriors.ids[valid], posteriors.tail_log_prob[valid]
        used = torch.isfinite(log_probs)
        probs = log_probs.exp().masked_fill(~used, 0.0)
        blank = (probs * (ids == self._blank_id)).sum(1)
        likeliest = ids.gather(1, log_probs.argmax(1, keepdim=True)).squeeze(1) == self._blank_id
        entropy = torch.special.entr(tail.exp()) + torch.special.entr(probs).sum(1)
        self._frames += len(ids)
        for place, values in enumerate((blank, likeliest, entropy, used.sum(1), tail.exp())):
            self._sums[place] += values.double().sum()

    def means(self) -> dict[str, Any]:
        names = ("blank_mass", "blank_frames", "entropy_nats", "entries_per_frame", "tail_mass")
        values = (self._sums / max(1, self._frames)).tolist()
        return {"frames": self._frames, **dict(zip(names, values, strict=True))}


def _errors(cuts: Sequence[Cut], best: dict[str, str], normalise: Callable[[str], str]) -> list[UtteranceErrors]:
    found = []
    for cut in cuts:
        reference = normalise(transcript(cut))
        if not reference.strip():
            continue
        hypothesis = normalise(best[cut.id])
        counts = jiwer.process_words(reference, hypothesis)
        errors = counts.substitutions + counts.deletions + counts.insertions
        found.append(UtteranceErrors(cut.id, reference, hypothesis, errors, len(reference.split())))
    return found
