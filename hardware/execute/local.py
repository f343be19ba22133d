"""One rank's share of a training: its shard, the optimizer of the shard's tensors, and what follows them.

Everything is selected from the whole training along the same positions as the shard's own tensors, and goes back the same way,
so that no bit of a weight or of the optimizer's state is lost on the way.

Legend: O, I target and source entries of a weight; E connections of a layer. Positions are flat, in the whole tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grow.average import WeightAverage
from grow.follow import Follower
from grow.layers import SparseLayer, expand
from grow.movement import Movement
from grow.network import Network
from grow.session import Session
from hardware.shard import Held, Shard


@dataclass(frozen=True, eq=False)
class Local:
    """A shard under training.

    followers: by name in the session, local tensors by local name, of those followers that a training step changes: averages and
    movement. All others change at edits only, which happen on the whole.
    """

    shard: Shard
    optimizer: torch.optim.Optimizer
    followers: Mapping[str, dict[str, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, shard: Shard) -> Local:
        """The share of a whole training that belongs to a shard of its network."""
        optimizer = _optimizer(session, shard)
        local = cls(shard, optimizer, _followers(session, shard))
        for name, follower in session.all_followers.items():
            if isinstance(follower, Movement):
                optimizer.register_step_pre_hook(_movement_step(shard, local.followers[name]))
        return local

    def average(self, session: Session) -> None:
        """Take this step's weights into the local part of the average, if there is one."""
        if session.average is None:
            return
        tensors = _tensors(self.shard)
        with torch.no_grad():
            for name, mean in self.followers["average"].items():
                if mean.is_floating_point():
                    mean.lerp_(tensors[name].detach(), 1 - session.average.decay)
                else:
                    mean.copy_(tensors[name])

    def collect(self, session: Session) -> None:
        """Bring everything back into the whole training, on every rank. All ranks must call it."""
        whole, shard = session.network, self.shard
        parameters = dict(whole.module.named_parameters())
        destinations = parameters | dict(whole.module.named_buffers())
        with torch.no_grad():
            for name, tensor in _tensors(shard).items():
                of = shard.held[name].name
                destinations[of].copy_(self._whole(session, name, tensor))
            for name, parameter in shard.module.named_parameters():
                of = shard.held[name].name
                if parameter in self.optimizer.state:
                    session.optimizer.state[parameters[of]] = self._whole_state(session, name, parameter)
            for follower, tensors in self.followers.items():
                for name, tensor in tensors.items():
                    session.all_followers[follower].tensors[shard.held[name].name] = self._whole(session, name, tensor)

    def collect_weights(self, session: Session) -> None:
        """Bring the weights and buffers back, and averages of them: all that an evaluation looks at. All ranks must call it."""
        whole = session.network
        destinations = dict(whole.module.named_parameters()) | dict(whole.module.named_buffers())
        with torch.no_grad():
            for name, tensor in _tensors(self.shard).items():
                destinations[self.shard.held[name].name].copy_(self._whole(session, name, tensor))
            for name, tensor in self.followers.get("average", {}).items():
                assert session.average is not None
                session.average.tensors[self.shard.held[name].name] = self._whole(session, name, tensor)

    def _whole(self, session: Session, name: str, tensor: Tensor) -> Tensor:
        """A whole tensor, in the storage of the network, of what is shaped like a local one."""
        (of, found), *_ = self.shard.gather({name: tensor}).items()
        layer = _layer(session.network, of)
        found = found.to(session.network.device)
        return found if layer is None or layer.storage == "dense" else found.reshape(-1)[_positions(layer)]

    def _whole_state(self, session: Session, name: str, parameter: Tensor) -> dict[str, object]:
        """An optimizer's state of a whole parameter. What is no tensor of the parameter's shape is the same on all ranks."""
        state: dict[str, object] = {}
        for key, value in self.optimizer.state[parameter].items():
            shaped = isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
            state[key] = self._whole(session, name, value) if shaped else value.clone() if isinstance(value, Tensor) else value
        return state


def _tensors(shard: Shard) -> dict[str, Tensor]:
    """Local parameters and buffers that are parts of the network's, by local name."""
    found = dict(shard.module.named_parameters()) | dict(shard.module.named_buffers())
    return {name: tensor for name, tensor in found.items() if name in shard.held}


def _optimizer(session: Session, shard: Shard) -> torch.optim.Optimizer:
    """The same optimizer over the local parameters, group by group, with their share of the state."""
    whole, parameters = session.optimizer, dict(session.network.module.named_parameters())
    local = {name: (shard.held[name], parameter) for name, parameter in shard.module.named_parameters()}
    groups = []
    for group in whole.param_groups:
        members = {id(parameter) for parameter in group["params"]}
        mine = [parameter for held, parameter in local.values() if id(parameters[held.name]) in members]
        groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": mine})
    optimizer = type(whole)(groups)  # type: ignore[call-arg]  # every group brings all its settings along
    for held, parameter in local.values():
        source = parameters[held.name]
        if source in whole.state:
            optimizer.state[parameter] = dict(_taken_state(session.network, held, source, parameter, whole.state[source]))
    return optimizer


def _taken_state(
    network: Network, held: Held, source: Tensor, parameter: Tensor, state: Mapping[str, object]
) -> Iterator[tuple[str, object]]:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape == source.shape:
            yield key, take(network, held, value).to(parameter.device)
        else:
            yield key, value.clone() if isinstance(value, Tensor) else value


def _followers(session: Session, shard: Shard) -> dict[str, dict[str, Tensor]]:
    """Local parts of the followers that a training step changes."""
    local = _tensors(shard)
    return {
        name: {
            mine: take(session.network, shard.held[mine], follower.tensors[shard.held[mine].name]).to(tensor.device)
            for mine, tensor in local.items()
            if shard.held[mine].name in follower.tensors
        }
        for name, follower in session.all_followers.items()
        if _changes_in_training(follower)
    }


def _changes_in_training(follower: Follower) -> bool:
    return isinstance(follower, (Movement, WeightAverage))


def _movement_step(shard: Shard, moved: dict[str, Tensor]):  # type: ignore[no-untyped-def]  # torch's own type of a hook
    """As `grow.movement.Movement.step`, over local weights."""
    parameters = dict(shard.module.named_parameters())

    @torch.no_grad()
    def step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        rate = float(optimizer.param_groups[0]["lr"])
        for name, total in moved.items():
            gradient = parameters[name].grad
            if gradient is not None:
                total.addcmul_(gradient, parameters[name], value=-rate)

    return step


def take(network: Network, held: Held, values: Tensor) -> Tensor:
    """The local part, shaped like the local tensor, of ``values`` shaped like the network's; zero where nothing is held."""
    layer = _layer(network, held.name)
    if layer is None or layer.storage == "dense":
        return held.take(values)
    stored = _positions(layer)
    if held.positions is None or not len(stored):
        return held.take(expand(values, stored, held.shape))
    flat = torch.from_numpy(held.positions.reshape(-1)).to(values.device)
    slots = torch.searchsorted(stored, flat).clamp(max=len(stored) - 1)
    found = torch.where(stored[slots] == flat, values.detach()[slots], values.new_zeros(()))
    return found.reshape(held.positions.shape)


def _layer(network: Network, name: str) -> SparseLayer | None:
    """The layer whose weight a tensor is, None for all other tensors."""
    path, _, leaf = name.rpartition(".")
    return network.layers.get(path) if leaf == "weight" else None


def _positions(layer: SparseLayer) -> Tensor:
    assert layer.positions is not None
    return layer.positions
