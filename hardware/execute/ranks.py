"""Runs one function on k processes of their own that form a process group, and never leaves one of them behind.

Every rank is a fresh interpreter, pinned to its own cores, with a rendezvous through a file: no network port, no fork. A rank
ends when its standard input does, so it cannot outlive the process that started it, whatever kills that one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Literal, NoReturn, TypeVar, TypeVarTuple, cast

from hardware.cores import cores_of, idle_first
from hardware.execute import parcel
from hardware.execute.wires import close, connect, pairs

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
Kind = Literal["cpu", "cuda"]

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hardware.execute.ranks import _serve; _serve(sys.argv[2])"
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""glibc gives freed gradients back to the system and has them paged in again, 2,000 faults or 3 % of a dense step; here it keeps them."""
NO_LIMIT_S = 30 * 24 * 3600.0
"""What stands for no time limit, since torch wants one."""
_LOOK_S = 3600.0  # the system's own limit of a wait is 24 days
_ASK_S = 0.1  # how often the caller is asked whether the ranks shall stop
STOP_S = 30.0
"""Time that ranks have to end once they were asked to stop."""
_GRACE_S = 0.3  # after the first failure: time for the others to tell theirs, so that the cause is named and not its echo


class RankError(RuntimeError):
    """A rank raised, died or did not finish. The message names the rank and the reason; a note holds the rank's traceback.

    refused: it raised a ValueError, so what it was given is wrong.
    """

    refused = False


@dataclass(frozen=True)
class Rank:
    """What a function learns about the process that it runs in."""

    number: int
    count: int
    device: torch.device
    store: Store
    """Where the ranks met: what a `hardware.execute.watch.Watch` needs, as is ``lost``, which ends this process."""
    lost: Callable[[int, str], None]
    stopping: Callable[[], bool] = lambda: False
    """Whether this rank was asked to stop, as soon as it and the others can."""
    alone: bool = False
    """Whether no other rank shares its cores, as far as it knows."""
    crowd: int = 1
    """How many ranks share each of its cores, as far as it knows."""


@dataclass(frozen=True)
class _Setting:
    """What a rank needs before it reads what to run; travels as JSON."""

    number: int
    count: int
    kind: Kind
    threads: int
    cores: tuple[int, ...]
    store: str
    timeout_s: float
    results: int  # file descriptor
    wires: dict[str, int]  # file descriptors of the connections with other ranks, whose numbers JSON makes texts
    alone: bool  # whether its cores are its own
    crowd: int  # how many ranks share each of them
    target: str  # what to call, by name
    packages: tuple[str, ...]  # in which what arguments and results name must be


@dataclass(frozen=True)
class _Failure:
    reason: str
    trace: str
    at: float  # time.monotonic(), one clock for all processes of a host
    rank: int | None = None  # whose failure it is, where that is not the rank that tells of it
    refused: bool = False


@dataclass
class _Child:
    number: int
    process: subprocess.Popen[bytes]
    results: int
    packages: tuple[str, ...]
    received: bytearray = field(default_factory=bytearray)

    def outcome(self) -> tuple[object, _Failure | None]:
        """Result or failure of a child that has closed its results."""
        if self.received:
            return cast("tuple[object, _Failure | None]", parcel.unpack(self.received, self.packages))
        code = self.process.wait()
        reason = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code} and no result"
        return None, _Failure(reason, "", 0.0)  # a silent death is the cause of what the others say


