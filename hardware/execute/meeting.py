"""How ranks that something else started find each other: `torchrun`, or any launcher that sets its environment variables.

Rank 0 (or torchrun itself) waits at ``MASTER_ADDR:MASTER_PORT``. There every rank leaves its address and versions, and each makes
sure that it reaches all others, before torch's own process group is formed, which would not say whom it waits for.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn

import psutil
import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # torch.distributed offers them, but not to type checkers

from hardware.cores import available_cores, cores_of
from hardware.execute.ranks import NO_LIMIT_S, Kind, Rank, RankError, settle_gloo

MEETING_S = 60.0
"""Time that all ranks have to come."""


@dataclass(frozen=True)
class Meeting:
    """What the launcher told this process: who it is, and where all meet. ``attempt`` counts torchrun's restarts."""

    rank: int
    count: int
    local_rank: int
    address: str
    port: int
    hosted: bool  # by the launcher, else rank 0 is the host
    attempt: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Meeting | None:
        """The meeting that the environment's variables describe, None where no launcher set them. ValueError for half of them.

        >>> Meeting.from_environment({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}).count
        2
        """
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        given = [name for name in names if environment.get(name)]
        if not {"RANK", "WORLD_SIZE"} & set(given):
            return None
        missing = sorted(set(names) - set(given))
        if missing:
            raise ValueError(f"{missing[0]} is not set, but must be where {given[0]} is; start the ranks with torchrun, or set all four")
        rank, count, port = (_number(environment, name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        if not 0 <= rank < count:
            raise ValueError(f"RANK is {rank}, but must be in 0..{count - 1}, below WORLD_SIZE; number the ranks from 0")
        return cls(
            rank,
            count,
            _number(environment, "LOCAL_RANK") if environment.get("LOCAL_RANK") else rank,
            environment["MASTER_ADDR"],
            port,
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            _number(environment, "TORCHELASTIC_RESTART_COUNT") if environment.get("TORCHELASTIC_RESTART_COUNT") else 0,
        )


@dataclass(frozen=True)
class _Place:
    """Where one rank runs, as it says itself."""

    host: str
    pid: int
    address: str
    port: int
    gpus: int
    versions: Mapping[str, str]


def join(meeting: Meeting, kind: Kind, threads: int, timeout_s: float = MEETING_S) -> Rank:
    """Become one rank of the default process group, pinned to its own cores. RankError names whom it could not reach in time."""
    deadline, cores = time.monotonic() + timeout_s, len(available_cores())
    _settle(meeting, threads)
    store = _store(meeting, timeout_s)
    with closing(socket.create_server((own_address(meeting), 0), backlog=meeting.count)) as door:
        address, port = door.getsockname()[:2]
        gpus = torch.cuda.device_count() if kind == "cuda" else 0
        mine = _Place(socket.gethostname(), os.getpid(), address, port, gpus, _versions())
        store.set(f"place/{meeting.rank}", json.dumps(asdict(mine)))
        places = _places(store, meeting, deadline, timeout_s)
        _check_versions(places, meeting)
        _check_reachable(places, meeting, deadline)
        _wait(store, meeting, "reached", places, deadline, timeout_s)  # nobody closes its door before all have knocked
    device = _device(meeting, kind)
    distributed.init_process_group(
        "nccl" if _own_gpus(places) else "gloo",  # NCCL refuses two ranks on one GPU
        store=PrefixStore("group", store),
        rank=meeting.rank,
        world_size=meeting.count,
        timeout=timedelta(seconds=NO_LIMIT_S),
    )
    settle_gloo()

    def lost(rank: int, reason: str) -> None:
        give_up(f"grow: {_name(places, rank)} {reason}; remove the cause and go on with --resume\n")

    beside = sum(place.host == mine.host for place in places)
    return Rank(meeting.rank, meeting.count, device, store, lost, crowd=-(-beside * threads // cores))


def give_up(message: str) -> NoReturn:
    """End this process at once, also where nobody reads its last words any more: the main thread may wait in a collective for good."""
    try:
        sys.stderr.write(message)
        sys.stderr.flush()
    finally:
        os._exit(1)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError as error:
        raise ValueError(f"{name} is {environment[name]!r}, but must be a whole number; start the ranks with torchrun") from error


def _settle(meeting: Meeting, threads: int) -> None:
    """Threads, cores and the network interface that leads to the others."""
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of(meeting.local_rank, threads, available_cores()))
    own = own_address(meeting)
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == own for found in addresses):
            for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(variable, name)


def own_address(meeting: Meeting) -> str:
    """This host's address on the way to where all meet. Nothing is sent."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(meeting.address, meeting.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RankError(
            f"rank 0 at {meeting.address}:{meeting.port} cannot be reached ({error.strerror or error}), but must be; "
            "check MASTER_ADDR and the network"
        ) from error


def _store(meeting: Meeting, timeout_s: float) -> Store:
    host = meeting.rank == 0 and not meeting.hosted
    limit = timedelta(seconds=timeout_s)
    try:
        store = TCPStore(meeting.address, meeting.port, None, host, limit, wait_for_workers=False)
    except RuntimeError as error:
        verb = "opened" if host else "reached"
        raise RankError(
            f"rank 0 at {meeting.address}:{meeting.port} cannot be {verb} within {timeout_s:g} s, but must be; "
            "start rank 0 first, and check MASTER_ADDR, MASTER_PORT and the firewall"
        ) from error
    return PrefixStore(f"grow/{meeting.attempt}", store)


def _places(store: Store, meeting: Meeting, deadline: float, timeout_s: float) -> list[_Place]:
    found = []
    for rank in range(meeting.count):
        _wait_for(store, f"place/{rank}", f"rank {rank} of {meeting.count}", meeting, deadline, timeout_s)
        found.append(_Place(**json.loads(store.get(f"place/{rank}"))))
    return found


def _wait(store: Store, meeting: Meeting, what: str, places: Sequence[_Place], deadline: float, timeout_s: float) -> None:
    """Wait until every rank has come to the same point."""
    store.set(f"{what}/{meeting.rank}", "")
    for rank in range(meeting.count):
        _wait_for(store, f"{what}/{rank}", _name(places, rank), meeting, deadline, timeout_s)


def _wait_for(store: Store, key: str, name: str, meeting: Meeting, deadline: float, timeout_s: float) -> None:
    try:
        store.wait([key], timedelta(seconds=max(1.0, deadline - time.monotonic())))
    except RuntimeError as error:
        raise RankError(
            f"{name} has not come to {meeting.address}:{meeting.port} within {timeout_s:g} s, but must; "
            "start it with the same MASTER_ADDR and MASTER_PORT, and check that its host reaches that address"
        ) from error


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "numpy", "growprune")}


def _check_versions(places: Sequence[_Place], meeting: Meeting) -> None:
    """The same arithmetic everywhere: other versions of torch may round otherwise, or send otherwise."""
    for rank, place in enumerate(places):
        for name, version in place.versions.items():
            if version != places[0].versions[name]:
                raise RankError(
                    f"{name} of {_name(places, rank)} is {version}, but must be rank 0's, {places[0].versions[name]}; install the same"
                )


def _check_reachable(places: Sequence[_Place], meeting: Meeting, deadline: float) -> None:
    """Knock at every other rank's door, as torch will."""
    for rank, place in enumerate(places):
        if rank == meeting.rank:
            continue
        try:
            socket.create_connection((place.address, place.port), max(1.0, deadline - time.monotonic())).close()
        except OSError as error:
            raise RankError(
                f"{_name(places, rank)} cannot be reached from {_name(places, meeting.rank)} ({error.strerror or error}), but must be; "
                "let the firewalls pass all ports between the hosts, or name the right interface by GLOO_SOCKET_IFNAME"
            ) from error


def _device(meeting: Meeting, kind: Kind) -> torch.device:
    if kind == "cpu":
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if not gpus:
        raise ValueError(f"device is 'cuda', but must be 'cpu' on {socket.gethostname()}, which has no GPU; choose CPU workers")
    device = torch.device("cuda", meeting.local_rank % gpus)
    torch.cuda.set_device(device)
    return device


def _own_gpus(places: Sequence[_Place]) -> bool:
    """Whether every rank has a GPU to itself."""
    ranks = Counter(place.address for place in places)
    return all(ranks[place.address] <= place.gpus for place in places)


def _name(places: Sequence[_Place], rank: int) -> str:
    place = places[rank]
    return f"rank {rank} of {len(places)} ({place.address}, host {place.host}, process {place.pid})"
