"""Train any model on any data loader while it grows and is pruned: the whole engine behind one call.

What it builds, a `Network` and a `Session`, can be built by hand just as well; `grow.train.train` then takes the steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import cos, isfinite, pi
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from grow import controller, optim, schedules
from grow.allocate import allocation
from grow.apoptosis import Method as Merging
from grow.average import WeightAverage
from grow.axes import IntArray
from grow.births import birth
from grow.controller import AnyPolicy, Search, Tolerance
from grow.criteria import Criterion, RunningMean, criterion, smoothed
from grow.criteria.units import unit_criterion
from grow.editing.insertion import Insertion
from grow.follow import Follower
from grow.history import History
from grow.kernels import Timings
from grow.loaders import LoaderTask, largest_is_right
from grow.memory import Memory
from grow.movement import Movement
from grow.network import Network
from grow.plan import Plan, ScheduleName, plant, policy
from grow.rehearsal import rehearse
from grow.schedules import Schedule
from grow.seeds import SEEDS
from grow.session import Methods, Session, untrained
from grow.splice import Splice
from grow.structured import Pattern, pattern
from grow.task import Batch
from grow.train import Progress, accuracy, choose_kernels, evaluate, train

if TYPE_CHECKING:
    import pandas as pd

WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""

RETRAIN, REFERENCE = 0.04, 0.4
"""Under a tolerance: shares of the training for each proposal's retraining, and for the training that sets the reference."""


TRIED = 2
"""Validation samples on which model and metric are tried before the training."""

DROP_FRACTION = 0.3
"""Share of the live connections replaced at an update (Evci et al. 2019, arXiv 1911.11134)."""

RULES: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("density", "in (0, 1]; pass connections / possible connections", lambda value: 0 < value <= 1),
    ("tolerance", "at least 0; pass the accuracy that may be lost, in points", lambda value: value >= 0),
    ("epochs", "above 0", lambda value: value > 0),
    ("steps", "at least 1", lambda value: value >= 1),
    ("update_interval", "at least 1", lambda value: value >= 1),
    ("batches", "at least 0; with 0 growth goes by the gradient of a training step", lambda value: value >= 0),
    ("apoptosis", "in [0, 1), a share of the next layer's pre-activations", lambda value: 0 <= value < 1),
    ("learning_rate", "above 0", lambda value: value > 0),
    ("momentum", "in [0, 1)", lambda value: 0 <= value < 1),
    ("weight_decay", "at least 0", lambda value: value >= 0),
    ("smoothing", "in [0, 1); 0.9 averages over about ten updates", lambda value: 0 <= value < 1),
    ("rewind", "in [0, 1); it is a share of the training", lambda value: 0 <= value < 1),
    ("average", "in [0, 1); 0.999 averages over about a thousand steps", lambda value: 0 <= value < 1),
)
"""Of settings that are numbers: name, rule, and whether a value keeps it."""

