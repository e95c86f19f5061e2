"""One training from a recipe to a model package: tokenizer, model, targets, steps, averaging, package."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from filelock import FileLock, Timeout
from lhotse import CutSet

from asrkd.data.batching import AudioCache, BatchSource, load_batch, with_speeds
from asrkd.data.files import write_atomically
from asrkd.data.shar import read_manifest
from asrkd.data.text import Tokenizer, train_tokenizer
from asrkd.losses.catalogue import LOSSES
from asrkd.models import package
from asrkd.models.base import Recogniser
from asrkd.targets.hidden import HiddenCodec
from asrkd.targets.label import label
from asrkd.targets.ranks import join_ranks
from asrkd.targets.store import TargetsStore
from asrkd.teachers.base import Teacher
from asrkd.teachers.config import HuggingFaceSpec, PackageSpec, teacher_name
from asrkd.teachers.config import open_teacher as open_spec
from asrkd.teachers.fit import FittedStore, FittedTeacher
from asrkd.training.agreement import check_lattice, check_vocabulary
from asrkd.training.checkpoints import average_of_best
from asrkd.training.cpu import remember_shapes
from asrkd.training.distiller import Distiller
from asrkd.training.loader import GroupSampler, make_loader
from asrkd.training.logs import Progress, no_progress
from asrkd.training.recipe import Recipe, RecipeError, missing_files, resolved
from asrkd.types import SpeechBatch

logger = logging.getLogger(__name__)

STATISTICS_UTTERANCES = 200
Stage = Callable[[str], Progress]
"""Called with the name of a stage that begins; gives the progress callback to use for it."""


@dataclass(frozen=True)
class Outcome:
    """What a training left behind: the package's folder, and whether it was there already."""

    package: Path
    skipped: bool


def package_dir(recipe: Recipe) -> Path:
    """Where the model package of a recipe goes."""
    return recipe.output_dir / "package"


def train(recipe: Recipe, *, device: str = "cpu", stage: Stage = lambda name: no_progress) -> Outcome:
    """Train what the recipe describes and save it as a model package; continue or skip what is done.

    Args:
        recipe: A checked recipe.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        stage: Gives a progress callback for each named stage.

    Returns:
        The package's folder.

    Raises:
        RecipeError: If files are missing, or ``output`` holds the run of a different recipe or of different data.
    """
    if problems := missing_files(recipe):
        raise RecipeError("\n".join(problems))
    folder = recipe.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        remember_shapes()
    with _process_group(device) as device, _alone_in(folder):
        identity = _identity(recipe)
        _same_run_or_new(folder, identity)
        if (package_dir(recipe) / package.CONFIG).exists():
            package.load(package_dir(recipe))
            return Outcome(package_dir(recipe), skipped=True)
        _write_json(folder / "run.json", {**identity, "recipe": resolved(recipe), "environment": environment(device)})
        _train(recipe, device, stage)
    return Outcome(package_dir(recipe), skipped=False)


