"""What a checkpoint holds, and the folder that it is written to: tensors as safetensors, everything else as JSON. Nothing is pickled.

The folder appears at once, complete or not at all. The JSON names the tensors' file by its hash, so that a damaged one is told from a
whole one; `latest` then takes the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from grow.history import sync_folder

PIECE_BYTES = 1 << 26


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another network."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: ``meta`` is the JSON, ``tensors`` by name.

    network.*, positions.*, parts.*, optimizer.*, random and, of a network on a GPU, random_cuda; of a training also followers/NAME/*,
    splice/LAYER/*, between a step and the growth that goes by its gradients stepped/LAYER/*, and, under accepted/, all but these of
    the network last accepted.
    """

    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the new folder ``folder``: all of it or, if anything fails, nothing."""
    data = save_tensors({name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
    meta = {**checkpoint.meta, "sha256": hashlib.sha256(data).hexdigest()}
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(temporary / "tensors.safetensors", data)
        _write(temporary / "checkpoint.json", json.dumps(meta, indent=1).encode())
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # on a full disk, what was written of it would be in the way
        raise
    sync_folder(folder.parent)


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. CheckpointError if it is damaged."""
    try:
        meta = json.loads((folder / "checkpoint.json").read_bytes())
        data = (folder / "tensors.safetensors").read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != meta["sha256"]:
            raise CheckpointError(
                f"{folder / 'tensors.safetensors'} has sha256 {found}, but must have {meta['sha256']}; use an earlier checkpoint"
            )
        return Checkpoint(meta, load_tensors(data))
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint ({error}); use an earlier one") from error


def latest(folder: Path) -> Checkpoint | None:
    """The last whole checkpoint among the numbered folders in ``folder``; None if there are none. CheckpointError if all are damaged."""
    found, damaged = last_whole(folder)
    if found is None and damaged:
        raise CheckpointError(f"{folder} holds {len(damaged)} checkpoints, but none is whole; remove the folder to train from the start")
    return found


def last_whole(folder: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The last whole checkpoint among the numbered folders in ``folder``, if there is one, and why later ones are not."""
    damaged: list[CheckpointError] = []
    for path in sorted(folder.glob("[0-9]*[0-9]"), reverse=True):
        try:
            return read(path), damaged
        except CheckpointError as error:
            damaged.append(error)
    return None, damaged


def _write(path: Path, data: bytes) -> None:
    """In pieces: with a slow disk the process still shows that it goes on, where one wait for all of it would look like a hang."""
    with path.open("wb") as file:
        for begin in range(0, max(len(data), 1), PIECE_BYTES):
            file.write(memoryview(data)[begin : begin + PIECE_BYTES])
            file.flush()
            os.fsync(file.fileno())
