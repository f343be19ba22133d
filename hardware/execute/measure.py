"""Throughput of training and inference by the clock: all jobs on the same ranks, in turns, so that drift of the machine hits all alike.

`measure_throughput` takes the time that it takes; `measure_within` has a deadline, and leaves out what it has no time for.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import TypeVar

import torch
from torch import Tensor, distributed, fx, nn
from torch.nn import functional

from grow import optim
from grow.axes import IntArray
from grow.network import Network
from hardware.cores import busy_s, waited_s
from hardware.execute.deadline import Deadline, Limit, Tell
from hardware.execute.exchange import Peers
from hardware.execute.moves import Batch
from hardware.execute.ranks import Kind, Rank, run_ranks, settle_gloo
from hardware.shard import ChooseKernel, Loss, Shard, StrategyName, by_density, shard
from hardware.sweep.clock import Yardstick

T = TypeVar("T")
WARM_UP_STEPS = 3
"""Of a job before its steps are counted, and again before they are timed."""
SLOW_S = 1.0
"""A step that takes longer is warm after the first one: what is cold at its beginning is small against it."""
MOST_WAITED = 0.03
"""Share of a turn for which others may have had a rank's own cores; else the turn is repeated, and counts only where all were disturbed."""
TICKS_S = 0.02
"""By how much the system's count of a core's busy time may be off: the ticks of 10 ms in which a turn begins and ends."""
ATTEMPTS = 3
"""At a turn, of which the one counts in which least was waited."""
GRACE_S = 30.0
"""How long after their deadline ranks are ended that have not."""
START_UP_S = 8.0
"""What ranks take to start and to make their networks, about."""


@dataclass(frozen=True, eq=False)
class Job:
    """A network to be trained for some steps: how it is divided, on how many devices, on what batch, with which optimizer.

    Any other module that torch.fx can trace is trained as it is, whole, on one device: the baseline. inference: only outputs are asked
    for, in evaluation mode, and nothing is learned. autocast: the dtype in which outputs are computed where torch sees fit; compile:
    whether by `torch.compile`; both on one device alone.
    """

    network: Network | nn.Module
    strategy: StrategyName
    devices: int
    inputs: Tensor  # (B, ...)
    targets: Tensor  # (B, ...)
    parts: Mapping[str, IntArray] | None = None
    optimizer: optim.Name = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    loss: Loss = functional.cross_entropy
    inference: bool = False
    autocast: torch.dtype | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.devices > 1 and (self.autocast is not None or self.compile):
            name = "compile" if self.autocast is None else "autocast"
            raise ValueError(f"{name} is {getattr(self, name)}, but must be left out on {self.devices} devices; take one")
        if self.devices < 1:
            raise ValueError(f"devices is {self.devices}, but must be at least 1; name the devices that the job runs on")


@dataclass(frozen=True)
class Throughput:
    """Measured throughput: the median over the rounds and its range, and the bytes that all ranks hand in per step.

    waited: share of the time for which other programs had a rank's processor, in the median round. yardstick_s: of `Yardstick` beside the
    rounds; step_yardsticks: the median of a step's time in that of the yardstick beside it, lowest and highest.
    """

    samples_per_s: float
    lowest_samples_per_s: float
    highest_samples_per_s: float
    step_s: float
    halo_bytes_per_step: int
    sum_bytes_per_step: int
    waited: float = 0.0
    yardstick_s: float = 0.0
    step_yardsticks: tuple[float, float, float] = (0.0, 0.0, 0.0)


def seconds_of_job(step_s: float, seconds_per_job: float, rounds: int) -> float:
    """What timing a job takes in all, where nobody disturbs it and a step takes so long.

    >>> seconds_of_job(2.0, 2.5, 5), seconds_of_job(0.25, 2.5, 5)
    (12.0, 5.25)
    """
    return _warm_up_s(step_s) + rounds * _turn_s(step_s, seconds_per_job / rounds)


