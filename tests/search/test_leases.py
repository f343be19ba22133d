"""Leases: one holder at a time, whatever the order in which processes sleep, claim and die."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage

from search.leases import Holder, Leases
from search.storage_url import StorageUrl, close
from tests.search.grpc_proxy import proxied
from tests.search.postgres import postgres

LEASE_S = 60.0


class Machine:
    """One process on a machine of its own, with a clock that stands until it is set forward."""

    def __init__(self, storage: BaseStorage, host: str) -> None:
        here = Holder.this_process()
        self.now = 1000.0 * len(host)  # no machine's clock says what another's does
        study = optuna.create_study(storage=storage, study_name="leases", load_if_exists=True)
        self.leases = Leases(study, LEASE_S, holder=replace(here, process=replace(here.process, host=host)), clock=lambda: self.now)
        self.leases.beat()
        self.leases.look()

    def watch(self, seconds: float) -> None:
        """Let time go by here, and look as often as a process does."""
        for _ in range(round(10 * seconds / LEASE_S)):
            self.now += LEASE_S / 10
            self.leases.look()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres() as url:
        yield url


@pytest.fixture(params=["memory", "postgresql", "grpc"])
def storage(request: pytest.FixtureRequest) -> Iterator[BaseStorage]:
    if request.param == "memory":
        yield InMemoryStorage()
    elif request.param == "grpc":
        with proxied(InMemoryStorage()) as url:
            proxy = StorageUrl(url).open()
            yield proxy
            close(proxy)
    else:
        database = StorageUrl(request.getfixturevalue("server")).open()
        yield database
        for study in optuna.get_all_study_names(database):
            optuna.delete_study(study_name=study, storage=database)
        close(database)


def test_what_one_holds_no_other_gets(storage: BaseStorage) -> None:
    one, other = Machine(storage, "one"), Machine(storage, "other")
    assert one.leases.claim("trial 0")
    assert not other.leases.claim("trial 0")
    assert other.leases.claim("trial 1")
    assert one.leases.claim("trial 0")  # it has it already
    assert one.leases.held() == {"trial 0"}
    assert other.leases.held() == {"trial 1"}


def test_a_holder_that_shows_signs_of_life_keeps_its_lease_and_one_that_does_not_loses_it(storage: BaseStorage) -> None:
    one, other = Machine(storage, "one"), Machine(storage, "other")
    assert one.leases.claim("trial 0")
    for _ in range(5):  # of a clock that the other's has nothing to do with
        other.watch(0.9 * LEASE_S)
        assert not other.leases.claim("trial 0")
        one.leases.beat()
    other.watch(1.2 * LEASE_S)
    assert other.leases.alone()
    assert other.leases.claim("trial 0")
    assert one.leases.held() == set()  # it learns so when it asks
    one.leases.beat()
    other.leases.look()
    assert not one.leases.claim("trial 0")
    assert not other.leases.alone()


def test_while_the_watcher_sleeps_or_the_storage_is_down_no_lease_runs_out() -> None:
    storage = InMemoryStorage()
    one, other = Machine(storage, "one"), Machine(storage, "other")
    assert one.leases.claim("trial 0")
    other.now += 5 * LEASE_S
    assert not other.leases.claim("trial 0")


def test_of_two_that_take_over_at_once_one_gets_it() -> None:
    storage = InMemoryStorage()
    dead, *living = (Machine(storage, host) for host in ("dead", "one", "other"))
    assert dead.leases.claim("trial 0")
    for machine in living:
        machine.watch(1.2 * LEASE_S)
        machine.leases.beat()
    for machine in living:  # both have seen that it is free before either has claimed it
        machine.leases._append("trial 0", 2)
    assert [machine.leases.held() for machine in living] == [{"trial 0"}, set()]
    living[0].leases.beat()
    assert not living[1].leases.claim("trial 0")


def test_of_many_that_claim_at_once_one_gets_each(storage: BaseStorage) -> None:
    machines = [Machine(storage, f"host {number}") for number in range(6)]
    with ThreadPoolExecutor(len(machines)) as pool:
        won = list(pool.map(lambda machine: [subject for subject in "abcd" if machine.leases.claim(subject)], machines))
    assert sorted(subject for subjects in won for subject in subjects) == ["a", "b", "c", "d"]


def test_what_a_process_held_is_free_when_it_leaves_or_is_seen_to_be_dead() -> None:
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="leases")
    with Leases(study, LEASE_S) as left:
        assert left.claim("trial 0")
    here = Holder.this_process()
    dead = Leases(study, LEASE_S, holder=replace(here, process=replace(here.process, started=here.process.started + 1)))
    dead.beat()
    assert dead.claim("trial 1")
    contained = Leases(study, LEASE_S, holder=replace(dead.holder, namespace="a container's", key="contained"))
    contained.beat()
    assert contained.claim("trial 2")
    with Leases(study, LEASE_S) as mine:
        assert mine.claim("trial 0")
        assert mine.claim("trial 1")
        assert not mine.claim("trial 2")  # whether that pid lives cannot be seen from here
    assert here.process.pid == os.getpid()


def test_signs_of_life_go_on_by_themselves() -> None:
    study = optuna.create_study(storage=InMemoryStorage())
    with Leases(study, 0.04) as one:
        held = one.claim("trial 0")
        other = Leases(study, 0.04, holder=replace(one.holder, key="other", namespace="elsewhere"))
        before = study.user_attrs[one.holder.key]["beats"]
        while study.user_attrs[one.holder.key]["beats"] < before + 6:
            other.look()
        assert held
        assert not other.claim("trial 0")


OTHER = """
import sys
import optuna
from search.leases import Leases
from search.storage_url import StorageUrl

study = optuna.load_study(study_name="leases", storage=StorageUrl(sys.argv[1]).open())
with Leases(study, 1.0) as leases:
    print(leases.claim("trial 0"), flush=True)
    sys.stdin.readline()
    print(leases.claim("trial 0"), sorted(leases.held()), flush=True)
"""


def test_a_process_that_is_stopped_loses_its_lease_and_learns_so_when_it_goes_on() -> None:
    with proxied(InMemoryStorage()) as url, ExitStack() as ends:
        storage = StorageUrl(url).open()
        ends.callback(close, storage)
        study = optuna.create_study(storage=storage, study_name="leases")
        command = [sys.executable, "-c", OTHER, url]
        other = ends.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        ends.callback(other.kill)
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with Leases(study, 1.0) as mine:
            assert not mine.claim("trial 0")
            other.send_signal(signal.SIGSTOP)
            end = time.monotonic() + 60
            while not mine.claim("trial 0"):
                assert time.monotonic() < end
                time.sleep(0.02)
            other.send_signal(signal.SIGCONT)
            assert other.communicate("\n", timeout=60)[0] == "False []\n"
            assert other.returncode == 0
