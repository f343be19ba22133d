"""A start network, the devices and the planner together: what `grow plan` shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError

from grow.axes import IntArray
from grow.network import Network
from grow.plan import plant
from hardware.execute.measure import START_UP_S, Job, measure_within, seconds_of_job
from hardware.execute.ranks import RankError
from hardware.layout import UNNAMED, Layout
from hardware.partition import Partition
from hardware.partitioners import PARTITIONERS, default_partitioner
from hardware.planner import Candidate, Plan, by_the_clock, plan, to_time
from hardware.profile import Profile
from hardware.trust import beyond
from hardware.workload import Workload
from search.definition import installed_network
from search.errors import ConfigurationError, RunNotFoundError
from search.example import example_of

ROUNDS = 5
SECONDS_PER_CANDIDATE = 2.5
"""Of timed steps at most, in all rounds; where the budget is short, a quarter of it is for them."""
UNEVEN = 1.5
"""How many times the cheapest link the dearest must cost for the partition to tell them apart: measured ones differ by chance."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Drawn:
    """What an installed start network is drawn from: with all its connections, or as a seed topology of so many of them."""

    name: str
    shape: tuple[int, ...] | None = None
    seed: int = 0
    initial: str = "dense"
    density: float = 1.0
    least_units: int = 1


@dataclass(frozen=True, eq=False)
class Subject:
    """The network that is planned for. shape: of one sample. origin: the function that makes it in other processes, and of what."""

    name: str
    network: Network
    shape: tuple[int, ...]
    batch: int
    origin: tuple[Callable[[Any], Network], object]


def subject(drawn: Drawn, batch: int) -> Subject:
    """An installed start network as it is drawn."""
    network = draw(drawn)
    return Subject(drawn.name, network, tuple(network.example.shape[1:]), batch, (draw, drawn))


def draw(drawn: Drawn) -> Network:
    """The same network in every process."""
    torch.manual_seed(drawn.seed)
    module = installed_network(drawn.name)()
    network = Network(module, example_of(module, drawn.name, drawn.shape))
    plant(network, drawn.initial, drawn.density, drawn.seed, drawn.least_units)
    return network


def planned(subject: Subject, profile: Profile, gpus: int, budget_s: float, progress: Progress) -> Plan:
    """The plan. Where the profile is of this machine the best candidates and the named ones are timed, in ``budget_s`` from now on: as
    many of them as there is time for. progress: importable by name, since what times them tells of each.
    """
    begun = time.monotonic()
    found = plan(Workload.of_network(subject.network), profile, gpus, subject.batch, partial(_divide, profile))
    if profile.word == "simulated":
        return found
    left_s, chosen = budget_s - (time.monotonic() - begun), to_time(found)
    least_s = START_UP_S + seconds_of_job(chosen[0].predicted_s, 0.0, 1)
    if least_s > left_s:
        progress(f"nothing is timed: it would take {least_s:.0f} s, and the budget is {budget_s:.0f} s; allow more with --budget")
        return found
    whole_s = START_UP_S + sum(seconds_of_job(candidate.predicted_s, _seconds_each(left_s, len(chosen)), ROUNDS) for candidate in chosen)
    shortened = "" if whole_s <= left_s else f"; the budget is {budget_s:.0f} s, so slow ones have fewer steps or are left out"
    progress(f"timing {len(chosen)} candidates, which would take about {whole_s:.0f} s{shortened}")
    try:
        found = by_the_clock(found, partial(_clock, subject, profile, left_s, progress))
    except RankError as error:
        if error.refused:
            raise
        progress(f"the clock failed, so the plan is as predicted: {error}")
        return found
    timed = {named(candidate) for candidate in found.candidates if candidate.measured_s is not None}
    left_out = [f"{named(one)} (predicted {1000 * one.predicted_s:.4g} ms)" for one in chosen if named(one) not in timed]
    if left_out:
        progress(f"not timed within the budget of {budget_s:.0f} s: {', '.join(left_out)}; allow more with --budget")
    return found


def named(candidate: Candidate) -> str:
    """A candidate in words."""
    return f"{letters(candidate.name, candidate.layouts)} on {candidate.devices} device{'s' if candidate.devices > 1 else ''}"


def letters(strategy: str, layouts: Mapping[str, Layout]) -> str:
    """A strategy's name, for an unnamed one with its layouts by their first letters: w, b, u of every space."""
    return strategy if strategy != UNNAMED else f"{strategy} {''.join(layout[0] for layout in layouts.values())}"


def doubts(subject: Subject, profile: Profile, found: Plan) -> list[list[str]]:
    """Why the prediction of each candidate for this machine may be worse than the calibration says, in words."""
    if profile.word == "simulated":
        return [[] for _ in found.candidates]
    work = Workload.of_network(subject.network)
    return [beyond(profile, work, candidate.name, subject.batch, candidate.devices) for candidate in found.candidates]


