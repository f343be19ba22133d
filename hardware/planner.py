"""The strategy under which a network trains fastest on given devices.

A network with few strategies has every one of them simulated. For others the time is first taken as a sum: of the slowest device's
time for every layer, of every transition, of every sum. A term of it depends on the layouts of the few spaces that a layer joins, so
that the best strategies by it are found exactly by eliminating one space after the other (`hardware.elimination`). Space graphs of
networks are chains with short branches and residual streams, whose elimination leaves terms of two or three spaces; random search
(FlexFlow, arXiv 1807.05358) would be needed where they were not. What the sum cannot see is what overlaps: so it is asked twice, with
the sums of gradients and without them (as if all were hidden), and the best of both, the named strategies, and what
changing the layout of one space at a time makes of the best, are simulated. The best few of these are timed, where there is a clock.

Memory is kept within that of the devices: in the sum by the fullest device of every layer, which is never too little.

Legend: k devices, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import cast

from hardware.cost import Simulation, simulated
from hardware.elimination import Cost, Term, cheapest
from hardware.layout import STRATEGIES, UNNAMED, Layout, Strategy, allowed, completed, joins, name_of, strategy
from hardware.partition import Partition
from hardware.profile import Profile
from hardware.share import Shares, layer_bytes
from hardware.step import Prices
from hardware.transitions import ring, transitions
from hardware.workload import LayerWork, Workload

EXHAUSTIVE = 300
"""Networks with at most so many strategies have all of them simulated."""
SHARED_READERS = 6
"""Beyond so many layers that read one value, each is priced as if it read it alone, which is too much by what they share."""

Divide = Callable[[Workload, int], Partition]
"""Workload and number of parts -> a partition of its hidden spaces."""
Clock = Callable[[Sequence["Candidate"]], Sequence[float | None]]
"""Candidates -> measured seconds of a step of each, None of one for which there was no time."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A strategy on so many devices, with its predicted step.

    partition: None where nothing is ``units``. fits: into the memory of every device. measured_s: seconds of a step by the clock.
    """

    name: str
    layouts: Strategy
    devices: int
    partition: Partition | None
    simulation: Simulation
    fits: bool
    measured_s: float | None = None

    @property
    def predicted_s(self) -> float:
        """Predicted seconds of a step."""
        return self.simulation.step.total_s

    @property
    def seconds(self) -> float:
        """Seconds of a step by the clock where it was timed, else predicted."""
        return self.predicted_s if self.measured_s is None else self.measured_s


@dataclass(frozen=True, eq=False)
class Plan:
    """What was found: the fastest candidate first, then the others that fit, then what does not. Timed ones are before the rest."""

    candidates: tuple[Candidate, ...]

    @property
    def best(self) -> Candidate:
        """The fastest one: by the clock where there was one."""
        return self.candidates[0]

    def named(self, name: str) -> Candidate:
        """The candidate of a named strategy."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


def plan(
    work: Workload,
    profile: Profile,
    devices: int,
    batch: int,
    divide: Divide,
    *,
    clock: Clock | None = None,
    timed: int = 4,
    exhaustive: int = EXHAUSTIVE,
) -> Plan:
    """The candidates for up to ``devices`` devices, the fastest first.

    Among them are always the named strategies on all devices. With a ``clock`` the best ``timed`` and the named ones are
    timed (`to_time`), and the measured winner is first: it is never slower than data parallelism where that was timed.
    Raises ValueError where nothing fits into memory.
    """
    if devices < 1 or batch < 1:
        name, value = ("devices", devices) if devices < 1 else ("batch", batch)
        raise ValueError(f"{name} is {value}, but must be at least 1; name what the network is trained with")
    found: list[Candidate] = []
    for count in sorted({devices} | {devices >> shift for shift in range(1, devices.bit_length())} - {0, 1}, reverse=True):
        found += _Search(work, profile, count, batch, divide).candidates(max(timed, 4), exhaustive, everything=count == devices)
    ranked = sorted(_distinct(found), key=lambda candidate: (not candidate.fits, candidate.seconds))
    if not ranked[0].fits:
        least = min(ranked, key=lambda candidate: candidate.simulation.step.memory_bytes)
        have = min(device.memory_bytes for device in profile.devices[:devices])
        raise ValueError(
            f"memory of a device is {have} bytes, but must be at least {least.simulation.step.memory_bytes} for a step of {batch} samples"
            f" on {devices} devices under the smallest strategy found ({least.name!r}); use more devices or a smaller batch"
        )
    predicted = Plan(tuple(ranked))
    return predicted if clock is None else by_the_clock(predicted, clock, timed)


