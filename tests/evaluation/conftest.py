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
    """An untrained streaming student whose CTC head is steep, so that it says something."""
    return make_student(tokenizer)


def make_student(tokenizer, seed=0):
    torch.manual_seed(seed)
    model = build({"kind": "streaming_conformer", "size": "tiny", "chunk_frames": 8}, tokenizer).eval()
    with torch.no_grad():
        model.ctc_head.weight.mul_(30)
        model.ctc_head.bias.zero_()
    return model


@pytest.fixture(scope="session")
def teacher(tokenizer):
    torch.manual_seed(1)
    return build({"kind": "speechbrain_conformer", "size": "tiny"}, tokenizer).eval()


@pytest.fixture(scope="session")
def cuts(tmp_path_factory):
    """Twelve noisy tones of three speakers, 0.6 to 3 s, with transcripts and SNRs."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    made = []
    for index in range(12):
        seconds = 0.6 + 0.2 * index
        time_s = np.arange(int(16000 * seconds)) / 16000
        audio = 0.3 * np.sin(2 * np.pi * 200 * (1 + index % 4) * time_s) + 0.02 * rng.standard_normal(len(time_s))
        path = folder / f"u{index:02d}.wav"
        soundfile.write(path, audio.astype(np.float32), 16000, subtype="PCM_16")
        recording = Recording.from_file(path)
        text = " ".join(WORDS[(index + k) % 7] for k in range(1 + index % 4))
        supervision = SupervisionSegment(
            f"u{index:02d}", recording.id, 0, recording.duration, text=text, speaker=f"s{index % 3}"
        )
        cut = MonoCut(f"u{index:02d}", 0, recording.duration, 0, [supervision], recording=recording)
        cut.custom = {"snr_db": 5.0 * (index % 5)}
        made.append(cut)
    return CutSet.from_cuts(made)
