"""SpeechBrain's checkpointer, made safe against being killed while it writes."""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.checkpoints import CKPT_PREFIX, Checkpoint, Checkpointer, average_checkpoints, ckpt_recency
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from torch import Tensor

_WRITING = "writing-"


class AtomicCheckpointer(Checkpointer):
    """A checkpoint is written under another name and renamed when it is whole.

    SpeechBrain writes a checkpoint's metadata first, so a run killed in the middle leaves something that looks like a
    checkpoint and cannot be loaded. Here only whole ones ever carry the name that is looked for.
    """

    def __init__(self, checkpoints_dir: str | Path, recoverables: dict[str, Any] | None = None) -> None:
        super().__init__(checkpoints_dir, recoverables)
        for left_over in Path(checkpoints_dir).glob(f"{_WRITING}*"):
            shutil.rmtree(left_over)

    def _new_checkpoint_dirpath(self) -> Path:
        return _under_other_name(super()._new_checkpoint_dirpath())

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        return _under_other_name(super()._custom_checkpoint_dirpath(name))

    def _list_checkpoint_dirs(self) -> list[Path]:
        # One that was being deleted when the run was killed has lost some of its files.
        found = super()._list_checkpoint_dirs()
        return [d for d in found if all((d / f"{name}.ckpt").exists() for name in self.recoverables)]

    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Any = None,
        max_keys: Any = None,
        importance_keys: Any = (ckpt_recency,),
        ckpt_predicate: Any = None,
        verbosity: int = logging.DEBUG,
    ) -> None:
        """As SpeechBrain's, but by the first rank alone.

        SpeechBrain lets every rank list the folder and then waits for one broadcast for each deletion; ranks that list at
        different moments see different folders and wait for each other for ever.
        """
        ddp_barrier()
        if if_main_process():
            everything = {c.path for c in self.find_checkpoints(ckpt_predicate=ckpt_predicate)}
            choices = [{"min_key": k} for k in min_keys or ()] + [{"max_key": k} for k in max_keys or ()]
            choices += [{"importance_key": k} for k in set(importance_keys)]
            kept: set[Path] = set()
            for choice in choices:
                found = self.find_checkpoints(ckpt_predicate=ckpt_predicate, max_num_checkpoints=num_to_keep, **choice)
                kept |= {c.path for c in found}
            for path in everything - kept:
                shutil.rmtree(path)
        ddp_barrier()

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """As SpeechBrain's, then every file to disk and the folder to its real name."""
        written = super().save_checkpoint(*args, **kwargs)
        if written is None:  # every rank but the first
            return written
        for file in written.path.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        final = written.path.with_name(written.path.name.removeprefix(_WRITING))
        if final.exists():
            shutil.rmtree(final)
        written.path.rename(final)
        return next(c for c in self.list_checkpoints() if c.path == final)


def _under_other_name(path: Path) -> Path:
    assert path.name.startswith(CKPT_PREFIX)
    return path.with_name(_WRITING + path.name)


def average_of_best(checkpointer: Checkpointer, count: int, *, min_key: str, otherwise: str) -> dict[str, Tensor]:
    """Mean of the model weights of the ``count`` checkpoints with the smallest ``min_key`` (newest first on ties).

    Args:
        checkpointer: Where the checkpoints lie; each holds the weights under the name ``model``.
        count: How many to average, fewer where there are fewer.
        min_key: Key of the checkpoints' metadata.
        otherwise: Key of which the largest are taken where no checkpoint has ``min_key``.

    Returns:
        A state dict. Integer buffers come from the best checkpoint.
    """
    best = checkpointer.find_checkpoints(min_key=min_key, max_num_checkpoints=count)
    best = best or checkpointer.find_checkpoints(max_key=otherwise, max_num_checkpoints=count)

    # Also for one: the average is what is loaded, never a pickle with code in it.
    return average_checkpoints(best, "model", parameter_loader=partial(torch.load, weights_only=True))
