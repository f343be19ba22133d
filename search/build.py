"""From a recipe to a training, and from a trained network to its figures. What a worker, a measurement and an export share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from grow import checkpoint, controller, optim, schedules, train
from grow.allocate import allocation
from grow.births import birth
from grow.controller import Policy
from grow.criteria import criterion
from grow.follow import Follower
from grow.history import History
from grow.kernels import Timings
from grow.movement import Movement
from grow.network import Network
from grow.plan import Plan, plant, policy
from grow.session import untrained
from grow.structured import pattern
from grow.task import Task
from grow.topology import Topology
from grow.train import Methods, Session
from hardware.cost import predict
from hardware.partition import Partition, communication_volume, crossing_units
from hardware.partitioners import PARTITIONERS
from hardware.partitioners.incremental import moving_price, place, repartition
from hardware.partitioners.local_search import FloatArray
from hardware.price import machine_price
from hardware.profile import Profile
from hardware.trust import beyond
from hardware.workload import IntArray, Workload
from search.definition import StudyDefinition, StudyReference
from search.errors import ConfigurationError, RunNotFoundError
from search.recipe import HASTENERS, Recipe
from search.rundir import TrialFolder

UNEVEN = 1.5
"""How many times the cheapest link the dearest must cost before the links count as uneven: measured ones of a kind differ by chance."""

WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""


@dataclass(frozen=True)
class Material:
    """What a recipe names, brought to hand."""

    recipe: Recipe
    definition: StudyDefinition
    task: Task


@dataclass(frozen=True)
class Figures:
    """What a trained network is and costs. accuracy: share of the validation samples. grown, pruned: connections, in all.

    memory_bytes: predicted for the fullest device; device_memory_bytes: what the smallest device has.
    price: of one more halo unit, as it drove growth and pruning; None where it played no role.
    word: simulated where the throughput is of a machine that is elsewhere. beyond: why that throughput may be worse than the profile's
    calibration says, in words; empty within the calibrated range.
    """

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
    memory_bytes: int
    device_memory_bytes: int
    word: Literal["predicted", "simulated"]
    beyond: tuple[str, ...] = ()
    price: float | None = None


@dataclass(frozen=True, eq=False)
class Placing:
    """Where the engine puts new units: where they cost least."""

    parts: int
    imbalance: float
    costs: FloatArray | None

    def __call__(self, topology: Topology, parts: Mapping[str, IntArray]) -> Mapping[str, IntArray]:
        """Parts of all hidden units, given those with -1 for new ones."""
        return place(Workload.of(topology), parts, self.parts, self.imbalance, self.costs).parts


def material(recipe: Recipe) -> Material:
    """Find the study and its data. ValueError when the data are not those of the recipe."""
    definition = StudyReference(recipe.study, recipe.study_sha256).load()
    source = definition.data(None if recipe.data_dir is None else Path(recipe.data_dir))
    if source.sha256 != recipe.data_sha256:
        raise ValueError(f"data of {source.name} has sha256 {source.sha256}, but must have {recipe.data_sha256}; restore the run's data")
    return Material(recipe, definition, definition.task(source, recipe.batch_size, recipe.seed))


def start_network(material: Material) -> Network:
    """The dense start network, drawn from the recipe's seed."""
    return drawn_network(material.recipe, material.definition)


def drawn_network(recipe: Recipe, definition: StudyDefinition) -> Network:
    """The dense start network, drawn from the recipe's seed. Needs no data."""
    torch.manual_seed(recipe.seed)
    return Network(definition.network(recipe.network)(), definition.example()).to(recipe.device)


def seeded_network(recipe: Recipe, definition: StudyDefinition, profile: Profile | None) -> Network:
    """The network that a trial of the recipe begins with, its units divided where the strategy divides them. Needs no data."""
    network = drawn_network(recipe, definition)
    _plant(network, recipe, untrained(network), _costs(recipe, profile))
    return network


def _plant(network: Network, recipe: Recipe, kept: frozenset[str], costs: FloatArray | None) -> None:
    """Bring the dense start network to the recipe's seed topology, and divide its units."""
    plant(network, recipe.initial, recipe.density, recipe.seed, recipe.devices, kept)  # every device needs a unit to begin with
    if recipe.by_units:
        placing = Placing(recipe.devices, recipe.imbalance, costs)
        network.assign(_partition(Workload.of(network.topology), recipe, costs).parts, placing, costs)


