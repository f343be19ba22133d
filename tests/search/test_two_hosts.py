"""Ranks on two hosts: network namespaces joined by a veth pair, with nothing in common but the file system's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from grow.history import History
from grow.train import train
from hardware.partitioners import PARTITIONERS
from hardware.planner import plan
from hardware.price import price_by_time
from hardware.profile import Profile
from hardware.workload import Workload
from search import build
from search.files import read_lines
from search.recipe import Recipe
from tests.contracts.partitioner import sparse
from tests.contracts.topologies import mlp
from tests.search.test_train_command import assert_same_edits, await_checkpoint, started
from tests.search.test_train_command import recipe as recipe

pytestmark = pytest.mark.slow

ADDRESSES = ("10.123.0.1", "10.123.0.2")
PORT = 29511
SLOW_BITS_PER_S = 20_000_000


@dataclass(frozen=True)
class Host:
    """A network namespace, kept alive by a process that sleeps in it."""

    holder: subprocess.Popen[bytes]
    link: str
    address: str

    def command(self, *command: str) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.holder.pid), "-n", *command)

    def run(self, *command: str) -> None:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts and the cable between them; skips where the kernel forbids them. All of it is gone when the holders are."""
    with ExitStack() as stack:
        hosts = []
        for number, address in enumerate(ADDRESSES):
            holder = subprocess.Popen(["unshare", "--net", "sleep", "600"], stderr=subprocess.PIPE)
            stack.callback(holder.communicate)
            stack.callback(holder.kill)
            hosts.append(Host(holder, f"grow{number}", address))
        deadline = time.monotonic() + 10
        while any(psutil.Process(host.holder.pid).name() != "sleep" for host in hosts):
            if time.monotonic() > deadline or any(host.holder.poll() is not None for host in hosts):
                pytest.skip("the kernel allows no network namespaces: unshare --net fails")
            time.sleep(0.05)
        first, second = hosts
        ends = ["ip", "link", "add", first.link, "netns", str(first.holder.pid), "type", "veth", "peer", "name", second.link]
        done = subprocess.run([*ends, "netns", str(second.holder.pid)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"the kernel allows no veth pair: {done.stderr.strip()}")
        for host in hosts:
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", host.link)
            host.run("ip", "link", "set", host.link, "up")
            host.run("ip", "link", "set", "lo", "up")
        yield first, second


@pytest.fixture
def folders(recipe: Recipe, tmp_path: Path) -> tuple[Path, Path]:
    """A folder on each host, each with the recipe."""
    made = []
    for number in range(2):
        made.append(tmp_path / f"host-{number}")
        made[-1].mkdir()
        (made[-1] / "recipe.json").write_text(json.dumps(recipe.to_json()))
    return made[0], made[1]


def slow_down(hosts: tuple[Host, Host]) -> None:
    """20 Mbit/s each way, as on a slow network; skips where the kernel cannot."""
    for host in hosts:
        host.run("tc", "qdisc", "add", "dev", host.link, "root", "tbf", "rate", str(SLOW_BITS_PER_S), "burst", "64kb", "latency", "400ms")


def profiled(hosts: tuple[Host, Host], folder: Path, environment: dict[str, str]) -> Profile:
    """What `grow profile` measures on both hosts under torchrun."""
    with ExitStack() as stack:
        processes = []
        for number, host in enumerate(hosts):
            torchrun = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number))
            place = ("--master-addr", ADDRESSES[0], "--master-port", str(PORT))
            grow = ("-m", "search.cli", "profile", "--device", "cpu", "--save", f"host-{number}.json", "--json")
            processes.append(stack.enter_context(started(environment, *host.command(sys.executable, *torchrun, *place, *grow), cwd=folder)))
        (out, err), (other, _) = (process.communicate(timeout=280) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err
    assert json.loads(out)["word"] == "measured"
    assert other == ""  # rank 0 alone reports
    assert not (folder / "host-1.json").exists()
    return Profile.load(folder / "host-0.json")


GROW = ("-m", "search.cli", "train", "recipe.json", "--folder", "out", "--json")


def test_two_hosts_on_a_slow_link_grow_as_one_process_does(
    recipe: Recipe, folders: tuple[Path, Path], environment: dict[str, str], tmp_path: Path
) -> None:
    with two_hosts() as hosts, ExitStack() as stack:
        slow_down(hosts)
        processes = []
        for number, host in enumerate(hosts):
            torchrun = ("-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number))
            place = ("--master-addr", ADDRESSES[0], "--master-port", str(PORT))
            command = host.command(sys.executable, *torchrun, *place, *GROW)
            processes.append(stack.enter_context(started(environment, *command, cwd=folders[number])))
        (out, err), (other, _) = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err
    result = json.loads(out)
    assert (result["state"], result["ranks"]) == ("complete", 2)
    assert other == ""  # rank 0 alone reports, and keeps the files
    assert list(folders[1].iterdir()) == [folders[1] / "recipe.json"]
    expected = build.session(build.material(recipe), None, History(tmp_path / "history.jsonl"))
    for _ in train(expected):
        pass
    assert_same_edits(folders[0] / "out", tmp_path)
    assert result["connections"] == expected.network.topology.connections


def test_profile_price_and_strategy_react_to_a_slow_link(environment: dict[str, str], tmp_path: Path) -> None:
    with two_hosts() as hosts:
        (tmp_path / "fast").mkdir()
        fast = profiled(hosts, tmp_path / "fast", environment)
        slow_down(hosts)
        (tmp_path / "slow").mkdir()
        slow = profiled(hosts, tmp_path / "slow", environment)
    for profile in (fast, slow):
        assert (len(profile.devices), profile.word, profile.links[0].medium) == (2, "simulated", "network")
        assert ADDRESSES[1] in profile.devices[1].id
    # headers take a few percent, and the first 64 KiB of every burst pass at once
    assert 0.7 < slow.links[0].bandwidth_bytes_per_s / (SLOW_BITS_PER_S / 8) < 1.2
    assert fast.links[0].bandwidth_bytes_per_s > 5 * slow.links[0].bandwidth_bytes_per_s
    assert max(row.bytes for row in slow.messages) < max(row.bytes for row in fast.messages)  # no minutes for 64 MiB

    divided = Workload.of(sparse(mlp(784, 512, 512, 512, 10), 0.3))
    prices = [price_by_time(divided, PARTITIONERS["contiguous"](divided, 2), profile, 128) for profile in (fast, slow)]
    assert prices[1] > 3 * prices[0]

    work = Workload.of(mlp(784, 2048, 2048, 2048, 10))
    plans = [plan(work, profile, 2, 256, lambda work, parts: PARTITIONERS["contiguous"](work, parts)) for profile in (fast, slow)]
    assert (plans[0].best.devices, plans[1].best.name) == (2, "single")


def test_a_cable_that_is_cut_ends_both_ranks_and_each_names_the_other(folders: tuple[Path, Path], environment: dict[str, str]) -> None:
    with two_hosts() as hosts, ExitStack() as stack:
        processes = []
        for number, host in enumerate(hosts):
            launcher = {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(PORT)}
            command = host.command(sys.executable, *GROW)
            processes.append(stack.enter_context(started({**environment, **launcher}, *command, cwd=folders[number])))
        await_checkpoint(folders[0] / "out", processes[0])
        hosts[0].run("ip", "link", "set", hosts[0].link, "down")
        errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert f"rank 1 of 2 ({ADDRESSES[1]}, host " in errors[0]
    assert "has given no sign of life for" in errors[0]
    assert f"rank 0 of 2 ({ADDRESSES[0]}, host " in errors[1]
    assert "cannot be reached" in errors[1]
    assert "go on with --resume" in errors[0]
    last = read_lines(folders[0] / "out" / "metrics.jsonl")
    assert all(line["step"] for line in last)
