"""What only a GPU shows: NCCL, the clock of CUDA, messages beside products on streams of their own. `pytest -m gpu` runs them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional

from grow.layers import SparseLinear
from grow.network import Network
from hardware.devices import discover, gpus
from hardware.execute.exchange import HaloPlan, Peers, Pending
from hardware.execute.gradients import GradientSum
from hardware.execute.measure import Job, measure_throughput
from hardware.execute.moves import Halo
from hardware.execute.overlap import OverlappedLayer
from hardware.execute.ranks import Rank, run_ranks
from hardware.execute.watch import _waits
from hardware.nvml import driver, medium
from hardware.shard import shard
from hardware.sweep import Measured, measure_rank
from hardware.sweep.clock import Patience, in_company, own_work
from tests.hardware.test_sweep import SMALL
from tests.search.conftest import digits_recipe

pytestmark = pytest.mark.gpu

LONG_CYCLES = 500_000_000
"""Some tenths of a second of a GPU's clock."""


def sums(rank: Rank) -> tuple[str, torch.Tensor, int]:
    peers = Peers(rank.number, rank.count)
    tensor = torch.arange(6.0, device=rank.device)
    peers.all_reduce(tensor)
    return distributed.get_backend(), tensor.cpu(), peers.sum_bytes


def test_one_rank_on_a_gpu_talks_through_nccl_and_its_sum_is_its_own() -> None:
    ((backend, total, handed),) = run_ranks(sums, ranks=1, kind="cuda")
    assert backend == "nccl"
    assert total.tolist() == [0, 1, 2, 3, 4, 5]
    assert handed == 6 * 4


def test_ranks_that_share_a_gpu_talk_through_gloo_and_others_through_nccl() -> None:
    count = torch.cuda.device_count() + 1
    found = run_ranks(sums, ranks=count, kind="cuda")
    assert {backend for backend, _, _ in found} == {"gloo"}
    assert all(total.tolist() == [count * value for value in range(6)] for _, total, _ in found)
    if count > 2:
        assert {backend for backend, _, _ in run_ranks(sums, ranks=count - 1, kind="cuda")} == {"nccl"}


def computes_while_a_sum_waits(rank: Rank) -> tuple[bool, bool, list[float]]:
    """A sum is issued behind a long wait on another stream; products of this stream are done before it is."""
    device, parameter = rank.device, nn.Parameter(torch.ones(2**18, device=rank.device))  # large enough to be summed at once
    left, right = torch.ones(64, 64, device=device), torch.ones(64, 64, device=device)
    _ = left @ right  # libraries are loaded before anything counts
    distributed.barrier()
    peers, behind, done = Peers(rank.number, rank.count), torch.cuda.Stream(device), torch.cuda.Event()
    gradients = GradientSum([parameter], peers)
    torch.cuda.synchronize(device)
    with torch.cuda.stream(behind):
        torch.cuda._sleep(LONG_CYCLES)
        waiting = torch.cuda.Event()
        waiting.record(behind)
        work = distributed.all_reduce(torch.ones(2**18, device=device), async_op=True)
    product = left @ right
    done.record()
    done.synchronize()
    overlapped = not waiting.query()
    assert work is not None
    work.wait()
    (3 * parameter).sum().backward()  # type: ignore[no-untyped-call]
    gradients.finish()
    assert parameter.grad is not None
    torch.cuda.synchronize(device)
    return overlapped, waiting.query(), [float(product[0, 0]), float(parameter.grad.max()), float(parameter.grad.min())]


def test_products_do_not_wait_for_a_sum_that_is_under_way_on_another_stream() -> None:
    ((overlapped, ended, values),) = run_ranks(computes_while_a_sum_waits, ranks=1, kind="cuda")
    assert overlapped
    assert ended
    assert values == [64.0, 3.0, 3.0]


@dataclass
class LateWork:
    """A message on a stream of its own. As with NCCL, who waits for it is the stream that is current, not the process."""

    log: list[str]
    arrived: torch.cuda.Event = field(default_factory=torch.cuda.Event)
    before: torch.cuda.Event = field(default_factory=torch.cuda.Event)

    def wait(self) -> None:
        self.log.append("wait")
        self.before.record()
        torch.cuda.current_stream().wait_event(self.arrived)


class LatePeers(Peers):
    """Rank 0 of two. What comes back is always 2, long after it was asked for."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.stream, self.works, self.log = torch.cuda.Stream(), list[LateWork](), list[str]()

    def begin(self, handed: Sequence[torch.Tensor | None], shapes: Sequence[tuple[int, ...]]) -> Pending:
        self.log.append("set out")
        self.works.append(LateWork(self.log))
        self.stream.wait_stream(torch.cuda.current_stream())  # what is sent is computed before
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(LONG_CYCLES)
            received = [torch.full(shape, 2.0, device="cuda") for shape in shapes]
            self.works[-1].arrived.record(self.stream)
        return Pending([self.works[-1]], [tensor for tensor in handed if tensor is not None], received, torch.device("cuda"))


def computed_before(work: LateWork) -> bool:
    """Whether what was issued ahead of the wait for a message is computed while that is still under way."""
    work.before.synchronize()
    return not work.arrived.query()


def test_own_products_do_not_wait_for_the_halo_nor_own_gradients_for_those_that_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 own units the other rank needs two; 3 of its units make the halo."""
    weight, bias, x, upstream = torch.randn(5, 8 + 3), torch.randn(5), torch.randn(6, 8), torch.randn(6, 5)
    peers, product = LatePeers(), OverlappedLayer._product
    sends = torch.tensor([], dtype=torch.int64).cuda(), torch.tensor([1, 4]).cuda()
    layer = SparseLinear(nn.Parameter(weight.cuda()), nn.Parameter(bias.cuda()))
    overlapped = OverlappedLayer(layer, Halo(HaloPlan(8, sends, (0, 3)), peers))
    monkeypatch.setattr(OverlappedLayer, "_product", lambda *given: (peers.log.append("product"), product(*given))[1])
    _ = functional.linear(upstream.t().cuda(), x.t().cuda())  # libraries are loaded before anything counts
    own = x.cuda().requires_grad_()
    torch.cuda.synchronize()
    y = overlapped(own)
    assert computed_before(peers.works[0])
    y.backward(upstream.cuda())
    assert computed_before(peers.works[1])
    assert peers.log == ["set out", "product", "wait", "product", "set out", "wait"]
    expected = functional.linear(torch.cat([x, torch.full((6, 3), 2.0)], 1), weight, bias)
    torch.testing.assert_close(y.detach().cpu(), expected, rtol=1e-4, atol=1e-4)
    gradient = upstream @ weight[:, :8]
    gradient[:, [1, 4]] += 2.0
    assert own.grad is not None
    torch.testing.assert_close(own.grad.cpu(), gradient, rtol=1e-4, atol=1e-4)


