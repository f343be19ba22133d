"""What is measured: every point of the grid, by ranks that do what a training step does."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import distributed

from grow.kernels import KERNELS, suited
from grow.kernels.tiles import NARROW, WIDE, fills_tiles, tiles_here
from grow.layers import SparseConv2d, SparseLinear
from hardware.devices import discover
from hardware.execute.ranks import Rank, run_ranks
from hardware.operators import KINDS
from hardware.profile import FIRST, MASKED, TILED
from hardware.profile.key import STRUCTURED
from hardware.profile.measurements import KernelTime
from hardware.sweep import FULL, QUICK, Grid, contention, measure, measure_rank
from hardware.sweep import kernels as sweep_kernels
from hardware.sweep.clock import Patience, Timing, Yardstick, in_company, in_passes, own_work
from hardware.sweep.contention import _together_over_alone
from hardware.sweep.kernels import Bench
from hardware.sweep.messages import collective_sizes, fitted, links_of
from hardware.sweep.operators import measure_operators
from hardware.sweep.structures import drawn
from hardware.transitions import DIRECT_BYTES
from tests.hardware.test_profile import made_up_profile

SMALL = Grid(
    kernels=("dense", "csr"),
    rows=(16, 32),
    columns=(16, 32),
    batches=(16, 32),
    densities=(0.1, 0.2, 0.3),
    conv_rows=(4, 8),
    conv_columns=(25, 50),
    conv_batches=(64, 128),
    wide_columns=100,
    wide_batch=256,
    sizes=(8, 512, 2**15),
    exchanged_bytes=512,
    repeats=6,
    budget_s=0.002,
)
CPU = torch.device("cpu")


def test_a_measured_table_has_every_kernel_at_every_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardware.sweep.clock.PASSES", 1)
    bench = Bench(CPU, torch.float32, SMALL)
    rows = bench.kernels()
    kernels = {"dense", "csr", "conv dense", "conv csr"}
    counted = {name: sum(row.kernel == name for row in rows) for name in {row.kernel for row in rows}}
    linear = {"dense": 8, "dense" + MASKED: 8, "csr": 8 * 3, "csr" + FIRST: 8 * 3}
    # dense convolutions have a third number of channels and of positions; sparse ones every other density
    assert counted == {**linear, "conv dense": 2 * 3 * 3, "conv csr": 8 * 2, "conv 3x3 dense": 2 * 3 * 3}
    assert {row.columns for row in rows if row.kernel == "conv 3x3 dense"} == {9, 18, 36}
    assert all(row.seconds > 0 and row.spread >= 0 for row in rows)
    found = replace(made_up_profile(), kernels=rows)
    assert all(np.isfinite(found.seconds(kernel, 20, 20, density, 20)) for kernel, density in product(kernels, (0.2, 1.0)))
    assert 0 < bench.overhead() < 0.1
    assert all(0 < share <= 1 for share in bench.without_input_gradient().values())


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize(("kernel", "density"), [("dense", 1.0), ("dense", 0.3), ("csr", 0.3)])
def test_a_measured_step_trains_weight_and_bias(monkeypatch: pytest.MonkeyPatch, kernel: str, density: float, convolution: bool) -> None:
    seen: list[SparseLinear | SparseConv2d] = []
    make = sweep_kernels._step
    monkeypatch.setattr(sweep_kernels, "_step", lambda layer, x: (seen.append(layer), make(layer, x))[1])
    bench = Bench(CPU, torch.float32, SMALL)
    (bench.conv_step if convolution else bench.linear_step)(kernel, 8, 25, 64, density)()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in (seen[0].weight, seen[0].bias))


def test_kernels_that_are_made_for_some_structures_are_measured_on_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardware.sweep.clock.PASSES", 1)
    structured = {"structured": STRUCTURED, "structured_sides": (64, 128), "structured_conv_columns": (100, 200)}
    grid = replace(SMALL, kernels=(), rows=(), conv_rows=(4, 8), **structured, structured_densities=(1 / 4, 1 / 2))
    bench = Bench(CPU, torch.float32, grid)
    rows = bench.measured(list(bench._structured()))
    assert {row.kernel for row in rows} == {*STRUCTURED, "conv columns"}
    assert all(sum(row.kernel == name for row in rows) == 16 for name in (*STRUCTURED, "conv columns"))
    found = replace(made_up_profile(), kernels=rows)
    assert all(np.isfinite(found.seconds(name, 80, 80, 0.3, 20)) for name in STRUCTURED)


@pytest.mark.parametrize("kernel", STRUCTURED)
def test_connections_are_drawn_as_a_kernel_likes_them_at_the_density_that_is_noted(kernel: str) -> None:
    for density in (1 / 16, 1 / 4):
        index = drawn(kernel, 256, 512, density)
        assert len(index) == pytest.approx(density * 256 * 512, rel=0.01)
        assert kernel in suited(torch.from_numpy(index), (256, 512), KERNELS.values())


def test_of_the_compiled_kernel_and_the_one_that_it_falls_back_to_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(CPU, torch.float32, replace(SMALL, kernels=("dense", "csr", "compiled")))
    assert bench.names == ["dense", "compiled"]
    monkeypatch.setattr(sweep_kernels, "available", lambda: False)
    assert bench.names == ["dense", "csr"]


def test_operators_of_every_kind_are_measured_there_and_back() -> None:
    found = measure_operators(CPU, torch.float32, Patience(3, 0.0))
    assert {row.operator for row in found} == set(KINDS)
    assert all(0 < row.forward_s <= row.seconds for row in found)
    rates = {kind: sorted((row.values, row.seconds) for row in found if row.operator == kind) for kind in KINDS}
    assert all(len(sizes) == 2 and sizes[0][1] < sizes[1][1] for sizes in rates.values())  # sixteen times the values take longer


def test_a_missing_border_is_told_by_maps_of_as_many_outputs_and_by_the_geometric_mean_over_both_widths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = {(3, 1): 1e-4, (3, 0): 2e-4, (5, 2): 3e-4, (5, 0): 24e-4}  # by width and border
    outputs = []

    def timed(step: tuple[SparseConv2d, torch.Tensor], *rest: object) -> Timing:
        layer, x = step
        outputs.append(layer(x).shape)
        return Timing(seconds[layer.weight_shape[-1], layer.padding[0]], 0.0)

    monkeypatch.setattr(sweep_kernels, "_step", lambda layer, x: (layer, x))
    monkeypatch.setattr(sweep_kernels, "own_work", timed)
    assert Bench(CPU, torch.float32, SMALL).unpadded() == pytest.approx(4)  # of 2 and 8
    assert len(outputs) == 4
    assert len(set(outputs)) == 1


def test_the_block_of_channels_is_the_one_that_tells_the_times_best(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(CPU, torch.float32, SMALL)
    monkeypatch.setattr(bench, "conv_step", lambda kernel, rows, columns, *rest: columns // 25)
    for block in (1, 8, 16):
        monkeypatch.setattr("hardware.sweep.kernels.own_work", lambda count, *rest, block=block: Timing(1e-4 * -(-count // block), 0.0))
        assert bench.channel_block() == block


def test_a_kernel_is_measured_in_its_own_dtypes_only() -> None:
    assert {point.table for point in Bench(CPU, torch.bfloat16, SMALL)._table(convolution=False)} == {"dense", "dense" + MASKED}


def test_a_call_is_repeated_as_often_as_patience_allows_and_what_comes_before_is_not_timed() -> None:
    calls: list[str] = []
    own_work(lambda: calls.append("call"), CPU, Patience(7, None, warm_up=1))
    assert len(calls) == 8
    calls.clear()
    own_work(lambda: calls.append("call"), CPU, Patience(1000, 0.0))
    assert len(calls) == 3 + 2
    calls.clear()
    timing = in_company(lambda: calls.append("call"), CPU, 5, lambda: np.linalg.svd(np.ones((100, 100))))
    assert len(calls) == 2 + 5
    assert timing.seconds < 1e-3


def test_calls_are_told_in_yardsticks_so_that_neither_a_drift_nor_a_bad_moment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down by 1 % a call; in the second of three passes something takes all calls a hundred times as long."""
    calls = [lambda: 3.0, lambda: 5.0, lambda: 7.0]
    made = 0

    def timed(call: Callable[[], float], *_: object) -> Timing:
        nonlocal made
        made += 1
        unit = call() if call in calls else 1.0
        return Timing(unit * 1.01**made * (100 if call in calls and 7 < made <= 13 else 1), 0.0)

    monkeypatch.setattr("hardware.sweep.clock.own_work", timed)
    yardstick = Yardstick(CPU)
    monkeypatch.setattr(yardstick, "compute", lambda: None)
    found = in_passes(calls, CPU, Patience(9, 0.1), yardstick)
    assert [timing.seconds for timing in found] == pytest.approx([3.0, 5.0, 7.0])
    assert yardstick.usual_s == pytest.approx((1.01**9 + 1.01**11) / 2)  # of ten, each after a call but the first


