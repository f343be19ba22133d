"""Checkpoints of networks and of trainings: what goes into one, and how it comes back."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from grow.axes import ConnectionsAxis
from grow.checkpoint_file import Checkpoint, CheckpointError, last_whole, latest, read, write
from grow.editing.insertion import Insertion
from grow.evidence.step import StepGradients
from grow.history import sync_folder
from grow.kernels import Picked
from grow.network import Network
from grow.session import Session

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "capture",
    "capture_followed",
    "capture_session",
    "describe",
    "forget_after",
    "last_whole",
    "latest",
    "network_tensors",
    "read",
    "restore",
    "restore_followed",
    "restore_session",
    "save",
    "save_session",
    "set_random_state",
    "write",
]

SCHEMA_VERSION = 1
KEPT = 2
"""Checkpoints kept of a training: the last one, and the one before in case the last is damaged."""


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
    network.picked = {site["layer"]: Picked(**site["picked"]) for site in meta["layers"] if site.get("picked") is not None}
    if optimizer is not None:
        _restore_optimizer(network, optimizer, checkpoint)


def save_session(folder: Path, session: Session, extra: Mapping[str, object] | None = None) -> None:
    """Write a numbered checkpoint of a training between two steps, and drop all but the last ones."""
    write(folder / f"{session.step:08d}", capture_session(session, extra))
    for old in sorted(folder.glob("[0-9]*[0-9]"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def forget_after(folder: Path, step: int) -> None:
    """Drop the numbered checkpoints of later steps, the last one first: the training that goes on from this step makes them anew.

    Else they would be taken for its own, and kept in place of those that it writes.
    """
    later = [path for path in sorted(folder.glob("[0-9]*[0-9]"), reverse=True) if path.name > f"{step:08d}"]
    for path in later:
        shutil.rmtree(path)
    if later:
        sync_folder(folder)  # they must not come back once the history of the new ones has begun


def capture_session(session: Session, extra: Mapping[str, object] | None = None) -> Checkpoint:
    """A training between two steps: network, optimizer, followers, random state, controller, and the network last accepted."""
    training: dict[str, object] = {"step": session.step, **asdict(session.state), "events": len(session.history.events)}
    taken = capture_followed(session, {**(extra or {}), "training": training})
    if session.stepped is not None and session.stepped.valid:
        held = {f"stepped/{name}": tensor.clone() for name, tensor in session.stepped.tensors().items()}
        taken = Checkpoint({**taken.meta, "stepped": session.stepped.layers}, {**taken.tensors, **held})
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
    held = {name.removeprefix("stepped/"): tensor for name, tensor in checkpoint.tensors.items() if name.startswith("stepped/")}
    layers = checkpoint.meta.get("stepped")
    session.note(None if layers is None else StepGradients.loaded(layers, held, session.network.device))
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
            {
                "layer": path,
                "shape": list(layer.weight_shape),
                "kernel": layer.kernel,
                "connections": layer.connections,
                "picked": asdict(network.picked[path]) if path in network.picked else None,
            }
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
