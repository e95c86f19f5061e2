"""Time and peak memory of the losses beside their rivals, each in a process of its own, as Markdown.

    python tools/bench_losses.py                    # everything, a few minutes on one core
    python tools/bench_losses.py --only frame_1000  # one group

Peak memory is the growth of the resident set above the inputs, from the kernel's high-water mark (Linux). Rivals that are
not installed (trl, torchtune) are left out and said so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.losses import ctc, frame_kl, hypothesis_ctc, linear_frame_kl, nbest_ctc, rnnt
from asrkd.types import Frames, Hypothesis, TopK

SHIFT_S = 0.04
Step = Callable[[], Any]


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(step: Step, repeats: int) -> dict[str, float]:
    """Best and median time of a step, and its peak memory above what is resident before it."""
    started = time.perf_counter()
    step()
    first = time.perf_counter() - started
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the first call left in the heap must be seen to be taken again
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident_bytes()
    step()
    peak = peak_bytes() - before
    times: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    times.sort()
    return {"best_ms": 1e3 * times[0], "median_ms": 1e3 * times[len(times) // 2], "peak": peak, "first_s": first}


# Frame KL -------------------------------------------------------------------------------------------------------------


def frame_inputs(vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher log-probabilities (peaky) and lengths: B = 16, T = 400."""
    torch.manual_seed(0)
    student, teacher = torch.empty(16, 400, vocab), torch.empty(16, 400, vocab)
    for row in range(16):
        student[row].normal_()
        teacher[row] = torch.randn(400, vocab).mul_(3).log_softmax(-1)
    return student.requires_grad_(), teacher, torch.full((16,), 400)


def with_gradient(student: Tensor, loss: Callable[[], Tensor]) -> Step:
    return lambda: torch.autograd.grad(loss(), student)


