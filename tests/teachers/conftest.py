"""Batches of noise-like audio and small model folders in each library's own format."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asrkd.types import SpeechBatch


@pytest.fixture(scope="session")
def batch() -> SpeechBatch:
    """Three utterances of different lengths."""
    lengths = torch.tensor([16000, 9000, 12345])
    audio = 0.1 * torch.randn(3, 16000, generator=torch.Generator().manual_seed(1))
    audio *= torch.arange(16000) < lengths[:, None]
    return SpeechBatch(("a", "b", "c"), audio, lengths, 16000, ("", "", ""))


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small multilingual Whisper over letters with random weights, as transformers saves it."""
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    folder = tmp_path_factory.mktemp("whisper")
    from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", chr(288)]  # the last is the space of byte-level vocabularies
    tokens = [*letters, "<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    tokens += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    ids = {token: i for i, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), language="en", task="transcribe"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [t for t in tokens if t.startswith("<|")]})
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(folder)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=1500, max_target_positions=32, pad_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|endoftext|>"],
        decoder_start_token_id=ids["<|startoftranscript|>"], suppress_tokens=None, begin_suppress_tokens=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.encoder.conv1.weight.mul_(30)
        model.model.encoder.conv2.weight.mul_(30)
        model.proj_out.weight[:27].mul_(50)  # letters rather than marks
        model.model.decoder.embed_tokens.weight.mul_(20)
        model.model.decoder.embed_positions.weight.normal_(std=2.0)
        model.model.decoder.layers[0].encoder_attn.v_proj.weight.mul_(100)
        model.model.decoder.layers[0].encoder_attn.out_proj.weight.mul_(100)
    generation = model.generation_config
    generation.max_length = 14
    generation._from_model_config = False
    generation.is_multilingual = True
    generation.no_timestamps_token_id = ids["<|notimestamps|>"]
    generation.lang_to_id = {mark: ids[mark] for mark in ("<|en|>", "<|de|>")}
    generation.task_to_id = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def open_offline() -> Callable[[Path, Path, dict[str, object]], str]:
    """Identity of a teacher that a process without network opens by a hub id; from a folder, a place for the cache, a spec."""
    return _open_offline


def _open_offline(folder: Path, cache: Path, spec: dict[str, object]) -> str:
    home = cache / "hub" / "models--someone--model"
    revision = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, home / "snapshots" / revision)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(revision)
    code = (
        "import json, sys; from asrkd.teachers.config import check_teacher, open_teacher;"
        "print(open_teacher(check_teacher(json.loads(sys.argv[1])), nbest=1).identity)"
    )
    config = json.dumps({**spec, "source": "someone/model"})
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    answer = subprocess.run(
        [sys.executable, "-c", code, config], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()[-1]