WITHOUT_TOLERANCE = (
    *("initial", "schedule", "begin", "end", "updates_end", "rounds", "cycles", "update_interval", "drop_fraction"),
    *("growth", "units", "birth", "unit_pruning", "apoptosis", "merging", "splicing", "insertions"),
)
"""Settings that mean nothing where a tolerance decides when and how much is pruned."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `fit` may be told; all have defaults, but for one of the first two.

    density: connections at the end as a share of the model's. tolerance: instead, the acceptable loss of accuracy on validation data in
    points; the sparsest network within it is looked for, and the longer the training, the more proposals there are. epochs,
    or steps: how long. seed: for whatever is drawn.

    - *start*: initial, a name of `grow.seeds.SEEDS`; "dense" is the model as it comes.
    - *when*: schedule, with begin, end, updates_end as shares of the training, rounds, cycles (see `grow.plan.Plan`); update_interval in
      steps (None: a fortieth of the training, 100 at most); drop_fraction, the share replaced at an update (None: 0.3, and 0 under
      the schedules that prune at once and retrain: one_shot, iterative, cyclic).
    - *what*: pruning and growth, names of `grow.criteria.CRITERIA` (pruning also of `TWO_STAGE`) or criteria of your own; smoothing, the
      decay of a running mean of the scores of pruning; splicing, whether what was pruned too early comes back with its weight; batches of
      evidence at an edit (0: growth by the gradient takes that of the step after the pruning, all else one); allocation, a name of
      `grow.allocate.ALLOCATIONS` (None: global); pattern, a name of `grow.structured.PATTERNS` or a pattern of your own.
    - *units*: final units by space; birth, a name of `grow.births.BIRTHS`; unit_pruning, a name of `grow.criteria.units.UNIT_CRITERIA`;
      apoptosis, the change of the next layer's pre-activations, as a share, up to which redundant units are merged at every update;
      merging, how they are found, a name of `grow.apoptosis.METHODS`.
    - *layers*: insertions, pairs of a step and a `grow.editing.insertion.Insertion`, a new layer that comes at the first update from that
      step on; kept are left as they are, frozen are not even trained. So are layers whose weight needs no gradient.
    - *training*: optimizer by name, learning_rate (its peak), momentum (of SGD), weight_decay, average (decay of the averaged weights that
      are evaluated, and that the network has at the end), device.
    - *speed*: timings, by which the kernel of every layer is chosen, such as those of a profile (`hardware.cache.obtain`; None: every layer
      is computed densely); autocast, whether products are computed in bfloat16; compile, whether by `torch.compile`, or the name of a
      backend of it.
    - *afterwards*: rewind, the share of the training after which the weights are remembered for `grow.retrain`; it must be before the
      first update.
    """

    density: float | None = None
    tolerance: float | None = None
    epochs: float = 3
    steps: int | None = None
    seed: int = 0

    initial: str = "dense"
    schedule: ScheduleName = "cubic"
    begin: float = 0.0
    end: float = 0.6
    updates_end: float = 0.75
    rounds: int = 5
    cycles: int = 3
    update_interval: int | None = None
    drop_fraction: float | None = None

    pruning: str | Criterion = "magnitude"
    growth: str | Criterion = "gradient"
    smoothing: float | None = None
    splicing: bool = False
    batches: int = 1
    allocation: str | None = None

    pattern: str | Pattern | None = None

    units: Mapping[str, int] | None = None
    birth: str = "random"
    unit_pruning: str = "fan_in_norm"
    apoptosis: float | None = None
    merging: Merging = "dependent"
    insertions: tuple[tuple[int, Insertion], ...] = ()

    kept: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    optimizer: optim.Name = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    average: float | None = None
    device: str = "cpu"

    timings: Timings | None = None
    autocast: bool = False
    compile: bool | str = False

    rewind: float | None = None

    def __post_init__(self) -> None:
        if self.density is not None and self.tolerance is not None:
            raise ValueError(
                f"density is {self.density} and tolerance is {self.tolerance}, but only one may be given: "
                "a tolerance finds the density; leave one out"
            )
        if self.density is None and self.tolerance is None:
            raise ValueError("density is None, but must be given where tolerance is not; pass density=0.1 or tolerance=0.5")
        for name, rule, holds in RULES:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and isfinite(value) and holds(value)):
                raise ValueError(f"{name} is {value!r}, but must be {rule}")
        for name in ("kept", "frozen"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be several names; pass ({getattr(self, name)!r},)")
        if self.splicing and self.pattern is not None:
            raise ValueError("splicing is True, but must be False with a pattern: connections come back one at a time; leave one out")
        if self.initial not in SEEDS:
            remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(str(self.initial), SEEDS, 1))
            raise ValueError(f"initial is {self.initial!r}, but must be one of {', '.join(SEEDS)}{remedy}")
        if self.tolerance is not None:
            for field in fields(self):
                if field.name in WITHOUT_TOLERANCE and getattr(self, field.name) != field.default:
                    raise ValueError(
                        f"{field.name} is {getattr(self, field.name)!r}, but must be left out where a tolerance is given: "
                        "connections of the model are pruned as far as the tolerance allows; pass a density instead"
                    )

    @property
    def replaced(self) -> float:
        """Share of the live connections that is replaced at an update."""
        if self.drop_fraction is not None:
            return self.drop_fraction
        return 0.0 if self.schedule in ("one_shot", "iterative", "cyclic") else DROP_FRACTION


@dataclass(frozen=True, eq=False)
class Early:
    """Weights of a step before the first edit, by name. survivors: by hidden space, which of the units that were there then are left."""

    step: int
    tensors: Mapping[str, Tensor]
    survivors: Mapping[str, IntArray]


@dataclass(frozen=True, eq=False)
class Fit:
    """What came out.

    history: one row an edit. accuracy: share of the validation samples. density: connections as a share of those that the given model
    has, units that are gone included. early: where ``rewind`` was set.
    """

    network: Network
    history: pd.DataFrame
    accuracy: float
    density: float
    session: Session
    settings: Settings
    early: Early | None