def _warm_up_s(step_s: float) -> float:
    return step_s * (1 if step_s > SLOW_S else 2 * WARM_UP_STEPS)


def _turn_s(step_s: float, turn_s: float) -> float:
    """A turn, with the step before it that warms the caches up; 0 where nothing is known of its step."""
    return step_s * (max(1, round(turn_s / step_s)) + (step_s <= SLOW_S)) if step_s else 0.0


@dataclass(frozen=True)
class _Turns:
    """What one rank saw of one job."""

    devices: int
    samples: int
    step_s: list[float]  # one per round
    waited: list[float]
    yardstick_s: list[float]
    halo_bytes: int
    sum_bytes: int


def job_shard(job: Job, peers: Peers, *, choose: ChooseKernel = by_density, device: torch.device | None = None) -> Shard:
    """What one rank of a job trains; it shares no tensor with the job's network. ValueError if that cannot be divided so."""
    if isinstance(job.network, Network):
        found = shard(job.network, job.strategy, peers, parts=job.parts, batch=len(job.targets), choose=choose, device=device)
    elif peers.count != 1:
        raise ValueError(f"devices is {peers.count}, but must be 1 for a plain module; divide a grow.network.Network of it")
    else:
        traced = fx.symbolic_trace(copy.deepcopy(job.network)).to(device)
        found = Shard(traced, {}, peers, {}, cuts=False, batch=Batch())
    if job.compile:
        found.compile()
    return replace(found, autocast=job.autocast)


def measure_throughput(
    make: Callable[[T], Job],
    arguments: Sequence[T],
    *,
    ranks: int,
    kind: Kind = "cpu",
    threads: int = 1,
    seconds_per_job: float = 2.5,
    rounds: int = 7,
    choose: ChooseKernel = by_density,
    timeout_s: float | None = 600.0,
) -> list[Throughput]:
    """Train some jobs for some steps each and return their throughput, in the order of the jobs.

    Every rank makes the jobs for itself, ``make(argument)`` for each of ``arguments``: these travel, and neither networks nor losses.
    One start of ``ranks`` ranks, as many as the widest job has devices, serves all. Each job gets ``rounds`` turns of equal numbers of
    steps, about ``seconds_per_job`` in all, after a warm-up; jobs alternate from turn to turn. A turn in which another program had a rank's
    core is repeated, and does not count if others do. ``choose`` picks the kernels of the local layers and, like ``make``, must be
    importable by name or be the method of a dataclass.
    """
    if not arguments:
        return []
    plan = (make, list(arguments), seconds_per_job, _checked(rounds), choose, None)
    found = _summary(run_ranks(_measure, *plan, ranks=ranks, kind=kind, threads=threads, timeout_s=timeout_s))
    assert None not in found  # without a limit all are timed
    return [throughput for throughput in found if throughput is not None]


def measure_within(
    budget_s: float,
    make: Callable[[T], Job],
    arguments: Sequence[T],
    names: Sequence[str],
    expected_s: Sequence[float],
    *,
    ranks: int,
    kind: Kind = "cpu",
    threads: int = 1,
    seconds_per_job: float = 2.5,
    rounds: int = 7,
    choose: ChooseKernel = by_density,
    tell: Tell,
) -> list[Throughput | None]:
    """As `measure_throughput`, in no more than ``budget_s`` from now on: None for jobs that there was no time for.

    The first job is the most important one and comes first: it is warmed up and has its first turn, then the next one. A job begins
    where the first turn is expected to end in time, by its ``expected_s`` of a step and by how wrong those of the jobs before were. Further
    turns, and repetitions of those that others disturbed, are taken for as long as there is time. What was begun is ended: by at most one
    job whose steps take longer than expected the deadline is missed, and by `GRACE_S` the ranks have ended or RankError is raised.
    """
    if not arguments:
        return []
    limit = Limit(time.monotonic() + budget_s, tuple(names), tuple(expected_s), tell)
    plan = (make, list(arguments), seconds_per_job, _checked(rounds), choose, limit)
    return _summary(run_ranks(_measure, *plan, ranks=ranks, kind=kind, threads=threads, timeout_s=budget_s + GRACE_S))


