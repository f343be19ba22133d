"""Messages between the ranks of one host through sockets of their own, which each rank reads and writes itself.

gloo hands every message to an event thread of its own: on a rank's only core it and the rank wake each other by turns, 0.1 ms a
message where nobody else wants the core, and a tick of the scheduler where somebody does. A worker that waits has nothing else to do
on its core: here it looks again and again before it goes to sleep. The kernel orders what is written and read, on every processor.

    rank 0                  rank 1
    out: halo, halo  ---->  in:  halo, halo       bytes come in the order in which they were sent,
    in:  halo        <----  out: halo             so nothing says which message they belong to
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOOK_S = 0.02
"""How long a rank that has its core to itself looks for what it waits for, before it sleeps: longer than ranks of one step differ."""
BUFFER_BYTES = 1 << 22


@dataclass(eq=False)
class Wire:
    """One end of a connection with another rank, and what is to go out and to come in, in the order in which it was asked for."""

    other: int
    connection: socket.socket
    out: deque[memoryview] = field(default_factory=deque)
    into: deque[memoryview] = field(default_factory=deque)
    asked_out: int = 0  # views ever asked for, and those that are done
    asked_in: int = 0
    done_out: int = 0
    done_in: int = 0

    def advance(self) -> None:
        """Move what can be moved now. RuntimeError where the other rank is gone."""
        try:
            while self.out:
                self.out[0] = self.out[0][self.connection.send(self.out[0]) :]
                if not self.out[0]:
                    self.out.popleft()
                    self.done_out += 1
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._gone() from error
        try:
            while self.into:
                count = self.connection.recv_into(self.into[0])
                if not count:
                    raise self._gone()
                self.into[0] = self.into[0][count:]
                if not self.into[0]:
                    self.into.popleft()
                    self.done_in += 1
        except BlockingIOError:
            pass
        except OSError as error:
            raise self._gone() from error

    def _gone(self) -> RuntimeError:
        return RuntimeError(f"Connection closed by rank {self.other}")  # torch's words, and its kind of error


@dataclass(eq=False)
class Wires:
    """All connections of this rank, by the other one. alone: no other rank shares its cores, so it looks before it sleeps."""

    wires: Mapping[int, Wire]
    alone: bool

    @staticmethod
    def of(connections: Mapping[int, int], alone: bool) -> Wires:
        """Takes over file descriptors."""
        return Wires({rank: Wire(rank, _opened(descriptor)) for rank, descriptor in connections.items()}, alone)

    def close(self) -> None:
        """Close all connections."""
        for wire in self.wires.values():
            wire.connection.close()

    def post(self, sends: Sequence[tuple[Tensor, int]], receives: Sequence[tuple[Tensor, int]]) -> Crossing:
        """Contiguous, not empty tensors set out to other ranks, and tensors that take what they send. The ranks ask in one order."""
        for tensor, rank in sends:
            self.wires[rank].out.append(_bytes(tensor))
            self.wires[rank].asked_out += 1
        for tensor, rank in receives:
            self.wires[rank].into.append(_bytes(tensor))
            self.wires[rank].asked_in += 1
        crossing = Crossing(self, [(wire, wire.asked_out, wire.asked_in) for wire in (self.wires[rank] for _, rank in (*sends, *receives))])
        self.advance()
        return crossing

    def advance(self) -> None:
        """Move what can be moved now."""
        for wire in self.wires.values():
            if wire.out or wire.into:
                wire.advance()

    def wait(self, crossing: Crossing) -> None:
        """Move bytes, also those of other messages under way, until this crossing is over."""
        asleep_at = time.perf_counter() + LOOK_S if self.alone else 0.0
        while not crossing.over():
            if time.perf_counter() >= asleep_at:
                self._sleep()
            self.advance()

    def _sleep(self) -> None:
        """Until something can be moved."""
        poll = select.poll()
        for wire in self.wires.values():
            wanted = (select.POLLOUT if wire.out else 0) | (select.POLLIN if wire.into else 0)
            if wanted:
                poll.register(wire.connection, wanted)
        poll.poll()


@dataclass(frozen=True, eq=False)
class Crossing:
    """Messages under way: for each wire that carries some, which of its views are the last ones."""

    wires: Wires
    until: Sequence[tuple[Wire, int, int]]

    def over(self) -> bool:
        """Whether all are sent and received."""
        return all(wire.done_out >= out and wire.done_in >= into for wire, out, into in self.until)

    def wait(self) -> None:
        """Until all are sent and received."""
        self.wires.wait(self)


def _bytes(tensor: Tensor) -> memoryview:
    import torch  # the parent of the ranks makes sockets without it

    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def _opened(descriptor: int) -> socket.socket:
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)  # the system cuts it to what it allows
    return connection


# ---- who is connected ----

_connected: Wires | None = None


def connected() -> Wires | None:
    """This process's connections, as torch has its default process group; None where ranks were not started as children of one parent."""
    return _connected


def connect(connections: Mapping[int, int], alone: bool) -> None:
    """Take over file descriptors by rank, which this process was started with."""
    global _connected
    _connected = Wires.of(connections, alone)


def pairs(count: int) -> list[dict[int, int]]:
    """A connection between any two of so many ranks: for each rank, its file descriptors by the other rank. The caller closes them."""
    found: list[dict[int, int]] = [{} for _ in range(count)]
    try:
        for first, second in combinations(range(count), 2):
            left, right = socket.socketpair()
            found[first][second], found[second][first] = left.detach(), right.detach()
    except OSError:
        close(found)
        raise
    return found


def close(pairs: Sequence[Mapping[int, int]]) -> None:
    """Close what the children have now."""
    for connections in pairs:
        for descriptor in connections.values():
            os.close(descriptor)