def fit(
    model: nn.Module,
    training: Iterable[Batch],
    validation: Iterable[Batch],
    *,
    example: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    correct: Callable[[Tensor, Tensor], Tensor] = largest_is_right,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Fit:
    """Train a copy of ``model`` while it grows and is pruned. ``settings`` are the fields of `Settings`, by name.

    training, validation: loaders of (inputs, targets), see `grow.loaders.LoaderTask`. example: one input (1, ...), by default the first of
    the validation data. progress: called after every step. ValueError names what is wrong with a setting, before anything is trained.
    """
    session = prepare(model, training, validation, example=example, loss=loss, correct=correct, **settings)
    chosen, network = _settings(settings), session.network
    early = _remembered(session, chosen)
    for made in train(session):
        if early is not None and made.step == early.step:
            early = replace(early, tensors=_tensors(network))
        if progress is not None:
            progress(made)
    if session.average is not None:
        session.average.adopt()
    if early is not None:
        early = replace(early, survivors=dict(network.parts or {}))
        network.assign(None)
    possible, connections = Network(model, network.example).topology.possible, network.topology.connections
    _warn_of_density(session, connections, possible)
    return Fit(network, session.history.frame(), accuracy(session), connections / possible, session, chosen, early)


def prepare(
    model: nn.Module,
    training: Iterable[Batch],
    validation: Iterable[Batch],
    *,
    example: Tensor | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    correct: Callable[[Tensor, Tensor], Tensor] = largest_is_right,
    history: History | None = None,
    **settings: Any,
) -> Session:
    """The training that `fit` would go through, before its first step: to be checkpointed, resumed, looked at on the way."""
    chosen = _settings(settings)
    task = LoaderTask(training, validation, chosen.seed, loss, correct)
    torch.manual_seed(chosen.seed)
    network = _traced(model, example, task, chosen)
    kept = _frozen(network, chosen)
    plan = _planted(network, chosen, task, kept)
    hasten(network, chosen, task.batch_size)
    methods = _methods(chosen, kept)
    optimizer, average = attached(network, chosen)
    followers: dict[str, Follower] = {"movement": Movement(network)} if "movement" in methods.pruning.needs else {}
    if chosen.smoothing is not None:
        memory = RunningMean(Memory(network), Memory(network))
        followers |= {"smoothed_scores": memory.scores, "smoothed_weights": memory.weights}
        methods = replace(methods, pruning=smoothed(methods.pruning, memory, chosen.smoothing))
    for follower in followers.values():
        network.attach(follower)
    splice = Splice() if chosen.splicing else None
    if splice is not None:
        network.remember(splice)
    session = Session(
        network,
        optimizer,
        task,
        plan,
        methods,
        _learning_rate(chosen, plan),
        chosen.seed,
        History() if history is None else history,
        controller.begin(plan),
        average=average,
        followers=followers,
        splice=splice,
        autocast=torch.bfloat16 if chosen.autocast else None,
    )
    rehearse(session)
    return session


def attached(network: Network, chosen: Settings) -> tuple[torch.optim.Optimizer, WeightAverage | None]:
    """The optimizer and the average of the weights, which follow the network's edits."""
    optimizer = optim.make(chosen.optimizer, network.parameters(), chosen.learning_rate, chosen.momentum, chosen.weight_decay)
    network.attach(optimizer)
    average = None if chosen.average is None else WeightAverage(network, chosen.average)
    if average is not None:
        network.attach(average)
    return optimizer, average


def hasten(network: Network, chosen: Settings, batch: int) -> None:
    """Choose the layers' kernels by the timings and compile the network, as far as the settings say so."""
    if chosen.timings is not None:
        choose_kernels(network, chosen.timings, batch)
    if chosen.compile:
        network.compile(backend="inductor" if chosen.compile is True else chosen.compile)


def rate(chosen: Settings, steps: int) -> Schedule:
    """A short rise and half a cosine."""
    return schedules.warm_cosine(chosen.learning_rate, max(1, round(WARM_UP * steps)), steps)


def _planted(network: Network, chosen: Settings, task: LoaderTask, kept: frozenset[str]) -> AnyPolicy:
    """Turn the network into the seed; how it goes on from there."""
    dense = network.topology
    steps = chosen.steps if chosen.steps is not None else max(1, round(chosen.epochs * task.steps_per_epoch))
    if chosen.tolerance is not None:
        return _tolerance(chosen, steps)
    assert chosen.density is not None
    plant(network, chosen.initial, chosen.density, chosen.seed, kept=kept)
    return policy(_plan(chosen, steps), dense, network.topology, kept)


def _methods(chosen: Settings, kept: frozenset[str]) -> Methods:
    return Methods(
        criterion(chosen.growth) if isinstance(chosen.growth, str) else chosen.growth,
        criterion(chosen.pruning) if isinstance(chosen.pruning, str) else chosen.pruning,
        batches=chosen.batches,
        allocation=None if chosen.allocation is None else allocation(chosen.allocation),
        kept=kept,
        unit_pruning=unit_criterion(chosen.unit_pruning),
        apoptosis=chosen.apoptosis,
        merging=chosen.merging,
        pattern=pattern(chosen.pattern) if isinstance(chosen.pattern, str) else chosen.pattern,
        birth=birth(chosen.birth),
        timings=chosen.timings,
    )


def _remembered(session: Session, chosen: Settings) -> Early | None:
    """The weights as they are before the first step, and the step at which those to rewind to will be; units are numbered until then."""
    if chosen.rewind is None:
        return None
    policy, state = session.policy, session.state
    step = round(chosen.rewind * policy.steps)
    first = policy.warm_up if isinstance(state, Search) and isinstance(policy, Tolerance) else getattr(state, "next_update", policy.steps)
    if chosen.initial == "minimal" or step > first:
        raise ValueError(
            f"rewind is {chosen.rewind}, but must be at most {first / policy.steps:.4g}, before the first update, of a network whose units "
            "are all there from the start; leave it out, or raise update_interval"
        )
    session.network.assign({space.name: np.arange(space.units) for space in session.network.topology.hidden})
    return Early(step, _tensors(session.network), {})


def _tensors(network: Network) -> dict[str, Tensor]:
    """Copies of all parameters and buffers that have axes, by name."""
    held = dict(network.module.named_parameters()) | dict(network.module.named_buffers())
    return {name: held[name].detach().clone() for name in network.axes}


def _warn_of_density(session: Session, connections: int, possible: int) -> None:
    """Say so where more is left than was asked for: pruning goes no further than the last path, and no further than the kept layers."""
    if not isinstance(session.policy, Tolerance) and connections > 1.01 * (wanted := session.policy.connections(session.step)):
        warnings.warn(
            f"density is {connections / possible:.4g} at the end, but {wanted / possible:.4g} was asked for: pruning stopped short of "
            "cutting the last path through a layer; ask for more, or let an allocation such as 'erk' share the connections out",
            stacklevel=3,
        )


def _settings(given: Mapping[str, object]) -> Settings:
    known = [field.name for field in fields(Settings)]
    for name in given:
        if name not in known:
            remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, known, 1))
            raise ValueError(f"setting is {name!r}, but must be one of {', '.join(known)}{remedy}")
    return Settings(**given)  # type: ignore[arg-type]  # what is wrong with a value is said where it is used