def _train(recipe: Recipe, device: str, stage: Stage) -> None:
    train_cuts = read_cuts([recipe.path(p) for p in recipe.data.train], recipe)
    if len(set(recipe.data.speeds)) > 1 or recipe.data.speeds != (1.0,):
        train_cuts = with_speeds(train_cuts, recipe.data.speeds)
    unlabelled = read_cuts([recipe.path(p) for p in recipe.data.unlabelled], recipe)
    valid_cuts = read_cuts([recipe.path(p) for p in recipe.data.valid], recipe)
    tokenizer = make_tokenizer(recipe, train_cuts)
    cache = AudioCache(recipe.data.cache_mb * 2**20)
    torch.manual_seed(recipe.seed)
    model = make_model(recipe, tokenizer, train_cuts)
    everything = train_cuts + unlabelled if len(unlabelled) else train_cuts
    teacher, store = _teach(recipe, model, everything, device, stage)

    def read(cuts: CutSet, with_targets: bool = True) -> SpeechBatch:
        return load_batch(
            cuts, tokenizer, sample_rate_hz=model.sample_rate_hz, cache=cache, targets=store if with_targets else None
        )

    rank, ranks = sb.utils.distributed.get_rank() or 0, int(os.environ.get("WORLD_SIZE", "1"))
    source = BatchSource(
        everything,
        max_duration_s=recipe.data.max_duration_s,
        seed=recipe.seed,
        buckets=recipe.data.buckets,
        rank=rank,
        world_size=ranks,
    )
    sampler = GroupSampler(source, recipe.training.accumulate)
    valid_loader = None
    if len(valid_cuts):
        valid_source = BatchSource(
            valid_cuts, max_duration_s=recipe.data.max_duration_s, seed=0, rank=rank, world_size=ranks
        )
        valid_loader = make_loader(GroupSampler(valid_source), lambda cuts: read(cuts, with_targets=False), workers=0)
    per_epoch = sampler.count(epoch=1)
    total = recipe.training.epochs * per_epoch
    distiller = Distiller(
        model,
        recipe,
        total_steps=min(total, recipe.training.max_steps or total),
        folder=recipe.output_dir,
        device=device,
        teacher=teacher,
        progress=stage(f"train {recipe.name}"),
    )
    distiller.train(make_loader(sampler, read, recipe.data.workers), valid_loader, sampler)
    if sb.utils.distributed.if_main_process():
        _save_package(recipe, distiller)


def _teach(
    recipe: Recipe, model: Recogniser, cuts: CutSet, device: str, stage: Stage
) -> tuple[FittedTeacher | None, FittedStore | None]:
    """A live teacher, or a store with everything it said of the cuts; either in the model's vocabulary."""
    if recipe.teacher is None or recipe.targets is None:
        return None, None
    fitted = (model.tokenizer, model.frame_shift_s, recipe.targets.case)
    if recipe.targets.live:
        teacher = FittedTeacher(open_teacher(recipe, device), *fitted)
        check_vocabulary(recipe, teacher.found)
        check_lattice(recipe, teacher, model)
        return teacher, None
    store = FittedStore(make_targets(recipe, cuts, device, stage), *fitted)
    check_vocabulary(recipe, store.found)
    return None, store


def open_teacher(recipe: Recipe, device: str) -> Teacher:
    """The recipe's teacher, loaded, asked for what the losses need."""
    assert recipe.teacher is not None and recipe.targets is not None
    needs, spec = recipe.needs, recipe.teacher
    if isinstance(spec, PackageSpec | HuggingFaceSpec):
        layers = {need.split(":", 1)[1] for need in needs if need.startswith("targets.hidden:")}
        hidden = tuple(sorted(layers | set(spec.hidden)))
        spec = spec.model_copy(update={"hidden": hidden, "decoder": "targets.decoder" in needs})
    search = {"nbest": recipe.targets.nbest, "beam": recipe.targets.beam}
    return open_spec(spec, workdir=recipe.workdir, device=device, lattice="targets.lattice" in needs, **search)


def make_targets(recipe: Recipe, cuts: CutSet, device: str, stage: Stage) -> TargetsStore:
    """Label what is not labelled yet and open the store."""
    settings = recipe.targets
    if settings is None or settings.folder is None:
        raise RecipeError("targets.folder: expected a folder to store targets in; found none")
    folder = recipe.path(settings.folder)
    label(
        open_teacher(recipe, device),
        cuts,
        folder,
        codec=settings.codec,
        mass=settings.mass,
        max_entries=settings.max_entries,
        bits=settings.bits,
        samples=settings.samples,
        max_duration_s=settings.max_duration_s,
        hidden=_hidden_codec(recipe),
        progress=stage(f"label {settings.folder}"),
    )
    return TargetsStore(folder)


def _hidden_codec(recipe: Recipe) -> HiddenCodec:
    """Codes where a loss predicts codes, float16 otherwise."""
    codes = [term for term in recipe.losses if term["loss"] == "mvq"]
    if not codes:
        return HiddenCodec("fp16")
    size = codes[0].get("codebook_size", LOSSES["mvq"].options["codebook_size"])
    return HiddenCodec("mvq", num_codebooks=codes[0]["num_codebooks"], codebook_size=size, seed=recipe.seed)


