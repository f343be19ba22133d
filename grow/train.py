"""The training loop, and how the controller's decisions are carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from grow import controller
from grow.controller import Grow, Policy, Prune, Report, State, Stop, Train
from grow.criteria import Criterion
from grow.evidence import Evidence, gather
from grow.history import Event, History, What
from grow.kernels import KERNELS, KernelCase, Timings, fastest
from grow.network import Network
from grow.schedules import Schedule
from grow.scoring import to_grow, to_prune
from grow.task import Batch, Task
from grow.topology import Topology, unconnected

PROBE_SAMPLES = 256
"""Validation samples whose loss is noted before and after every edit."""

BIRTH_DEGREES = (32, 4)
"""Most connections into and out of a new unit, per layer: drawn at random, they only have to give the gradient a hold."""


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Methods:
    """How decisions are carried out.

    price: of one more halo unit, in median scores; None: the network's parts play no role. timings: measured times, by which the
    kernel of every layer is chosen anew after an update; None leaves the kernels as they are.
    """

    growth: Criterion
    pruning: Criterion
    price: float | None = None
    timings: Timings | None = None


@dataclass
class Session:
    """A training: everything that a checkpoint must bring back, and what it was asked to do."""

    network: Network
    optimizer: torch.optim.Optimizer
    task: Task
    policy: Policy
    methods: Methods
    learning_rate: Schedule
    seed: int
    history: History
    state: State
    step: int = 0


@dataclass(frozen=True)
class Progress:
    """One step made."""

    step: int
    loss: float


def train(session: Session) -> Iterator[Progress]:
    """Train, growing and pruning as the controller decides. Yields after every step; between two steps a checkpoint may be taken.

    Raises DivergedError when the loss is no longer finite.
    """
    while True:
        decision, session.state = controller.decide(session.policy, report(session), session.state)
        match decision:
            case Stop():
                return
            case Train(until):
                while session.step < until:
                    yield Progress(session.step + 1, train_step(session))
            case Prune() | Grow():
                carry_out(session, decision)


def train_step(session: Session) -> float:
    """Forward, backward, one optimizer step; the batch's loss."""
    session.network.train()
    inputs, targets = _batch(session, session.step)
    for group in session.optimizer.param_groups:
        group["lr"] = session.learning_rate(session.step)
    session.optimizer.zero_grad()
    loss = session.task.loss(session.network(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    session.optimizer.step()
    session.step += 1
    value = loss.item()
    if not isfinite(value):
        raise DivergedError(f"loss is {value} at step {session.step}, but must be finite; lower learning_rate")
    return value


@torch.no_grad()
def evaluate(network: Network, batches: Iterator[Batch], correct: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Accuracy over all batches, as a share of the samples, in evaluation mode."""
    training = network.training
    network.eval()
    right, count = 0.0, 0
    for inputs, targets in batches:
        right += float(correct(network(inputs.to(network.device)), targets.to(network.device)).sum())
        count += len(targets)
    network.train(training)
    return right / count


def report(session: Session) -> Report:
    """What the controller is told."""
    topology, state = session.network.topology, session.state
    if state.phase == "train" and session.step < state.next_update:
        return Report(session.step, topology.connections, topology.units, unconnected=False)
    costs = {space: _birth_connections(topology, space) for space in session.policy.units}
    return Report(session.step, topology.connections, topology.units, bool(unconnected(topology)), costs)


def birth_degrees(topology: Topology, space: str) -> tuple[int, int]:
    """Fan-in and fan-out of a new unit, per layer: those that the units of its space have on average, within `BIRTH_DEGREES`."""
    units = topology.units[space]
    fan_in = max((layer.count / units for layer in topology.producers(space)), default=1.0)
    fan_out = max((layer.count / units for layer in topology.consumers(space)), default=1.0)
    most_in, most_out = BIRTH_DEGREES
    return max(1, min(most_in, round(fan_in))), max(1, min(most_out, round(fan_out)))


def _birth_connections(topology: Topology, space: str) -> int:
    """Connections that a new unit brings along."""
    fan_in, fan_out = birth_degrees(topology, space)
    return len(topology.producers(space)) * fan_in + len(topology.consumers(space)) * fan_out


def carry_out(session: Session, decision: Prune | Grow) -> None:
    """Edit the network as decided, choose kernels anew, and note the event."""
    network, before = session.network, session.network.topology
    loss_before = _probe(session)
    what, units = _edit(session, decision)
    after = network.topology
    if after is before:
        return
    if session.methods.timings is not None:
        choose_kernels(network, session.methods.timings, session.task.batch_size)
    changed = abs(after.connections - before.connections)
    session.history.append(
        Event(session.step, what, changed, units, decision.why, loss_before, _probe(session), after.connections, after.density)
    )


def choose_kernels(network: Network, timings: Timings, batch: int) -> None:
    """Compute every layer by its fastest kernel."""

    def choose(case: KernelCase) -> str:
        return fastest(case, timings, KERNELS) if case.density < 1 else "dense"

    network.use_kernels(choose, batch)


def _edit(session: Session, decision: Prune | Grow) -> tuple[What, Mapping[str, int]]:
    """Carry out one decision: what was done, and units added or removed by space."""
    network = session.network
    match decision:
        case Prune(unconnected=True):
            return "remove_units", network.remove_unconnected_units()
        case Prune(connections=count):
            pruning = session.methods.pruning
            network.prune_connections(to_prune(network, pruning, _evidence(session, pruning), count, session.methods.price))
            return "prune_connections", {}
        case Grow(connections=0, units=units):
            generator = torch.Generator().manual_seed(_draw_seed(session))
            degrees = {space: birth_degrees(network.topology, space) for space in units}
            for space, count in units.items():
                network.add_units(space, count, generator, *degrees[space])
            return "add_units", units
        case Grow(connections=count):
            growth = session.methods.growth
            network.grow_connections(to_grow(network, growth, _evidence(session, growth), count, session.methods.price))
            return "grow_connections", {}


def _evidence(session: Session, criterion: Criterion) -> Evidence:
    """Evidence on the batch of the coming step."""
    generator = torch.Generator().manual_seed(_draw_seed(session))
    return gather(session.network, [_batch(session, session.step)], session.task.loss, criterion.needs, generator)


@torch.no_grad()
def _probe(session: Session) -> float:
    """Mean loss on a fixed validation batch, in evaluation mode."""
    network = session.network
    inputs, targets = next(iter(session.task.validation()))
    network.eval()
    outputs = network(inputs[:PROBE_SAMPLES].to(network.device))
    return session.task.loss(outputs, targets[:PROBE_SAMPLES].to(network.device)).item()


def _batch(session: Session, step: int) -> Batch:
    inputs, targets = session.task.train_batch(step)
    return inputs.to(session.network.device), targets.to(session.network.device)


def _draw_seed(session: Session) -> int:
    """A seed for draws at this step: a function of the seed, the step and the phase alone, so that a resumed training draws alike."""
    phases = ("train", "prune", "tidy", "units", "grow")
    return (session.seed * 1_000_003 + session.step * 8 + phases.index(session.state.phase)) % 2**63