def _traced(model: nn.Module, example: Tensor | None, task: LoaderTask, chosen: Settings) -> Network:
    """The model as a network on its device, tried on some validation data: what does not fit shows before anything is trained."""
    first = next(task.validation(), None)
    if first is None:
        raise ValueError("validation has no batches, but must have at least one; pass a loader with data")
    held = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    network = Network(model, (first[0][:1] if example is None else example).to(held))
    try:
        network = network.to(chosen.device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device is {chosen.device!r}, but must be one that torch can use here ({error}); pass 'cpu'") from error
    evaluate(network, iter([(first[0][:TRIED], first[1][:TRIED])]), task.correct)
    return network


def _frozen(network: Network, chosen: Settings) -> frozenset[str]:
    """Stop training the frozen layers; names of all layers that are left as they are."""
    for name in (*chosen.kept, *chosen.frozen):
        network.topology.layer(name)
    for name in chosen.frozen:
        for parameter in network.layers[name].parameters():
            parameter.requires_grad_(False)
    return frozenset(chosen.kept) | untrained(network)


def _plan(chosen: Settings, steps: int) -> Plan:
    assert chosen.density is not None
    interval = chosen.update_interval if chosen.update_interval is not None else max(1, min(100, steps // 40))
    return Plan(
        steps,
        interval,
        chosen.density,
        chosen.initial,
        chosen.schedule,
        chosen.begin,
        chosen.end,
        chosen.updates_end,
        chosen.replaced,
        chosen.rounds,
        chosen.cycles,
        chosen.units,
        merge=chosen.apoptosis is not None,
        insertions=chosen.insertions,
    )


def _tolerance(chosen: Settings, steps: int) -> Tolerance:
    assert chosen.tolerance is not None
    return Tolerance(chosen.tolerance, round(REFERENCE * steps), max(1, round(RETRAIN * steps)), steps)


def _learning_rate(chosen: Settings, plan: AnyPolicy) -> Schedule:
    """A short rise and half a cosine; under a tolerance half a cosine again in every retraining (Renda et al. 2020, arXiv 2003.02389)."""
    if not isinstance(plan, Tolerance):
        return rate(chosen, plan.steps)
    first = rate(chosen, plan.warm_up)

    def following(step: int) -> float:
        if step < plan.warm_up:
            return first(step)
        return chosen.learning_rate * (1 + cos(pi * ((step - plan.warm_up) % plan.retrain) / plan.retrain)) / 2

    return following