def to_time(found: Plan, timed: int = 4) -> list[Candidate]:
    """The candidates that are worth the clock, the most important ones first: the predicted best, the named ones, the next best."""
    fitting = [candidate for candidate in found.candidates if candidate.fits]
    most = max(candidate.devices for candidate in found.candidates)
    named = [candidate for candidate in fitting if candidate.name != UNNAMED and candidate.devices in (1, most)]
    return list(dict.fromkeys((*fitting[:1], *named, *fitting[:timed])))


def by_the_clock(found: Plan, clock: Clock, timed: int = 4) -> Plan:
    """The plan with what `to_time` chooses timed; what was timed comes first."""
    chosen = to_time(found, timed)
    seconds = dict(zip(chosen, clock(chosen), strict=True))
    told = [replace(candidate, measured_s=seconds.get(candidate)) for candidate in found.candidates]
    return Plan(tuple(sorted(told, key=lambda candidate: (candidate.measured_s is None, candidate.measured_s or 0.0))))


def usable(work: Workload, devices: int) -> Workload:
    """The work, with spaces of fewer units than devices among the indivisible ones."""
    few = {
        space: f"space {space!r} has {work.units[space]} units, but must have {devices}, one a device"
        for space in work.hidden
        if work.units[space] < devices and space not in work.indivisible
    }
    return replace(work, indivisible={**work.indivisible, **few}) if few else work


