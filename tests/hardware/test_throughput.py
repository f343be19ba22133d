"""Measured throughput: jobs on one start of the ranks, figures that fit together, and a baseline without handicap."""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from grow import optim
from grow.network import Network
from hardware.execute.deadline import Deadline, Limit
from hardware.execute.exchange import Peers
from hardware.execute.measure import (
    SLOW_S,
    Job,
    Throughput,
    _measure,
    _Runner,
    _summary,
    _take_turn,
    _Turns,
    job_shard,
    measure_throughput,
    measure_within,
    seconds_of_job,
)
from hardware.execute.ranks import Rank
from hardware.shard import StrategyName, by_density, shard


def mlp(*widths: int) -> nn.Sequential:
    layers = [layer for one, other in pairwise(widths) for layer in (nn.Linear(one, other), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


How: TypeAlias = tuple[StrategyName, int, optim.Name, bool]
"""Strategy, devices, optimizer, inference."""


def job(how: How) -> Job:
    """Something to be timed."""
    strategy, devices, optimizer, inference = how
    network = Network(mlp(8, 12, 12, 4), torch.zeros(1, 8))
    parts = {space: np.arange(12) % devices for space in ("0", "2")}
    inputs, targets = torch.randn(16, 8), torch.randint(0, 4, (16,))
    return Job(network, strategy, devices, inputs, targets, parts, optimizer, inference=inference)


SINGLE: How = ("single", 1, "sgd", False)
ALONE = Rank(0, 1, torch.device("cpu"), distributed.HashStore(), lambda *_: None)
"""A rank without others, in this process."""
TRAINED: list[How] = [("single", 1, "sgd", False), ("data", 2, "adam", False), ("units", 2, "sgd", False), ("units", 3, "sgd", False)]
INFERRED: list[How] = [("units", 2, "sgd", True), ("data", 2, "sgd", True)]


@pytest.fixture(scope="module")
def measured() -> dict[How, Throughput]:
    """All jobs, on one start of three ranks."""
    hows = [*TRAINED, *INFERRED]
    return dict(zip(hows, measure_throughput(job, hows, ranks=3, seconds_per_job=0.03, rounds=3), strict=True))


def test_jobs_of_different_widths_share_the_ranks(measured: dict[How, Throughput]) -> None:
    found = [measured[how] for how in TRAINED]
    for result in found:
        assert 0 < result.lowest_samples_per_s <= result.samples_per_s <= result.highest_samples_per_s
        assert result.step_s * result.samples_per_s == pytest.approx(16)
    parameters = sum(parameter.numel() for parameter in mlp(8, 12, 12, 4).parameters())
    # dense: every unit of the first hidden space goes to every other part
    assert [result.halo_bytes_per_step for result in found] == [0, 0, 2 * 4 * 16 * 12, 2 * 4 * 16 * 24]
    assert [result.sum_bytes_per_step for result in found] == [0, 2 * 4 * parameters, 2 * 4 * 16 * 4, 3 * 2 * 4 * 16 * 4]


def test_inference_moves_what_the_way_forward_of_training_moves_and_learns_nothing(measured: dict[How, Throughput]) -> None:
    units, data = (measured[how] for how in INFERRED)
    assert (units.halo_bytes_per_step, units.sum_bytes_per_step) == (4 * 16 * 12, 2 * 4 * 16 * 4)
    assert (data.halo_bytes_per_step, data.sum_bytes_per_step) == (0, 0)  # every rank has the outputs of its own samples


def test_a_turn_in_which_others_had_the_processor_is_repeated_and_the_least_disturbed_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor, operation: None)
    turns = {
        "quiet": [(0.0, 1.0, 0.1)],
        "once": [(0.4, 2.0, 0.2), (0.01, 1.0, 0.1)],
        "always": [(0.5, 3.0, 0.1), (0.2, 2.0, 0.2), (0.9, 4.0, 0.3)],
    }
    counted = {}
    for name, seen in turns.items():
        runner = _Runner(job(SINGLE), ALONE, None, by_density)
        following = iter(seen)
        monkeypatch.setattr(runner, "turn", lambda following=following: next(following))
        _take_turn(ALONE, runner, Deadline(ALONE.device, None), 3)
        counted[name] = runner.waited, runner.step_s, runner.yardstick_s
        assert next(following, None) is None
    assert counted == {"quiet": ([0.0], [1.0], [0.1]), "once": ([0.01], [1.0], [0.1]), "always": ([0.2], [2.0], [0.2])}


class Clock:
    """A clock that steps alone move on, each job's by the seconds of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_s: list[float]) -> None:
        self.now, self.counted, self.told = 0.0, [0] * len(step_s), list[str]()
        known: list[_Runner] = []

        def run(runner: _Runner, steps: int) -> float:
            if runner not in known:
                known.append(runner)
            number = known.index(runner)
            self.counted[number] += steps
            self.now += steps * step_s[number]
            return step_s[number]

        monkeypatch.setattr(_Runner, "run", run)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(distributed, "all_reduce", lambda tensor, operation: None)

    def measure(self, jobs: int, rounds: int, limit: Limit | None) -> list[int]:
        """The turns that every job had, of half a second a round."""
        return [len(found.step_s) for found in _measure(ALONE, job, [SINGLE] * jobs, 0.5 * rounds, rounds, by_density, limit)]


@pytest.mark.parametrize("step_s", [0.01, 0.2, 0.8, 1.5, 4.0])
def test_what_timing_a_job_takes_is_known_before(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [step_s])
    assert clock.measure(1, 4, None) == [4]
    assert clock.now == pytest.approx(seconds_of_job(step_s, 2.0, 4))
    if step_s > SLOW_S:
        assert clock.counted == [1 + 4]  # one to warm up, and a turn is one step


def test_until_the_deadline_what_comes_first_has_most_turns_and_what_would_end_too_late_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [2.0, 2.0, 0.1])
    limit = Limit(20.0, ("first", "second", "endless", "quick"), (2.0, 2.0, 10.0, 0.1), clock.told.append)
    assert clock.measure(4, 5, limit) == [3, 3, 0, 5]
    assert clock.now == pytest.approx(
        19.6
    )  # 4 s a slow one until its first turn, 1.2 s the quick one; then 4.6, 4.6, 0.6 and 0.6 s a round
    assert clock.told == ["timed first: 2000 ms a step", "timed second: 2000 ms a step", "timed quick: 100 ms a step"]


def test_jobs_that_take_longer_than_expected_shorten_what_is_expected_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, [6.0, 6.0])
    assert clock.measure(3, 5, Limit(20.0, ("a", "b", "c"), (2.0, 2.0, 2.0), clock.told.append)) == [2, 0, 0]
    assert clock.now == 18.0  # after the first turn, at 12 s, another job would end at 24 s


def test_of_the_rounds_those_count_that_nobody_disturbed_unless_all_were() -> None:
    steps, yards = [1.0, 9.0, 3.0], [0.5, 0.1, 1.0]
    for waited, expected in (([0.0, 0.5, 0.02], (2.0, 2.0, 3.0)), ([0.2, 0.5, 0.3], (3.0, 2.0, 90.0))):
        (found,) = _summary([[_Turns(1, 6, steps, waited, yards, 0, 0)]])
        middle, lowest, highest = expected
        assert found is not None
        assert (found.step_s, found.step_yardsticks[1:]) == (middle, (lowest, highest))
        assert found.samples_per_s == 6 / middle
    assert _summary([[_Turns(1, 6, [], [], [], 0, 0)]]) == [None]


def test_bad_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="devices is 0, but must be at least 1"):
        Job(mlp(3, 4, 2), "single", 0, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="rounds is 0, but must be at least 1"):
        measure_throughput(job, [("single", 1, "sgd", False)], ranks=1, rounds=0)
    assert measure_throughput(job, [], ranks=1) == []
    assert measure_within(1.0, job, [], (), (), ranks=1, tell=print) == []


def test_a_job_is_computed_as_its_training_was() -> None:
    plain = job(("single", 1, "sgd", True))
    cast = replace(plain, autocast=torch.bfloat16)
    found = job_shard(cast, Peers(0, 1)).infer(cast.inputs)
    assert isinstance(plain.network, Network)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain.network(plain.inputs)
    assert torch.equal(found, expected.float())
    assert not torch.equal(found, job_shard(plain, Peers(0, 1)).infer(plain.inputs))
    with pytest.raises(ValueError, match="compile is True, but must be left out on 2 devices"):
        replace(job(("units", 2, "sgd", True)), compile=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_job_computes_the_same() -> None:
    plain = job(("single", 1, "sgd", False))
    found = [
        job_shard(chosen, Peers(0, 1)).loss(plain.inputs, plain.targets, plain.loss) for chosen in (plain, replace(plain, compile=True))
    ]
    torch.testing.assert_close(*found)


def test_timing_a_job_changes_nothing_of_its_network() -> None:
    timed = job(("single", 1, "sgd", False))
    before = {name: tensor.clone() for name, tensor in timed.network.state_dict().items()}
    local = job_shard(timed, Peers(0, 1))
    local.step(torch.optim.SGD(local.module.parameters(), lr=0.5), timed.inputs, timed.targets, timed.loss)
    assert all(torch.equal(tensor, before[name]) for name, tensor in timed.network.state_dict().items())


def test_a_plain_module_is_trained_as_torch_trains_it() -> None:
    module = mlp(6, 5, 3)
    before = copy.deepcopy(module.state_dict())
    inputs, targets = torch.randn(8, 6), torch.randint(0, 3, (8,))
    local, expected = job_shard(Job(module, "single", 1, inputs, targets), Peers(0, 1)), copy.deepcopy(module)
    assert {type(layer) for layer in local.module.children()} == {nn.Linear, nn.ReLU}
    ours, plain = (torch.optim.SGD(found.parameters(), lr=0.5, momentum=0.9) for found in (local.module, expected))
    for _ in range(3):
        local.step(ours, inputs, targets, functional.cross_entropy)
        plain.zero_grad()
        functional.cross_entropy(expected(inputs), targets).backward()
        plain.step()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(local.module.state_dict()[name], tensor)
        assert torch.equal(module.state_dict()[name], before[name])
        assert not torch.equal(tensor, before[name])


def test_a_plain_module_is_not_divided() -> None:
    plain = Job(mlp(3, 4, 2), "units", 2, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="devices is 2, but must be 1 for a plain module"):
        job_shard(plain, Peers(0, 2))


class Operators(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counted[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def test_the_dense_baseline_computes_what_plain_torch_modules_do_and_nothing_else() -> None:
    module = mlp(8, 6, 5, 3)
    local = shard(Network(module, torch.zeros(1, 8)), "single", Peers(0, 1))
    inputs, targets = torch.randn(4, 8), torch.randint(0, 3, (4,))
    plain, ours = (torch.optim.SGD(found.parameters(), lr=0.01, momentum=0.9) for found in (module, local.module))

    def step() -> None:
        plain.zero_grad(set_to_none=True)
        functional.cross_entropy(module(inputs), targets).backward()
        plain.step()

    counted = []
    for train in (step, lambda: local.step(ours, inputs, targets, functional.cross_entropy)):
        train()  # the first step makes the momentum
        with Operators() as seen:
            train()
        counted.append(seen.counted)
    assert counted[0]["aten.addmm.default"] == 3
    assert counted[1] - counted[0] == Counter({"aten.detach.default": 1})  # of the loss that is told
    assert not counted[0] - counted[1]
