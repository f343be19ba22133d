"""The command line in the process of the tests, without a start of Python and of torch for every command.

What a command prints goes to files, as does what its children print; they are forked from one nursery, which all runs share.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from search.cli import main
from search.errors import DEBUG_VARIABLE
from search.nursery import Nursery
from search.process import Signals
from search.run import parent


class Commands:
    """Commands of one process of the tests. ``folder`` takes what they print; the nursery begins with the first run."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._stdout, self._stderr, self._environment = folder / "stdout", folder / "stderr", dict(environment)
        self._nursery: Nursery | None = None

    def __call__(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Give the command ``grow`` with these arguments in a folder."""
        with pytest.MonkeyPatch.context() as patch, self.surroundings():
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["grow", *arguments])
            patch.setattr(parent, "Nursery", self._borrowed)
            with pytest.raises(SystemExit) as ended:
                main()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, self._stdout.read_text(), self._stderr.read_text())

    @contextmanager
    def surroundings(self) -> Iterator[None]:
        """The environment of every command, and where it writes to. A nursery begins within, also one in place of one that was killed."""
        with pytest.MonkeyPatch.context() as patch, self._redirected():
            for name, value in {**self._environment, DEBUG_VARIABLE: ""}.items():
                patch.setenv(name, value)
            yield

    @contextmanager
    def without_room(self, size: int) -> Iterator[None]:
        """Files of more than ``size`` bytes cannot be written, by this process and those that the nursery begins within."""
        with self.surroundings():
            limited = [os.getpid(), self.nursery(Signals())._process.pid]
        before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in limited]
        try:
            for pid, (_, most) in zip(limited, before, strict=True):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))
            yield
        finally:
            for pid, limits in zip(limited, before, strict=True):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    def close(self) -> None:
        """End the nursery."""
        if self._nursery is not None:
            self._nursery.__exit__(None, None, None)
            self._nursery = None

    def nursery(self, signals: Signals) -> Nursery:
        """The nursery, which looks for these signals until it is asked for again."""
        if self._nursery is None:
            self._nursery = Nursery(signals).__enter__()
        self._nursery._signals = signals
        return self._nursery

    def _borrowed(self, signals: Signals) -> nullcontext[Nursery]:
        return nullcontext(self.nursery(signals))

    @contextmanager
    def _redirected(self) -> Iterator[None]:
        """Let this process, and the nursery if it begins now, write to the files. They are cut first: the nursery keeps one open."""
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(1), os.dup(2)]
        with open(self._stdout, "a") as out, open(self._stderr, "a") as err:
            out.truncate(0)
            err.truncate(0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            try:
                with redirect_stdout(out), redirect_stderr(err):
                    yield
            finally:
                for number, descriptor in zip((1, 2), kept, strict=True):
                    os.dup2(descriptor, number)
                    os.close(descriptor)