def _checked(rounds: int) -> int:
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}, but must be at least 1; the throughput is their median")
    return rounds


def _summary(turns: Sequence[Sequence[_Turns]]) -> list[Throughput | None]:
    """Per job, from what every rank saw; None without a turn."""
    found: list[Throughput | None] = []
    for number, first in enumerate(turns[0]):
        if not first.step_s:
            found.append(None)
            continue
        seen = [rank[number] for rank in turns[: first.devices]]
        quiet = [place for place, share in enumerate(first.waited) if share <= MOST_WAITED] or range(len(first.waited))
        steps = [max(rank.step_s[place] for rank in seen) for place in quiet]  # the slowest rank's time is the step's
        yards = [fmean(rank.yardstick_s[place] for rank in seen) for place in quiet]
        ratios = [step / yard for step, yard in zip(steps, yards, strict=True)]
        halo, sums = sum(rank.halo_bytes for rank in seen), sum(rank.sum_bytes for rank in seen)
        fastest, slowest = first.samples / min(steps), first.samples / max(steps)
        relative = median(ratios), min(ratios), max(ratios)
        rates = first.samples / median(steps), slowest, fastest
        found.append(Throughput(*rates, median(steps), halo, sums, median(first.waited), median(yards), relative))
    return found


# ---- in the ranks ----


