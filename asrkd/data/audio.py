"""Reading audio files of any kind that libsndfile knows, mono float32 at the wanted rate, whole or block by block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
_BLOCK_S = 10.0
# WAV writers that could not know the length put the largest number there; libsndfile then trusts the file's size.
_UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file says of itself.

    Args:
        path: The file.
        sample_rate_hz: Its own rate.
        channels: Their number.
        num_samples: Samples of each channel.
        encoding: Container and sample format, as ``FLAC PCM_16``.
    """

    path: Path
    sample_rate_hz: int
    channels: int
    num_samples: int
    encoding: str

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate_hz


def audio_info(path: str | Path) -> AudioInfo:
    """Reads the header of an audio file.

    Raises:
        OSError: If there is no such file or it may not be read.
        ValueError: If it is empty, no audio, cut short, or holds no samples; one line with the file's name.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder; expected an audio file")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read: {error.strerror or error}") from None
    if empty:
        raise ValueError(f"{path}: empty file (0 bytes)")
    try:
        info = soundfile.info(str(path), verbose=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be read as audio ({_reason(error)})") from None
    cut = re.search(r"^data *: (\d+) \(should be (\d+)\)", info.extra_info, re.MULTILINE)
    if cut and int(cut[1]) > int(cut[2]) and int(cut[1]) not in _UNKNOWN_LENGTHS:
        raise ValueError(f"{path}: truncated: header promises {cut[1]} bytes of samples, found {cut[2]}")
    if info.frames <= 0:
        raise ValueError(f"{path}: holds no samples")
    return AudioInfo(path, info.samplerate, info.channels, info.frames, f"{info.format} {info.subtype}")


def read_audio(path: str | Path, target_rate_hz: int = 16000) -> tuple[NDArray[np.float32], AudioInfo]:
    """Reads a whole file: channels averaged, resampled (soxr, high quality) where its rate differs.

    Returns:
        ``(S,)`` float32 samples, nominally in ``[-1, 1]``, and what the file says of itself. Silence is no error.

    Raises:
        OSError, ValueError: As :func:`audio_info`, and if the samples end early, are damaged or are not finite.
    """
    blocks = list(stream_audio(path, _BLOCK_S, target_rate_hz))
    return np.concatenate(blocks), audio_info(path)


def stream_audio(
    path: str | Path, block_s: float = _BLOCK_S, target_rate_hz: int = 16000
) -> Iterator[NDArray[np.float32]]:
    """Reads a file of any length in constant memory; the blocks joined are what :func:`read_audio` gives.

    Args:
        path: An audio file.
        block_s: Seconds of the file read at a time. Blocks that come out differ a little in length, as the resampler
            holds samples back; the last is shorter.
        target_rate_hz: Rate of what comes out.

    Yields:
        ``(S,)`` float32 mono samples, S > 0.

    Raises:
        OSError, ValueError: As :func:`read_audio`; damage is met only when the reading comes to it.
    """
    info = audio_info(path)
    resampler = None
    if info.sample_rate_hz != target_rate_hz:
        resampler = soxr.ResampleStream(info.sample_rate_hz, target_rate_hz, 1, dtype="float32", quality="HQ")
    block_frames = max(1, round(block_s * info.sample_rate_hz))
    done = 0
    try:
        with soundfile.SoundFile(str(path)) as file:
            while done < info.num_samples:
                samples = file.read(min(block_frames, info.num_samples - done), dtype="float32", always_2d=True)
                if not len(samples):
                    break
                done += len(samples)
                if not np.isfinite(samples).all():
                    raise ValueError(f"{path}: samples that are not finite numbers before {_seconds(done, info)}")
                mono = samples[:, 0] if info.channels == 1 else samples.mean(axis=1)
                if resampler is not None:
                    mono = resampler.resample_chunk(mono, last=done == info.num_samples)
                if mono.size:
                    yield mono
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged after {_seconds(done, info)} ({_reason(error)})") from None
    if done < info.num_samples:
        raise ValueError(
            f"{path}: truncated: header promises {_seconds(info.num_samples, info)}, found {_seconds(done, info)}"
        )


def check_audio(path: str | Path) -> AudioInfo:
    """Decodes a whole file and forgets it: raises what :func:`read_audio` would, in constant memory."""
    info = audio_info(path)
    for _ in stream_audio(path, _BLOCK_S, info.sample_rate_hz):
        pass
    return info


def _seconds(num_samples: int, info: AudioInfo) -> str:
    return f"{num_samples / info.sample_rate_hz:.2f} s"


def _reason(error: Exception) -> str:
    """libsndfile's complaint without the path and the full stop."""
    text = getattr(error, "error_string", None) or str(error).splitlines()[0]
    return str(text).rstrip(".")