def session(material: Material, profile: Profile | None, history: History) -> Session:
    """The training that a recipe describes, before its first step. Without a profile every layer is computed by the dense kernel."""
    recipe, network = material.recipe, start_network(material)
    dense = network.topology
    kept = untrained(network)
    _plant(network, recipe, kept, _costs(recipe, profile))
    timings = None if profile is None else profile.timings
    if timings is not None:
        train.choose_kernels(network, timings, recipe.batch_size)
    costs, price = _costs(recipe, profile), price_of(recipe, dense, profile)
    if recipe.compile:
        network.compile()
    optimizer = optim.make(recipe.optimizer, network.parameters(), recipe.learning_rate, recipe.momentum, recipe.weight_decay)
    network.attach(optimizer)
    followers: dict[str, Follower] = {"movement": Movement(network)} if "movement" in criterion(recipe.pruning).needs else {}
    for follower in followers.values():
        network.attach(follower)
    planned = _policy(recipe, dense, network.topology, kept)
    rate = schedules.warm_cosine(recipe.learning_rate, max(1, round(WARM_UP * recipe.steps)), recipe.steps)
    return Session(
        network,
        optimizer,
        material.task,
        planned,
        _methods(recipe, timings, costs, price),
        rate,
        recipe.seed,
        history,
        controller.begin(planned),
        followers=followers,
        autocast=torch.bfloat16 if recipe.autocast else None,
    )


def figures(training: Session, recipe: Recipe, profile: Profile) -> Figures:
    """Evaluate a trained network on validation data, settle its final partition, and predict its throughput."""
    network = training.network
    partition = _settled(network, recipe, profile)
    network.assign(None if partition is None else partition.parts)
    topology, work = network.topology, Workload.of_network(network)
    crossing = (0, 0) if partition is None else (crossing_units(work, partition), communication_volume(work, partition))
    moments = optim.MOMENTS[recipe.optimizer]
    predicted = predict(work, recipe.how, partition, profile, recipe.batch_size, recipe.devices, moments=moments)
    return Figures(
        train.accuracy(training),
        topology.density,
        topology.connections,
        dict(topology.units),
        *crossing,
        predicted.bytes_per_step,
        training.history.total("grow_connections", "add_units"),
        training.history.total("prune_connections", "remove_units", "merge_units"),
        predicted.samples_per_s,
        predicted.memory_bytes,
        min(device.memory_bytes for device in profile.devices[: recipe.devices] or profile.devices),
        predicted.word,
        (*_unprofiled(recipe), *beyond(profile, work, recipe.strategy, recipe.batch_size, recipe.devices)),
        training.methods.price,
    )


def _unprofiled(recipe: Recipe) -> list[str]:
    """What of a recipe the profile's times know nothing of, in words."""
    return [f"{name} is True, but the profile's times are of layers without it" for name in HASTENERS if getattr(recipe, name)]


def throughput_so_far(training: Session, recipe: Recipe, profile: Profile) -> float:
    """The predicted throughput, samples/s, of the network and the partition that a training has by now."""
    network = training.network
    work, partition = Workload.of_network(network), None
    if recipe.by_units:
        assert network.parts is not None
        partition = Partition(network.parts, recipe.devices)
        if any(len(np.unique(parts)) < recipe.devices for parts in partition.parts.values()):  # some part lost its last unit
            costs = _costs(recipe, profile)
            partition = repartition(work, partition.parts, recipe.devices, None, recipe.imbalance, recipe.seed, costs)
    return predict(work, recipe.how, partition, profile, recipe.batch_size, recipe.devices).samples_per_s


def trained_network(material: Material, folder: Path) -> Network:
    """The network of the last whole checkpoint in a folder. RunNotFoundError if there is none."""
    return saved_network(material.recipe, material.definition, folder)


def saved_network(recipe: Recipe, definition: StudyDefinition, folder: Path) -> Network:
    """As `trained_network`, without the data."""
    saved = whole_checkpoint(folder)
    network = drawn_network(recipe, definition)
    checkpoint.restore(network, saved)
    return network


def whole_checkpoint(folder: Path) -> checkpoint.Checkpoint:
    """The last whole checkpoint of a trial, which is not to be trained. RunNotFoundError if there is none."""
    saved, damaged = checkpoint.last_whole(folder)
    if saved is not None:
        return saved
    holds = f"{len(damaged)} checkpoints, but none is whole" if damaged else "no checkpoint, but must"
    remedy = "resume the run, which trains it"
    if TrialFolder(folder.parent).result.exists():  # what has ended is not trained again
        remedy = f"put one back from a copy, or train the same recipe with: grow train {shlex.quote(str(folder.parent))}"
    raise RunNotFoundError(f"{folder} holds {holds}; {remedy}")


