"""From a recipe to a training, and from a trained network to its figures. What a worker, a measurement and an export share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch

from grow import checkpoint, controller, optim, schedules, train
from grow.controller import Policy
from grow.criteria import criterion
from grow.history import History
from grow.network import Network
from grow.seeds import seed
from grow.task import Task
from grow.topology import Topology
from grow.train import Methods, Session
from hardware.cost import predict
from hardware.partition import Partition, communication_volume, crossing_units
from hardware.partitioners import PARTITIONERS
from hardware.profile import Profile
from hardware.workload import Workload
from search.definition import StudyDefinition, StudyReference
from search.errors import ConfigurationError, RunNotFoundError
from search.recipe import Recipe

GROWTH_END, UPDATES_END = 0.6, 0.75
"""Shares of the training after which the final number of connections is reached, and after which the structure stays."""

WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""

MINIMAL_UPDATES = 4
"""Updates that a minimal seed gets at least, however long the recipe's interval: it must have time to become a network."""

MINIMAL_DENSITY = 0.08
"""Density at which a network grown from the minimal seed arrives: the fewer connections it may have, the narrower it stays."""


@dataclass(frozen=True)
class Material:
    """What a recipe names, brought to hand."""

    recipe: Recipe
    definition: StudyDefinition
    task: Task


@dataclass(frozen=True)
class Figures:
    """What a trained network is and costs. accuracy: share of the validation samples. grown, pruned: connections, in all."""

    accuracy: float
    density: float
    connections: int
    units: Mapping[str, int]
    crossing_units: int
    communication_volume: int
    bytes_per_step: int
    grown: int
    pruned: int
    predicted_samples_per_s: float


def material(recipe: Recipe) -> Material:
    """Find the study and its data. ValueError when the data are not those of the recipe."""
    definition = StudyReference(recipe.study, recipe.study_sha256).load()
    source = definition.data(None if recipe.data_dir is None else Path(recipe.data_dir))
    if source.sha256 != recipe.data_sha256:
        raise ValueError(f"data of {source.name} has sha256 {source.sha256}, but must have {recipe.data_sha256}; restore the run's data")
    return Material(recipe, definition, definition.task(source, recipe.batch_size, recipe.seed))


def start_network(material: Material) -> Network:
    """The dense start network, drawn from the recipe's seed."""
    torch.manual_seed(material.recipe.seed)
    network = Network(material.definition.network(material.recipe.network)(), material.definition.example())
    return network.to(material.recipe.device)


