from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import cast

import pytest
from torch import nn, zeros

from grow.network import Network
from hardware import planner
from hardware.cost import simulated
from hardware.elimination import cheapest
from hardware.layout import STRATEGIES, UNNAMED, Layout, Strategy, allowed, check, completed, joins
from hardware.partition import Partition
from hardware.partitioners import PARTITIONERS
from hardware.planner import Candidate, _Search, by_the_clock, plan, to_time, total, usable
from hardware.presets import preset
from hardware.profile import Profile
from hardware.workload import Workload
from studies.vision import alexnet
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import branched, convolutional, mlp, with_heads
from tests.hardware.test_profile import made_up_profile
from tests.hardware.test_step import gpus

CPU = made_up_profile()
EVERY = 10**9


def divide(work: Workload, parts: int) -> Partition:
    return PARTITIONERS["contiguous"](work, parts)


def search(work: Workload, profile: Profile, devices: int = 3, batch: int = 64) -> _Search:
    return _Search(work, profile, devices, batch, divide)


def residual() -> Workload:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.norm = nn.Linear(9, 6), nn.Linear(6, 9), nn.BatchNorm1d(9)

        def forward(self, x):  # type: ignore[no-untyped-def]
            return x + self.norm(self.second(self.first(x).relu()))

    module = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), Block(), nn.ReLU(), Block(), nn.Linear(9, 4))
    return Workload.of_network(Network(module, zeros(3, 5)))


NETWORKS = {
    "mlp": Workload.of(sparse(mlp(5, 400, 90, 3), 0.3)),
    "convolutional": Workload.of(convolutional()),
    "branched": Workload.of(branched()),
    "residual": residual(),
    "heads": Workload.of(with_heads()),
}


@pytest.mark.parametrize(
    ("name", "profile"), [("branched", CPU), ("convolutional", CPU), ("heads", CPU), ("branched", gpus()), ("residual", gpus())]
)
def test_on_small_networks_the_plan_is_the_best_of_all_strategies(name: str, profile: Profile) -> None:
    work = NETWORKS[name]
    found = plan(work, profile, 2, 64, divide, exhaustive=EVERY)
    searched = search(work, profile, 2)
    spaces = [space for space in work.units if space not in work.inputs]
    seconds = []
    for values in product(*(("whole", "batch", "units") for _ in spaces)):
        layouts = completed(work, dict(zip(spaces, cast("tuple[Layout, ...]", values), strict=True)))
        try:
            check(usable(work, 2), layouts)
        except ValueError:
            continue
        seconds.append(searched.candidate(layouts).predicted_s)
    assert len(seconds) > 5
    assert found.best.predicted_s == min(seconds)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.4])
def test_elimination_finds_the_best_sums_of_all_strategies_within_the_memory(name: str, share: float) -> None:
    searched = search(NETWORKS[name], CPU)
    work, terms = searched.work, searched.terms(True)
    sums = []
    for values in product(*(allowed(work, space) for space in work.units)):
        layouts = dict(zip(work.units, values, strict=True))
        if all(joins(work, layer, layouts) for layer in work.layers):
            sums.append(total(terms, layouts))
    least, most = min(large for _, large in sums), max(large for _, large in sums)
    limit = least + share * (most - least)
    expected = sorted(dear for dear, large in sums if large <= limit)[:4]
    assert [one.dear for one in cheapest(terms, 4, limit)] == pytest.approx(expected)


@pytest.mark.parametrize("profile", [CPU, gpus()])
@pytest.mark.parametrize("name", ["mlp", "convolutional", "residual", "heads"])
def test_the_search_finds_the_best_of_all_strategies_and_the_best_of_those_without_a_name(name: str, profile: Profile) -> None:
    """The named ones are always simulated, so that the others are what has to be found."""
    found, every = (plan(NETWORKS[name], profile, 2, 64, divide, exhaustive=limit) for limit in (0, EVERY))
    unnamed = [[candidate.predicted_s for candidate in one.candidates if candidate.name == UNNAMED] for one in (found, every)]
    assert len(unnamed[0]) < len(unnamed[1])
    assert min(unnamed[0]) == min(unnamed[1])
    assert found.best.predicted_s == every.best.predicted_s


@pytest.mark.slow
def test_alexnet_on_eight_gpus_is_planned_with_few_of_its_strategies_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Workload.of_network(Network(alexnet(), zeros(1, 3, 224, 224)))
    asked: list[Strategy] = []
    monkeypatch.setattr(planner, "simulated", lambda prices, layouts: (asked.append(layouts), simulated(prices, layouts))[1])
    found = plan(work, preset("nvlink-8"), 8, 256, divide)
    assert len(asked) < planner.EXHAUSTIVE < prod(len(allowed(work, space)) for space in work.hidden)
    assert found.best.devices == 8
    assert found.best.predicted_s <= min(found.named(name).predicted_s for name in STRATEGIES)
    layouts = [found.best.layouts[space] for space in ("0", "3", "6", "8", "10", "16")]
    assert layouts == ["batch"] * 5 + ["units"]  # One Weird Trick: of the first linear layer weights are many and values few


