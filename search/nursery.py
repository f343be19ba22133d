"""A process that has imported torch already, and from which the children of a run are forked: a trial starts at once, not seconds later.

    parent of the run -- module, arguments, environment, log --> nursery -- fork --> middle -- fork --> child
            ^                                                                    (ends at once)           |
            +------------------- adopts the child, being the subreaper of all that it started ------------+

The nursery imports, readies numba's compiler and does nothing else: there is no thread, no CUDA context and no random number that a child
could inherit. A child is the parent's own, so that it is waited for, signalled and outlived as if it had been spawned, whatever becomes of
the nursery.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import IO, NoReturn

from search.process import POLL_S, THREADS, Signals, die_with_parent, spawn

MODULES = ("search.prepare", "search.worker", "search.measure")
"""What children run: the function ``main`` of one of these, which returns an exit code."""

_FIRST_NEEDED = ("torch._dynamo", "scipy.interpolate")
"""What an optimizer and a profile import when they are first made, half as long again as torch itself."""

_PID_BYTES = 8


@dataclass
class Forked:
    """A child that was forked: as much of `subprocess.Popen` as a run needs."""

    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit code; subprocess.TimeoutExpired after ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """The parent's side. It begins to import when the context is entered; one that was killed is replaced when it is needed again."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals

    def __enter__(self) -> Nursery:
        pr_set_child_subreaper = 36
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1)
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        cores: Sequence[int] = (),
        log: IO[bytes] | None = None,
    ) -> Forked:
        """Run the ``main`` of one of MODULES in a process of its own, pinned to some cores if they are named, in this one's folder.

        What it prints goes to ``log``, else to stderr.
        """
        request = {"module": module, "arguments": list(arguments), "environment": dict(environment or {}), "folder": os.getcwd()}
        message = json.dumps(request).encode()
        while (pid := self._ask(message, [] if log is None else [log.fileno()])) is None:
            self._end()
            self._begin()
        if cores:
            with suppress(ProcessLookupError):  # it has failed already
                os.sched_setaffinity(pid, cores)
        return Forked(pid)

    def _begin(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            threads = {name: "1" for name in THREADS}
            self._process = spawn("search.nursery", [str(other.fileno())], environment=threads, stdout=2, pass_fds=(other.fileno(),))

    def _end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def _ask(self, message: bytes, files: Sequence[int]) -> int | None:
        """The pid of the new child; None where the nursery has died."""
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._socket, [message], files)
            while not select.select([self._socket], [], [], POLL_S)[0]:
                self._signals.check()
            if answer := self._socket.recv(_PID_BYTES):
                return int.from_bytes(answer, "big")
        return None


# ---- in the nursery ----


def _serve(parent: socket.socket) -> None:
    for module in (*MODULES, *_FIRST_NEEDED):
        import_module(module)
    with suppress(Exception):  # what is wrong with numba is for the trial to say that needs it
        import_module("grow.kernels.compiled").available()  # imports numba and its compiler, where they are
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the children
    while True:
        message, files, *_ = socket.recv_fds(parent, 1 << 20, 1)
        if not message:
            return
        parent.send(_fork_twice(parent, json.loads(message), files).to_bytes(_PID_BYTES, "big"))


def _fork_twice(parent: socket.socket, request: Mapping[str, object], files: Sequence[int]) -> int:
    """The pid of a child that the run's parent has adopted."""
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        middle = os.getpid()
        child = os.fork()
        if child == 0:
            parent.close()
            os.close(reading)
            os.close(writing)
            while os.getppid() == middle:
                time.sleep(0.0005)
            _become(request, files)
        os.write(writing, child.to_bytes(_PID_BYTES, "big"))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as stream:
        pid = int.from_bytes(stream.read(_PID_BYTES), "big")
    os.waitpid(middle, 0)  # only now is the child adopted
    for file in files:
        os.close(file)
    return pid


def _become(request: Mapping[str, object], files: Sequence[int]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        for file in files:
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.close(file)
        module, arguments, environment, folder = (request[name] for name in ("module", "arguments", "environment", "folder"))
        assert isinstance(module, str)
        assert isinstance(arguments, list)
        assert isinstance(environment, dict)
        assert isinstance(folder, str)
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = [module, *arguments]
        code = import_module(module).main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # torch takes its time to unload


def _main() -> None:
    die_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as parent, suppress(KeyboardInterrupt):
        _serve(parent)


if __name__ == "__main__":
    _main()
