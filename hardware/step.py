"""A training step as tasks: what every device computes, what goes over which link, and what waits for what.

Every device computes the layers in network order, then the loss, then the layers backward, as PyTorch issues them. Before a layer of
another layout come the messages of its transition; gradients that are partial are summed as soon as all devices have them, the
small ones at the end. Where devices communicate while they compute (GPUs), a dense layer of ``units`` that alone reads a value begins
with its own columns before the halo is there, and backward with the halo's, whose gradients are under way while those of its own columns
are computed (`hardware.execute.overlap`); and every layer computes more slowly while messages come and go. On one-core workers a device
does one thing at a time.

A collective is one task where its time was measured (or where nothing overlaps), else it is messages: each holds the sender's way
out, the receiver's way in and every link on its route.

Legend: k devices, r hands to p.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from hardware.layout import Strategy
from hardware.profile import Profile
from hardware.share import LocalLayer, Shares, layer_seconds, operator_seconds
from hardware.simulate import Task, TaskKind
from hardware.transitions import Move, Sum, Transition, norm_sums, parameter_sums, transitions
from hardware.workload import LayerWork

FORWARD_SHARE = 1 / 3
"""One of the three products of a layer step."""

BY_SAMPLE = ("dense", "columns")
"""Kernels whose outputs lie in memory sample after sample; those of the others unit after unit."""

Waits = list[tuple[int, ...]]
"""Per device, the tasks that have to end first."""


class Prices:
    """Times of everything that a step consists of, each asked of the profile once. moments: as `hardware.share.layer_bytes` takes them."""

    def __init__(self, shares: Shares, profile: Profile, moments: int = 1) -> None:
        self.shares, self.profile, self.moments = shares, profile, moments
        self.work, self.devices, self.batch = shares.work, shares.devices, shares.batch
        self.transitions: dict[object, Transition] = {}
        self._layers: dict[tuple[object, ...], tuple[float, str]] = {}

    @property
    def overlapping(self) -> bool:
        """Whether devices compute while they communicate."""
        return self.profile.devices[0].kind == "cuda"

    def layer(self, local: LocalLayer) -> tuple[float, str]:
        """Seconds of a device's layer step with the operators after it, and its kernel."""
        key = (local.work.layer, *local[1:])
        if key not in self._layers:
            self._layers[key] = self._layer_seconds(local)
        return self._layers[key]

    def forward_s(self, local: LocalLayer) -> float:
        """Seconds of the way forward: a share of the products, and that of the operators after them."""
        both, forward = operator_seconds(local, self.profile, self.devices)
        share = FORWARD_SHARE if local.work.input_gradient else 1 / 2
        return (self.layer(local)[0] - both) * share + forward

    def products_s(self, local: LocalLayer) -> tuple[float, float]:
        """Seconds of the products alone, on the way forward and back, without the operators after them."""
        both, forward = operator_seconds(local, self.profile, self.devices)
        ahead = self.forward_s(local) - forward
        return ahead, self.layer(local)[0] - both - ahead

    def _layer_seconds(self, local: LocalLayer) -> tuple[float, str]:
        seconds, kernel = layer_seconds(local, self.profile, self.devices)
        return seconds + operator_seconds(local, self.profile, self.devices)[0], kernel

    def stored(self, layouts: Strategy) -> dict[str, int]:
        """Values that the weights of the layers without divided rows or columns are held in."""
        found = {}
        for layer in self.work.layers:
            local = max(self.shares.of(layer, layouts), key=lambda share: share.samples)
            if self.layer(local)[1] != "dense":
                found[layer.layer] = local.connections
        return found

    def moved(self, layouts: Strategy) -> tuple[Transition, ...]:
        """The transitions of a strategy."""
        partition = None if not self.shares.partition.parts else self.shares.partition
        return transitions(self.work, layouts, partition, self.devices, self.batch, self.profile.element_size, self.transitions)

    def parameter_sums(self, layouts: Strategy) -> tuple[Sum, ...]:
        """The sums of gradients of a strategy."""
        return parameter_sums(self.work, layouts, self.devices, self.profile.element_size, self.stored(layouts))

    def norm_sums(self, layouts: Strategy, *, inference: bool = False) -> dict[str, tuple[Sum, Sum]]:
        """Per norm, the sums of its moments; in inference batch norms have theirs already."""
        found = norm_sums(self.work, layouts, self.devices, self.batch, self.profile.element_size)
        known = {norm.name for norm in self.work.norms if inference and norm.over == "batch"}
        return {forward.names[0]: (forward, backward) for forward, backward in found if forward.names[0] not in known}

    def by_unit(self, transition: Transition, layouts: Strategy) -> bool:
        """Whether the values of a unit that a halo consists of lie together: those of maps, and of what sparse kernels computed."""
        if not transition.source == transition.target == "units":
            return False
        if any(self.work.layer(name).convolution for name in transition.layers):
            return True
        makers = [layer for layer in self.work.layers if layer.computes in transition.spaces]
        kernels = {self.layer(local)[1] for layer in makers for local in self.shares.of(layer, layouts) if local.rows}
        return not any(layer.convolution for layer in makers) and kernels.isdisjoint(BY_SAMPLE)

    def move_s(self, move: Move, *, by_unit: bool = False) -> float:
        """Seconds of a collective by itself: measured where the profile has it, else by its slowest device. Exchanges go there and back.

        by_unit: of a halo, as above; for others, and where kernels are not known yet, the layout that takes longer counts.
        """
        most = int(max(move.pairs.sum(0).max(), move.pairs.sum(1).max()))
        if move.collective == "sum":
            return self.profile.collective_seconds("sum", self.devices, move.shared or most // (self.devices - 1))
        if move.collective == "gather":
            return self.profile.collective_seconds("gather", self.devices, most / (self.devices - 1))
        return self.profile.halo_seconds(self.devices, move.kept, most, by_unit=by_unit) / 2

    def measured(self, move: Move) -> bool:
        """Whether the time of such a collective is known from the clock."""
        return any((row.collective, row.ranks) == (move.collective, self.devices) for row in self.profile.collectives)


def step_tasks(prices: Prices, layouts: Strategy, *, inference: bool = False) -> tuple[Task, ...]:
    """The tasks of one training step under a strategy; for ``inference`` those of the way forward."""
    step = _Step(prices, layouts, inference)
    return step.forward() if inference else step.tasks()


def device(number: int) -> str:
    """The resource of a device's computation."""
    return f"device {number}"


@dataclass(eq=False)
class _Step:
    """Adds up the tasks of a step."""

    prices: Prices
    layouts: Strategy
    inference: bool
    found: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.k = self.prices.devices
        self.work = self.prices.work
        self.last: Waits = [() for _ in range(self.k)]  # of every device, its latest computation
        self.computed: dict[str, Waits] = {}  # space -> what has to end before its values are there
        self.sums: dict[str, Sum] = {}
        moved = self.prices.moved(self.layouts)
        self.transition = {layer: found for found in moved for layer in found.layers}
        self.norms = self._norms_by_layer()

    def _norms_by_layer(self) -> dict[str, list[tuple[Sum, Sum]]]:
        """Batch norms by the layer whose outputs they take: the layers of a space in order, one norm each."""
        sums, found = self.prices.norm_sums(self.layouts, inference=self.inference), dict[str, list[tuple[Sum, Sum]]]()
        for space in dict.fromkeys(norm.space for norm in self.work.norms):
            producers = [layer.layer for layer in self.work.layers if layer.computes == space]
            for place, norm in enumerate(norm for norm in self.work.norms if norm.space == space):
                if norm.name in sums and producers:
                    found.setdefault(producers[min(place, len(producers) - 1)], []).append(sums[norm.name])
        return found

    def forward(self) -> tuple[Task, ...]:
        arrived: dict[int, Waits] = {}
        for layer in self.work.layers:
            self._forward(layer, arrived)
        return tuple(self.found)

    def tasks(self) -> tuple[Task, ...]:
        self.forward()
        overhead = self.prices.profile.step_overhead_s
        for r in range(self.k):
            self._compute("loss and optimizer", "overhead", overhead, r, (w for waits in self.computed.values() for w in waits[r]))
        self._sums = self.prices.parameter_sums(self.layouts)
        returned: dict[str, Waits] = {}
        for layer in reversed(self.work.layers):
            self._backward(layer, returned)
        for gradients in self._sums:
            if len(gradients.names) != 1 or gradients.names[0] not in self.sums:
                self._move(gradients.move, f"gradients of {len(gradients.names)} tensors", self.last)
        return tuple(self.found)

    # ---- forward and backward of a layer ----

    def _forward(self, layer: LayerWork, arrived: dict[int, Waits]) -> None:
        transition = self.transition.get(layer.layer)
        own = self._join(self.computed.get(reads.space) for reads in layer.reads)
        values = own
        if transition is not None and transition.forward.collective != "sum":
            if id(transition) not in arrived:
                by_unit = self.prices.by_unit(transition, self.layouts)
                arrived[id(transition)] = self._move(transition.forward, f"{_spaces(transition)} forward", own, by_unit)
            values = arrived[id(transition)]
        ended: Waits = []
        for r, local in enumerate(self.prices.shares.of(layer, self.layouts)):
            forward = self.prices.forward_s(local)
            at_once = self.prices.products_s(local)[0] * self._at_once(local, transition)
            if at_once and values is not own:
                self._compute(f"{layer.layer} own units", "forward", at_once, r, own[r])
                forward -= at_once
            ended.append(self._compute(layer.layer, "forward", forward, r, values[r]))
        if transition is not None and transition.forward.collective == "sum":
            ended = self._move(transition.forward, f"{layer.layer} partial sums", ended)
        for forward_sum, _ in self.norms.get(layer.layer, ()):
            ended = self._move(forward_sum.move, f"{forward_sum.names[0]} moments", ended)
        self.computed[layer.computes] = self._join([self.computed.get(layer.computes), ended])

    def _at_once(self, local: LocalLayer, transition: Transition | None) -> float:
        """Share of a layer's products that is computed while its halo, or the gradient of that, is under way.

        On GPUs that of the own columns, in a dense layer that is the only one to read what is exchanged.
        """
        halo = transition is not None and transition.source == transition.target == "units" and len(transition.layers) == 1
        if not (halo and self.prices.overlapping and local.columns and self.prices.layer(local)[1] == "dense"):
            return 0.0
        return 1 - local.remote_columns / local.columns

    def _backward(self, layer: LayerWork, returned: dict[str, Waits]) -> None:
        """returned: per layer, what its gradient waits for."""
        waits = self._join([returned.get(layer.layer)])
        for _, backward_sum in self.norms.get(layer.layer, ()):
            waits = self._move(backward_sum.move, f"{backward_sum.names[0]} gradients", self._join([waits, self.last]))
        transition = self.transition.get(layer.layer)
        sent: Waits = []
        ended: Waits = []
        for r, local in enumerate(self.prices.shares.of(layer, self.layouts)):
            seconds = self.prices.layer(local)[0] - self.prices.forward_s(local)
            at_once = self.prices.products_s(local)[1] * self._at_once(local, transition)
            sent.append(self._compute(layer.layer, "backward", seconds - at_once, r, waits[r]))
            ended.append(self._compute(f"{layer.layer} own units", "backward", at_once, r, sent[r]))
        self._begin_sums(layer, ended)
        if transition is not None and layer.layer == transition.layers[0]:  # the last of them in this direction
            by_unit = self.prices.by_unit(transition, self.layouts)
            ended = self._join([ended, self._move(transition.backward, f"{_spaces(transition)} backward", sent, by_unit)])
        producers = {reads.space for reads in layer.reads}
        for earlier in self.work.layers:
            if earlier.layer == layer.layer:
                break
            if earlier.computes in producers:
                returned[earlier.layer] = self._join([returned.get(earlier.layer), ended])

    def _begin_sums(self, layer: LayerWork, ended: Waits) -> None:
        """Sum the layer's large gradients as soon as they are there."""
        for gradients in self._sums:
            if len(gradients.names) == 1 and gradients.move.shared and gradients.names[0].rpartition(".")[0] == layer.layer:
                self.sums[gradients.names[0]] = gradients
                self._move(gradients.move, f"{gradients.names[0]} gradient", ended)

    # ---- tasks ----

    def _compute(self, name: str, kind: TaskKind, seconds: float, r: int, after: Iterable[int]) -> tuple[int, ...]:
        """A computation of one device, after its latest one. Without anything to compute, what it would have waited for."""
        waits = tuple(sorted({*after, *self.last[r]}))
        if seconds <= 0:
            return waits
        disturbed = (f"out {r}", f"in {r}") if self.prices.overlapping else ()
        self.last[r] = self._add(Task(name, kind, seconds, (device(r),), waits, disturbed))
        return self.last[r]

    def _move(self, move: Move, name: str, after: Waits, by_unit: bool = False) -> Waits:
        """A collective, after which every device has what it needs."""
        if move.bytes == 0:
            return after
        ordered = () if self.prices.overlapping else self.last  # one thing after the other, as it is issued
        everyone = tuple(sorted({number for waits in (*after, *ordered) for number in waits}))
        if not self.prices.overlapping or self.prices.measured(move):
            return self._together(name, self.prices.move_s(move, by_unit=by_unit), move.bytes, everyone)
        if move.shared:
            return self._ring(move, name, everyone)
        return self._messages(move, name, after)

    def _together(self, name: str, seconds: float, size_bytes: int, after: tuple[int, ...]) -> Waits:
        ranks = range(self.k)
        if self.prices.overlapping:
            resources = tuple(f"{way} {r}" for r in ranks for way in ("out", "in"))
        else:
            resources = tuple(device(r) for r in ranks)
        task = self._add(Task(name, "communication", seconds, resources, after, size_bytes=size_bytes))
        if not self.prices.overlapping:
            self.last = [task for _ in ranks]
        return [task for _ in ranks]

    def _ring(self, move: Move, name: str, after: tuple[int, ...]) -> Waits:
        """2 (k - 1) steps of 1/k to the next device; all end together, since each step waits for the slowest link."""
        steps = 2 * (self.k - 1)
        links = [self.prices.profile.graph.link(r, (r + 1) % self.k) for r in range(self.k)]
        seconds = steps * max(link.seconds(move.shared / self.k) for link in links)
        traffic = move.traffic
        sent: tuple[int, ...] = ()
        for r in range(self.k):
            p = (r + 1) % self.k
            sent += self._add(Task(name, "communication", seconds, self._way(r, p), after, size_bytes=int(traffic[r, p])))
        return [sent for _ in range(self.k)]

    def _messages(self, move: Move, name: str, after: Waits) -> Waits:
        arrived = [set(waits) for waits in after]
        for shift in range(1, self.k):
            for r in range(self.k):
                p = (r + shift) % self.k
                size = int(move.pairs[r, p])
                if size:
                    seconds = self.prices.profile.graph.link(r, p).seconds(size)
                    arrived[p].update(self._add(Task(name, "communication", seconds, self._way(r, p), after[r], size_bytes=size)))
        return [tuple(sorted(waits)) for waits in arrived]

    def _way(self, r: int, p: int) -> tuple[str, ...]:
        """The sender's way out, the links in this direction, the receiver's way in."""
        at, links = r, []
        for pair in self.prices.profile.graph.route(r, p):
            after = sum(pair) - at
            links.append(f"link {at}>{after}")
            at = after
        return (f"out {r}", *links, f"in {p}")

    def _add(self, task: Task) -> tuple[int, ...]:
        self.found.append(task)
        return (len(self.found) - 1,)

    def _join(self, waits: Iterable[Waits | None]) -> Waits:
        joined: list[set[int]] = [set() for _ in range(self.k)]
        for each in waits:
            for r, numbers in enumerate(each or []):
                joined[r].update(numbers)
        return [tuple(sorted(numbers)) for numbers in joined]


def _spaces(transition: Transition) -> str:
    return f"{', '.join(transition.spaces)} {transition.source} to {transition.target}"