def run_ranks(
    target: Callable[[Rank, *Arguments], T],
    *arguments: *Arguments,
    ranks: int,
    kind: Kind = "cpu",
    threads: int = 1,
    timeout_s: float | None = 300.0,
    stop: Callable[[], bool] | None = None,
) -> list[T]:
    """Call ``target(rank, *arguments)`` on ``ranks`` processes and return their results, in the order of the ranks.

    ``target`` is found by its name in its module; arguments and results are what `hardware.execute.parcel` can send. Results name
    nothing but what is in our packages, and in those that ``target`` and the arguments are of.
    The default process group is gloo on CPU, and on GPUs nccl, or gloo where two ranks share a GPU. Whatever ends the call
    (a result, an error of a rank, the time limit, Ctrl-C), all ranks have ended before it returns. Without a time limit the ranks
    should watch each other, see `hardware.execute.watch`. Raises RankError.

    stop: asked again and again; once it says so, every rank's `Rank.stopping` does, and they have `STOP_S` to return.
    """
    if ranks < 1:
        raise ValueError(f"ranks is {ranks}, but must be at least 1; one rank is one process")
    named = {*parcel.PACKAGES, target.__module__.partition(".")[0]}
    name, work = parcel.name_of(target), parcel.pack(arguments, named)
    packages = tuple(sorted(named))
    limit_s = NO_LIMIT_S if timeout_s is None else timeout_s
    deadline = time.monotonic() + limit_s
    children: list[_Child] = []
    with tempfile.TemporaryDirectory(prefix="grow-ranks-") as folder:
        try:
            allowed = idle_first(ranks * threads)
            connections = pairs(ranks)
            try:
                for number, mine in enumerate(connections):
                    cores, store = cores_of(number, threads, allowed), os.path.join(folder, "store")
                    wires = {str(other): descriptor for other, descriptor in mine.items()}
                    crowd = -(-ranks * threads // len(allowed))
                    setting = _Setting(number, ranks, kind, threads, cores, store, limit_s, -1, wires, crowd == 1, crowd, name, packages)
                    children.append(_start(setting))
            finally:
                close(connections)  # only the children hold them now: where one ends, the others notice
            for child in children:
                _hand_over(child, work)
            return cast("list[T]", _collect(children, deadline, limit_s, stop))
        finally:
            _end(children)


def _start(setting: _Setting) -> _Child:
    reading, writing = os.pipe()
    try:
        setting = replace(setting, results=writing)
        process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(setting.__dict__)],
            stdin=subprocess.PIPE,
            stdout=2,  # stdout carries data of the parent alone
            pass_fds=(writing, *setting.wires.values()),
            env=_environment(setting.threads),
            start_new_session=True,  # Ctrl-C reaches the parent, and it ends the ranks
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return _Child(setting.number, process, reading, setting.packages)


def _environment(threads: int) -> dict[str, str]:
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    interface = {} if loopback is None else {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return {**_KEEP_MEMORY, **os.environ, **interface, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def _hand_over(child: _Child, work: bytes) -> None:
    stream = cast("IO[bytes]", child.process.stdin)  # stays open: its end is the rank's end
    with contextlib.suppress(BrokenPipeError):  # the rank is dead already; _collect says so
        stream.write(len(work).to_bytes(8, "big") + work)
        stream.flush()


def _ask_to_stop(children: list[_Child]) -> None:
    for child in children:
        stream = cast("IO[bytes]", child.process.stdin)
        with contextlib.suppress(BrokenPipeError):
            stream.write(b"s")
            stream.flush()


def _collect(children: list[_Child], deadline: float, timeout_s: float, stop: Callable[[], bool] | None) -> list[object]:
    outcomes: dict[int, object] = {}
    failures: dict[int, _Failure] = {}
    rule = f"finish within timeout_s, {timeout_s:g} s"
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.results, selectors.EVENT_READ, child)
        while selector.get_map():
            if stop is not None and stop():
                _ask_to_stop(children)
                stop, rule = None, f"stop within {STOP_S:g} s"
                deadline = min(deadline, time.monotonic() + STOP_S)
            look_s = _LOOK_S if stop is None else _ASK_S
            left = deadline - time.monotonic()
            ready = selector.select(min(look_s, max(0.0, left)))
            if not ready and left <= look_s:
                break
            for key, _ in ready:
                child = key.data
                chunk = os.read(child.results, 1 << 20)
                child.received += chunk
                if chunk:
                    continue
                selector.unregister(child.results)
                outcomes[child.number], failure = child.outcome()
                if failure is not None:
                    if not failures:
                        deadline = min(deadline, time.monotonic() + _GRACE_S)
                    failures[child.number] = failure
    if failures:
        told = min(failures, key=lambda rank: (failures[rank].at, rank))
        number = told if failures[told].rank is None else failures[told].rank
        error = RankError(f"rank {number} of {len(children)} {failures[told].reason}")
        error.refused = failures[told].refused
        if failures[told].trace:
            error.add_note(failures[told].trace)
        raise error
    missing = [child.number for child in children if child.number not in outcomes]
    if missing:
        raise RankError(f"rank {missing[0]} of {len(children)} did not {rule}")
    return [outcomes[child.number] for child in children]


def _end(children: list[_Child]) -> None:
    for child in children:
        child.process.kill()
    for child in children:
        child.process.wait()
        os.close(child.results)
        with contextlib.suppress(BrokenPipeError):  # work that a dead rank never read
            cast("IO[bytes]", child.process.stdin).close()


# ---- in the rank ----


def _serve(text: str) -> None:
    setting = _Setting(**json.loads(text))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setting.cores)
    size = int.from_bytes(_read(8), "big")
    work = _read(size)
    asked = threading.Event()
    threading.Thread(target=_follow_parent, args=(asked,), daemon=True).start()
    try:
        answer = parcel.pack((_work(setting, work, asked.is_set), None))
    except BaseException as error:  # whatever it is, the parent must hear of it
        reason = f"failed with {type(error).__name__}: {error}"
        answer = parcel.pack((None, _Failure(reason, traceback.format_exc(), time.monotonic(), None, isinstance(error, ValueError))))
    _answer(setting, answer)


