"""A training: everything that a checkpoint must bring back, and what it was asked to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from grow.allocate import Allocation
from grow.apoptosis import Method as Merging
from grow.average import WeightAverage
from grow.births import BIRTHS, Birth
from grow.checkpoint_file import Checkpoint
from grow.controller import AnyPolicy, AnyState, State
from grow.criteria import Criterion
from grow.criteria.units import FAN_IN_NORM, UnitCriterion
from grow.evidence.step import StepGradients
from grow.follow import Follower
from grow.history import History
from grow.kernels import Timings
from grow.layers import SparseConv2d, SparseLinear
from grow.network import Network
from grow.schedules import Schedule
from grow.splice import Splice
from grow.structured import Pattern
from grow.task import Batch, Task
from grow.topology import Topology


def untrained(network: Network) -> frozenset[str]:
    """Layers whose weight needs no gradient."""
    return frozenset(name for name, layer in network.layers.items() if not layer.weight.requires_grad)


RANDOM_BIRTH = BIRTHS["random"]


@dataclass(frozen=True)
class Methods:
    """How decisions are carried out.

    growth, pruning: what connections are worth. batches: of the coming steps, as evidence at every edit; 0 costs least in one process:
    growth by the gradient takes that of the training step after the pruning, where that can be watched (`Session.grows_by_step`), all else
    one batch.
    allocation: density of every layer at every edit; None: global, the scores alone say where. kept: layers whose connections and spaces
    are left as they are. unit_pruning: what units are worth. apoptosis, merging, stand_ins: bound, method and breadth of merges, see
    `grow.apoptosis.find`. pattern: how scores become a choice; None: one connection at a time, by the price. birth: how units come into
    being. price: of one more halo unit, in median scores; None: the network's parts play no role. timings: measured times, by which the
    kernel of every layer is chosen anew after an update; None leaves the kernels as they are.
    """

    growth: Criterion
    pruning: Criterion
    price: float | None = None
    timings: Timings | None = None
    batches: int = 1
    allocation: Allocation | None = None
    kept: frozenset[str] = frozenset()
    unit_pruning: UnitCriterion = FAN_IN_NORM
    apoptosis: float | None = None
    merging: Merging = "dependent"
    stand_ins: int | None = None
    pattern: Pattern | None = None
    birth: Birth = RANDOM_BIRTH
    divide: Callable[[Network], None] | None = None

    def __post_init__(self) -> None:
        if self.batches < 0:
            raise ValueError(f"batches is {self.batches}, but must be at least 0; with 0 growth goes by the gradient of a training step")

    @property
    def passes(self) -> int:
        """Batches that are passed through the network where a criterion looks at data."""
        return max(1, self.batches)


@dataclass
class Session:
    """A training under way.

    learning_rate: a function of the step; one of torch's schedulers, stepped after every step; or None, which leaves the optimizer's
    rate alone. average: what evaluation looks at instead of the last weights. followers: others that checkpoints shall bring back,
    by name; like the average they must be attached to the network. splice: lets connections come back that were pruned too early; it must
    be remembered by the network. accepted: the network to go back to, under a tolerance. autocast: the dtype in which the network computes
    in steps and evaluations, where torch sees fit; losses, and the evidence for edits, are of its weights' own.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    task: Task
    policy: AnyPolicy
    methods: Methods
    learning_rate: Schedule | LRScheduler | None
    seed: int
    history: History
    state: AnyState
    step: int = 0
    average: WeightAverage | None = None
    followers: Mapping[str, Follower] = field(default_factory=dict)
    splice: Splice | None = None
    accepted: Checkpoint | None = None
    autocast: torch.dtype | None = None
    uncast: frozenset[str] = field(default=frozenset(), repr=False)
    """Kernels that do not know the dtype of autocast, as far as that was said."""
    probed: tuple[int, Topology, float] | None = field(default=None, repr=False)
    """Step, topology and loss that were last probed: the loss after one edit is the one before the next."""
    probing: Batch | None = field(default=None, repr=False)
    """The validation samples that are probed."""

    stepped: StepGradients | None = field(default=None, repr=False)
    """The gradients of the last step, if growth goes by them next."""

    @property
    def grows_by_step(self) -> bool:
        """Whether growth goes by the gradient of the training step after the pruning, and needs no pass of its own.

        That of a compiled network cannot be watched, and under autocast it is coarser than the weights.
        """
        growth = self.methods.growth
        alone = growth.needs == {"gradient"} and not growth.later and self.methods.batches == 0
        return alone and self.autocast is None and not self.network.compiled

    @property
    def watches(self) -> bool:
        """Whether growth waits for the gradients of the coming step."""
        return isinstance(self.state, State) and self.state.phase == "grow" and self.grows_by_step

    @property
    def watched(self) -> dict[str, SparseLinear | SparseConv2d]:
        """The layers whose gradients are watched: those that edits may change."""
        return {name: layer for name, layer in self.network.layers.items() if name not in self.kept}

    def note(self, stepped: StepGradients | None) -> None:
        """Take in the gradients of the last step, which edits of connections leave as they are; None: let them go."""
        if self.stepped is not None:
            self.network.forget(self.stepped)
        self.stepped = stepped
        if stepped is not None:
            self.network.remember(stepped)

    def outputs(self, inputs: Tensor) -> Tensor:
        """The network's outputs as the training sees them, (B, ...)."""
        if self.autocast is None:
            return self.network(inputs)  # type: ignore[no-any-return]
        with torch.autocast(self.network.device.type, self.autocast):
            found: Tensor = self.network(inputs)
        return found.float() if found.dtype == self.autocast else found

    @property
    def kept(self) -> frozenset[str]:
        """Layers that no edit touches: those that the methods name, and those that are not trained."""
        return self.methods.kept | untrained(self.network)

    @property
    def kept_spaces(self) -> frozenset[str]:
        """Spaces that a kept layer computes or reads: their units stay."""
        layers = [layer for layer in self.network.topology.layers if layer.layer in self.kept]
        return frozenset(segment.space for layer in layers for segment in (*layer.target, *layer.source))

    @property
    def all_followers(self) -> dict[str, Follower]:
        """All that a checkpoint brings back besides network and optimizer, by name."""
        return {**self.followers} if self.average is None else {**self.followers, "average": self.average}
