"""Time, disk, memory and cost of labelling and training at 1 k, 100 k and 10 M hours, from measured figures.

    python tools/plan_scale.py --measure recipes/librispeech/joint.yaml --device cuda --save h100.json
    python tools/plan_scale.py --measurements h100.json --gpus 64 --gpu-hour-price 2.5
    python tools/plan_scale.py --measurements h100.json --log exp/librispeech/joint/log.jsonl --epochs 40 4 1

``--measure`` runs a few training steps of the recipe's student and a few passes of its teacher on this machine; ``--log`` puts
what a real run logged in place of the former; single figures can be given as options. Everything else is proportion, printed
with its formula so that each line can be checked by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

HOURS = (1_000.0, 100_000.0, 10_000_000.0)


@dataclass(frozen=True)
class Measurements:
    """What was measured of one device; ``None`` where it was not.

    Args:
        source: Machine, recipe and how.
        train_audio_s_per_s: Audio that one device trains the student on, for each second.
        label_audio_s_per_s: Audio that the teacher hears on one device, for each second.
        label_has_search: Whether that includes the search for N-best lists.
        student_parameters: Of the student.
        train_memory_mb: Of one device (or process) while it trains.
        label_memory_mb: The same while the teacher hears.
        data_wait_share: Of training time spent waiting for data.
        host_bytes_per_utterance: Main memory of one utterance's cut in a training process.
        manifest_bytes_per_utterance: Of its line in a manifest, compressed.
    """

    source: str = "given on the command line"
    train_audio_s_per_s: float | None = None
    label_audio_s_per_s: float | None = None
    label_has_search: bool = False
    student_parameters: int | None = None
    train_memory_mb: float | None = None
    label_memory_mb: float | None = None
    data_wait_share: float = 0.0
    host_bytes_per_utterance: float | None = None
    manifest_bytes_per_utterance: float | None = None


@dataclass(frozen=True)
class Assumptions:
    """What was not measured here; every one is an option and is printed."""

    gpus: int = 8
    gpus_per_host: int = 8
    epochs: float = 10.0
    views: int = 1
    efficiency: float = 0.9
    gpu_hour_price: float = 0.0
    audio_mb_per_hour: float = 61.7
    targets_mb_per_hour: float = 1.35
    utterance_s: float = 12.3
    checkpoints: int = 11


ORIGIN = {
    "gpus": "given",
    "gpus_per_host": "given; training processes of one host share its memory",
    "epochs": "given or of the recipe; passes over the corpus",
    "views": "given or of the recipe; speeds at which each utterance is heard and labelled",
    "efficiency": "assumed; speed of N devices by N times the speed of one, in training (labelling shares nothing: 1)",
    "gpu_hour_price": "given",
    "audio_mb_per_hour": "OpenSLR: 59.3 GB of archives (FLAC) for the 960.9 h of LibriSpeech",
    "targets_mb_per_hour": "docs/benchmarks.md: 0.90 of posteriors (V = 1000, worst case) and 0.45 of 3-best lists",
    "utterance_s": "LibriSpeech's mean: 960.9 h in 281,241 utterances",
    "checkpoints": "given or of the recipe (training.average + 1); each holds weights and AdamW's moments, 12 bytes a parameter",
}


@dataclass(frozen=True)
class Plan:
    """What one size of corpus needs; ``None`` where a figure was not measured."""

    hours: float
    label_h: float | None
    train_h: float | None
    gpu_hours: float | None
    cost: float | None
    audio_tb: float
    targets_tb: float
    manifests_tb: float | None
    checkpoints_tb: float | None
    device_memory_gb: float | None
    host_memory_gb: float | None


def plan(measured: Measurements, assumed: Assumptions, hours: float) -> Plan:
    """Proportion, no more: see :data:`FORMULAS`."""
    heard = hours * assumed.views
    utterances = hours * 3600 / assumed.utterance_s * assumed.views
    label_h = _over(heard, measured.label_audio_s_per_s, assumed.gpus)
    train_h = _over(
        heard * assumed.epochs,
        measured.train_audio_s_per_s,
        assumed.gpus * (assumed.efficiency if assumed.gpus > 1 else 1.0),
    )
    both = None if label_h is None or train_h is None else assumed.gpus * (label_h + train_h)
    parameters = measured.student_parameters
    per_host = min(assumed.gpus, assumed.gpus_per_host)
    memories = [mb for mb in (measured.train_memory_mb, measured.label_memory_mb) if mb is not None]
    return Plan(
        hours=hours,
        label_h=label_h,
        train_h=train_h,
        gpu_hours=both,
        cost=None if both is None or not assumed.gpu_hour_price else both * assumed.gpu_hour_price,
        audio_tb=hours * assumed.audio_mb_per_hour / 1e6,
        targets_tb=heard * assumed.targets_mb_per_hour / 1e6,
        manifests_tb=_times(utterances / assumed.views, measured.manifest_bytes_per_utterance, 1e-12),
        checkpoints_tb=_times(parameters, 12.0 * assumed.checkpoints + 4, 1e-12),
        device_memory_gb=max(memories) / 1e3 if memories else None,
        host_memory_gb=_times(utterances * per_host, measured.host_bytes_per_utterance, 1e-9),
    )


FORMULAS = """\
- labelling = hours × views / (audio seconds a second × devices)
- training = hours × views × epochs / (audio seconds a second × devices × efficiency)
- device hours = devices × (labelling + training); cost = device hours × price
- disk = hours × MB an hour; checkpoints = parameters × (12 × checkpoints + 4) bytes
- memory of a host = utterances × views × bytes of a cut × training processes of the host (each holds the list of all cuts)"""


def _over(hours: float, audio_s_per_s: float | None, devices: float) -> float | None:
    return None if not audio_s_per_s else hours / (audio_s_per_s * devices)


def _times(value: float | None, factor: float | None, unit: float) -> float | None:
    return None if value is None or factor is None else value * factor * unit


# Figures ------------------------------------------------------------------------------------------------------------------


def measure(recipe_path: Path, overrides: Sequence[str], device: str) -> Measurements:
    """Training steps and the teacher's passes of a recipe's models on noise, and what a cut takes.

    A teacher whose package is not there (yet) is measured by its recipe's model, without a search.
    """
    from asrkd.training.estimate import UTTERANCE_S, measure_rate, model_config, teacher_config
    from asrkd.training.recipe import load_recipe
    from asrkd.training.run import environment

    recipe = load_recipe(recipe_path, overrides)
    student = measure_rate(model_config(recipe), recipe.training.precision, recipe.data.max_duration_s, device)
    place = environment(device)
    teacher = teacher_config(recipe)
    batch_s = recipe.targets.max_duration_s if recipe.targets else UTTERANCE_S
    listening = None if teacher is None else measure_rate(teacher, "fp32", batch_s, device)
    host, line = cut_bytes()
    return Measurements(
        source=f"{place['device']} ({place['processor']}, {place['threads']} threads), torch {place['versions']['torch']}, "
        f"commit {place['commit']}: {recipe_path}, noise of {UTTERANCE_S:g} s, batches of {recipe.data.max_duration_s:g} s "
        f"({recipe.training.precision}) and {batch_s:g} s",
        train_audio_s_per_s=student.train,
        label_audio_s_per_s=None if listening is None else listening.listen,
        student_parameters=student.parameters,
        train_memory_mb=student.memory_mb,
        label_memory_mb=None if listening is None else listening.memory_mb,
        host_bytes_per_utterance=host,
        manifest_bytes_per_utterance=line,
    )


def cut_bytes(count: int = 2000) -> tuple[float, float]:
    """Bytes of a cut in memory, and of its line in a compressed manifest, as ``asrkd prepare`` makes them."""
    import gzip

    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource

    def cut(i: int) -> MonoCut:
        name, path = f"{i % 251}-{i:06d}-{i % 97:04d}", f"train/{i % 251}/{i:06d}/{i % 251}-{i:06d}-{i % 97:04d}.flac"
        text = " ".join(f"WORD{(i * 7919 + k * 104729) % 5000}" for k in range(30))
        recording = Recording(name, [AudioSource("file", [0], path)], 16000, 196800, 12.3)
        said = SupervisionSegment(name, name, 0.0, 12.3, text=text, speaker=str(i % 251))
        return MonoCut(name, 0.0, 12.3, 0, [said], recording=recording)

    rows = [json.dumps(cut(i).to_dict()) for i in range(count)]
    tracemalloc.start()
    cuts = list(CutSet.from_dicts(json.loads(row) for row in rows))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / len(cuts), len(gzip.compress("\n".join(rows).encode())) / count


def of_log(path: Path, measured: Measurements) -> Measurements:
    """``measured`` with speed and data-wait share of a training's ``log.jsonl`` (of its first rank: one device).

    The first record is left out: it holds the start-up.

    Raises:
        ValueError: If the log holds too few records.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    train = [record for record in records if record.get("kind") == "train" and "audio_s_per_s" in record][1:]
    if not train:
        raise ValueError(f"{path}: expected at least two records of training with audio_s_per_s; found fewer")
    run = path.with_name("run.json")
    place = json.loads(run.read_text(encoding="utf-8"))["environment"]["device"] if run.exists() else "unknown device"
    return replace(
        measured,
        source=f"{measured.source}; training by {path} ({len(train)} records, {place})",
        train_audio_s_per_s=median(record["audio_s_per_s"] for record in train),
        data_wait_share=median(record["data_wait_share"] for record in train),
    )


