"""Streaming cost of the student and its exports beside other engines and encoders of like size, each in a process of its own.

    python tools/bench_streaming.py                       # about 8 M parameters, 640 ms chunks, 64 frames of left context
    python tools/bench_streaming.py --only asrkd sherpa   # some of them

Random weights: what is measured is work, not words. One thread, one stream, chunk by chunk, features and greedy decoding
included, the same noise for all; RTF is the median of the repeats after one that is not timed. Start-up is from the start of
the process to the first chunk's result; memory is the process's highest resident set. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

Audio = NDArray[np.float32]
RATE_HZ = 16000
STUDENT = {"d_model": 256, "num_layers": 6, "num_heads": 4, "ffn_dim": 768, "subsampling_channels": 32}
Feed = Callable[[Audio], Any]
"""Takes the next chunk of a stream."""


def make_student(folder: Path, chunk_frames: int) -> None:
    """The package and its exports."""
    from asrkd.data.text import train_tokenizer
    from asrkd.export.check import quantise
    from asrkd.export.write import export
    from asrkd.models import package

    torch.manual_seed(0)
    words = ["".join(chr(65 + (7 * i + 3 * j) % 26) for j in range(4 + i % 4)) for i in range(400)]
    tokenizer = train_tokenizer(
        [" ".join(words[i : i + 8]) for i in range(0, 400, 8)] * 20, kind="sentencepiece", size=300
    )
    model = package.build({"kind": "streaming_conformer", **STUDENT, "chunk_frames": chunk_frames}, tokenizer).eval()
    package.save(model, folder / "package", licence="Apache-2.0")
    for kind in ("onnx", "sherpa"):
        export(model, folder / kind, kind)  # type: ignore[arg-type]
        quantise(folder / kind, folder / f"{kind}8")


def asrkd_torch(folder: Path, chunk: int) -> tuple[Callable[[], Feed], int]:
    import asrkd
    from asrkd.streaming.recognizer import Recognizer, RecognizerOptions

    model = asrkd.load(str(folder / "package"))
    recogniser = Recognizer(model, RecognizerOptions(chunk_frames=chunk, endpoints=None))
    return lambda: recogniser.session().accept, model.num_parameters


def asrkd_onnx(folder: Path, chunk: int, name: str = "onnx") -> tuple[Callable[[], Feed], int]:
    from asrkd.data.features import Fbank
    from asrkd.export.run import ExportedStudent

    student, fbank = ExportedStudent(folder / name), Fbank()

    def begin() -> Feed:
        state, heard = {"model": student.initial_state(), "features": fbank.initial_state(1)}, [torch.zeros(1, 0, 80)]
        last = [0]

        def feed(samples: Audio) -> list[int]:
            made, state["features"] = fbank.step(torch.from_numpy(samples)[None], state["features"])
            heard[0] = torch.cat((heard[0], made), 1)
            found = []
            while heard[0].shape[1] >= student.chunk_features:
                now, heard[0] = heard[0][:, : student.chunk_features], heard[0][:, student.chunk_features :]
                log_probs, state["model"] = student.step(now.numpy(), student.chunk_features, state["model"])
                for token in log_probs[0].argmax(1).tolist():
                    if token not in (0, last[0]):
                        found.append(token)
                    last[0] = token
            return found

        return feed

    return begin, 0


def asrkd_int8(folder: Path, chunk: int) -> tuple[Callable[[], Feed], int]:
    return asrkd_onnx(folder, chunk, "onnx8")


def sherpa(folder: Path, chunk: int, name: str = "sherpa") -> tuple[Callable[[], Feed], int]:
    import sherpa_onnx

    from asrkd.export.write import read_description, sherpa_arguments

    arguments = sherpa_arguments(read_description(folder / name))
    files = {"model": str(folder / name / "model.onnx"), "tokens": str(folder / name / "tokens.txt")}
    recogniser = sherpa_onnx.OnlineRecognizer.from_wenet_ctc(**files, **arguments, num_threads=1)

    def begin() -> Feed:
        stream = recogniser.create_stream()

        def feed(samples: Audio) -> str:
            stream.accept_waveform(RATE_HZ, samples)
            while recogniser.is_ready(stream):
                recogniser.decode_stream(stream)
            return str(recogniser.get_result(stream))

        return feed

    return begin, 0


def sherpa_int8(folder: Path, chunk: int) -> tuple[Callable[[], Feed], int]:
    return sherpa(folder, chunk, "sherpa8")


def speechbrain(folder: Path, chunk: int) -> tuple[Callable[[], Feed], int]:
    """SpeechBrain's Conformer with dynamic chunks, as its streaming LibriSpeech recipe; borders of features left out."""
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
    from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

    front = ConvolutionFrontEnd(
        (8, 10, 80), num_blocks=2, num_layers_per_block=1, out_channels=(64, 32), kernel_sizes=(3, 3), strides=(2, 2),
        residuals=(False, False),
    ).eval()  # fmt: skip
    model = TransformerASR(
        tgt_vocab=300, input_size=640, d_model=256, nhead=4, num_encoder_layers=6, num_decoder_layers=0, d_ffn=768,
        encoder_module="conformer", attention_type="RelPosMHAXL", normalize_before=True, causal=False,
    ).eval()  # fmt: skip
    head, fbank = torch.nn.Linear(256, 300), Fbank(n_mels=80)
    count = sum(p.numel() for m in (front, model, head) for p in m.parameters())

    def begin() -> Feed:
        context = model.make_streaming_context(DynChunkTrainConfig(chunk, 64 // chunk))

        @torch.no_grad()
        def feed(samples: Audio) -> list[int]:
            features = fbank(torch.from_numpy(samples)[None])[:, : 4 * chunk]
            encoded = model.encode_streaming(front(features), context)
            return head(encoded).argmax(-1)[0].unique_consecutive().tolist()

        return feed

    return begin, count


def emformer(folder: Path, chunk: int) -> tuple[Callable[[], Feed], int]:
    """torchaudio's Emformer under a CTC head, four features stacked a frame as in its RNN-T; no look-ahead."""
    from torchaudio.models import Emformer

    from asrkd.data.features import Fbank

    model = Emformer(256, 4, 1024, 10, segment_length=chunk, left_context_length=64, right_context_length=0).eval()
    into, head, fbank = torch.nn.Linear(320, 256), torch.nn.Linear(256, 300), Fbank()
    count = sum(p.numel() for m in (model, into, head) for p in m.parameters())

    def begin() -> Feed:
        state: list[Any] = [None, fbank.initial_state(1), torch.zeros(1, 0, 80)]

        @torch.no_grad()
        def feed(samples: Audio) -> list[int]:
            made, state[1] = fbank.step(torch.from_numpy(samples)[None], state[1])
            state[2], found = torch.cat((state[2], made), 1), []
            while state[2].shape[1] >= 4 * chunk:
                now, state[2] = state[2][:, : 4 * chunk], state[2][:, 4 * chunk :]
                out, _, state[0] = model.infer(into(now.reshape(1, chunk, 320)), torch.tensor([chunk]), state[0])
                found += head(out).argmax(-1)[0].unique_consecutive().tolist()
            return found

        return feed

    return begin, count


SYSTEMS = {
    "asrkd": ("asrkd, torch", asrkd_torch),
    "onnx": ("asrkd, ONNX float32", asrkd_onnx),
    "int8": ("asrkd, ONNX int8", asrkd_int8),
    "sherpa": ("sherpa-onnx, float32", sherpa),
    "sherpa8": ("sherpa-onnx, int8", sherpa_int8),
    "speechbrain": ("SpeechBrain Conformer", speechbrain),
    "emformer": ("torchaudio Emformer", emformer),
}


def measure(system: str, folder: Path, chunk: int, seconds: float, repeats: int) -> dict[str, float]:
    torch.set_num_threads(1)
    begin, count = SYSTEMS[system][1](folder, chunk)
    noise = (0.1 * np.random.default_rng(0).standard_normal(int(seconds * RATE_HZ))).astype(np.float32)
    size = chunk * 640
    chunks = [noise[start : start + size] for start in range(0, len(noise) - size + 1, size)]
    begin()(chunks[0])
    start_up = time.time() - psutil.Process().create_time()
    rtfs, slowest = [], 0.0
    for repeat in range(repeats + 1):
        feed, times = begin(), []
        for piece in chunks:
            started = time.perf_counter()
            feed(piece)
            times.append(time.perf_counter() - started)
        if repeat:
            rtfs.append(sum(times) / (len(chunks) * size / RATE_HZ))
            slowest = max(slowest, *times)
    # Of this program alone: getrusage would carry over what the parent had before it became this one.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    found = {"rtf": float(np.median(rtfs)), "low": min(rtfs), "high": max(rtfs), "slowest_ms": 1e3 * slowest}
    return found | {"start_up_s": start_up, "peak_mb": peak / 1e6, "parameters": count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument(
        "--chunk-frames", type=int, default=16, help="output frames of a chunk, 40 ms each (default 16)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="audio of one repeat (default 30)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", nargs=2, metavar=("SYSTEM", "FOLDER"), help="measure one system and print JSON")
    arguments = parser.parse_args()
    chunk, seconds, repeats = arguments.chunk_frames, arguments.seconds, arguments.repeats
    if arguments.case:
        print(json.dumps(measure(arguments.case[0], Path(arguments.case[1]), chunk, seconds, repeats)))
        return
    print(
        f"{chunk * 40} ms chunks, left context 64 frames, one thread; torch {torch.__version__}, {platform.machine()}\n"
    )
    print(
        "| system | parameters | RTF [fastest, slowest repeat] | slowest chunk | start-up | peak memory |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        make_student(Path(folder), chunk)
        for system in arguments.only:
            given = ["--chunk-frames", str(chunk), "--seconds", str(seconds), "--repeats", str(repeats)]
            command = [sys.executable, __file__, "--case", system, folder, *given]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                print(
                    f"| {SYSTEMS[system][0]} | not run: {answer.stderr.strip().splitlines()[-1][:120]} | | | | |",
                    flush=True,
                )
                continue
            f = json.loads(answer.stdout.splitlines()[-1])
            count = f"{f['parameters'] / 1e6:.1f} M" if f["parameters"] else "the same"
            spread = f"{f['rtf']:.4f} [{f['low']:.4f}, {f['high']:.4f}]"
            print(
                f"| {SYSTEMS[system][0]} | {count} | {spread} | {f['slowest_ms']:.0f} ms | {f['start_up_s']:.1f} s | "
                f"{f['peak_mb']:.0f} MB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