def last_checkpoint(folder: Path) -> checkpoint.Checkpoint | None:
    """The last whole checkpoint in a folder, None before the first. RunNotFoundError if all are damaged."""
    try:
        return checkpoint.latest(folder)
    except checkpoint.CheckpointError as error:
        raise RunNotFoundError(str(error)) from error


def _policy(recipe: Recipe, dense: Topology, planted: Topology, kept: frozenset[str]) -> Policy:
    """Move from the seed's connections to the recipe's, by the recipe's schedule."""
    try:
        return policy(
            Plan(
                recipe.steps,
                recipe.update_interval,
                recipe.density,
                recipe.initial,
                recipe.schedule,
                recipe.schedule_begin,
                recipe.schedule_end,
                recipe.updates_end,
                recipe.drop_fraction,
                recipe.rounds,
                recipe.cycles,
                merge=recipe.apoptosis > 0,
            ),
            dense,
            planted,
            kept,
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def price_of(recipe: Recipe, dense: Topology, profile: Profile | None) -> float | None:
    """Of one more halo unit of a network out of the dense start network, in median saliencies; None where it plays no role.

    It follows from the recipe and the profile alone, so that a training that goes on has the price that it began with.
    """
    if not recipe.priced:
        return None
    if not isinstance(recipe.price, str):
        return recipe.price
    if profile is None:
        raise ConfigurationError("price is 'machine', but must be a number without a profile of the machine; name one with --hardware")
    return machine_price(Workload.of(dense), recipe.density, recipe.devices, profile, recipe.batch_size)


def _methods(recipe: Recipe, timings: Timings | None, costs: FloatArray | None, price: float | None) -> Methods:
    return Methods(
        criterion(recipe.growth),
        criterion(recipe.pruning),
        price,
        timings=timings,
        batches=recipe.evidence_batches,
        allocation=None if recipe.allocation == "global" else allocation(recipe.allocation),
        apoptosis=recipe.apoptosis if recipe.apoptosis > 0 else None,
        pattern=None if recipe.pattern in ("unstructured", "source_group") else pattern(recipe.pattern),
        birth=birth(recipe.birth),
        divide=Repartition(recipe, costs) if recipe.repartition and recipe.by_units else None,
    )


@dataclass(frozen=True, eq=False)
class Repartition:
    """Divides the units anew after an update, as far as it pays until the next one."""

    recipe: Recipe
    costs: FloatArray | None

    def __call__(self, network: Network) -> None:
        """Label the units with the parts that they had, but for what must move or pays."""
        assert network.parts is not None
        found = repartitioned(self.recipe, Workload.of(network.topology), network.parts, self.recipe.devices, self.costs)
        network.assign(found.parts, Placing(self.recipe.devices, self.recipe.imbalance, self.costs), self.costs)


def repartitioned(recipe: Recipe, work: Workload, old: Mapping[str, IntArray], parts: int, costs: FloatArray | None = None) -> Partition:
    """The recipe's partition after an edit, given the parts of before, -1 for new units."""
    price = moving_price(recipe.batch_size, recipe.update_interval, optim.MOMENTS[recipe.optimizer])
    return repartition(work, old, parts, PARTITIONERS[recipe.partitioner], recipe.imbalance, recipe.seed, costs, price=price)


def _partition(work: Workload, recipe: Recipe, costs: FloatArray | None) -> Partition:
    return PARTITIONERS[recipe.partitioner](work, recipe.devices, recipe.imbalance, recipe.seed, costs)


def _costs(recipe: Recipe, profile: Profile | None) -> FloatArray | None:
    return None if profile is None else link_costs(profile, recipe.devices)


def link_costs(profile: Profile, devices: int) -> FloatArray | None:
    """What the links between the first devices cost, None where they are as good as even."""
    if devices == 1:
        return None
    costs = profile.graph.costs(devices)
    return costs if costs.max() >= UNEVEN else None


def _settled(network: Network, recipe: Recipe, profile: Profile) -> Partition | None:
    """The final partition: the one that the network grew along, as it is or mended, or made anew: the one predicted to train fastest."""
    if not recipe.by_units:
        return None
    assert network.parts is not None
    work = Workload.of_network(network)
    costs = _costs(recipe, profile)
    grown, anew = Partition(network.parts, recipe.devices), _partition(work, recipe, costs)
    # Units that die may leave a part without any, which no device could run.
    whole = all(len(np.unique(parts)) == recipe.devices for parts in grown.parts.values())
    mended = repartition(work, grown.parts, recipe.devices, None, recipe.imbalance, recipe.seed, costs)
    candidates = (grown, mended, anew) if whole else (mended, anew)
    return min(candidates, key=lambda partition: predict(work, recipe.how, partition, profile, recipe.batch_size).total_s)
