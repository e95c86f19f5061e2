"""One utterance to look at: spectrogram, posteriors as stored (and live, if there is a teacher), and the alignment.

Legend: T frames, V tokens, F mel bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lhotse.cut import Cut
from matplotlib.figure import Figure
from torch import Tensor

from asrkd.data.batching import load_batch, transcript
from asrkd.data.features import Fbank
from asrkd.data.files import atomic_path
from asrkd.targets.label import LabellingTeacher
from asrkd.targets.store import TargetsError, TargetsStore, decoded_posteriors
from asrkd.types import Frames, Hypothesis

_MOST_TOKENS = 40


def draw_utterance(store: TargetsStore, cut: Cut, path: str | Path, teacher: LabellingTeacher | None = None) -> None:
    """Write a picture of one utterance.

    Args:
        store: With its targets.
        cut: The utterance.
        path: Of the picture; its ending says the kind (``.png``, ``.svg``, ``.pdf``).
        teacher: Whose posteriors are drawn beside the stored ones.

    Raises:
        TargetsError: If the utterance has no posteriors, or the teacher is not the one that made the store.
        ValueError: If the ending is of no known kind.
        OSError: If it cannot be written.
    """
    path = Path(path)
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".") not in kinds:
        raise ValueError(f"{path}: expected an ending of {', '.join(sorted(kinds))}")
    if teacher is not None and teacher.identity != store.header["teacher"]:
        raise TargetsError(f"{store.folder}: was made by another teacher than the one given")
    targets = store.read([cut.id])
    if targets.posteriors is None:
        raise TargetsError(f"{store.folder}: holds no frame posteriors")
    batch = load_batch([cut], None, sample_rate_hz=store.header["sample_rate_hz"])
    panels = [("stored", decoded_posteriors(targets))]
    if teacher is not None:
        live = teacher(batch).to("cpu").posteriors
        assert isinstance(live, Frames)  # as labelling had it
        panels.append(("live", live))
    figure = Figure(figsize=(12, 3 + 3 * len(panels)), layout="constrained")
    axes = figure.subplots(1 + len(panels), 1, sharex=True)
    mel = Fbank(sample_rate_hz=batch.sample_rate_hz)(batch.audio, batch.audio_lengths)
    seconds = mel.values.shape[1] * mel.frame_shift_s
    axes[0].imshow(mel.values[0].T.numpy(), origin="lower", aspect="auto", extent=(0, seconds, 0, mel.values.shape[2]))
    axes[0].set(ylabel="mel bin", title=f"{cut.id}: {transcript(cut) or '(no reference)'}")
    tokens = _tokens_to_show(panels, store.vocabulary.blank_id)
    best = targets.nbest[0][0] if targets.nbest and targets.nbest[0] else None
    for axis, (name, posteriors) in zip(axes[1:], panels, strict=True):
        _draw_posteriors(axis, posteriors, tokens, store, f"{name} posteriors")
        if best is not None and name == "stored":
            _draw_alignment(axis, best, tokens, store)
    axes[-1].set(xlabel="seconds")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip("."), dpi=120)


def _tokens_to_show(panels: list[tuple[str, Frames]], blank_id: int) -> list[int]:
    """Blank, and the tokens that anywhere reach a tenth, in the order of their highest moment."""
    peak = torch.stack([p.values[0].exp().amax(0) for _, p in panels]).amax(0)
    moment = panels[0][1].values[0].argmax(0)
    heard = [int(t) for t in (peak > 0.1).nonzero().flatten() if int(t) != blank_id]
    heard = sorted(sorted(heard, key=lambda t: -float(peak[t]))[:_MOST_TOKENS], key=lambda t: int(moment[t]))
    return [blank_id, *heard]


def _draw_posteriors(axis: Any, posteriors: Frames, tokens: list[int], store: TargetsStore, title: str) -> None:
    length = int(posteriors.lengths[0])
    probs: Tensor = posteriors.values[0, :length, tokens].exp().T
    shift_s = posteriors.frame_shift_s
    axis.imshow(
        probs.numpy(),
        origin="lower",
        aspect="auto",
        vmin=0,
        vmax=1,
        cmap="magma_r",
        interpolation="nearest",
        extent=(0, length * shift_s, -0.5, len(tokens) - 0.5),
    )
    axis.set(title=title, yticks=range(len(tokens)), ylabel="token")
    axis.set_yticklabels([_shown(store.vocabulary.tokens[t]) for t in tokens], fontsize=7)


def _draw_alignment(axis: Any, best: Hypothesis, tokens: list[int], store: TargetsStore) -> None:
    axis.set_title(f"{axis.get_title()}; best transcript: {best.text}")
    for place, token in enumerate(best.tokens):
        if best.times_s is not None and token in tokens:
            axis.plot(best.times_s[place] + store.frame_shift_s / 2, tokens.index(token), "o", mfc="none", mec="C0")


def _shown(token: str) -> str:
    return token.replace("$", r"\$")