def test_without_overlap_the_sum_is_the_simulated_time_where_all_devices_have_the_same() -> None:
    work = Workload.of(mlp(8, 12, 16, 4))
    searched = search(work, CPU, 2)
    terms = searched.terms(True)
    for layouts in searched.strategies():
        if set(layouts.values()) != {"whole"} and "batch" not in layouts.values():  # small gradients are summed together
            found = searched.candidate(layouts).predicted_s
            assert total(terms, layouts)[0] + CPU.step_overhead_s == pytest.approx(found)


@pytest.mark.parametrize("exhaustive", [0, EVERY])
@pytest.mark.parametrize("name", ["branched", "heads"])
def test_the_named_strategies_are_always_among_the_candidates(name: str, exhaustive: int) -> None:
    found = plan(NETWORKS[name], CPU, 4, 64, divide, exhaustive=exhaustive)
    assert {found.named(strategy).name for strategy in STRATEGIES} == set(STRATEGIES)
    assert found.best.predicted_s <= min(found.named(strategy).predicted_s for strategy in STRATEGIES)
    for candidate in found.candidates:
        check(usable(NETWORKS[name], candidate.devices), candidate.layouts)


def test_fewer_devices_are_taken_where_more_are_slower() -> None:
    slow = replace(CPU, links=tuple(replace(link, latency_s=1.0) for link in CPU.links))
    assert plan(NETWORKS["mlp"], slow, 4, 64, divide).best.devices == 1
    latency = tuple(replace(link, latency_s=1.0 if 3 in (link.first, link.second) else 0.0) for link in CPU.links)
    assert plan(Workload.of(mlp(500, 900, 900, 10)), replace(CPU, links=latency), 4, 512, divide).best.devices == 2


def test_with_a_clock_the_measured_winner_is_kept_and_data_parallelism_is_timed() -> None:
    timed: list[str] = []

    def clock(candidates: Sequence[Candidate]) -> list[float]:
        timed.extend(candidate.name for candidate in candidates)
        return [0.5 if candidate.name == "data" else 1.0 for candidate in candidates]

    found = plan(NETWORKS["convolutional"], CPU, 2, 64, divide, clock=clock)
    assert set(STRATEGIES) <= set(timed)
    assert (found.best.name, found.best.measured_s) == ("data", 0.5)
    assert all(candidate.measured_s is not None for candidate in found.candidates[: len(timed)])


def test_what_there_was_no_time_for_stays_behind_what_was_timed() -> None:
    """The predicted best and the named ones come first, so that these are timed where there is little time."""
    predicted = plan(NETWORKS["convolutional"], CPU, 2, 64, divide)
    chosen = to_time(predicted, 6)
    assert chosen[0] is predicted.best
    assert {candidate.name for candidate in chosen[:5]} >= set(STRATEGIES)
    assert [candidate for candidate in chosen if candidate.name == UNNAMED][-1] is chosen[-1]
    found = by_the_clock(predicted, lambda asked: [9.0, 8.0, *[None] * (len(asked) - 2)], 6)
    assert [candidate.measured_s for candidate in found.candidates] == [8.0, 9.0, *[None] * (len(predicted.candidates) - 2)]
    untimed = [candidate.predicted_s for candidate in found.candidates[2:] if candidate.fits]
    assert untimed == sorted(untimed)


def test_the_memory_of_the_devices_is_kept() -> None:
    work = Workload.of(mlp(64, 2000, 2000, 10))
    free = plan(work, CPU, 4, 8, divide)
    room = min(candidate.simulation.step.memory_bytes for candidate in free.candidates) * 1.1
    small = replace(CPU, devices=tuple(replace(device, memory_bytes=int(room)) for device in CPU.devices))
    for exhaustive in (0, EVERY):
        found = plan(work, small, 4, 8, divide, exhaustive=exhaustive)
        assert found.best.simulation.step.memory_bytes <= room
        assert not found.named("data").fits
    with pytest.raises(ValueError, match="memory of a device is 1000 bytes, but must be at least"):
        plan(work, replace(CPU, devices=tuple(replace(device, memory_bytes=1000) for device in CPU.devices)), 4, 8, divide)


def test_spaces_of_fewer_units_than_devices_are_not_divided() -> None:
    work = usable(NETWORKS["convolutional"], 8)
    assert "units" not in allowed(work, "a")
    assert plan(NETWORKS["convolutional"], made_up_profile(8), 8, 64, divide).named("model").layouts["c"] == "units"


def test_a_plan_is_the_same_each_time() -> None:
    one, other = (plan(NETWORKS["residual"], gpus(), 4, 64, divide, exhaustive=0) for _ in range(2))
    assert [(c.name, dict(c.layouts), c.predicted_s) for c in one.candidates] == [
        (c.name, dict(c.layouts), c.predicted_s) for c in other.candidates
    ]


def test_without_a_device_there_is_no_plan() -> None:
    with pytest.raises(ValueError, match="devices is 0, but must be at least 1"):
        plan(NETWORKS["mlp"], CPU, 0, 64, divide)
