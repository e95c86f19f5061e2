"""Multi-codebook indexes of teacher states as targets. Legend: B utterances, T frames, N states, D units, C codebooks, K codes.

A state becomes C bytes (K = 256): the sum of one code of each codebook comes near it. The student predicts the indexes by
cross-entropy, which stores 100 times less than the states and needs no projection to their width.

Source: Guo et al. 2022 (predicting multi-codebook vector quantisation indexes). The quantiser here is trained by alternating
least squares (encode, then refit each codebook), where the paper trains an encoder network by gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from asrkd.losses.reduction import Reduction, reduce, valid_frames, working
from asrkd.types import Frames


@dataclass(frozen=True)
class MultiCodebookQuantiser:
    """An additive quantiser.

    Args:
        mean: ``(D,)``, taken off first.
        codebooks: ``(C, K, D)``.
    """

    mean: Tensor
    codebooks: Tensor

    def encode(self, states: Tensor, passes: int = 2) -> Tensor:
        """``(..., C)`` int64 indexes of ``(..., D)`` states.

        Greedy on the residual, then each index in turn is chosen anew against what the others leave.

        Args:
            states: Teacher states.
            passes: Rounds of choosing anew; the error never grows.
        """
        flat = states.reshape(-1, states.shape[-1]).to(self.codebooks.dtype) - self.mean
        residual = flat.clone()
        codes = torch.zeros(len(flat), len(self.codebooks), dtype=torch.long, device=flat.device)
        for place, book in enumerate(self.codebooks):
            codes[:, place] = _nearest(residual, book)
            residual -= book[codes[:, place]]
        for _ in range(passes):
            for place, book in enumerate(self.codebooks):
                residual += book[codes[:, place]]
                codes[:, place] = _nearest(residual, book)
                residual -= book[codes[:, place]]
        return codes.view(*states.shape[:-1], -1)

    def decode(self, codes: Tensor) -> Tensor:
        """``(..., D)`` states that ``(..., C)`` indexes stand for."""
        return self.mean + torch.stack([book[codes[..., c]] for c, book in enumerate(self.codebooks)]).sum(0)

    def relative_error(self, states: Tensor) -> float:
        """Share of the states' variance that quantisation loses."""
        error = (self.decode(self.encode(states)) - states).square().sum()
        return float(error / (states - self.mean).square().sum().clamp(min=1e-12))


def train_quantiser(
    states: Tensor, *, num_codebooks: int = 8, codebook_size: int = 256, rounds: int = 10, seed: int = 0
) -> MultiCodebookQuantiser:
    """Fit an additive quantiser to teacher states.

    Codebooks start as k-means of what the earlier ones leave; then rounds of encoding and refitting each codebook to the mean of
    its residuals.

    Args:
        states: ``(N, D)``, some thousands; N at least ``codebook_size``.
        num_codebooks: C, bytes a frame at 256 codes.
        codebook_size: K, 2 to 256.
        rounds: Of k-means a codebook, and of refitting all.
        seed: Of the choice of first codes.

    Raises:
        ValueError: For sizes out of range.
    """
    if not 2 <= codebook_size <= 256:
        raise ValueError(f"codebook_size: expected 2 to 256, found {codebook_size}")
    if states.ndim != 2 or len(states) < codebook_size:
        raise ValueError(f"states: expected (N, D) with N at least {codebook_size}, found shape {tuple(states.shape)}")
    generator = torch.Generator().manual_seed(seed)
    states = working(states.detach())
    mean = states.mean(0)
    residual = states - mean
    books = []
    for _ in range(num_codebooks):
        book = residual[torch.randperm(len(residual), generator=generator)[:codebook_size].to(residual.device)]
        for _ in range(rounds):
            book = _refitted(book, residual, _nearest(residual, book))
        books.append(book)
        residual = residual - book[_nearest(residual, book)]
    quantiser = MultiCodebookQuantiser(mean, torch.stack(books))
    for _ in range(rounds):
        quantiser = _improved(quantiser, states)
    return quantiser


def _improved(quantiser: MultiCodebookQuantiser, states: Tensor) -> MultiCodebookQuantiser:
    codes = quantiser.encode(states)
    books = quantiser.codebooks.clone()
    residual = states - quantiser.decode(codes)
    for place in range(len(books)):
        residual += books[place][codes[:, place]]
        books[place] = _refitted(books[place], residual, codes[:, place])
        residual -= books[place][codes[:, place]]
    return MultiCodebookQuantiser(quantiser.mean, books)


def _nearest(values: Tensor, book: Tensor) -> Tensor:
    return (book.square().sum(1) - 2 * values @ book.T).argmin(1)


def _refitted(book: Tensor, values: Tensor, codes: Tensor) -> Tensor:
    """Each code the mean of what it stands for; codes that nothing chose stay."""
    counts = torch.bincount(codes, minlength=len(book)).to(values.dtype).unsqueeze(1)
    sums = torch.zeros_like(book).index_add_(0, codes, values)
    return torch.where(counts > 0, sums / counts.clamp(min=1), book)


def mvq(
    logits: Tensor, lengths: Tensor, codes: Frames, *, student_frame_shift_s: float, reduction: Reduction = "sum"
) -> Tensor:
    """Cross-entropy of predicted codebook indexes: ``-Σ_t Σ_c log p(code_c(t))``.

    Args:
        logits: ``(B, T, C·K)`` of a linear layer on a student state, codebook by codebook.
        lengths: ``(B,)`` frames.
        codes: ``(B, T', C)`` indexes (any number type; stored as float16 they are exact). A faster teacher gives the first of each
            group of frames, a slower one is repeated.
        student_frame_shift_s: Seconds from one student frame to the next.
        reduction: ``sum`` in nats, ``mean`` by frames, ``none`` for ``(B,)``.

    Raises:
        ValueError: For shapes or frame shifts that do not fit.
    """
    num_codebooks = codes.values.shape[2]
    if logits.ndim != 3 or logits.shape[2] % num_codebooks:
        raise ValueError(f"logits: expected (B, T, C·K) with C = {num_codebooks}, found shape {tuple(logits.shape)}")
    targets, code_lengths = _codes_on_clock(codes, student_frame_shift_s)
    shared = min(logits.shape[1], targets.shape[1])
    mask = valid_frames(torch.minimum(lengths, code_lengths), shared)
    shape = (len(logits), shared, num_codebooks, logits.shape[2] // num_codebooks)
    scores = working(logits[:, :shared]).reshape(shape)
    chosen = torch.where(mask.unsqueeze(2), targets[:, :shared].long(), 0)
    losses = F.cross_entropy(scores.permute(0, 3, 1, 2), chosen, reduction="none").sum(2)
    return reduce(torch.where(mask, losses, 0.0).sum(1), mask.sum(1), reduction)


def _codes_on_clock(codes: Frames, frame_shift_s: float) -> tuple[Tensor, Tensor]:
    ratio = frame_shift_s / codes.frame_shift_s
    faster, slower = max(1, round(ratio)), max(1, round(1 / ratio))
    if abs(ratio * slower - faster) > 1e-6 * faster or min(faster, slower) > 1:
        raise ValueError(
            f"frame_shift_s: expected the codes' to be a whole multiple or part of the student's {frame_shift_s:g} s, "
            f"found {codes.frame_shift_s:g} s"
        )
    return codes.values[:, ::faster].repeat_interleave(slower, 1), -(-codes.lengths // faster) * slower