def frame_cases(vocab: int) -> dict[str, Callable[[], Step]]:
    """Makers of steps by name; each makes its own inputs."""

    def naive_of(student: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(student.log_softmax(-1), teacher, log_target=True, reduction="sum")

    def floor() -> Step:
        student, _, _ = frame_inputs(vocab)
        return lambda: torch.empty_like(student).fill_(1.0)

    def naive() -> Step:
        student, teacher, _ = frame_inputs(vocab)
        return with_gradient(student, lambda: naive_of(student, teacher))

    def masked() -> Step:
        """What ``frame_kl`` does at the least: padding left out."""
        student, teacher, lengths = frame_inputs(vocab)
        valid = (torch.arange(400) < lengths[:, None]).unsqueeze(-1)

        def loss() -> Tensor:
            return (F.kl_div(student.log_softmax(-1), teacher, log_target=True, reduction="none") * valid).sum()

        return with_gradient(student, loss)

    def shifted() -> Step:
        """The same with a temperature, and the teacher two frames later."""
        student, teacher, lengths = frame_inputs(vocab)
        valid = ((torch.arange(400) < lengths[:, None]) & (torch.arange(400) >= 2)).unsqueeze(-1)

        def loss() -> Tensor:
            later = (teacher / 2.0).log_softmax(-1).roll(2, 1)
            each = F.kl_div((student / 2.0).log_softmax(-1), later, log_target=True, reduction="none")
            return 4.0 * (each * valid).sum()

        return with_gradient(student, loss)

    def compiled() -> Step:
        student, teacher, _ = frame_inputs(vocab)
        fused = torch.compile(naive_of)
        return with_gradient(student, lambda: fused(student, teacher))

    def trl() -> Step:
        from trl.experimental.gkd import GKDTrainer

        student, teacher, _ = frame_inputs(vocab)
        jsd = GKDTrainer.generalized_jsd_loss
        return with_gradient(student, lambda: jsd(student, teacher, beta=0.0, reduction="sum"))

    def torchtune() -> Step:
        from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

        student, teacher, _ = frame_inputs(vocab)
        labels = torch.zeros(16, 400, dtype=torch.long)
        loss = ForwardKLWithChunkedOutputLoss(num_output_chunks=8)
        return with_gradient(student, lambda: loss(list(student.chunk(8, 1)), list(teacher.chunk(8, 1)), labels))

    def speechbrain() -> Step:
        from speechbrain.nnet.losses import nll_loss_kd

        student, teacher, _ = frame_inputs(vocab)
        teacher.exp_()
        return with_gradient(student, lambda: nll_loss_kd(student.log_softmax(-1), teacher, torch.ones(16)))

    def ours(**options: Any) -> Callable[[], Step]:
        def make() -> Step:
            student, teacher, lengths = frame_inputs(vocab)
            target = Frames(teacher, lengths, SHIFT_S)
            return with_gradient(student, lambda: ours_of(student, lengths, target, **options))

        return make

    def stored() -> Step:
        student, teacher, lengths = frame_inputs(vocab)
        values, ids = teacher.topk(16, -1)
        tail = torch.log1p(-values.exp().sum(-1).clamp(max=1 - 1e-7))
        target = TopK(ids, values, tail, lengths, SHIFT_S, vocab)
        return with_gradient(student, lambda: ours_of(student, lengths, target))

    def ours_of(student: Tensor, lengths: Tensor, target: Frames | TopK, **options: Any) -> Tensor:
        return frame_kl(student, lengths, target, blank_id=0, student_frame_shift_s=SHIFT_S, **options)

    return {
        "allocate and fill the gradient": floor,
        "F.kl_div(log_target=True)": naive,
        "F.kl_div, padding masked": masked,
        "F.kl_div, padding masked, τ = 2, delay 80 ms": shifted,
        "torch.compile of the first": compiled,
        "TRL GKD": trl,
        "torchtune chunked": torchtune,
        "SpeechBrain nll_loss_kd": speechbrain,
        "frame_kl": ours(),
        "frame_kl, τ = 2, delay 80 ms": ours(temperature=2.0, delay_ms=80.0),
        "frame_kl, decoupled blank": ours(blank="decouple", blank_weight=0.5),
        "frame_kl, reverse": ours(divergence="reverse"),
        "frame_kl, Jensen–Shannon": ours(divergence="js"),
        "frame_kl, stored k = 16": stored,
    }


# From the output layer ------------------------------------------------------------------------------------------------


def linear_cases() -> dict[str, Callable[[], Step]]:
    def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        encoded, weight = torch.randn(16, 400, 256, requires_grad=True), torch.randn(5000, 256).mul_(0.05)
        _, teacher, lengths = frame_inputs(5000)
        return encoded, weight.requires_grad_(), teacher, lengths

    def naive() -> Step:
        encoded, weight, teacher, _ = inputs()

        def step() -> Any:
            loss = F.kl_div((encoded @ weight.T).log_softmax(-1), teacher, log_target=True, reduction="sum")
            return torch.autograd.grad(loss, (encoded, weight))

        return step

    def ours() -> Step:
        encoded, weight, teacher, lengths = inputs()
        target = Frames(teacher, lengths, SHIFT_S)

        def step() -> Any:
            loss = linear_frame_kl(encoded, lengths, weight, None, target, blank_id=0, student_frame_shift_s=SHIFT_S)
            return torch.autograd.grad(loss, (encoded, weight))

        return step

    return {"linear, then F.kl_div": naive, "linear_frame_kl": ours}


# Sequences ------------------------------------------------------------------------------------------------------------


def nbest_cases() -> dict[str, Callable[[], Step]]:
    batch, frames, vocab, labels, num = 8, 300, 1000, 40, 8

    def inputs() -> tuple[Tensor, Tensor, list[tuple[Hypothesis, ...]]]:
        torch.manual_seed(0)
        logits = torch.randn(batch, frames, vocab, requires_grad=True)
        lists = []
        for _ in range(batch):
            best = torch.randint(1, vocab, (labels,)).tolist()
            ranked = []
            for rank in range(num):
                tokens = list(best)
                tokens[rank] = tokens[rank] % (vocab - 1) + 1  # N-best lists differ in a word or two
                ranked.append(Hypothesis(tuple(tokens), "", -float(rank)))
            lists.append(tuple(ranked))
        return logits, torch.full((batch,), frames), lists

    def separate() -> Step:
        logits, lengths, lists = inputs()
        weights = torch.tensor([-float(rank) for rank in range(num)]).softmax(0)
        targets = [torch.tensor([lst[rank].tokens for lst in lists]) for rank in range(num)]
        sizes = torch.full((batch,), labels)

        def step() -> Any:
            copies = logits.unsqueeze(0).expand(num, -1, -1, -1).contiguous()
            losses = [
                F.ctc_loss(copy.log_softmax(-1).transpose(0, 1), target, lengths, sizes, reduction="sum")
                for copy, target in zip(copies, targets, strict=True)
            ]
            return torch.autograd.grad((torch.stack(losses) * weights).sum(), logits)

        return step

    def ours() -> Step:
        logits, lengths, lists = inputs()
        return with_gradient(logits, lambda: nbest_ctc(logits, lengths, lists, blank_id=0))

    def torch_ctc() -> Step:
        logits, lengths, lists = inputs()
        target, sizes = torch.tensor([lst[0].tokens for lst in lists]), torch.full((batch,), labels)
        return with_gradient(
            logits,
            lambda: F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), target, lengths, sizes, reduction="sum"),
        )

    def our_ctc() -> Step:
        logits, lengths, lists = inputs()
        target, sizes = torch.tensor([lst[0].tokens for lst in lists]), torch.full((batch,), labels)
        return with_gradient(logits, lambda: ctc(logits, lengths, target, sizes, blank_id=0))

    def peaky() -> Tensor:
        teacher = torch.randn(batch, frames, vocab)
        teacher[..., 0] += 9
        teacher[:, ::8].scatter_add_(2, torch.randint(1, vocab, (batch, 38, 1)), torch.full((batch, 38, 1), 18.0))
        return teacher.log_softmax(-1)

    def speechbrain() -> Step:
        from speechbrain.nnet.losses import ctc_loss_kd

        logits, teacher = inputs()[0], peaky()
        return with_gradient(logits, lambda: ctc_loss_kd(logits.log_softmax(-1), teacher, torch.ones(batch), 0, "cpu"))

    def our_kd() -> Step:
        (logits, lengths, _), teacher = inputs(), peaky()

        def loss() -> Tensor:
            best = [row.unique_consecutive() for row in teacher.argmax(2)]
            lists = [(Hypothesis(tuple(row[row != 0].tolist()), ""),) for row in best]
            return hypothesis_ctc(logits, lengths, lists, blank_id=0)

        return with_gradient(logits, loss)

    return {
        "N-best CTC, 8 calls on copies": separate,
        "nbest_ctc, N = 8": ours,
        "F.ctc_loss": torch_ctc,
        "ctc": our_ctc,
        "SpeechBrain ctc_loss_kd": speechbrain,
        "greedy transcript, hypothesis_ctc": our_kd,
    }


