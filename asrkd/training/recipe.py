"""Recipes: plain YAML, checked whole before anything starts.

A recipe names the data, the model, the loss terms and the schedule of one training; it builds no objects and runs no code.
``extends: other.yaml`` takes everything from another recipe first (paths relative to the file that says it). All relative paths
inside ``data``, ``teacher``, ``targets``, ``output`` and so on are resolved against ``workdir``. The sections ``prepare``,
``teacher_recipes``, ``evaluate`` and ``export`` say what comes before and after the training; ``asrkd run`` reads them.
``sweep`` says what ``asrkd sweep`` tries.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from asrkd.losses.objective import Objective, validate_terms
from asrkd.models.hub import is_remote
from asrkd.models.package import MODELS
from asrkd.models.transducer import StreamingTransducer
from asrkd.teachers.config import EnsembleSpec, PackageSpec, TeacherSpec, parse_teacher
from asrkd.training.sections import (
    AugmentConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    PrepareConfig,
    Strict,
    SweepConfig,
    TargetsConfig,
    TokenizerConfig,
    TrainingConfig,
)


class RecipeError(ValueError):
    """A recipe that cannot be run; the message lists every problem, one a line."""


class Recipe(Strict):
    """One training, whole. See the module's docstring for paths and ``extends``."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(1, ge=0)
    workdir: Path
    output: Path
    licence: str = "unspecified"
    normaliser: str = "none"
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: dict[str, Any]
    losses: tuple[dict[str, Any], ...]
    teacher: TeacherSpec | None = None
    targets: TargetsConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    prepare: PrepareConfig | None = None
    teacher_recipes: tuple[Path, ...] = ()
    evaluate: EvaluateConfig | None = None
    export: ExportConfig | None = None
    sweep: SweepConfig | None = None

    @field_validator("teacher", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """A teacher in one line: a package's folder, or ``KIND:NAME``."""
        return parse_teacher(value) if isinstance(value, str) else value

    @property
    def teacher_packages(self) -> dict[str, Path]:
        """The model packages on this machine among the teachers, by their place in the recipe."""
        members = {"teacher": self.teacher}
        if isinstance(self.teacher, EnsembleSpec):
            members = {f"teacher.members.{i}": member for i, member in enumerate(self.teacher.members)}
        packages = {place: spec.path for place, spec in members.items() if isinstance(spec, PackageSpec)}
        return {f"{place}.path": path for place, path in packages.items() if not is_remote(path)}

    @property
    def needs(self) -> frozenset[str]:
        """What the losses need to be in a batch."""
        return Objective.from_config([dict(term) for term in self.losses], total_steps=1).needs

    def path(self, relative: Path) -> Path:
        """``relative`` against ``workdir`` (absolute paths stay); ``..`` leads to its neighbours even before it is made."""
        return Path(os.path.normpath(self.workdir / relative))

    @property
    def output_dir(self) -> Path:
        return self.path(self.output)

    @model_validator(mode="after")
    def _whole(self) -> Recipe:
        problems = [*_model_problems(self.model), *(f"losses: {line}" for line in validate_terms(list(self.losses)))]
        if not problems:
            problems += _pair_problems(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _model_problems(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("kind")
    if kind not in MODELS:
        return [f"model.kind: expected one of {', '.join(sorted(MODELS))}; found {kind!r}"]
    config_class, _ = MODELS[kind]
    try:
        config_class.model_validate(dict(config))
    except ValidationError as error:
        return _problems(error, config_class, prefix="model.")
    return []


def _pair_problems(recipe: Recipe) -> list[str]:
    """Combinations that no single key shows to be wrong."""
    problems = []
    needs = recipe.needs
    of_teacher = sorted(n for n in needs if n.startswith("targets"))
    if of_teacher and recipe.teacher is None:
        problems.append(f"teacher: expected one, since losses need {', '.join(of_teacher)}; found none")
    settings = recipe.targets
    if recipe.teacher is not None and (settings is None or not (settings.live or settings.folder)):
        problems.append("targets: expected a folder to store them in, or live: true; found neither")
    inner = [n for n in of_teacher if n.startswith(("targets.hidden:", "targets.decoder"))]
    if inner and recipe.teacher is not None and not {"hidden", "decoder"} <= type(recipe.teacher).model_fields.keys():
        problems.append(
            f"teacher.kind: expected package or huggingface, since losses need {', '.join(inner)}; "
            f"found {recipe.teacher.kind}"
        )
    problems += _transducer_problems(recipe, needs)
    if "targets.decoder" in inner and settings is not None and not settings.live:
        problems.append("targets.live: expected true, since the decoder's posteriors are not stored; found false")
    if "targets.nbest" in needs and recipe.targets is not None and recipe.targets.nbest == 0:
        problems.append("targets.nbest: expected at least 1, since losses need the N-best list; found 0")
    codes = [term for term in recipe.losses if term["loss"] == "mvq"]
    if codes and settings is not None and settings.live:
        problems.append(
            "targets.live: expected false, since mvq predicts codes that labelling fits and stores; found true"
        )
    if codes and len(inner) > len({str(term["teacher_layer"]) for term in codes}):
        problems.append(
            "losses: expected mvq alone on inner layers, since a store keeps either codes or states; found both"
        )
    if len({(term["num_codebooks"], term.get("codebook_size", 256)) for term in codes}) > 1:
        problems.append("losses: expected the same num_codebooks and codebook_size for every mvq; found different ones")
    if recipe.data.unlabelled and not set(of_teacher) - {"targets.lattice"}:
        problems.append("data.unlabelled: expected a loss that learns from a teacher without a reference; found none")
    low, high = recipe.augment.noise.snr_db
    if low > high:
        problems.append(f"augment.noise.snr_db: expected [low, high]; found [{low}, {high}]")
    return problems


def _transducer_problems(recipe: Recipe, needs: frozenset[str]) -> list[str]:
    """Losses, heads, teacher and decoding that do not go with a transducer, or with none."""
    kind, settings = recipe.model["kind"], recipe.targets
    if kind != StreamingTransducer.kind:
        if "transducer_logits" not in needs:
            return []
        return [f"losses: expected a transducer as model for losses on its joint network; found kind {kind}"]
    problems = []
    if "transducer_logits" not in needs:
        problems.append(f"losses: expected one on the joint network (rnnt), which model.kind {kind} has; found none")
    head = bool(recipe.model.get("ctc_head", False))
    if head and "ctc_logits" not in needs:
        problems.append("model.ctc_head: expected false, since no loss trains it; found true")
    if not head and "ctc_logits" in needs:
        problems.append("model.ctc_head: expected true, since losses need CTC posteriors; found false")
    if {"decoder_logits", "decode"} & needs:
        problems.append(f"losses: expected none on an attention decoder, which model.kind {kind} has not; found one")
    if "targets.lattice" in needs and recipe.teacher is not None:
        if not isinstance(recipe.teacher, PackageSpec):
            found = recipe.teacher.kind
            problems.append(f"teacher.kind: expected package, since losses need a transducer's lattice; found {found}")
        if settings is not None and not settings.live:
            problems.append("targets.live: expected true, since a transducer's lattice is not stored; found false")
    if recipe.evaluate is not None and recipe.evaluate.decoding not in ("greedy", "streaming"):
        problems.append(
            f"evaluate.decoding: expected greedy or streaming for model.kind {kind}; found {recipe.evaluate.decoding}"
        )
    if recipe.export is not None:
        problems.append(f"export: expected none (null), since a {kind} cannot be exported; found {recipe.export.to}")
    return problems


def _field_names(model: Any, location: Sequence[int | str]) -> list[str]:
    """Known keys at ``location`` inside pydantic model ``model``."""
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return []
        info = model.model_fields.get(str(part))
        if info is None:
            return []
        candidates = [info.annotation, *get_args(info.annotation)]
        model = next(
            (c for c in candidates if isinstance(c, type) and get_origin(c) is None and issubclass(c, BaseModel)), None
        )
    return sorted(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _problems(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    lines = []
    for item in error.errors():
        location = item["loc"]
        dotted = prefix + ".".join(str(part) for part in location)
        if item["type"] == "extra_forbidden":
            known = _field_names(model, location[:-1])
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            lines.append(f"{dotted}: unknown key{hint}; known: {', '.join(known)}")
        elif item["type"] == "missing":
            lines.append(f"{dotted}: expected a value; found none")
        elif item["type"] == "value_error" and not location:
            lines += str(item["ctx"]["error"]).splitlines()
        else:
            lines.append(f"{dotted}: {item['msg'][0].lower()}{item['msg'][1:]}; found {item['input']!r}")
    return lines


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping with ``yaml.safe_load``, following ``extends``.

    Raises:
        RecipeError: If the file is missing, no YAML, no mapping, or extends itself.
    """
    return _read_chain(path, seen=())


def _read_chain(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve()
    if path in seen:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(p.name for p in seen)}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected plain YAML; {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping of keys; found {type(content).__name__}")
    if isinstance(content.get("teacher_recipes"), list):
        content["teacher_recipes"] = [str(path.parent / str(other)) for other in content["teacher_recipes"]]
    parent = content.pop("extends", None)
    if parent is None:
        return content
    return merge(_read_chain(path.parent / str(parent), (*seen, path)), content)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: mappings are merged key by key, everything else is replaced whole."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and value.get("kind") in (None, below.get("kind")):
            value = merge(below, value)
        result[key] = value
    return result


def apply_overrides(content: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply ``key.sub=value`` overrides; values are read as YAML, list places by number.

    Raises:
        RecipeError: If an override is not of that form or goes through something that holds no keys.
    """
    for override in overrides:
        dotted, sign, text = override.partition("=")
        if not sign or not dotted:
            raise RecipeError(f"{override!r}: expected key.sub=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"{override!r}: expected a YAML value after '='; found {text!r}") from None
        set_key(content, dotted, value)
    return content


def set_key(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Put ``value`` at ``key.sub``, list places by number.

    Raises:
        RecipeError: If the key goes through something that holds no keys.
    """
    *parents, last = dotted.split(".")
    place: Any = content
    for part in parents:
        place = _descend(place, part, dotted)
    if isinstance(place, list):
        place[_index(place, last, dotted)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"{dotted}: expected a mapping above {last!r}; found {place!r}")


def _descend(place: Any, part: str, dotted: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, dotted)]
    if not isinstance(place, dict):
        raise RecipeError(f"{dotted}: expected a mapping above {part!r}; found {place!r}")
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _index(place: list[Any], part: str, dotted: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise RecipeError(f"{dotted}: expected a place 0 to {len(place) - 1}; found {part!r}")
    return int(part)


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, merge, override and check a recipe.

    Args:
        path: YAML file.
        overrides: ``key.sub=value`` strings from the command line.

    Raises:
        RecipeError: With every problem found, one a line, each with its dotted path and the known names.
    """
    return check_content(apply_overrides(read_yaml(Path(path)), overrides), Path(path))


def check_content(content: dict[str, Any], path: Path) -> Recipe:
    """Check the plain values of a recipe.

    Args:
        content: As of :func:`read_yaml`.
        path: Named in the error.

    Raises:
        RecipeError: As :func:`load_recipe`.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = _problems(error, Recipe)
        # The whole-recipe checks only run once every key is right; the model and the losses are checked all the same.
        if isinstance(content.get("model"), dict) and not any(line.startswith("model.") for line in lines):
            lines += _model_problems(content["model"])
        if isinstance(content.get("losses"), list) and not any(line.startswith("losses") for line in lines):
            lines += [f"losses: {line}" for line in validate_terms(content["losses"])]
        raise RecipeError("\n".join([f"{path}: {len(lines)} problem{'s' * (len(lines) != 1)}", *lines])) from None


def missing_files(recipe: Recipe) -> list[str]:
    """One line for each file or folder that the recipe reads and that is not there (yet)."""
    wanted: list[tuple[str, Path]] = []
    for key in ("train", "valid", "unlabelled"):
        wanted += [(f"data.{key}.{i}", path) for i, path in enumerate(getattr(recipe.data, key))]
    wanted += recipe.teacher_packages.items()
    if recipe.tokenizer.package is not None:
        wanted.append(("tokenizer.package", recipe.tokenizer.package))
    if recipe.training.init_from is not None:
        wanted.append(("training.init_from", recipe.training.init_from))
    return [
        f"{key}: no such file or folder: {recipe.path(path)}" for key, path in wanted if not recipe.path(path).exists()
    ]


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The full recipe as plain JSON values, defaults included, as recorded with a run."""
    return recipe.model_dump(mode="json")