class _Runner:
    """One job on one rank."""

    def __init__(self, job: Job, rank: Rank, group: distributed.ProcessGroup | None, choose: ChooseKernel) -> None:
        self.peers, self.device = Peers(rank.number, job.devices, group), rank.device
        self.shard = job_shard(job, self.peers, choose=choose, device=rank.device)
        self.shard.module.train()
        parameters: list[nn.Parameter] = list(self.shard.module.parameters())
        self.optimizer = optim.make(job.optimizer, parameters, job.learning_rate, job.momentum, job.weight_decay)
        self.inputs, self.targets, self.loss = job.inputs.to(rank.device), job.targets.to(rank.device), job.loss
        self.inference = job.inference
        self.alone, self.yardstick = rank.alone, Yardstick(rank.device)
        self.step_s, self.waited, self.yardstick_s = list[float](), list[float](), list[float]()
        self.halo_bytes = self.sum_bytes = 0
        self.steps, self.last_s = 1, 0.0

    @property
    def slow(self) -> bool:
        """Whether one step says what a step takes."""
        return self.last_s > SLOW_S

    def run(self, steps: int) -> float:
        """Seconds per step of some steps that all ranks of the job begin together."""
        self._together()
        start = time.perf_counter()
        for _ in range(steps):
            if self.inference:
                self.shard.infer(self.inputs)
            else:
                self.shard.step(self.optimizer, self.inputs, self.targets, self.loss)
        self._together()
        return (time.perf_counter() - start) / steps

    def warm_up(self, turn_s: float) -> None:
        """First steps, bytes of one of them, and the number of steps of a turn, which rank 0 decides."""
        self._counted(1)
        if not self.slow:
            self.run(WARM_UP_STEPS - 1)
            self._counted(WARM_UP_STEPS)
        self.steps = max(1, round(turn_s / self.last_s))

    def _counted(self, steps: int) -> None:
        """Some steps, whose bytes and seconds are noted: the seconds are those of rank 0 on every rank."""
        self.peers.halo_bytes = self.peers.sum_bytes = 0
        seconds = torch.tensor(self.run(steps), dtype=torch.float64, device=self.device)
        if self.peers.count > 1:
            distributed.broadcast(seconds, 0, group=self.peers.group)
        self.last_s = float(seconds)
        self.halo_bytes, self.sum_bytes = self.peers.halo_bytes // steps, self.peers.sum_bytes // steps

    def turn(self) -> tuple[float, float, float]:
        """One turn, after a step to warm the caches up: share of it that this rank waited, seconds of a step and of the yardstick."""
        before = self.yardstick.seconds()
        if not self.slow:
            self.run(1)
        waited, busy, begun = waited_s(), busy_s(), time.perf_counter()
        step_s = self.run(self.steps)
        taken_s = max(0.0, waited_s() - waited, busy_s() - busy - TICKS_S) if self.alone else 0.0
        share = taken_s / (time.perf_counter() - begun)
        return share, step_s, (before + self.yardstick.seconds()) / 2

    def count(self, waited: float, step_s: float, yardstick_s: float) -> None:
        """Take a turn into account."""
        self.waited.append(waited)
        self.step_s.append(step_s)
        self.yardstick_s.append(yardstick_s)

    def _together(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.peers.count > 1:
            distributed.barrier(group=self.peers.group)


def _measure(
    rank: Rank, make: Callable[[T], Job], arguments: list[T], seconds_per_job: float, rounds: int, choose: ChooseKernel, limit: Limit | None
) -> list[_Turns]:
    jobs = [make(argument) for argument in arguments]
    widest = max(job.devices for job in jobs)
    if widest > rank.count:
        raise ValueError(f"devices is {widest}, but must be at most {rank.count}, the ranks of this measurement; start as many")
    groups = {count: distributed.new_group(list(range(count))) for count in sorted({job.devices for job in jobs} - {1, rank.count})}
    settle_gloo()
    deadline, turn_s = Deadline(rank.device, limit), seconds_per_job / rounds
    mine: dict[int, _Runner | None] = {}
    for number, job in enumerate(jobs):
        step_s = deadline.expected_s(number, job.devices)
        if not deadline.allows(_warm_up_s(step_s) + _turn_s(step_s, turn_s)):
            continue
        mine[number] = runner = _Runner(job, rank, groups.get(job.devices), choose) if rank.number < job.devices else None
        if runner is not None:
            runner.warm_up(turn_s)
        # ranks without a part in a job wait: nobody disturbs it; who waits for a first turn within a limit comes before a better one
        _take_turn(rank, runner, deadline, ATTEMPTS if limit is None else 1)
        if runner is not None:
            deadline.saw(number, job.devices, runner.step_s[-1], tell=rank.number == 0)
    for _ in range(rounds - 1):
        for runner in mine.values():
            if deadline.allows(0.0 if runner is None else _turn_s(runner.last_s, turn_s)):
                _take_turn(rank, runner, deadline, ATTEMPTS)
    return [_turns(job, mine.get(number)) for number, job in enumerate(jobs)]


def _take_turn(rank: Rank, runner: _Runner | None, deadline: Deadline, attempts: int) -> None:
    """A job's turn on the ranks that have a part in it, again where others disturbed it and there is time."""
    found = []
    for _ in range(attempts):
        begun = time.monotonic()
        share, *times = (0.0, 0.0, 0.0) if runner is None else runner.turn()
        told = torch.stack([torch.tensor(share, dtype=torch.float64, device=rank.device), deadline.lacks(time.monotonic() - begun)])
        distributed.all_reduce(told, distributed.ReduceOp.MAX)
        most, late = told.tolist()
        found.append((most, times))
        if most <= MOST_WAITED or late:
            break
    if runner is not None:
        waited, (step_s, yardstick_s) = min(found, key=lambda turn: turn[0])
        runner.count(waited, step_s, yardstick_s)


def _turns(job: Job, runner: _Runner | None) -> _Turns:
    if runner is None:
        return _Turns(job.devices, len(job.targets), [], [], [], 0, 0)
    times = runner.step_s, runner.waited, runner.yardstick_s
    return _Turns(job.devices, len(job.targets), *times, runner.halo_bytes, runner.sum_bytes)
