"""The sections of a recipe: what may stand under each key, with defaults.

All relative paths inside a recipe are resolved against its ``workdir``, but for ``teacher_recipes``, which are relative to the
file that names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class TokenizerConfig(Strict):
    """How text becomes labels. ``package`` takes the tokenizer of an existing model package (a student its teacher's)."""

    kind: Literal["char", "sentencepiece"] = "sentencepiece"
    size: PositiveInt | None = None
    package: Path | None = None


class DataConfig(Strict):
    """Which cuts are heard, in what batches."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...] = ()
    unlabelled: tuple[Path, ...] = ()
    max_duration_s: PositiveFloat = 120.0
    min_utterance_s: float = Field(0.1, ge=0.0)
    max_utterance_s: PositiveFloat = 30.0
    buckets: PositiveInt = 10
    speeds: tuple[PositiveFloat, ...] = (1.0,)
    workers: int = Field(0, ge=0)
    cache_mb: int = Field(1024, ge=0)


class SpecAugmentConfig(Strict):
    """Masks on the student's features (Park 2019)."""

    time_masks: int = Field(2, ge=0)
    max_time_frames: int = Field(40, ge=0)
    max_time_share: float = Field(0.2, ge=0.0, le=1.0)
    freq_masks: int = Field(2, ge=0)
    max_freq_bins: int = Field(20, ge=0)


class NoiseConfig(Strict):
    """Coloured noise added to the student's audio at an SNR drawn uniformly; ``probability`` 0 turns it off."""

    probability: float = Field(0.0, ge=0.0, le=1.0)
    snr_db: tuple[float, float] = (5.0, 30.0)


class AugmentConfig(Strict):
    """What the student hears beyond the audio; nothing of it before optimiser step ``start_step``."""

    start_step: int = Field(0, ge=0)
    spec: SpecAugmentConfig | None = SpecAugmentConfig()
    noise: NoiseConfig = NoiseConfig()


class TargetsConfig(Strict):
    """What of the teacher is used, and where it is kept; ``live`` asks it anew at every step and keeps nothing."""

    folder: Path | None = None
    live: bool = False
    codec: Literal["topk", "sampled"] = "topk"
    mass: float = Field(0.999, gt=0.0, lt=1.0)
    max_entries: int = Field(16, ge=1, le=255)
    bits: Literal[8, 16] = 8
    samples: int = Field(32, ge=1, le=255)
    nbest: int = Field(4, ge=0)
    beam: PositiveInt = 8
    case: Literal["keep", "upper", "lower"] = "keep"
    max_duration_s: PositiveFloat = 240.0


class OptimiserConfig(Strict):
    """AdamW and its schedule: linear warm-up, then cosine, linear or constant."""

    peak_lr: PositiveFloat = 1e-3
    warmup_steps: int = Field(500, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_share: float = Field(0.01, ge=0.0, le=1.0)
    weight_decay: float = Field(1e-2, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.98)


class TrainingConfig(Strict):
    epochs: PositiveInt = 10
    max_steps: PositiveInt | None = None
    optimiser: OptimiserConfig = OptimiserConfig()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat = 5.0
    chunk_frames: tuple[int, ...] = ()
    left_context_frames: PositiveInt | None = None
    average: PositiveInt = 3
    early_stop_epochs: PositiveInt | None = None
    nonfinite_patience: int = Field(5, ge=0)
    checkpoint_every_steps: PositiveInt = 200
    init_from: Path | None = None
    log_gradient_shares: bool = False
    compile: bool = False


class PrepareLibriSpeech(Strict):
    """LibriSpeech, whole or in part, or a corpus in its layout."""

    corpus: Literal["librispeech"]
    root: Path
    parts: tuple[str, ...] = ()
    download: bool = False


class PrepareSpokenNumbers(Strict):
    """The synthetic corpus of the demo; its seed is the recipe's."""

    corpus: Literal["spoken_numbers"]
    train_minutes: PositiveFloat = 100.0
    dev_minutes: PositiveFloat = 4.0
    test_minutes: PositiveFloat = 14.0


class PrepareReadSpeech(Strict):
    """Any text read out by espeak-ng: synthetic speech; its seed is the recipe's."""

    corpus: Literal["read_speech"]
    text: Path
    hours: PositiveFloat
    dev_minutes: PositiveFloat = 10.0
    test_minutes: PositiveFloat = 30.0


class PrepareSpokenDigits(Strict):
    """Sequences of digits from real recordings; its seed is the recipe's."""

    corpus: Literal["spoken_digits"]
    root: Path
    left_out: str


class PrepareSyntheticDigits(Strict):
    """Synthetic sequences of digits; its seed is the recipe's."""

    corpus: Literal["synthetic_digits"]
    train_minutes: PositiveFloat = 60.0
    dev_minutes: PositiveFloat = 3.0


class PrepareLhotse(Strict):
    """Any corpus of lhotse's recipes."""

    corpus: Literal["lhotse"]
    name: str
    root: Path
    options: dict[str, str | int | float | bool] = {}


class PrepareTable(Strict):
    """Tables of paths and texts; each file is a part."""

    corpus: Literal["table"]
    files: tuple[Path, ...] = Field(min_length=1)


PrepareConfig = Annotated[
    PrepareLibriSpeech
    | PrepareSpokenNumbers
    | PrepareReadSpeech
    | PrepareSpokenDigits
    | PrepareSyntheticDigits
    | PrepareLhotse
    | PrepareTable,
    Field(discriminator="corpus"),
]
"""Where the data come from; ``asrkd run`` prepares them into the folder of the first manifest of ``data.train``."""


class EvaluateConfig(Strict):
    """Test sets and decoding of ``asrkd run``'s evaluation; ``against``: results to compare with, in ``asrkd compare``'s form."""

    parts: tuple[Path, ...] = Field(min_length=1)
    decoding: Literal["greedy", "streaming", "joint", "rescore"] = "greedy"
    chunk_frames: int | None = Field(None, ge=0)
    speed: bool = True
    against: tuple[str, ...] = ()


class ExportConfig(Strict):
    """What ``asrkd run`` exports the package to."""

    to: Literal["onnx", "sherpa"] = "sherpa"
    int8: bool = False


class SweepRange(Strict):
    """Numbers from ``low`` to ``high``, both included; whole ones where both are whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: PositiveFloat | PositiveInt | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> SweepRange:
        if not self.low < self.high:
            raise ValueError(f"expected low below high; found {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("expected, for log: true, a low above 0 and no step")
        return self


class SweepChoices(Strict):
    """Values for one key; or named groups of changes to several keys, for what only makes sense together."""

    choices: tuple[Any, ...] | dict[str, dict[str, Any]] = Field(min_length=2)


class SweepConfig(Strict):
    """What ``asrkd sweep`` tries: dotted recipe keys (or, for named groups, any name) with ranges or choices."""

    space: dict[str, SweepRange | SweepChoices] = Field(min_length=1)
    trials: PositiveInt = 20
    metric: Literal["wer", "loss"] = "wer"
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    startup_trials: int = Field(5, ge=0)
    warmup_epochs: int = Field(1, ge=0)
    changes: dict[str, Any] = {}
