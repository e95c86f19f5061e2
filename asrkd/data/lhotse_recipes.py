"""Every corpus that the installed lhotse has a recipe for, prepared as the others are."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lhotse.recipes
from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import Cut

from asrkd.data.corpora import Check, CorpusReport, Listing, Progress, write_corpus

_PREFIX = "prepare_"


def recipe_names() -> tuple[str, ...]:
    """The corpora that can be prepared."""
    return tuple(sorted(name[len(_PREFIX) :] for name in dir(lhotse.recipes) if name.startswith(_PREFIX)))


def prepare_with_lhotse(
    name: str,
    root: str | Path | None,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    check: Check = "full",
    jobs: int | None = None,
    progress: Progress | None = None,
) -> CorpusReport:
    """Runs a recipe of lhotse and writes one cut for each of its supervisions.

    Args:
        name: One of :func:`recipe_names`.
        root: What the recipe's first argument (``corpus_dir``, mostly) is to be; ``None`` if given in ``options``.
        out: Folder for the prepared corpus.
        options: The recipe's further arguments.
        check: ``full`` reads the audio of every cut once; ``header`` only sees that the files are there.
        jobs: Cuts looked at side by side; default: the number of cores.
        progress: Called with cuts done and their total, for each part.

    Raises:
        ValueError: If there is no such recipe or argument, an argument is missing, or the recipe fails on this data.
    """
    if name not in recipe_names():
        raise ValueError(f"lhotse has no recipe {name!r}; it has {', '.join(recipe_names())}")
    recipe = getattr(lhotse.recipes, _PREFIX + name)
    parameters = inspect.signature(recipe).parameters
    arguments = dict(options or {})
    if root is not None:
        arguments[next(iter(parameters))] = Path(root)
    known = [parameter for parameter in parameters if parameter != "output_dir"]
    if unknown := set(arguments) - set(known):
        raise ValueError(f"lhotse recipe {name}: no argument {', '.join(sorted(unknown))}; it has {', '.join(known)}")
    needed = [p for p in known if parameters[p].default is inspect.Parameter.empty and p not in arguments]
    if needed:
        raise ValueError(f"lhotse recipe {name}: missing argument {', '.join(needed)}")
    try:
        manifests = recipe(**arguments)
    except Exception as error:  # a hundred recipes by many hands: what they raise on unfit data cannot be foreseen
        lines = str(error).strip().splitlines() or [_place(error)]
        raise ValueError(f"lhotse recipe {name}: {type(error).__name__}: {lines[0]}") from error
    listings = {part: _list_cuts(found) for part, found in _parts(manifests).items()}
    if not listings:
        raise ValueError(f"lhotse recipe {name}: found no recordings with transcripts in {root}")
    parts = {part: partial(listings.__getitem__, part) for part in listings}
    source = next((value for value in arguments.values() if isinstance(value, Path)), Path())
    return write_corpus(out, f"lhotse {name}", source, parts, check=check, jobs=jobs, progress=progress)


def _place(error: Exception) -> str:
    """The line that raised it, for an assertion that says nothing."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name} line {frame.lineno}: {frame.line}"


def _parts(manifests: Any, name: str = "") -> dict[str, Mapping[str, Any]]:
    """Recipes give recordings and supervisions, or these for each part, or for each language and part."""
    if isinstance(manifests, tuple):
        manifests = {
            "recordings": next((m for m in manifests if isinstance(m, RecordingSet)), None),
            "supervisions": next((m for m in manifests if isinstance(m, SupervisionSet)), None),
        }
    if not isinstance(manifests, Mapping):
        return {}
    if isinstance(manifests.get("recordings"), RecordingSet):
        return {name or "all": manifests} if isinstance(manifests.get("supervisions"), SupervisionSet) else {}
    parts: dict[str, Mapping[str, Any]] = {}
    for key, value in manifests.items():
        parts |= _parts(value, f"{name}_{key}" if name else str(key))
    return parts


def _list_cuts(manifests: Mapping[str, Any]) -> Listing:
    cuts: list[Cut] = []
    problems: list[str] = []
    whole = CutSet.from_manifests(recordings=manifests["recordings"], supervisions=manifests["supervisions"])
    for cut in whole.trim_to_supervisions(keep_overlapping=False):
        supervision = cut.supervisions[0]
        if supervision.text:
            cuts.append(cut.with_id(supervision.id))
        else:
            problems.append(f"utterance {supervision.id}: no text")
    return Listing(cuts, problems, [])
