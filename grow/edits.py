"""How the controller's decisions are carried out on a training's network: evidence, scores, the edit, the event."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grow import apoptosis, checkpoint, tolerance
from grow.allocate import Allocation, shares
from grow.births import Given
from grow.controller import Accept, Edit, Grow, InsertLayer, Merge, Policy, Prune, PruneUnits, Restore, Tolerance
from grow.criteria import Criterion
from grow.criteria.gradient import GRADIENT
from grow.criteria.units import choose_units
from grow.editing.connecting import LastPathError
from grow.evidence import Evidence, gather
from grow.evidence.gather import DATA_FREE
from grow.history import Event, What
from grow.kernels import KERNELS, KernelCase, Timings, fastest
from grow.network import Network
from grow.patterns import Choice
from grow.rounds import exponential, rounds_needed
from grow.scoring import to_grow, to_prune
from grow.splice import Splice
from grow.task import Batch
from grow.topology import Topology
from grow.unit_evidence import gather_units

if TYPE_CHECKING:
    from grow.session import Session

PROBE_SAMPLES = 64
"""Validation samples whose loss is noted before and after every edit."""

BIRTH_DEGREES = (32, 4)
"""Most connections into and out of a new unit, per layer: drawn at random, they only have to give the gradient a hold."""

_PHASES = ("train", "prune", "tidy", "units", "grow", "shed", "merge", "insert")


def carry_out(session: Session, decision: Edit, accuracy: float | None = None) -> None:
    """Edit the network as decided, and note the event. ``accuracy``: what was reported, for the event."""
    network, before = session.network, session.network.topology
    if any(parameter.grad is not None for group in session.optimizer.param_groups for parameter in group["params"]):
        session.optimizer.zero_grad()  # stale already: edits need not carry them
    loss_before = probe(session)
    thresholds: dict[str, float] = {}  # filled where connections are pruned
    what = _edit(session, decision, accuracy, thresholds)
    after = network.topology
    if after is before and what != "accept":
        return
    if _leaves_output(session, decision):
        session.probed = (session.step, network.topology, loss_before)
    units = {space: abs(count - before.units.get(space, 0)) for space, count in after.units.items() if count != before.units.get(space, 0)}
    session.history.append(
        Event(
            session.step,
            what,
            abs(after.connections - before.connections),
            units,
            decision.why,
            loss_before,
            probe(session),
            after.connections,
            after.density,
            accuracy,
            {layer.layer: layer.density for layer in after.layers},
            thresholds,
        )
    )


def _leaves_output(session: Session, decision: Edit) -> bool:
    """Whether an edit cannot change the loss: connections that come with weight zero, units without a path."""
    match decision:
        case Prune(unconnected=unconnected):
            return unconnected
        case Grow(connections=count):
            return count > 0 and session.splice is None
    return False


def choose_kernels(network: Network, timings: Timings, batch: int, within: float | None = None) -> None:
    """Compute every layer by its fastest kernel.

    within: layers that have changed by no larger a share since theirs was picked keep it; None: none does.
    """

    def choose(case: KernelCase) -> str:
        return fastest(case, timings, KERNELS) if case.density < 1 else "dense"

    network.use_kernels(choose, batch, within)


def birth_degrees(topology: Topology, space: str) -> tuple[int, int]:
    """Fan-in and fan-out of a new unit, per layer: those that the units of its space have on average, within `BIRTH_DEGREES`."""
    units = topology.units[space]
    fan_in = max((layer.count / units for layer in topology.producers(space)), default=1.0)
    fan_out = max((layer.count / units for layer in topology.consumers(space)), default=1.0)
    most_in, most_out = BIRTH_DEGREES
    return max(1, min(most_in, round(fan_in))), max(1, min(most_out, round(fan_out)))


def birth_connections(topology: Topology, space: str) -> int:
    """Connections that a new unit brings along."""
    fan_in, fan_out = birth_degrees(topology, space)
    return len(topology.producers(space)) * fan_in + len(topology.consumers(space)) * fan_out


@torch.no_grad()
def probe(session: Session) -> float:
    """Mean loss on a fixed validation batch, in evaluation mode; not computed again while neither weights nor structure have changed."""
    network = session.network
    topology = network.topology
    if session.probed is not None and session.probed[:2] == (session.step, topology):
        return session.probed[2]
    if session.probing is None:  # once: a loader may start processes every time that it is gone through
        inputs, targets = next(iter(session.task.validation()))
        session.probing = (inputs[:PROBE_SAMPLES].clone(), targets[:PROBE_SAMPLES].clone())
    inputs, targets = session.probing
    training = network.training
    if training:
        network.eval()
    outputs = session.outputs(inputs.to(network.device))
    if training:
        network.train()
    loss = session.task.loss(outputs, targets.to(network.device)).item()
    session.probed = (session.step, topology, loss)
    return loss


def _edit(session: Session, decision: Edit, accuracy: float | None, thresholds: dict[str, float]) -> What:
    """Carry out one decision: what was done. Where connections are pruned, ``thresholds`` gets the largest |weight| of each layer."""
    network = session.network
    match decision:
        case Prune(unconnected=True):
            network.remove_unconnected_units(session.kept_spaces)
            return "remove_units"
        case Prune(connections=count):
            thresholds |= _prune(session, count)
            return "prune_connections"
        case Grow(connections=0, units=units):
            _add_units(session, units)
            return "add_units"
        case Grow(connections=count):
            _grow(session, count)
            return "grow_connections"
        case Accept():
            _warn_of_noise(session, accuracy)
            session.accepted = checkpoint.capture_followed(session)
            return "accept"
        case Restore():
            assert session.accepted is not None
            checkpoint.restore_followed(session, session.accepted)
            return "restore"
        case PruneUnits(units=units):
            _prune_units(session, units)
            return "remove_units"
        case Merge():
            _merge(session)
            return "merge_units"
        case InsertLayer(insertion=insertion):
            network.insert_layer(insertion, _generator(session))
            return "insert_layer"


def _prune(session: Session, count: int) -> dict[str, float]:
    """Remove ``count`` connections, in as many rounds as the criterion asks for; the largest |weight| that each layer lost."""
    network, share = session.network, session.methods.pruning.round_share
    start = network.topology.connections
    left = max(1, start - count)
    lost: dict[str, float] = {}
    for after in exponential(start, left, rounds_needed(start, left, share)):
        for name, weights in _prune_round(session, network.topology.connections - after).items():
            lost[name] = max(lost.get(name, 0.0), float(weights.abs().max()))
    return lost


def _prune_round(session: Session, count: int) -> dict[str, Tensor]:
    """Remove ``count`` connections; half as many, and so on, where that would cut the network in two. The weights that each layer lost."""
    network, splice = session.network, session.splice
    evidence = _evidence(session, session.methods.pruning)
    while count > 0:
        choice = _chosen(session, session.methods.pruning, evidence, -count, to_prune)
        try:
            weights = network.prune_connections(choice)
        except LastPathError:
            count //= 2
            continue
        if splice is not None:
            splice.note(choice, weights)
        return weights
    return {}


def _grow(session: Session, count: int) -> None:
    """Add ``count`` connections: first those that were pruned too early, then those that the criterion finds most worth having."""
    network, growth = session.network, session.methods.growth
    free = [layer for layer in network.topology.layers if layer.layer not in session.kept]
    count = min(count, sum(layer.possible - layer.count for layer in free))  # less than wanted where many units died
    if session.splice is not None:
        count -= _splice(session, session.splice, count)
    network.grow_connections(_chosen(session, growth, _growth_evidence(session), count, to_grow))


def _splice(session: Session, splice: Splice, count: int) -> int:
    """Let connections come back that have risen above their threshold, ``count`` at most; how many."""
    network, topology, methods = session.network, session.network.topology, session.methods
    if not splice.held:
        return 0
    assert isinstance(session.policy, Policy)  # a tolerance adds no connections
    rate = float(session.optimizer.param_groups[0]["lr"]) * session.policy.update_interval
    splice.train(_evidence(session, GRADIENT), rate)
    room = {layer.layer: layer.possible - layer.count for layer in topology.layers}
    if methods.allocation is not None:
        wanted = _per_layer(topology, topology.connections + count, methods.allocation, session.kept)
        room = {name: wanted[name] - topology.layer(name).count for name in wanted}
    choice, values = splice.rising(network, room, count)
    network.grow_connections(choice, values)
    return sum(map(len, choice.values()))


def _add_units(session: Session, units: Mapping[str, int]) -> None:
    """Let so many units be born in each space."""
    network, birth, generator = session.network, session.methods.birth, _generator(session)
    batches = [] if birth.name == "random" else [_batch(session, session.step + later) for later in range(session.methods.passes)]
    degrees = {space: birth_degrees(network.topology, space) for space in units}
    for space, count in units.items():
        most = _most_births(network.topology, space, birth.name)  # the others are born at the next update
        birth.add(
            network, space, count if most is None else min(count, most), Given(batches, session.task.loss, generator, *degrees[space])
        )


def _most_births(topology: Topology, space: str, birth: str) -> int | None:
    """Units that can be born at once: every unit is split once, and GradMax needs a direction of its own for each."""
    if birth == "split":
        return topology.units[space]
    if birth != "gradmax":
        return None
    reads = sum(prod(layer.shape[1:]) for layer in topology.producers(space))
    writes = sum(layer.possible // topology.units[space] for layer in topology.consumers(space))
    return min(reads, writes)


def _prune_units(session: Session, units: Mapping[str, int]) -> None:
    """Remove so many units of each space, those that the criterion finds least worth having."""
    network, criterion = session.network, session.methods.unit_pruning
    batches = [_batch(session, session.step + later) for later in range(session.methods.passes if criterion.needs else 0)]
    evidence = gather_units(network, batches, session.task.loss, criterion.needs, _generator(session), units)
    chosen = {space: choose_units({space: criterion.score(evidence[space])}, count)[space] for space, count in units.items()}
    for space, found in chosen.items():
        network.remove_units(space, found)


def _merge(session: Session) -> None:
    """Merge redundant units, space by space, each within the bound."""
    network, methods = session.network, session.methods
    if methods.apoptosis is None:
        raise ValueError("apoptosis is None, but must be a bound where the policy merges units; set it among the methods")
    batches = [_batch(session, session.step + later)[0] for later in range(methods.passes)]
    for space in mergeable(session):
        found = apoptosis.find(network, space, batches, methods.apoptosis, methods.merging, stand_ins=methods.stand_ins)
        if found.merges:
            network.merge_units(space, found.merges)


def mergeable(session: Session) -> list[str]:
    """Hidden spaces whose units apoptosis may merge: not those of kept layers, nor those that its method cannot judge.

    ValueError if the method can judge none of the others; it says why the first one is refused.
    """
    asked = [space.name for space in session.network.topology.hidden if space.name not in session.kept_spaces]
    found, refused = list[str](), list[ValueError]()
    for space in asked:
        try:
            apoptosis.check(session.network, space, session.methods.merging)
        except ValueError as error:
            refused.append(error)
        else:
            found.append(space)
    if refused and not found:
        raise refused[0]
    return found


def _growth_evidence(session: Session) -> Evidence:
    """The gradients of the last step, where they were noted and are still valid; otherwise evidence on the batches of the coming ones."""
    found = None if session.stepped is None else session.stepped.evidence(session.network, session.watched)
    return _evidence(session, session.methods.growth) if found is None else found


def _evidence(session: Session, criterion: Criterion) -> Evidence:
    """Evidence on the batches of the coming steps."""
    needed = session.methods.passes if (criterion.needs | criterion.later) - DATA_FREE else 0
    batches = [_batch(session, session.step + later) for later in range(needed)]
    only = {name: None for name in session.watched} if session.kept else None
    return gather(session.network, batches, session.task.loss, criterion.needs, _generator(session), only=only)


def _chosen(session: Session, criterion: Criterion, evidence: Evidence, change: int, choose: Callable[..., Choice]) -> Choice:
    """The connections that are to go (``change`` below 0) or to come, over all layers or as the allocation shares them out."""
    network, methods = session.network, session.methods
    topology = network.topology
    if methods.allocation is None:
        return choose(network, criterion, evidence, abs(change), methods.price, session.kept, methods.pattern)
    chosen: Choice = {}
    for name, count in _per_layer(topology, topology.connections + change, methods.allocation, session.kept).items():
        missing = (count - topology.layer(name).count) * (1 if change > 0 else -1)
        if missing > 0:
            others = frozenset(layer.layer for layer in topology.layers) - {name}
            chosen[name] = choose(network, criterion, evidence, missing, methods.price, others, methods.pattern)[name]
    return chosen


def _per_layer(topology: Topology, total: int, allocation: Allocation, kept: frozenset[str]) -> dict[str, int]:
    shapes = {layer.layer: layer.shape for layer in topology.layers}
    held = {layer.layer: layer.count for layer in topology.layers if layer.layer in kept}
    room = sum(layer.possible for layer in topology.layers if layer.layer not in kept)  # less than wanted where many units died
    return shares(shapes, min(total, sum(held.values()) + room), allocation, held)


def _warn_of_noise(session: Session, accuracy: float | None) -> None:
    policy = session.policy
    if not isinstance(policy, Tolerance) or session.accepted is not None or accuracy is None:
        return
    samples = sum(len(targets) for _, targets in session.task.validation())
    told = tolerance.noise(accuracy, samples)
    if policy.points < told:
        warnings.warn(
            f"points is {policy.points}, but two standard errors of the accuracy on {samples} validation samples are {told:.2f} points; "
            "what is accepted is chance in part: tolerate more or validate on more samples",
            stacklevel=2,
        )


def _batch(session: Session, step: int) -> Batch:
    inputs, targets = session.task.train_batch(step)
    return inputs.to(session.network.device), targets.to(session.network.device)


def _generator(session: Session) -> torch.Generator:
    """For draws at this step: a function of the seed, the step and the phase alone, so that a resumed training draws alike."""
    phase = _PHASES.index(session.state.phase) if session.state.phase in _PHASES else 0
    return torch.Generator().manual_seed((session.seed * 1_000_003 + session.step * 8 + phase) % 2**63)