def document(subject: Subject, profile: Profile, found: Plan, gpus: int) -> dict[str, object]:
    """The plan as plain data."""
    best = found.best
    candidates = zip(found.candidates, doubts(subject, profile, found), strict=True)
    return {
        "network": subject.name,
        "input": list(subject.shape),
        "connections": subject.network.topology.connections,
        "density": subject.network.topology.density,
        "batch": subject.batch,
        "gpus": gpus,
        "hardware": profile.described,
        "word": profile.word,
        **_candidate(best),
        "layouts": dict(best.layouts),
        "parts": {} if best.partition is None else _sizes(best),
        "link_bytes": best.simulation.link_bytes.tolist(),
        "device_memory_bytes": best.simulation.memory_bytes.tolist(),
        "candidates": [{**_candidate(candidate), "layouts": dict(candidate.layouts), "beyond": why} for candidate, why in candidates],
    }


@dataclass(frozen=True)
class Planned:
    """What training needs of a plan. devices: how many; layouts: of every space."""

    network: str
    devices: Annotated[int, Ge(1)]
    layouts: dict[str, Layout]


def read(path: Path) -> Planned:
    """What `document` gave, from its file. ConfigurationError or RunNotFoundError where it is none."""
    try:
        return TypeAdapter(Planned).validate_json(path.read_bytes())
    except OSError as error:
        raise RunNotFoundError(f"strategy is {str(path)!r}, but must be a file that grow plan --save wrote ({error.strerror})") from error
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "its text"
        raise ConfigurationError(f"strategy is {str(path)!r}, but must be a file that grow plan --save wrote: {place} is wrong") from error


def _candidate(candidate: Candidate) -> dict[str, object]:
    step = candidate.simulation.step
    return {
        "strategy": candidate.name,
        "devices": candidate.devices,
        "fits": candidate.fits,
        "predicted_s": candidate.predicted_s,
        "measured_s": candidate.measured_s,
        "samples_per_s": step.batch / candidate.seconds,
        **{name: value for name, value in asdict(step).items() if name not in ("word", "batch")},
    }


def _sizes(candidate: Candidate) -> Mapping[str, list[int]]:
    """Units of every part of the spaces that are divided."""
    partition = candidate.partition
    assert partition is not None
    divided = [space for space, layout in candidate.layouts.items() if layout == "units"]
    return {space: [len(partition.units(space, part)) for part in range(partition.count)] for space in divided}


def _divide(profile: Profile, work: Workload, parts: int) -> Partition:
    costs = profile.graph.costs(parts)
    return PARTITIONERS[default_partitioner()](work, parts, 0.05, 0, costs if costs.max() >= UNEVEN else None)


def _seconds_each(budget_s: float, candidates: int) -> float:
    """Of timed steps, for each of some candidates."""
    return max(0.5, min(SECONDS_PER_CANDIDATE, budget_s / candidates / 4))


def _clock(subject: Subject, profile: Profile, budget_s: float, progress: Progress, candidates: Sequence[Candidate]) -> list[float | None]:
    """Seconds of a step of every candidate that there is time for, in turns on the same ranks."""
    measured = measure_within(
        budget_s,
        timed_job,
        [Timed.of(subject, candidate) for candidate in candidates],
        [named(candidate) for candidate in candidates],
        [candidate.predicted_s for candidate in candidates],
        ranks=max(candidate.devices for candidate in candidates),
        kind=profile.devices[0].kind,
        seconds_per_job=_seconds_each(budget_s, len(candidates)),
        rounds=ROUNDS,
        choose=profile.kernel,
        tell=progress,
    )
    return [None if throughput is None else throughput.step_s for throughput in measured]


@dataclass(frozen=True, eq=False)
class Timed:
    """A candidate for the clock, as every rank is told of it."""

    make: Callable[[Any], Network]
    of_what: object
    batch: int
    layouts: Mapping[str, Layout]
    devices: int
    parts: Mapping[str, IntArray] | None

    @staticmethod
    def of(subject: Subject, candidate: Candidate) -> Timed:
        """What ranks are told of a candidate."""
        parts = None if candidate.partition is None else candidate.partition.parts
        return Timed(*subject.origin, subject.batch, candidate.layouts, candidate.devices, parts)


def timed_job(timed: Timed) -> Job:
    """A candidate with random samples."""
    network = _made(timed.make, timed.of_what)
    generator = torch.Generator().manual_seed(0)
    example = network.example
    shape = (timed.batch, *example.shape[1:])
    inputs = torch.randn(shape, generator=generator) if example.is_floating_point() else torch.zeros(shape, dtype=example.dtype)
    with torch.no_grad():
        classes = network(example).shape[-1]
    targets = torch.randint(0, classes, (timed.batch,), generator=generator)
    # the clock is all that counts: keep away from divergence, whose numbers are slow
    return Job(network, timed.layouts, timed.devices, inputs, targets, timed.parts, learning_rate=1e-5)


@cache
def _made(make: Callable[[Any], Network], of_what: object) -> Network:
    """Once for all candidates: their shards share no tensor with it."""
    return make(of_what)