def test_calls_are_timed_by_the_clock_of_the_gpu_not_by_how_soon_they_return() -> None:
    """A kernel that waits for so many ticks returns at once; twice the ticks take twice the time."""
    device = torch.device("cuda")
    for timed in (lambda call: own_work(call, device, Patience(5)), lambda call: in_company(call, device, 5)):
        short, long = (timed(lambda ticks=ticks: torch.cuda._sleep(ticks)).seconds for ticks in (10**7, 2 * 10**7))
        assert short > 1e-3
        assert 1.5 < long / short < 2.5


def test_ranks_that_share_a_gpu_measure_all_that_a_profile_has() -> None:
    found: list[Measured] = run_ranks(measure_rank, "float32", SMALL, ranks=2, kind="cuda", timeout_s=600)
    assert {row.kernel for row in found[0].kernels} >= {"dense", "csr"}
    assert {row.collective for row in found[0].collectives} == {"exchange", "sum", "gather"}
    assert {(row.first, row.second) for row in found[0].messages} == {(0, 1)}
    assert all(row.seconds > 0 for rows in (found[0].kernels, found[0].collectives, found[0].messages, found[0].halos) for row in rows)
    assert found[0].overlaps[0].together_s > 0


def test_one_process_computes_on_a_gpu_what_it_computes_on_a_processor() -> None:
    network = Network(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), torch.zeros(1, 6))
    local = shard(network, "single", Peers(0, 1), device=torch.device("cuda"))
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    share = local.loss(x.cuda(), y.cuda(), functional.cross_entropy)
    assert float(share) == pytest.approx(float(functional.cross_entropy(network(x), y)), rel=1e-4)


def wide(width: int) -> Job:
    network = Network(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)), torch.zeros(1, width))
    return Job(network, "single", 1, torch.randn(4096, width), torch.zeros(4096, dtype=torch.int64))


def test_throughput_on_a_gpu_counts_what_the_gpu_has_done() -> None:
    """Sixteen times the work takes longer, though both are issued equally soon."""
    small, large = measure_throughput(wide, [1024, 4096], ranks=1, kind="cuda", seconds_per_job=0.5, rounds=3)
    assert large.step_s > 2 * small.step_s


def test_a_training_on_ranks_that_share_a_gpu_goes_on_on_one_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.cli.train import train

    monkeypatch.chdir(tmp_path)
    recipe = digits_recipe(steps=40, update_interval=10, density=0.3, devices=2, strategy="units", pattern="source_group", price=0.5)
    Path("recipe.json").write_text(json.dumps(recipe.to_json()))
    assert train(Path("recipe.json"), folder=Path("out"), device="cuda", json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["state"], result["ranks"], result["steps"]) == ("complete", 2, 40)
    assert train(Path("recipe.json"), folder=Path("out"), device="cpu", gpus=1, resume=True, json=True) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["connections"], again["units"]) == (result["connections"], result["units"])
    assert again["accuracy"] == pytest.approx(result["accuracy"], abs=0.01)


def test_who_waits_for_the_gpu_to_hear_of_others_is_seen_to_wait() -> None:
    torch.cuda._sleep(LONG_CYCLES)
    result = torch.ones(1, device="cuda")
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        Peers(0, 1).settle(result)

    waiting = threading.Thread(target=wait)
    waiting.start()
    begun.wait()
    seen = []
    while waiting.is_alive():
        seen.append(_waits())
        time.sleep(0.01)
    assert seen.count(True) > len(seen) / 2


def test_the_management_library_knows_the_gpus_that_torch_sees() -> None:
    found = gpus()
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    assert [device.name for device in found] == [seen.name for seen in properties]
    assert all(seen.total_memory <= device.memory_bytes for device, seen in zip(found, properties, strict=True))
    assert len({device.id for device in found}) == len(found)
    assert driver()
    for one, other in combinations(found, 2):
        assert medium(one.id, other.id) == medium(other.id, one.id)
        assert re.fullmatch(r"NVLink x[1-9]\d*|PCIe( across NUMA nodes)?|", medium(one.id, other.id))


def test_a_gpu_that_is_not_there_is_named() -> None:
    count = torch.cuda.device_count() + 1
    with pytest.raises(ValueError, match=f"the number of GPUs is {count - 1}, but must be at least {count}"):
        discover("cuda", count)
