"""Checkpoints: tensors as safetensors, topology, axes and everything else as JSON. Nothing is pickled.

A checkpoint is a folder that appears at once, complete or not at all. The JSON names the tensors' file by its hash, so that a
damaged one is told from a whole one; `latest` then takes the one before.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from grow.axes import ConnectionsAxis
from grow.editing.insertion import Insertion
from grow.history import sync_folder
from grow.network import Network

if TYPE_CHECKING:
    from grow.session import Session

SCHEMA_VERSION = 1
KEPT = 2
PIECE_BYTES = 1 << 26
"""Checkpoints kept of a training: the last one, and the one before in case the last is damaged."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another network."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: ``meta`` is the JSON, ``tensors`` by name.

    network.*, positions.*, parts.*, optimizer.*, random and, of a network on a GPU, random_cuda; of a training also followers/NAME/*,
    splice/LAYER/* and, under accepted/, all of these of the network last accepted.
    """

    meta: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def capture(network: Network, optimizer: torch.optim.Optimizer | None = None, extra: Mapping[str, object] | None = None) -> Checkpoint:
    """A checkpoint in memory, of copies: what happens to the network afterwards does not touch it. ``extra`` must be JSON."""
    tensors = network_tensors(network)
    meta: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "network": describe(network), "extra": dict(extra or {})}
    if optimizer is not None:
        states, hyperparameters = _optimizer_tensors(network, optimizer)
        tensors |= states
        meta["optimizer"] = hyperparameters
    tensors["random"] = torch.get_rng_state()
    if network.device.type == "cuda":
        tensors["random_cuda"] = torch.cuda.get_rng_state(network.device)
    return Checkpoint(meta, {name: tensor.detach().clone() for name, tensor in tensors.items()})


def save(folder: Path, network: Network, optimizer: torch.optim.Optimizer | None = None, extra: Mapping[str, object] | None = None) -> None:
    """Write a checkpoint of a network (and its optimizer) as the new folder ``folder``. ``extra`` must be JSON."""
    write(folder, capture(network, optimizer, extra))


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


def restore(network: Network, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Bring a freshly traced network (and an attached optimizer) to the state of a checkpoint.

    CheckpointError or another ValueError for that of another network, before anything is changed.
    """
    version = checkpoint.meta.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"schema_version is {version!r}, but must be {SCHEMA_VERSION}; use the version of grow that wrote the checkpoint"
        )
    meta = checkpoint.meta["network"]
    expected = {site["layer"]: site["kernel"] for site in meta["layers"]}
    insertions = tuple(Insertion(**record) for record in meta.get("insertions", ()))
    present = len(network.insertions)
    missing = {path for insertion in insertions[present:] for path in insertion.layers}
    if network.insertions != insertions[:present] or [name for name in expected if name not in missing] != list(network.layers):
        raise CheckpointError(
            f"checkpoint has the layers {list(expected)}, but the network has {list(network.layers)}; "
            "start from the network that it was saved from"
        )
    if optimizer is not None:
        _check_same_optimizer(optimizer, checkpoint)
    tensors = checkpoint.tensors
    positions = {name: tensors[f"positions.{name}"].cpu().numpy() if f"positions.{name}" in tensors else None for name in expected}
    parts = {name.removeprefix("parts."): tensor.cpu().numpy() for name, tensor in tensors.items() if name.startswith("parts.")}
    contents = {name.removeprefix("network."): tensor.clone() for name, tensor in tensors.items() if name.startswith("network.")}

    def take_on(taker: Network) -> None:
        for insertion in insertions[present:]:
            taker.insert_layer(insertion)
        taker.restore(meta["units"], positions, expected, contents, parts or None)

    if missing:  # what does not fit shows on a copy, before the first layer is inserted
        with torch.random.fork_rng():
            take_on(copy.deepcopy(network))
    take_on(network)
    if optimizer is not None:
        _restore_optimizer(network, optimizer, checkpoint)


def save_session(folder: Path, session: Session, extra: Mapping[str, object] | None = None) -> None:
    """Write a numbered checkpoint of a training between two steps, and drop all but the last ones."""
    write(folder / f"{session.step:08d}", capture_session(session, extra))
    for old in sorted(folder.glob("[0-9]*[0-9]"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def capture_session(session: Session, extra: Mapping[str, object] | None = None) -> Checkpoint:
    """A training between two steps: network, optimizer, followers, random state, controller, and the network last accepted."""
    training: dict[str, object] = {"step": session.step, **asdict(session.state), "events": len(session.history.events)}
    taken = capture_followed(session, {**(extra or {}), "training": training})
    if session.accepted is None:
        return taken
    tensors = {f"accepted/{name}": tensor for name, tensor in session.accepted.tensors.items()}
    return Checkpoint({**taken.meta, "accepted": session.accepted.meta}, {**taken.tensors, **tensors})


def restore_session(session: Session, checkpoint: Checkpoint) -> None:
    """Bring a training to where it was. CheckpointError for another network or optimizer, before anything is changed."""
    training = dict(checkpoint.meta["extra"].get("training", ()))
    expected = {"step", "events", *(field.name for field in fields(session.state))}
    if set(training) != expected:
        raise CheckpointError(
            f"checkpoint has of the training {sorted(training)}, but must have {sorted(expected)}; "
            "resume with the kind of policy (a schedule or a tolerance) that the training began with"
        )
    restore_followed(session, checkpoint)
    session.step, events = training.pop("step"), training.pop("events")
    session.state = type(session.state)(**training)
    session.history.rewind(events)
    session.accepted = None
    if "accepted" in checkpoint.meta:
        tensors = {name.removeprefix("accepted/"): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("accepted/")}
        session.accepted = Checkpoint(checkpoint.meta["accepted"], tensors)


def capture_followed(session: Session, extra: Mapping[str, object] | None = None) -> Checkpoint:
    """Network, optimizer, followers and random state of a training."""
    taken = capture(session.network, session.optimizer, extra)
    followed = {
        f"followers/{name}/{key}": tensor.detach().clone()
        for name, follower in session.all_followers.items()
        for key, tensor in follower.tensors.items()
    }
    if session.splice is not None:
        followed |= {f"splice/{key}": tensor.detach().clone() for key, tensor in session.splice.tensors().items()}
    meta = {**taken.meta}
    if isinstance(session.learning_rate, LRScheduler):
        meta["learning_rate"] = session.learning_rate.state_dict()
    return Checkpoint(meta, {**taken.tensors, **followed})


def restore_followed(session: Session, checkpoint: Checkpoint) -> None:
    """Bring network, optimizer, followers and random state of a training back, bit for bit."""
    followed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("followers/"):
            _, owner, key = name.split("/", 2)
            followed.setdefault(owner, {})[key] = tensor
    if set(followed) != set(session.all_followers):
        raise CheckpointError(
            f"checkpoint has the followers {sorted(followed)}, but the training has {sorted(session.all_followers)}; start it with the same"
        )
    if isinstance(session.learning_rate, LRScheduler) != ("learning_rate" in checkpoint.meta):
        raise CheckpointError("learning_rate is a scheduler in one of checkpoint and training, but must be in both; start it with the same")
    restore(session.network, checkpoint, session.optimizer)
    for name, follower in session.all_followers.items():
        for key in follower.tensors:
            follower.tensors[key] = followed[name][key].to(session.network.device, copy=True)
    if session.splice is not None:
        held = {name.removeprefix("splice/"): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("splice/")}
        session.splice.load(held, session.network.device)
    if isinstance(session.learning_rate, LRScheduler):
        session.learning_rate.load_state_dict(checkpoint.meta["learning_rate"])
    set_random_state(session.network, checkpoint)
    session.probed = None


def set_random_state(network: Network, checkpoint: Checkpoint) -> None:
    """Let torch's generators go on from where they were."""
    torch.set_rng_state(checkpoint.tensors["random"].cpu())
    if "random_cuda" in checkpoint.tensors and network.device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint.tensors["random_cuda"].cpu(), network.device)


def describe(network: Network) -> dict[str, object]:
    """Spaces, layers and axes of a network, as JSON."""
    return {
        "insertions": [asdict(insertion) for insertion in network.insertions],
        "units": dict(network.topology.units),
        "layers": [
            {"layer": path, "shape": list(layer.weight_shape), "kernel": layer.kernel, "connections": layer.connections}
            for path, layer in network.layers.items()
        ],
        "axes": {
            name: [
                {"connections": axis.layer} if isinstance(axis, ConnectionsAxis) else [[segment.space, segment.repeat] for segment in axis]
                for axis in axes
            ]
            for name, axes in network.axes.items()
        },
    }


def network_tensors(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers, positions of connections and parts of units, by the names that a checkpoint gives them."""
    contents = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    tensors = {f"network.{name}": contents[name] for name in network.axes}
    tensors |= {f"positions.{path}": layer.positions for path, layer in network.layers.items() if layer.positions is not None}
    tensors |= {f"parts.{space}": torch.from_numpy(parts) for space, parts in (network.parts or {}).items()}
    return tensors


def _optimizer_tensors(network: Network, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in network.module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"kind": type(optimizer).__name__, "groups": groups}


def _check_same_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    saved = checkpoint.meta.get("optimizer", {})
    if saved.get("kind") != type(optimizer).__name__:
        raise CheckpointError(f"optimizer is {type(optimizer).__name__}, but the checkpoint's is {saved.get('kind')}; use the same one")
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"optimizer has {len(optimizer.param_groups)} parameter groups, but the checkpoint's has {len(saved['groups'])}; use the same"
        )


def _restore_optimizer(network: Network, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    for group, values in zip(optimizer.param_groups, checkpoint.meta["optimizer"]["groups"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    for name, parameter in network.module.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key.removeprefix(prefix): value for key, value in checkpoint.tensors.items() if key.startswith(prefix)}
        if state:
            optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True) if value.dim() else value.clone() for key, value in state.items()
            }


def _write(path: Path, data: bytes) -> None:
    """In pieces: with a slow disk the process still shows that it goes on, where one wait for all of it would look like a hang."""
    with path.open("wb") as file:
        for begin in range(0, max(len(data), 1), PIECE_BYTES):
            file.write(memoryview(data)[begin : begin + PIECE_BYTES])
            file.flush()
            os.fsync(file.fileno())