def test_points_that_do_not_fit_into_memory_together_are_measured_one_group_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    points = list(Bench(CPU, torch.float32, SMALL)._table(convolution=False))
    monkeypatch.setattr(sweep_kernels, "MOST_VALUES", 4000)
    groups = list(sweep_kernels._groups(points))
    assert [point for group in groups for point in group] == points
    assert len(groups) > 2
    assert all(sum(point.values for point in group) <= 4000 for group in groups)


def timed_so(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Let a step take so many yardsticks, each of 1 ms, whatever it is; the first one stands for what is measured first."""
    monkeypatch.setattr(sweep_kernels, "in_passes", lambda *_: [Timing(each, 0.1) for each in seconds])
    monkeypatch.setattr(Yardstick, "usual_s", 1e-3)


def test_what_every_step_costs_is_none_of_a_layers_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes 2 yardsticks without any layer, and 5 and 12 with one; noise has the third at less than nothing."""
    bench = Bench(CPU, torch.float32, SMALL)
    timed_so(monkeypatch, 2.0, 5.0, 12.0, 1.5)
    points = [point for point in bench._table(convolution=False) if point.table == "csr"][:3]
    assert [row.seconds for row in bench.measured(points)] == pytest.approx([3e-3, 10e-3, 0.015e-3])


def test_a_step_without_any_layer_trains_a_number() -> None:
    step = Bench(CPU, torch.float32, SMALL)._empty_step()
    (number,) = (cell.cell_contents for cell in step.__closure__ or () if isinstance(cell.cell_contents, torch.nn.Parameter))
    step()
    assert number.grad == 2


def test_tiles_that_are_not_filled_cost_something_a_step_and_something_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three quarters of a tile, in layers of 32 and of 64 rows and columns."""
    samples = tiles_here()[0] // 4 * 3 // 4
    bench = Bench(CPU, torch.float32, replace(SMALL, kernels=("dense", "compiled")))
    timed_so(monkeypatch, 3.0 + 2.0 + samples * 32 * 1e-3, 3.0, 9.0 + 2.0 + samples * 64 * 1e-3, 9.0)
    assert bench.unfilled() == pytest.approx((2e-3, 1e-6))
    assert Bench(CPU, torch.float32, SMALL).unfilled() == (0.0, 0.0)  # which kernel is none of these


@pytest.mark.parametrize("element_size", [4, 8])
def test_the_batches_of_the_grids_fill_their_tiles(element_size: int) -> None:
    assert all(fills_tiles(batch, element_size, tiles) for grid in (QUICK, FULL) for batch in grid.batches for tiles in (WIDE, NARROW))


def test_first_layers_are_measured_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a gradient of what they read, on which nothing depends that is row-major."""
    seen: list[tuple[bool, bool]] = []
    monkeypatch.setattr(sweep_kernels, "_step", lambda layer, x: seen.append((x.requires_grad, x.is_contiguous())))
    bench = Bench(CPU, torch.float32, replace(SMALL, kernels=("dense", TILED)))
    for point in bench._table(convolution=False):
        if point.table.startswith(TILED) and point.density == 0.3:
            point.make({})
            assert seen.pop() == ((False, True) if point.table == TILED + FIRST else (True, False))


def test_a_mask_costs_the_same_on_every_batch() -> None:
    plain = [KernelTime("dense", 8, 8, batch, 1.0, 1e-3 * batch) for batch in (16, 32, 64)]
    rows = list(sweep_kernels._with_masks([*plain, KernelTime("dense" + MASKED, 8, 8, 16, 1.0, 18e-3)], (16, 32, 64)))
    assert {row.batch: row.seconds for row in rows if row.kernel.endswith(MASKED)} == pytest.approx({16: 18e-3, 32: 34e-3, 64: 66e-3})


def test_latency_and_bandwidth_are_found_again_in_a_sweep() -> None:
    sizes = np.array([8, 64, 512, 2**12, 2**15, 2**20, 2**26], float)
    link = fitted(sizes, 2e-5 + sizes / 1e9)
    assert link.latency_s == pytest.approx(2e-5, rel=0.01)
    assert link.bandwidth_bytes_per_s == pytest.approx(1e9, rel=0.01)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_sums_are_measured_on_both_sides_of_where_they_become_rings(ranks: int) -> None:
    """The largest sum that every rank adds up by itself is no smaller than a float less than the first one of a ring."""
    sizes = collective_sizes(QUICK.sizes, ranks)
    (ring,) = set(sizes) - set(QUICK.sizes)
    assert (ranks - 1) * (ring - 4) <= DIRECT_BYTES < (ranks - 1) * ring
    assert collective_sizes(SMALL.sizes, ranks) == list(SMALL.sizes)  # all of which are smaller


@pytest.mark.slow
def test_two_ranks_measure_all_that_takes_two() -> None:
    first, second = run_ranks(measure_rank, "float32", SMALL, ranks=2)
    assert not second.kernels
    assert (first.messages, first.contention, first.overlaps) == (second.messages, second.contention, second.overlaps)
    assert [row.bytes for row in first.messages] == list(SMALL.sizes)
    (link,) = links_of(first.messages, {(0, 1): "loopback"})
    assert 0 < link.latency_s < 0.1
    assert link.bandwidth_bytes_per_s > 1e6
    assert link.medium == "loopback"
    measured = [(row.collective, row.bytes) for row in first.collectives]
    assert sorted(measured) == sorted([*product(("exchange", "sum", "gather"), (8, 512)), ("sum", 2**15)])
    assert {row.kernel for row in first.contention} == {"dense", "csr", "conv dense", "conv csr"}
    assert {(row.own_bytes // row.halo_bytes, row.by_unit) for row in first.halos} == set(product((1, 16), (False, True)))
    assert len(first.overlaps) == 1


@pytest.mark.parametrize("ratios", [(1.5, 1.2, 1.3), (0.9, 1.3, 40.0), (1.3, 1.3, 0.1)])
def test_of_the_turns_of_one_alone_and_all_together_the_middle_one_counts(ratios: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, of which the other takes as long as this one: 1 s alone, then as long together as each turn says."""
    seconds = iter([second for ratio in ratios for second in (1.0, ratio)])
    monkeypatch.setattr(contention, "own_work", lambda *_: Timing(next(seconds), 0.0))
    monkeypatch.setattr(distributed, "barrier", lambda: None)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor[1].mul_(2))
    rank, seen = Rank(0, 2, CPU, distributed.HashStore(), lambda *_: None), list(seconds)
    for crowd in (1, 2):  # ranks that share a core wait for each other besides
        seconds = iter(seen)
        found = _together_over_alone(replace(rank, crowd=crowd), Bench(CPU, torch.float32, SMALL), lambda: None)
        assert found == pytest.approx(1.3 * crowd)


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_own_clock() -> None:
    devices = discover("cuda", 1).devices
    assert measure(devices).seconds("dense", 256, 256, 1.0, 256) > 0