def training_cuts(recipe: Recipe) -> CutSet:
    """Every cut that the recipe trains on and its teacher has to hear, speed views included."""
    cuts = read_cuts([recipe.path(p) for p in recipe.data.train], recipe)
    if recipe.data.speeds != (1.0,):
        cuts = with_speeds(cuts, recipe.data.speeds)
    more = read_cuts([recipe.path(p) for p in recipe.data.unlabelled], recipe)
    return cuts + more if len(more) else cuts


def read_cuts(paths: Sequence[Path], recipe: Recipe) -> CutSet:
    """The cuts of some manifests, those of fitting length.

    Raises:
        RecipeError: If manifests were named and nothing of fitting length is left.
    """
    low, high = recipe.data.min_utterance_s, recipe.data.max_utterance_s
    cuts = [cut for path in paths for cut in read_manifest(path)]
    kept = [cut for cut in cuts if low <= cut.duration <= high]
    if len(kept) < len(cuts):
        logger.info("%d of %d utterances left out: not within %g to %g s", len(cuts) - len(kept), len(cuts), low, high)
    if paths and not kept:
        raise RecipeError(
            f"data: expected utterances of {low:g} to {high:g} s in {', '.join(map(str, paths))}; found none"
        )
    return CutSet.from_cuts(kept)


def make_tokenizer(recipe: Recipe, cuts: CutSet) -> Tokenizer:
    """The tokenizer of an existing package, or one trained on the transcripts."""
    settings = recipe.tokenizer
    if settings.package is not None:
        return Tokenizer.load(recipe.path(settings.package) / package.TOKENIZER)
    texts = [supervision.text or "" for cut in cuts for supervision in cut.supervisions]
    return train_tokenizer(texts, kind=settings.kind, size=settings.size)


def make_model(recipe: Recipe, tokenizer: Tokenizer, cuts: CutSet) -> Recogniser:
    """A fresh model with the feature statistics of the training data, or the one to start from."""
    model = package.build(dict(recipe.model), tokenizer)
    if recipe.training.init_from is not None:
        start = package.load(recipe.path(recipe.training.init_from))
        if start.vocabulary.identity != model.vocabulary.identity:
            raise RecipeError("training.init_from: expected the same vocabulary (tokenizer.package); found another")
        model.load_state_dict(start.state_dict())
        return model
    mean, std = feature_statistics(model, cuts)
    model.set_feature_statistics(mean, std)
    return model