def divided_by(divide: Divide, work: Workload, devices: int) -> Partition | None:
    """A partition of what can be divided; None where nothing can."""
    spaces = tuple(space for space in work.hidden if space not in work.indivisible)
    return divide(replace(work, hidden=spaces), devices) if spaces and devices > 1 else None


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without strategies that come twice; of names the first is kept."""
    found: dict[tuple[object, ...], Candidate] = {}
    for candidate in candidates:
        key = candidate.name if candidate.name in STRATEGIES else tuple(sorted(candidate.layouts.items()))
        found.setdefault((key, candidate.devices), candidate)
    return list(found.values())


class _Search:
    """The candidates for one number of devices."""

    def __init__(self, work: Workload, profile: Profile, devices: int, batch: int, divide: Divide) -> None:
        self.work, self.profile, self.devices = usable(work, devices), profile, devices
        self.partition = divided_by(divide, self.work, devices)
        self.prices = Prices(Shares(self.work, self.partition, devices, batch), profile)
        self.alone = Prices(Shares(work, None, 1, batch), profile)
        self.limit = min(device.memory_bytes for device in (profile.devices[:devices] or profile.devices))
        self._simulated: dict[tuple[Layout, ...], Candidate] = {}

    def candidates(self, best: int, exhaustive: int, *, everything: bool) -> list[Candidate]:
        """everything: with the named strategies that are as they are on any number of devices."""
        named = [self.candidate(strategy(self.work, name), name) for name in STRATEGIES if everything or name != "single"]
        if self.devices == 1:
            return named[:1]
        if prod(len(allowed(self.work, space)) for space in (*self.work.hidden, *_outputs(self.work))) <= exhaustive:
            return named + [self.candidate(layouts) for layouts in self.strategies()]
        found = {
            tuple(term.values.items()) for with_sums in (True, False) for term in cheapest(self.terms(with_sums), 2 * best, self.limit)
        }
        several = named + [self.candidate(completed(self.work, cast("dict[str, Layout]", dict(values)))) for values in sorted(found)]
        return several + self.improved(min(several, key=lambda candidate: (not candidate.fits, candidate.predicted_s)))

    def candidate(self, layouts: Strategy, name: str | None = None) -> Candidate:
        """A strategy, simulated. One without a layout that is shared runs on one device."""
        key = tuple(layouts[space] for space in self.work.units)
        if key not in self._simulated:
            alone = set(key) == {"whole"}
            found = simulated(self.alone if alone else self.prices, layouts)
            partition = self.partition if "units" in key else None
            self._simulated[key] = Candidate(
                name_of(self.work, layouts), layouts, 1 if alone else self.devices, partition, found, found.step.memory_bytes <= self.limit
            )
        candidate = self._simulated[key]
        return candidate if name is None else replace(candidate, name=name)

    def strategies(self) -> Iterator[dict[str, Layout]]:
        """Every strategy; an input is ``batch`` where all its readers are, which changes no cost."""
        spaces = [*self.work.hidden, *_outputs(self.work)]
        for values in product(*(allowed(self.work, space) for space in spaces)):
            layouts = completed(self.work, dict(zip(spaces, values, strict=True)))
            if all(joins(self.work, layer, layouts) for layer in self.work.layers):
                yield layouts

    def improved(self, start: Candidate) -> list[Candidate]:
        """What is left after changing one space at a time for as long as the simulated time falls."""
        best, found, moved = start, [start], True
        while moved:
            moved = False
            for space in (*self.work.hidden, *_outputs(self.work)):
                for layout in allowed(self.work, space):
                    hidden = {name: best.layouts[name] for name in best.layouts if name not in self.work.inputs}
                    layouts = completed(self.work, {**hidden, space: layout})
                    if not all(joins(self.work, layer, layouts) for layer in self.work.layers):
                        continue
                    other = self.candidate(layouts)
                    if other.fits >= best.fits and other.predicted_s < best.predicted_s * (1 - 1e-9):
                        best, moved = other, True
                        found.append(other)
        return found[1:]

    # ---- the time as a sum of terms ----

    def terms(self, with_sums: bool) -> list[Term]:
        """All terms; ``with_sums`` includes the sums of gradients."""
        values: dict[str, list[LayerWork]] = {}
        for layer in self.work.layers:
            values.setdefault(layer.value or ", ".join(f"{reads.space} x {reads.values}" for reads in layer.reads), []).append(layer)
        groups = [[group] if len(group) <= SHARED_READERS else [[layer] for layer in group] for group in values.values() if group[0].reads]
        found = [self._layer_term(layer, with_sums) for layer in self.work.layers]
        found += [self._value_term(layers) for several in groups for layers in several]
        return found + [self._space_term(space, with_sums) for space in self.work.units]

    def _layer_term(self, layer: LayerWork, with_sums: bool) -> Term:
        """Computation and memory of the fullest device, and the sums of the layer's gradients."""
        costs: dict[tuple[str, ...], list[Cost]] = {}
        for layouts in self._combinations([layer]):
            shares = self.prices.shares.of(layer, layouts)
            found = [self.prices.layer(local) for local in shares]
            seconds = max(seconds for seconds, _ in found)
            if with_sums and layouts[layer.computes] == "batch":
                held = layer.connections if found[0][1] != "dense" else layer.rows * layer.columns * layer.taps
                seconds += self._summed(held + layer.rows * layer.bias)
            kinds, size = [kernel for _, kernel in found], self.profile.element_size
            memory = max(layer_bytes(*pair, size, self.prices.moments) for pair in zip(shares, kinds, strict=True))
            costs[tuple(layouts.values())] = [Cost(seconds, memory)]
        return Term(tuple(_spaces_of([layer])), costs)

    def _value_term(self, layers: Sequence[LayerWork]) -> Term:
        """The transitions of one value."""
        part, costs = replace(self.work, layers=tuple(layers)), dict[tuple[str, ...], list[Cost]]()
        for layouts in self._combinations(layers):
            prices = self.prices
            moved = transitions(part, layouts, self.partition, self.devices, prices.batch, self.profile.element_size, prices.transitions)
            seconds = sum(prices.move_s(move) for found in moved for move in (found.forward, found.backward) if move.bytes)
            memory = sum(int(found.forward.pairs.sum(0).max()) for found in moved if found.forward.collective in ("gather", "exchange"))
            costs[tuple(layouts.values())] = [Cost(seconds, memory)]
        return Term(tuple(_spaces_of(layers)), costs)

    def _space_term(self, space: str, with_sums: bool) -> Term:
        """The sums of the space's batch norms and of its other parameters."""
        layouts: dict[str, Layout] = {name: "batch" if name == space else "whole" for name in self.work.units}
        seconds = sum(self.prices.move_s(found.move) for pair in self.prices.norm_sums(layouts).values() for found in pair)
        if with_sums:
            seconds += self._summed(sum(other.size for other in self.work.others if other.space == space))
        return Term((space,), {(found,): [Cost(seconds if found == "batch" else 0.0, 0.0)] for found in allowed(self.work, space)})

    def _summed(self, values: int) -> float:
        return self.prices.move_s(ring(self.devices, values * self.profile.element_size)) if values else 0.0

    def _combinations(self, layers: Sequence[LayerWork]) -> Iterator[dict[str, Layout]]:
        spaces = _spaces_of(layers)
        for values in product(*(allowed(self.work, space) for space in spaces)):
            layouts = dict(zip(spaces, values, strict=True))
            if all(joins(self.work, layer, layouts) for layer in layers):
                yield layouts


def total(terms: Sequence[Term], layouts: Strategy) -> tuple[float, float]:
    """What the terms sum up to for one strategy: seconds, and bytes of the fullest device of every layer."""
    costs = [term.costs[tuple(layouts[space] for space in term.variables)][0] for term in terms]
    return sum(cost.dear for cost in costs), sum(cost.large for cost in costs)


def _spaces_of(layers: Sequence[LayerWork]) -> list[str]:
    """The spaces that layers read and compute."""
    return list(dict.fromkeys(space for layer in layers for space in (*(r.space for r in layer.reads), layer.computes, *layer.also)))


def _outputs(work: Workload) -> list[str]:
    return [space for space in work.units if space not in work.hidden and space not in work.inputs]
