"""From cuts to batches: which utterances go together, in which order, and their audio as padded tensors."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile
import soxr
import torch
from lhotse import AudioSource, CutSet
from lhotse.audio import AudioLoadingError, DurationMismatchError
from lhotse.augmentation import AudioTransform, Resample
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.utils import fastcopy
from numpy.typing import NDArray
from torch import Tensor

from asrkd.data.audio import check_audio
from asrkd.data.text import Tokenizer
from asrkd.types import SpeechBatch, TeacherTargets


class BatchSource:
    """Deterministic batches of utterances of similar length, the same for each ``(seed, epoch)``.

    Each epoch: utterances are shuffled within buckets of similar duration, cut into batches along the buckets, and the
    batches shuffled. Nothing depends on what was drawn before, so any position of any epoch can be gone to.

    Args:
        cuts: The utterances.
        max_duration_s: A batch's rows times its longest row stays within this; an utterance that is longer by itself
            makes a batch alone.
        seed: Of the shuffling.
        buckets: Number of equally filled buckets; more mean less padding and less randomness in who meets whom.
        rank: Of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there are no cuts, fewer than processes, or an argument is out of range.
    """

    def __init__(
        self,
        cuts: CutSet | Sequence[Cut],
        max_duration_s: float,
        seed: int = 0,
        buckets: int = 30,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.cuts = list(cuts)
        self.max_duration_s = max_duration_s
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        if not max_duration_s > 0:
            raise ValueError(f"max_duration_s: expected more than 0, found {max_duration_s}")
        if buckets < 1:
            raise ValueError(f"buckets: expected at least 1, found {buckets}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, found {rank}")
        if len(self.cuts) < world_size:
            raise ValueError(f"cuts: expected at least {world_size}, one for each process, found {len(self.cuts)}")
        durations = sorted(cut.duration for cut in self.cuts)
        edges = [durations[len(durations) * i // buckets] for i in range(1, buckets)]
        self._bucket = [bisect.bisect_right(edges, cut.duration) for cut in self.cuts]

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Cut]]:
        """This process's batches of an epoch: numbers ``rank``, ``rank + world_size``, … of all.

        Every process gets the same number of batches and every utterance is used once: the batches left over after
        the last full round are split until there is one for each process.

        Args:
            epoch: Any integer.
            start: This process's batches that are left out at the beginning, as done already.
        """
        for batch in self._plan(epoch)[self.rank :: self.world_size][start:]:
            yield [self.cuts[i] for i in batch]

    def count(self, epoch: int) -> int:
        """This process's number of batches in an epoch; epochs may differ a little."""
        return len(self._plan(epoch)) // self.world_size

    def _plan(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self.seed}/{epoch}")
        order = list(range(len(self.cuts)))
        draw.shuffle(order)
        order.sort(key=self._bucket.__getitem__)  # stable: shuffled within each bucket
        batches: list[list[int]] = []
        longest = 0.0
        for i in order:
            duration = self.cuts[i].duration
            if not batches or max(longest, duration) * (len(batches[-1]) + 1) > self.max_duration_s:
                batches.append([])
                longest = 0.0
            batches[-1].append(i)
            longest = max(longest, duration)
        draw.shuffle(batches)
        return self._deal_out_rest(batches)

    def _deal_out_rest(self, batches: list[list[int]]) -> list[list[int]]:
        """Makes the number of batches a multiple of the processes by splitting the last, incomplete round's."""
        size = self.world_size
        full = len(batches) - len(batches) % size
        head, rest = batches[:full], batches[full:]
        while rest and head and sum(map(len, rest)) < -(-len(rest) // size) * size:
            head, rest = head[:-size], head[-size:] + rest  # too few utterances: take in a full round
        while len(rest) % size and max(map(len, rest)) > 1:
            largest = max(range(len(rest)), key=lambda i: len(rest[i]))
            batch = rest.pop(largest)
            rest += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        for i in range(len(rest) % size):  # every batch is one utterance: some become two, longer than asked for
            rest[i] += rest.pop()
        return head + rest


class AudioCache:
    """Decoded audio of utterances in memory until it is full; nothing is ever put out again.

    Samples take 16 bits where that is all they have, 32 where they were resampled or decoded from a lossy file.

    Each process has its own: loader workers that are forked inherit what is in it, and add to their copies.

    Args:
        max_bytes: Of samples.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._samples: dict[tuple[str, int], NDArray[np.int16] | NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, cut: Cut, sample_rate_hz: int) -> NDArray[np.float32]:
        """Audio of ``cut`` as :func:`read_cut` gives it, whether it was there or not."""
        kept = self._samples.get((cut.id, sample_rate_hz))
        if kept is not None:
            return kept.astype(np.float32) / np.float32(32768) if kept.dtype == np.int16 else kept.astype(np.float32)
        samples = read_cut(cut, sample_rate_hz)
        short = np.clip(samples * 32768, -32768, 32767).astype(np.int16)
        # Rounding others would put noise into the bands that a file of a lower rate leaves empty: 10 nats of log energy.
        kept = short if np.array_equal(short.astype(np.float32) / np.float32(32768), samples) else samples.copy()
        if self.used_bytes + kept.nbytes <= self.max_bytes:
            self.used_bytes += kept.nbytes
            self._samples[cut.id, sample_rate_hz] = kept
        return samples


class Targets(Protocol):
    """What gives stored teacher targets."""

    def read(self, ids: Sequence[str]) -> TeacherTargets: ...


def load_batch(
    cuts: CutSet | Iterable[Cut],
    tokenizer: Tokenizer | None,
    *,
    sample_rate_hz: int = 16000,
    cache: AudioCache | None = None,
    targets: Targets | None = None,
) -> SpeechBatch:
    """Reads the audio and transcripts of some cuts.

    Args:
        cuts: The utterances, one row each.
        tokenizer: Makes ``tokens`` of the transcripts; ``None`` leaves them out.
        sample_rate_hz: Audio at another rate is resampled.
        cache: Where decoded audio is kept for the next epoch.
        targets: Where the teacher's targets are read from.

    Raises:
        ValueError, OSError: If the audio of a cut cannot be read: one line with utterance, file and reason.
    """
    cuts = list(cuts)
    if not cuts:
        raise ValueError("cuts: expected at least one, found none")
    audio = [cache.read(cut, sample_rate_hz) if cache is not None else read_cut(cut, sample_rate_hz) for cut in cuts]
    lengths = torch.tensor([samples.size for samples in audio], dtype=torch.int64)
    padded = torch.zeros(len(audio), int(lengths.max()))
    for row, samples in enumerate(audio):
        padded[row, : samples.size] = torch.from_numpy(samples)
    texts = tuple(transcript(cut) for cut in cuts)
    tokens, token_lengths = (None, None) if tokenizer is None else _tokenise(texts, tokenizer)
    ids = tuple(cut.id for cut in cuts)
    return SpeechBatch(
        ids=ids,
        audio=padded,
        audio_lengths=lengths,
        sample_rate_hz=sample_rate_hz,
        texts=texts,
        tokens=tokens,
        token_lengths=token_lengths,
        targets=None if targets is None else targets.read(ids),
    )


def read_cut(cut: Cut, sample_rate_hz: int) -> NDArray[np.float32]:
    """Audio of any lhotse cut: channels averaged, at the wanted rate, ``(S,)`` float32.

    Resampled as :func:`asrkd.data.audio.read_audio` does: lhotse's own filter lets mirror images through that a model would hear.

    Raises:
        ValueError, OSError: If it cannot be read: one line with utterance, file and reason.
    """
    if cut.sampling_rate != sample_rate_hz:
        cut = cut.resample(sample_rate_hz)
    stored = cut
    cut = _fetched(cut)
    if isinstance(cut, DataCut) and cut.recording is not None:
        transforms = [_as_soxr(transform) for transform in cut.recording.transforms or ()]
        cut = fastcopy(cut, recording=fastcopy(cut.recording, transforms=transforms or None))
    try:
        samples = np.asarray(cut.load_audio(), np.float32)
    except (
        AudioLoadingError,
        DurationMismatchError,
        soundfile.LibsndfileError,
        AssertionError,
        RuntimeError,
        OSError,
    ) as error:
        for path in audio_files(cut):  # our own reader gives the better reason, where it fails too
            check_audio(path)
        reason = str(error).strip().splitlines() or [repr(error)]
        raise ValueError(f"utterance {cut.id}: {', '.join(map(str, audio_files(stored)))}: {reason[0]}") from error
    return samples[0] if samples.shape[0] == 1 else samples.mean(axis=0)


@dataclass
class _SoxrResample(Resample):
    """lhotse's transform with another filter."""

    def __call__(self, samples: NDArray[np.float32], *_: object) -> NDArray[np.float32]:
        rates_hz = (self.source_sampling_rate, self.target_sampling_rate)
        return soxr.resample(np.asarray(samples, np.float32).T, *rates_hz, quality="HQ").T


def _as_soxr(transform: AudioTransform) -> AudioTransform:
    if type(transform) is not Resample:
        return transform
    return _SoxrResample(transform.source_sampling_rate, transform.target_sampling_rate)


def _fetched(cut: Cut) -> Cut:
    """The same with the bytes of its audio, where it lies inside a tar (:func:`asrkd.data.shar.read_shar`)."""
    recording = getattr(cut, "recording", None)
    if recording is None or recording.sources[0].type != "shar":
        return cut
    (source,) = recording.sources
    path, start, size = source.source.rsplit(":", 2)
    with open(path, "rb") as file:
        file.seek(int(start))
        data = file.read(int(size))
    return fastcopy(cut, recording=fastcopy(recording, sources=[AudioSource("memory", source.channels, data)]))


def transcript(cut: Cut) -> str:
    """The texts of a cut's supervisions with a space between; an empty string where there is none."""
    return " ".join(supervision.text for supervision in cut.supervisions if supervision.text)


def with_speeds(cuts: CutSet, speeds: Sequence[float] = (0.9, 1.0, 1.1)) -> CutSet:
    """Each utterance once at every speed (pitch changes with it); the audio is resampled when read.

    Args:
        cuts: In memory.
        speeds: Factors; 1.0 keeps the id, others append lhotse's ``_sp0.9``.

    Raises:
        ValueError: If a factor is not positive or stands twice.
    """
    if not speeds or any(speed <= 0 for speed in speeds) or len(set(speeds)) != len(speeds):
        raise ValueError(f"speeds: expected different positive factors, found {list(speeds)}")
    result: list[Cut] = []
    for speed in speeds:
        result += cuts if speed == 1.0 else (cut.perturb_speed(speed) for cut in cuts)
    return CutSet.from_cuts(result)


def _tokenise(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    encoded = [tokenizer.encode(text) for text in texts]
    lengths = torch.tensor([len(ids) for ids in encoded], dtype=torch.int64)
    tokens = torch.zeros(len(encoded), max(1, int(lengths.max())), dtype=torch.int64)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens, lengths


def audio_files(cut: Any) -> list[Path]:
    """The audio files behind a cut, those of a mixture too."""
    tracks = [track.cut for track in getattr(cut, "tracks", [])] or [cut]
    sources = [source for t in tracks if getattr(t, "recording", None) for source in t.recording.sources]
    files = [Path(source.source) for source in sources if source.type == "file"]
    return files + [Path(source.source.rsplit(":", 2)[0]) for source in sources if source.type == "shar"]