def feature_statistics(model: Recogniser, cuts: CutSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each mel bin over evenly spaced utterances of the training data."""
    everything = list(cuts)
    chosen = everything[:: max(1, len(everything) // STATISTICS_UTTERANCES)]
    count, total, squares = 0, torch.zeros(80, dtype=torch.float64), torch.zeros(80, dtype=torch.float64)
    for start in range(0, len(chosen), 16):
        batch = load_batch(CutSet.from_cuts(chosen[start : start + 16]), None, sample_rate_hz=model.sample_rate_hz)
        frames = model.fbank(batch.audio, batch.audio_lengths)
        for values, length in zip(frames.values, frames.lengths.tolist(), strict=True):
            valid = values[:length].double()
            count, total, squares = count + length, total + valid.sum(0), squares + (valid**2).sum(0)
    mean = total / max(1, count)
    std = (squares / max(1, count) - mean**2).clamp_min(1e-4).sqrt()
    return mean.float(), std.float()


def _save_package(recipe: Recipe, distiller: Distiller) -> None:
    model = distiller.model
    best = average_of_best(distiller.checkpointer, recipe.training.average, min_key="wer", otherwise="epoch")
    model.load_state_dict(best)
    metrics = {
        "name": recipe.name,
        "optimiser_steps": distiller.optimizer_step,
        "skipped_steps": distiller.skipped_steps,
        "best_valid_wer": distiller.best_wer if distiller.best_wer != float("inf") else None,
    }
    card = model_card(recipe, metrics)
    package.save(model.cpu().eval(), package_dir(recipe), metrics=metrics, card=card, licence=recipe.licence)


def model_card(recipe: Recipe, metrics: dict[str, Any]) -> str:
    """README.md of the package: what was trained on what, and how well it did on its own development data."""
    wer = metrics["best_valid_wer"]
    lines = [
        f"# {recipe.name}",
        "",
        f"A `{recipe.model['kind']}` trained with asrkd on {', '.join(str(p) for p in recipe.data.train)}"
        + (f" under the teacher `{teacher_name(recipe.teacher)}`." if recipe.teacher else "."),
        "",
        f"- losses: {', '.join(str(term['loss']) for term in recipe.losses)}",
        f"- optimiser steps: {metrics['optimiser_steps']}, seed {recipe.seed}",
        f"- greedy WER on {', '.join(str(p) for p in recipe.data.valid) or 'no development data'}: "
        + ("not measured" if wer is None else f"{100 * wer:.2f} %"),
        f"- licence: {recipe.licence}",
    ]
    return "\n".join(lines) + "\n"


# A run's identity ---------------------------------------------------------------------------------------------------------


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What must be the same for a run to be continued or skipped: the recipe but for its place, and its inputs' content."""
    content = resolved(recipe)
    for key in (
        "workdir",
        "prepare",
        "teacher_recipes",
        "evaluate",
        "export",
        "sweep",
    ):  # where it lies; what comes before and after
        content.pop(key)
    inputs = {}
    for path in (*recipe.data.train, *recipe.data.valid, *recipe.data.unlabelled):
        whole = recipe.path(path)
        manifests = sorted(whole.glob("cuts.*.jsonl.gz")) if whole.is_dir() else [whole]
        inputs[str(path)] = hashlib.sha256(b"".join(manifest.read_bytes() for manifest in manifests)).hexdigest()
    packages = [recipe.tokenizer.package, recipe.training.init_from, *recipe.teacher_packages.values()]
    for folder in filter(None, packages):
        config = recipe.path(folder) / package.CONFIG
        inputs[str(folder)] = hashlib.sha256(config.read_bytes()).hexdigest()
    return {"identity": {"recipe": content, "inputs": inputs}}


def _same_run_or_new(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / "run.json"
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8")).get("identity", {})
    now = json.loads(json.dumps(identity["identity"]))
    differing = sorted(_differences(before, now, ""))
    if differing:
        raise RecipeError(
            f"{folder}: holds another run ({', '.join(differing[:6])}{' ...' if len(differing) > 6 else ''} differ); "
            "choose another output= or remove the folder"
        )


def _differences(a: Any, b: Any, path: str) -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d
            for key in a.keys() | b.keys()
            for d in _differences(a.get(key), b.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if a == b else [path.removeprefix("recipe.")]


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and commit, as recorded with every run."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchaudio", "speechbrain", "lhotse")}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["asrkd"] = importlib.metadata.version("asrkd")
    root, commit = Path(__file__).parents[2], None
    if (root / ".git").exists():  # and not some other repository that asrkd is installed in
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            ask = ["git", "-C", str(root), "rev-parse", "HEAD"]
            commit = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "commit": commit,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    if not sb.utils.distributed.if_main_process():
        return
    write_atomically(path, json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes (say what a killed parent left behind) from training into the same folder.

    Raises:
        RecipeError: If one does.
    """
    if not sb.utils.distributed.if_main_process():
        yield
        return
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RecipeError(f"{folder}: another process is training here; wait for it or end it") from None


@contextlib.contextmanager
def _process_group(device: str) -> Any:
    """Join the other ranks when started by ``torchrun``; gives this rank's device."""
    if "RANK" not in os.environ or "LOCAL_RANK" not in os.environ or torch.distributed.is_initialized():
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    join_ranks("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()
