import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from asrkd.data.text import train_tokenizer
from asrkd.models.package import build

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)], kind="char")


@pytest.fixture(scope="session")
def student(tokenizer):
    """An untrained streaming student that says something."""
    return make_student(tokenizer)


def make_student(tokenizer, seed=0):
    torch.manual_seed(seed)
    model = build({"kind": "streaming_conformer", "size": "tiny", "chunk_frames": 8}, tokenizer).eval()
    model.set_feature_statistics(torch.full((80,), 5.0), torch.full((80,), 3.0))
    audio = torch.from_numpy(sound(0, 3.0)).unsqueeze(0)
    with torch.no_grad():
        encoded = model(model.features(audio, torch.tensor([audio.shape[1]]))).encoded.values[0]
        # Random directions about the mean of what the encoder gives: now one token is likeliest, now another.
        model.ctc_head.weight.normal_(std=3)
        model.ctc_head.bias.copy_(-model.ctc_head.weight @ encoded.mean(0))
    return model


def sound(index, seconds):
    """Tones that change every fifth of a second, in a little noise."""
    rng = np.random.default_rng(index)
    time_s = np.arange(int(16000 * seconds)) / 16000
    pitch_hz = rng.uniform(150, 3000, int(5 * seconds) + 1)[(5 * time_s).astype(int)]
    return (0.3 * np.sin(2 * np.pi * pitch_hz * time_s) + 0.02 * rng.standard_normal(len(time_s))).astype(np.float32)


@pytest.fixture(scope="session")
def teacher(tokenizer):
    torch.manual_seed(1)
    return build({"kind": "speechbrain_conformer", "size": "tiny"}, tokenizer).eval()


@pytest.fixture(scope="session")
def cuts(tmp_path_factory):
    """Twelve noisy tones of three speakers, 0.6 to 3 s, with transcripts and SNRs."""
    folder = tmp_path_factory.mktemp("audio")
    made = []
    for index in range(12):
        seconds = 0.6 + 0.2 * index
        path = folder / f"u{index:02d}.wav"
        soundfile.write(path, sound(index, seconds), 16000, subtype="PCM_16")
        recording = Recording.from_file(path)
        text = " ".join(WORDS[(index + k) % 7] for k in range(1 + index % 4))
        supervision = SupervisionSegment(
            f"u{index:02d}", recording.id, 0, recording.duration, text=text, speaker=f"s{index % 3}"
        )
        cut = MonoCut(f"u{index:02d}", 0, recording.duration, 0, [supervision], recording=recording)
        cut.custom = {"snr_db": 5.0 * (index % 5)}
        made.append(cut)
    return CutSet.from_cuts(made)
