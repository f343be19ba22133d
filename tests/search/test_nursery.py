import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from search.errors import RunNotFoundError, StoppedError
from search.nursery import Nursery
from search.process import Signals
from tests.search.in_process import Commands


@pytest.fixture
def nursery(commands: Commands) -> Iterator[Nursery]:
    """The one that all runs share; should it be replaced, then by its like."""
    with commands.surroundings():
        yield commands.nursery(Signals())


def process_of(nursery: Nursery) -> psutil.Process:
    return psutil.Process(nursery._process.pid)


def test_a_child_gives_its_exit_code_and_what_it_said(nursery: Nursery, tmp_path: Path) -> None:
    with open(tmp_path / "log", "wb") as log:
        child = nursery.start("search.prepare", [str(tmp_path / "absent")], log=log)
    assert child.wait(120) == RunNotFoundError.exit_code
    assert "config.toml is unreadable" in (tmp_path / "log").read_text()


def test_nothing_is_there_that_a_child_could_inherit(nursery: Nursery) -> None:
    assert nursery.start("search.prepare", ["absent"]).wait(120) != 0
    assert process_of(nursery).num_threads() == 1
    assert "libtorch" in Path(f"/proc/{process_of(nursery).pid}/maps").read_text()
    assert process_of(nursery).children() == []


def test_a_child_is_the_callers_own_and_outlives_the_nursery(nursery: Nursery, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.touch()
    core = min(os.sched_getaffinity(0))
    with open(recipe) as held, open(tmp_path / "log", "wb") as log:
        fcntl.flock(held, fcntl.LOCK_EX)  # the worker waits for it
        child = nursery.start("search.worker", [str(recipe)], cores=[core], log=log)
        assert psutil.Process(child.pid).ppid() == os.getpid()
        assert os.sched_getaffinity(child.pid) == {core}
        process_of(nursery).kill()
        assert child.poll() is None
        assert nursery.start("search.prepare", ["absent"]).wait(120) == RunNotFoundError.exit_code
        child.kill()
        assert child.wait(10) == -signal.SIGKILL


def test_a_signal_is_answered_while_a_child_is_waited_for() -> None:
    signals = Signals()
    with Nursery(signals) as nursery:
        signals.note(signal.SIGTERM, None)
        with pytest.raises(StoppedError):
            nursery.start("search.prepare", ["absent"])
        pid = nursery._process.pid
    assert not psutil.pid_exists(pid)