def read_measurements(path: Path) -> Measurements:
    """What ``--save`` wrote.

    Raises:
        ValueError: If the file holds something else.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(Measurements)}
    if not isinstance(content, dict) or content.keys() - known:
        raise ValueError(f"{path}: expected keys among {', '.join(sorted(known))}; found {sorted(content)}")
    return Measurements(**content)


# Markdown -----------------------------------------------------------------------------------------------------------------


def markdown(plans: Sequence[Plan], measured: Measurements, assumed: Sequence[Assumptions]) -> str:
    """The table, what it rests on, and its formulas."""
    rows = [
        ("labelling", [_duration(p.label_h) for p in plans]),
        ("training", [f"{_duration(p.train_h)} ({a.epochs:g} epochs)" for p, a in zip(plans, assumed, strict=True)]),
        ("device hours", [_number(p.gpu_hours) for p in plans]),
        ("cost", [_number(p.cost) for p in plans]),
        ("disk: audio", [_bytes(p.audio_tb) for p in plans]),
        ("disk: targets", [_bytes(p.targets_tb) for p in plans]),
        ("disk: manifests", [_bytes(p.manifests_tb) for p in plans]),
        ("disk: checkpoints", [_bytes(p.checkpoints_tb) for p in plans]),
        ("memory of a device", [_bytes(_times(p.device_memory_gb, 1e-3, 1)) for p in plans]),
        ("memory of a host: cuts", [_bytes(_times(p.host_memory_gb, 1e-3, 1)) for p in plans]),
    ]
    first = assumed[0]
    lines = [f"| {first.gpus} devices | " + " | ".join(f"{p.hours:,.0f} h" for p in plans) + " |"]
    lines += ["|---" * (len(plans) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    lines += ["", f"Measured: {measured.source}", ""]
    lines += [f"- {name}: {_plain(value)}" for name, value in asdict(measured).items() if name != "source"]
    if measured.label_audio_s_per_s and not measured.label_has_search:
        lines += [
            "",
            "**The teacher's search for N-best lists is not in the labelling time** (`--label-rate` and `--label-has-search`).",
        ]
    lines += ["", "Assumed:", ""]
    lines += [
        f"- {name}: {', '.join(dict.fromkeys(_plain(getattr(a, name)) for a in assumed))} ({ORIGIN[name]})"
        for name in ORIGIN
    ]
    return "\n".join([*lines, "", "Computed:", "", FORMULAS]) + "\n"


def _plain(value: Any) -> str:
    if value is None:
        return "not measured"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _duration(hours: float | None) -> str:
    if hours is None:
        return "–"
    if hours < 1:
        return f"{60 * hours:.3g} min"
    return f"{hours:.3g} h" if hours < 48 else f"{hours / 24:,.3g} days" if hours < 24000 else f"{hours / 24:,.0f} days"


def _bytes(terabytes: float | None) -> str:
    if terabytes is None:
        return "–"
    for unit, factor in (("PB", 1e-3), ("TB", 1.0), ("GB", 1e3), ("MB", 1e6)):
        if terabytes * factor >= 1 or unit == "MB":
            return f"{terabytes * factor:.3g} {unit}"
    raise AssertionError


# Command line -------------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Options; each assumption is one."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--measure", type=Path, metavar="RECIPE", help="measure this recipe's models here")
    made.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes to that recipe")
    made.add_argument("--device", default="cpu")
    made.add_argument("--save", type=Path, help="write what was measured here")
    made.add_argument("--measurements", type=Path, help="what --save wrote")
    made.add_argument("--log", type=Path, help="log.jsonl of a training on one of the devices")
    made.add_argument("--train-rate", type=float, help="audio seconds a second of one device, training")
    made.add_argument("--label-rate", type=float, help="audio seconds a second of one device, labelling")
    made.add_argument("--label-has-search", action="store_true", help="--label-rate includes the N-best search")
    made.add_argument("--hours", type=float, nargs="+", default=list(HOURS))
    made.add_argument("--epochs", type=float, nargs="+", help="one for all sizes, or one for each")
    for field in fields(Assumptions):
        if field.name != "epochs":
            kind = int if isinstance(field.default, int) else float
            name = f"--{field.name.replace('_', '-')}"
            made.add_argument(name, type=kind, help=f"default {field.default:g}: {ORIGIN[field.name]}")
    return made


def _figures(given: argparse.Namespace) -> Measurements:
    measured = read_measurements(given.measurements) if given.measurements else Measurements()
    if given.measure:
        measured = measure(given.measure, given.set, given.device)
    if given.log:
        measured = of_log(given.log, measured)
    for option, name in (("train_rate", "train_audio_s_per_s"), ("label_rate", "label_audio_s_per_s")):
        if (value := getattr(given, option)) is not None:
            if not value > 0:
                raise ValueError(f"--{option.replace('_', '-')}: expected more than 0; found {value:g}")
            measured = replace(measured, **{name: value}, source=f"{measured.source}; --{option.replace('_', '-')}")
    return replace(measured, label_has_search=True) if given.label_has_search else measured


def _assumptions(given: argparse.Namespace) -> list[Assumptions]:
    values = {
        f.name: v for f in fields(Assumptions) if f.name != "epochs" and (v := getattr(given, f.name)) is not None
    }
    if given.measure:
        from asrkd.training.recipe import load_recipe

        recipe = load_recipe(given.measure, given.set)
        values = {"views": len(recipe.data.speeds), "checkpoints": recipe.training.average + 1, **values}
        given.epochs = given.epochs or [recipe.training.epochs]
    epochs = given.epochs or [Assumptions.epochs]
    if len(epochs) not in (1, len(given.hours)):
        raise ValueError(f"--epochs: expected 1 or {len(given.hours)} numbers; found {len(epochs)}")
    made = [Assumptions(**values, epochs=e) for e in (epochs if len(epochs) > 1 else epochs * len(given.hours))]
    if made[0].gpus < 1 or made[0].gpus_per_host < 1 or not 0 < made[0].efficiency <= 1:
        raise ValueError(
            "--gpus, --gpus-per-host, --efficiency: expected at least 1, 1, and a share above 0; found less"
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 for what cannot be planned."""
    given = parser().parse_args(arguments)
    try:
        measured, assumed = _figures(given), _assumptions(given)
        if measured.train_audio_s_per_s is None and measured.label_audio_s_per_s is None:
            raise ValueError(
                "figures: expected --measure, --measurements, --log, --train-rate or --label-rate; found none"
            )
        if given.save:
            from asrkd.data.files import write_atomically

            write_atomically(given.save, json.dumps(asdict(measured), indent=1).encode())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"plan_scale: {error}\n")
        return 2
    print(
        markdown([plan(measured, a, h) for a, h in zip(assumed, given.hours, strict=True)], measured, assumed), end=""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