def _answer(setting: _Setting, answer: bytes) -> NoReturn:
    """Tell the parent the outcome, and end this process."""
    with open(setting.results, "wb") as stream:
        stream.write(answer)
    sys.stderr.flush()
    os._exit(0)  # the process group's threads need no farewell, and torch takes its time to unload


def _work(setting: _Setting, work: bytes, stopping: Callable[[], bool]) -> object:
    import torch
    from torch import distributed

    torch.set_num_threads(setting.threads)
    gpus = torch.cuda.device_count() if setting.kind == "cuda" else 0
    if setting.kind == "cuda" and gpus == 0:
        raise ValueError("kind is 'cuda', but must be 'cpu' on a machine without GPU; choose CPU workers")
    device = torch.device("cuda", setting.number % gpus) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    store = distributed.FileStore(setting.store, setting.count)  # type: ignore[attr-defined]
    distributed.init_process_group(
        "nccl" if gpus >= setting.count else "gloo",  # NCCL refuses two ranks on one GPU
        store=store,
        rank=setting.number,
        world_size=setting.count,
        timeout=timedelta(seconds=setting.timeout_s),
    )
    settle_gloo()
    if not gpus:
        connect({int(rank): descriptor for rank, descriptor in setting.wires.items()}, setting.alone)
    target, arguments = parcel.found(setting.target, setting.packages), parcel.unpack(work, setting.packages)

    def lost(rank: int, reason: str) -> None:
        _answer(setting, parcel.pack((None, _Failure(reason, "", time.monotonic(), rank))))

    return target(Rank(setting.number, setting.count, device, store, lost, stopping, setting.alone, setting.crowd), *arguments)


def settle_gloo() -> None:
    """Keep gloo's event threads from spinning; to be called after every new group.

    Such a thread tries for a lock and asks again at once when another thread holds it. On a core of its own rank it may wake up
    in the middle of that other thread's send, and then spins until the scheduler's next tick, for up to 4 ms a message. A batch
    thread does not interrupt others: it runs when they wait. Median, 90th percentile of 20 KB both ways: 0.07, 0.11 against 0.2, 5 ms.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/comm") as stream:
            name = stream.read()
        if name.startswith("gloo_"):
            os.sched_setscheduler(int(thread), os.SCHED_BATCH, os.sched_param(0))


def _read(size: int) -> bytes:
    content = sys.stdin.buffer.read(size)
    if len(content) < size:
        os._exit(1)  # the parent died
    return content


def _follow_parent(asked: threading.Event) -> None:
    """A byte asks this rank to stop; the end of the stream is that of the parent, and this rank's."""
    while sys.stdin.buffer.read(1):
        asked.set()
    os._exit(1)
