"""Joining the ranks that torchrun starts, also when it starts them anew."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist


def join_ranks(backend: str, timeout: timedelta | None = None) -> None:
    """``init_process_group`` that does not meet the ranks of an earlier start.

    torchrun (torch 2.11) keeps one store for all starts under ``--max-restarts``, and ranks that are started anew can read the
    addresses of lost ones from it and wait for them in vain. On one machine the number of the start parts them. On several it
    may differ from one to the next: there ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` gives every start a store of its own.

    Args:
        backend: ``"gloo"`` or ``"nccl"``.
        timeout: How long a rank waits for the others; the backend's own if left out.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if start == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, ranks = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    own = dist.PrefixStore(f"start_{start}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=ranks, timeout=timeout)