def transducer_cases() -> dict[str, Callable[[], Step]]:
    def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        logits = torch.randn(4, 100, 21, 500, requires_grad=True)
        return logits, torch.full((4,), 100), torch.randint(1, 500, (4, 20)), torch.full((4,), 20)

    def torchaudio() -> Step:
        from torchaudio.functional import rnnt_loss

        logits, lengths, tokens, sizes = inputs()
        own = (tokens.int(), lengths.int(), sizes.int())
        return with_gradient(logits, lambda: rnnt_loss(logits, *own, blank=0, reduction="sum"))

    def ours() -> Step:
        logits, lengths, tokens, sizes = inputs()
        return with_gradient(logits, lambda: rnnt(logits, lengths, tokens, sizes, blank_id=0))

    return {"torchaudio rnnt_loss": torchaudio, "rnnt": ours}


GROUPS: dict[str, tuple[str, Callable[[], dict[str, Callable[[], Step]]], int]] = {
    "frame_5000": ("Frame KL, B = 16, T = 400, V = 5000", lambda: frame_cases(5000), 16 * 400 * 5000 * 4),
    "frame_1000": ("Frame KL, B = 16, T = 400, V = 1000", lambda: frame_cases(1000), 16 * 400 * 1000 * 4),
    "linear": ("Output layer and frame KL, 6400 frames, D = 256, V = 5000", linear_cases, 16 * 400 * 5000 * 4),
    "nbest": ("CTC, B = 8, T = 300, V = 1000, U = 40", nbest_cases, 8 * 300 * 1000 * 4),
    "transducer": ("RNN-T, 4 × 100 × 21 × 500", transducer_cases, 4 * 100 * 21 * 500 * 4),
}


def in_a_process(group: str, case: str, threads: int, repeats: int) -> dict[str, Any]:
    """Times of one process; the peak of a second one, whose allocator gives back at once what is freed."""
    timed = _run(group, case, threads, repeats, {})
    if "error" in timed:
        return timed
    return timed | {"peak": _run(group, case, threads, 1, {"MALLOC_MMAP_THRESHOLD_": "65536"})["peak"]}


def _run(group: str, case: str, threads: int, repeats: int, more: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", group, case, "--threads", str(threads), "--repeats", str(repeats)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **more})
    if answer.returncode:
        return {"error": answer.stderr.strip().splitlines()[-1][:120]}
    result: dict[str, Any] = json.loads(answer.stdout.strip().splitlines()[-1])
    return result


def report(only: list[str], threads: int, repeats: int) -> None:
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {threads} thread(s), float32, forward and backward\n"
    )
    for group in only or GROUPS:
        title, cases, unit = GROUPS[group]
        print(
            f"{title}:\n\n| loss | best, ms | median, ms | peak extra memory, × the logits | MiB |\n|---|---|---|---|---|"
        )
        for case in cases():
            found = in_a_process(group, case, threads, repeats)
            if "error" in found:
                print(f"| {case} | not run: {found['error']} | | | |", flush=True)
                continue
            name = f"{case} (first call {found['first_s']:.1f} s)" if "compile" in case else case
            figures = f"{found['best_ms']:.0f} | {found['median_ms']:.0f} | {found['peak'] / unit:.2f}"
            print(f"| {name} | {figures} | {found['peak'] / 2**20:.0f} |", flush=True)
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), default=[], help="groups to run; default: all")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats a loss (default 7)")
    parser.add_argument("--case", nargs=2, metavar=("GROUP", "CASE"), help="measure one loss and print JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case is None:
        report(arguments.only, arguments.threads, arguments.repeats)
        return
    group, case = arguments.case
    print(json.dumps(measure(GROUPS[group][1]()[case](), arguments.repeats)))


if __name__ == "__main__":
    main()