def session(material: Material, profile: Profile | None, history: History) -> Session:
    """The training that a recipe describes, before its first step. Without a profile every layer is computed by the dense kernel."""
    recipe, network = material.recipe, start_network(material)
    dense = network.topology
    _plant(network, recipe)
    if recipe.strategy == "units":
        network.assign(_partition(Workload.of(network.topology), recipe).parts)
    timings = None if profile is None else profile.timings
    if timings is not None:
        train.choose_kernels(network, timings, recipe.batch_size)
    optimizer = optim.make(recipe.optimizer, network.parameters(), recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    network.attach(optimizer)
    policy = _policy(recipe, dense, network.topology)
    price = recipe.price if recipe.pattern == "source_group" and recipe.strategy == "units" else None
    methods = Methods(criterion(recipe.growth), criterion(recipe.pruning), price, timings=timings)
    return Session(
        network, optimizer, material.task, policy, methods, _learning_rate(recipe), recipe.seed, history, controller.begin(policy)
    )


def figures(training: Session, recipe: Recipe, profile: Profile) -> Figures:
    """Evaluate a trained network on validation data, settle its final partition, and predict its throughput."""
    network = training.network
    partition = _settled(network, recipe, profile)
    network.assign(None if partition is None else partition.parts)
    topology, work = network.topology, Workload.of(network.topology)
    crossing = (0, 0) if partition is None else (crossing_units(work, partition), communication_volume(work, partition))
    predicted = predict(work, recipe.strategy, partition, profile, recipe.batch_size, recipe.devices)
    return Figures(
        train.evaluate(network, training.task.validation(), training.task.correct),
        topology.density,
        topology.connections,
        dict(topology.units),
        *crossing,
        predicted.bytes_per_step,
        training.history.total("grow_connections", "add_units"),
        training.history.total("prune_connections", "remove_units"),
        predicted.samples_per_s,
    )


def trained_network(material: Material, folder: Path) -> Network:
    """The network of the last whole checkpoint in a folder. RunNotFoundError if there is none."""
    saved = last_checkpoint(folder)
    if saved is None:
        raise RunNotFoundError(f"{folder} holds no checkpoint, but must; the run is damaged, start a new one")
    network = start_network(material)
    checkpoint.restore(network, saved)
    return network


def last_checkpoint(folder: Path) -> checkpoint.Checkpoint | None:
    """The last whole checkpoint in a folder, None before the first. RunNotFoundError if all are damaged."""
    try:
        return checkpoint.latest(folder)
    except checkpoint.CheckpointError as error:
        raise RunNotFoundError(str(error)) from error


def _plant(network: Network, recipe: Recipe) -> None:
    """Turn the dense start network into the recipe's seed."""
    if recipe.initial == "dense":
        return
    structure = seed(recipe.initial)(network.topology, recipe.density, np.random.default_rng(recipe.seed))
    for space, count in structure.units.items():
        network.remove_units(space, np.arange(count, network.topology.units[space]))
    network.set_connections(structure.index)
    network.rescale_to_fan_in()
    generator = torch.Generator().manual_seed(recipe.seed)
    for hidden in network.topology.hidden:
        if hidden.units < recipe.devices:  # every device needs a unit to begin with
            network.add_units(hidden.name, recipe.devices - hidden.units, generator, *train.birth_degrees(network.topology, hidden.name))


def _policy(recipe: Recipe, dense: Topology, planted: Topology) -> Policy:
    """Move from the seed's connections to the recipe's; a dense network of full density is left alone."""
    wanted = max(1, round(recipe.density * dense.possible))
    if recipe.initial == "dense" and wanted == dense.possible:
        return Policy(recipe.steps, recipe.update_interval, 0, schedules.constant(wanted), schedules.constant(0.0), {})
    end = round(UPDATES_END * recipe.steps)
    interval = min(recipe.update_interval, max(1, end // MINIMAL_UPDATES)) if recipe.initial == "minimal" else recipe.update_interval
    last = end // interval * interval
    if last == 0 and recipe.initial == "dense":
        raise ConfigurationError(
            f"update_interval is {recipe.update_interval}, but must be at most {end} to reach the density in {recipe.steps} steps;"
            " lower it or train longer"
        )
    settled = min(round(GROWTH_END * recipe.steps), last)  # so that an update is left that meets the target exactly
    units = {}
    if recipe.initial == "minimal":
        widths = _final_widths(dense, wanted)
        units = {space.name: schedules.cubic(space.units, max(widths[space.name], space.units), 0, settled) for space in planted.hidden}
    return Policy(
        recipe.steps,
        interval,
        last,
        schedules.cubic(planted.connections, wanted, 0, settled),
        schedules.cosine(recipe.drop_fraction, max(1, end)),
        units,
    )


def _final_widths(dense: Topology, connections: int) -> dict[str, int]:
    """Widths, in the proportions of the dense network, at which so many connections are `MINIMAL_DENSITY` of the possible ones."""

    def widths(share: float) -> dict[str, int]:
        return {space.name: max(1, round(share * space.units)) if space.role == "hidden" else space.units for space in dense.spaces}

    def possible(units: Mapping[str, int]) -> int:
        return sum(int(np.prod(layer.sized(units))) for layer in dense.layers)

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if possible(widths(middle)) * MINIMAL_DENSITY >= connections else (middle, high)
    return widths(high)


def _learning_rate(recipe: Recipe) -> schedules.Schedule:
    """A short linear rise, then half a cosine down to zero (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    rise = max(1, round(WARM_UP * recipe.steps))

    def rate(step: int) -> float:
        if step < rise:
            return recipe.learning_rate * (step + 1) / rise
        return recipe.learning_rate * (1 + cos(pi * (step - rise) / max(1, recipe.steps - rise))) / 2

    return rate


def _partition(work: Workload, recipe: Recipe) -> Partition:
    return PARTITIONERS[recipe.partitioner](work, recipe.devices, recipe.imbalance, recipe.seed)


def _settled(network: Network, recipe: Recipe, profile: Profile) -> Partition | None:
    """The final partition: the one that the network grew along, or one made anew, whichever is predicted to train faster."""
    if recipe.strategy != "units":
        return None
    assert network.parts is not None
    work = Workload.of(network.topology)
    grown, anew = Partition(network.parts, recipe.devices), _partition(work, recipe)
    # Units that die may leave a part without any, which no device could run.
    whole = all(len(np.unique(parts)) == recipe.devices for parts in grown.parts.values())
    candidates = (grown, anew) if whole else (anew,)
    return min(candidates, key=lambda partition: predict(work, "units", partition, profile, recipe.batch_size).total_s)
