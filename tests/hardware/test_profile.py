from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grow.kernels import KernelCase
from hardware import sweep
from hardware.cache import obtain
from hardware.devices import Device
from hardware.profile import FIRST, MASKED, SCHEMA_VERSION, Profile, calibrated, key, touched_bytes
from hardware.profile.calibration import Calibration, Coefficients
from hardware.profile.key import key_of, machine
from hardware.profile.measurements import CollectiveTime, Contention, HaloTime, KernelTime, MeasuredLink, OperatorTime, Overlap
from hardware.simulate import Task, schedule
from hardware.sweep import Grid
from hardware.tables import KernelTable

LAYER_S, FLOP_S, CSR_FLOP_S, OVERHEAD_S = 1e-5, 1e-10, 1e-9, 1e-4
LATENCY_S, BANDWIDTH = 2e-5, 1e9


def made_up_profile(ranks: int = 4) -> Profile:
    """Products of the quantities, so that interpolation meets them everywhere: dense 1e-10 s, csr 1e-9 s per product; 20 us + 1 GB/s."""
    grid = list(product((16, 256), (16, 256), (64, 256)))
    dense = [KernelTime(name, r, c, b, 1.0, FLOP_S * r * c * b) for r, c, b in grid for name in ("dense", "conv dense")]
    csr = [
        KernelTime(name, r, c, b, d, CSR_FLOP_S * r * c * b * d) for r, c, b in grid for d in (0.02, 0.3) for name in ("csr", "conv csr")
    ]
    devices = tuple(Device("cpu", "cpu", index, 2**33, f"nowhere/worker{index}") for index in range(ranks))
    return Profile(
        schema_version=SCHEMA_VERSION,
        key="nowhere",
        made_at="2026-01-01T00:00:00+00:00",
        machine={"host": "nowhere"},
        dtype="float32",
        devices=devices,
        links=tuple(MeasuredLink(a, b, LATENCY_S, BANDWIDTH) for a in range(ranks) for b in range(a)),
        kernels=tuple(dense + csr),
        without_input_gradient={"dense": 0.5, "csr": 0.5, "conv dense": 0.5, "conv csr": 0.5},
        collectives=(),
        step_overhead_s=OVERHEAD_S,
    )


@pytest.mark.parametrize("case", [(16, 16, 64), (100, 30, 200), (2, 1000, 10)])
def test_products_are_met_between_and_beyond_the_measured_points(case: tuple[int, int, int]) -> None:
    rows, columns, batch = case
    assert made_up_profile().seconds("dense", rows, columns, 1.0, batch) == pytest.approx(FLOP_S * rows * columns * batch)
    assert made_up_profile().seconds("csr", rows, columns, 0.6, batch) == pytest.approx(CSR_FLOP_S * rows * columns * batch * 0.6)


@pytest.mark.parametrize("point", [(16, 512, 32), (100, 90, 50), (700, 2000, 300), (3000, 64, 1000)])
def test_a_start_and_costs_of_rows_columns_samples_and_products_are_met_between_and_beyond_the_measured_points(
    point: tuple[int, int, int],
) -> None:
    def seconds(rows: int, columns: int, batch: int) -> float:
        return 1e-4 + 1e-8 * rows + 2e-8 * columns * batch + 1e-10 * rows * columns * batch

    table = KernelTable([KernelTime("dense", *at, 1.0, seconds(*at)) for at in product((16, 256, 2048), (64, 512), (32, 512))])
    assert table.seconds(*point, 1.0) == pytest.approx(seconds(*point))


def test_shapes_are_compared_at_as_many_connections_whatever_more_of_them_cost() -> None:
    """Layers of 100 and of 400 rows with 2,000 connections each take 3 s, with 500 or 8,000 other times: one of 200 rows takes 3 s, too."""
    cost = {500: 1.0, 2000: 3.0, 8000: 20.0}
    points = product((100, 400), (50, 100), (16, 32), (0.05, 0.2))
    rows = [KernelTime("csr", r, c, b, d, cost.get(round(r * c * d), 50.0)) for r, c, b, d in points]
    table = KernelTable(rows)
    assert table.seconds(200, 100, 24, 0.1) == pytest.approx(3.0)
    assert table.seconds(100, 100, 24, 0.2) == table.seconds(400, 100, 24, 0.05) == 3.0
    assert table.seconds(800, 100, 24, 0.05) == pytest.approx(3.0 + (3.0 - 1.0) / 300 * 400)  # beyond, by the slope at the same density


def test_what_a_small_shape_has_no_room_for_is_not_told_by_its_noise() -> None:
    """A layer of 100 x 300 with 27,000 connections, between 10 x 64, which has room for 640, and 256 x 512."""

    def seconds(rows: int, columns: int, density: float) -> float:
        return 2e-4 + 2e-8 * rows * columns * density

    points = product((10, 256), (64, 512), (64, 128), (0.01, 0.1, 0.5))
    rows = [KernelTime("compiled", r, c, b, d, seconds(r, c, d) * (0.9 if (r, c, d) == (10, 64, 0.5) else 1.0)) for r, c, b, d in points]
    for density in (0.1, 0.5, 0.9):
        assert KernelTable(rows).seconds(100, 300, 128, density) == pytest.approx(seconds(100, 300, density), rel=0.1)


def test_times_have_no_jumps_where_shapes_were_measured() -> None:
    noise = np.random.default_rng(0)
    points = product((10, 256, 2048), (64, 512, 2048), (64, 128), (0.01, 0.1, 0.5))
    table = KernelTable([KernelTime("compiled", *at, (2e-4 + 2e-8 * at[0] * at[1] * at[3]) * noise.uniform(0.8, 1.2)) for at in points])
    for rows, columns, density in product((10, 100, 256, 1000, 2048), (64, 300, 512, 2048), (0.005, 0.3, 0.9)):
        here = table.seconds(rows, columns, 100, density)
        for near in (-1e-7, 1e-7):
            assert table.seconds(rows * (1 + near), columns, 100, density) == pytest.approx(here, rel=1e-4)
            assert table.seconds(rows, columns * (1 + near), 100, density) == pytest.approx(here, rel=1e-4)


def test_between_shapes_no_time_is_less_than_in_proportion_to_the_fewest_connections_measured() -> None:
    measured = {0.01: 1e-6, 0.1: 20e-6, 0.5: 100e-6}  # of the larger one; the smaller one takes next to nothing
    points = product((256, 2048), measured)
    table = KernelTable([KernelTime("csr", rows, 64, 128, density, measured[density] if rows > 256 else 1e-12) for rows, density in points])
    for rows in range(272, 2048, 16):
        of_larger = (rows - 256) / (2048 - 256)
        assert table.seconds(rows, 64, 128, 0.01) >= of_larger * 1e-6 * rows / 2048


def test_below_the_smallest_point_no_time_is_less_than_in_proportion() -> None:
    steep = [KernelTime("dense", rows, 64, batch, 1.0, rows**2 * 1e-6) for rows, batch in product((16, 32), (16, 32))]
    table = KernelTable([*steep, *(replace(row, columns=128) for row in steep)])
    assert table.seconds(24, 64, 16, 1.0) == pytest.approx((16**2 + 32**2) / 2 * 1e-6)
    assert table.seconds(4, 64, 16, 1.0) == pytest.approx(16**2 / 4 * 1e-6)  # the slope would reach 0 at 11 rows


def test_the_compiled_kernel_takes_as_long_for_a_batch_as_for_its_whole_tiles() -> None:
    plain = made_up_profile()
    rows = [replace(row, kernel="compiled") for row in plain.kernels if row.kernel == "csr"]
    found = replace(plain, kernels=(*plain.kernels, *rows))
    half, odd, whole, more = (found.seconds("compiled", 100, 100, 0.1, batch) for batch in (128, 129, 256, 257))
    assert half < odd == whole < more
    assert found.seconds("csr", 100, 100, 0.1, 129) < found.seconds("csr", 100, 100, 0.1, 256)


def test_a_batch_that_does_not_fill_its_tiles_is_copied_into_such_as_it_does() -> None:
    plain = made_up_profile()
    rows = [replace(row, kernel="compiled") for row in plain.kernels if row.kernel == "csr"]
    copied = replace(plain, kernels=(*plain.kernels, *rows), unfilled=(1e-3, 1e-8))
    free = replace(copied, unfilled=(0.0, 0.0))

    def extra(batch: int, **first: bool) -> float:
        return copied.seconds("compiled", 100, 50, 0.1, batch, **first) - free.seconds("compiled", 100, 50, 0.1, batch, **first)

    assert extra(96) == pytest.approx(1e-3 + 1e-8 * 96 * 150)
    assert extra(96, input_gradient=False) == pytest.approx(0.5e-3 + 1e-8 * 96 * 100)  # data is put into tiles in any case
    assert extra(128) == extra(64) == 0
    assert copied.seconds("csr", 100, 50, 0.1, 96) == free.seconds("csr", 100, 50, 0.1, 96)


def test_a_first_layer_takes_its_own_measured_time_or_a_share_of_others() -> None:
    plain = made_up_profile()
    case = KernelCase(rows=100, columns=100, density=0.1, batch=100, device="cpu", input_gradient=False)
    inner = plain.timings("csr", replace(case, input_gradient=True))
    assert inner is not None
    assert plain.timings("csr", case) == pytest.approx(0.5 * inner)
    own = tuple(replace(row, kernel="csr" + FIRST, seconds=0.8 * row.seconds) for row in plain.kernels if row.kernel == "csr")
    assert replace(plain, kernels=(*plain.kernels, *own)).timings("csr", case) == pytest.approx(0.8 * inner)


def with_convolutions() -> Profile:
    """Dense convolutions of 3 x 3 run at twice the rate of those of 5 x 5, and in blocks of 8 channels."""
    plain = made_up_profile()
    small = [KernelTime("conv 3x3 dense", r, 9 * c, b, 1.0, FLOP_S / 2 * r * 9 * c * b) for r, c, b in product((8, 64), (1, 64), (64, 256))]
    return replace(plain, kernels=(*plain.kernels, *small), channel_block=8)


def test_a_convolution_takes_as_long_as_its_whole_blocks_of_channels() -> None:
    profile = with_convolutions()
    assert profile.convolution_seconds("dense", 16, 16, 9, 1.0, 100) == pytest.approx(FLOP_S / 2 * 16 * 16 * 9 * 100)
    assert profile.convolution_seconds("dense", 16, 16, 25, 1.0, 100) == pytest.approx(FLOP_S * 16 * 16 * 25 * 100)
    assert profile.convolution_seconds("dense", 12, 9, 25, 1.0, 100) == profile.convolution_seconds("dense", 16, 16, 25, 1.0, 100)
    image = profile.convolution_seconds("dense", 16, 3, 9, 1.0, 100)  # an image's few channels fill no block
    assert image == pytest.approx(FLOP_S / 2 * 16 * 3 * 9 * 100)
    between = profile.convolution_seconds("dense", 16, 16, 15, 1.0, 100)
    assert between == pytest.approx((FLOP_S * FLOP_S / 2) ** 0.5 * 16 * 16 * 15 * 100)  # halfway in logarithms
    assert profile.convolution_seconds("csr", 12, 9, 9, 0.1, 100) == pytest.approx(CSR_FLOP_S * 12 * 81 * 0.1 * 100)
    assert profile.convolution_seconds("dense", 0, 9, 9, 1.0, 100) == 0.0
    shrinking = replace(profile, unpadded=1.5).convolution_seconds("dense", 16, 16, 25, 1.0, 100, padded=False)
    assert shrinking == 1.5 * profile.convolution_seconds("dense", 16, 16, 25, 1.0, 100)


def test_without_smaller_convolutions_all_are_as_the_larger_ones() -> None:
    assert made_up_profile().convolution_seconds("dense", 16, 16, 9, 1.0, 100) == pytest.approx(FLOP_S * 16 * 16 * 9 * 100)


def test_an_operator_takes_its_measured_rate_and_an_unknown_one_nothing() -> None:
    profile = replace(made_up_profile(), operators=tuple(OperatorTime("sum", n, 1e-9 * n, 4e-10 * n) for n in (100, 10_000)))
    assert profile.operator_seconds("sum", 1000) == pytest.approx((1e-6, 4e-7))
    assert profile.operator_seconds("sum", 20_000) == pytest.approx((2e-5, 8e-6))
    assert profile.operator_seconds("max_pool", 1000) == (0.0, 0.0)
    slower = replace(profile, coefficients=Coefficients(alone=1.5, together=2.0))
    assert [slower.operator_seconds("sum", 1000, count)[0] for count in (1, 2)] == pytest.approx([1.5e-6, 2e-6])


def test_nothing_to_do_takes_no_time() -> None:
    assert made_up_profile().seconds("dense", 0, 16, 1.0, 64) == 0.0


def test_an_unmeasured_kernel_is_named() -> None:
    with pytest.raises(ValueError, match="kernel is 'block', but must be one that was measured: conv csr, conv dense, csr, dense"):
        made_up_profile().seconds("block", 1, 1, 1.0, 1)


def test_the_engine_is_told_nothing_about_other_kernels_and_devices() -> None:
    profile, case = made_up_profile(), KernelCase(rows=16, columns=16, density=0.1, batch=64, device="cpu")
    assert profile.timings("csr", case) == pytest.approx(CSR_FLOP_S * 16 * 16 * 64 * 0.1)
    assert profile.timings("block", case) is None
    assert profile.timings("csr", replace(case, device="cuda")) is None


def test_unmeasured_collectives_follow_the_ring() -> None:
    profile = made_up_profile()
    assert profile.collective_seconds("sum", 4, 1e6) == pytest.approx(2 * 3 * (LATENCY_S + 1e6 / 4 / BANDWIDTH))
    assert profile.collective_seconds("exchange", 4, 3e6) == pytest.approx(3 * (LATENCY_S + 1e6 / BANDWIDTH))
    assert profile.collective_seconds("sum", 1, 1e6) == 0.0


def test_measured_collectives_are_met_and_grow_by_bandwidth_beyond() -> None:
    rows = (CollectiveTime("sum", 2, 8, 1e-4), CollectiveTime("sum", 2, 800, 1e-2))
    profile = replace(made_up_profile(), collectives=rows)
    assert [profile.collective_seconds("sum", 2, size) for size in (1, 8, 80, 800, 1600)] == pytest.approx([1e-4, 1e-4, 1e-3, 1e-2, 2e-2])


def test_a_mask_has_its_price() -> None:
    masked = tuple(
        replace(row, kernel=row.kernel + MASKED, seconds=2 * row.seconds) for row in made_up_profile().kernels if row.density == 1
    )
    profile = replace(made_up_profile(), kernels=(*made_up_profile().kernels, *masked))
    whole, part = (profile.seconds("dense", 100, 30, density, 200) for density in (1.0, 0.5))
    assert part == pytest.approx(2 * whole)
    assert profile.seconds("csr", 16, 16, 0.3, 64) == made_up_profile().seconds("csr", 16, 16, 0.3, 64)


def test_devices_that_compute_at_once_slow_each_other_down_by_what_they_touch() -> None:
    small, large = touched_bytes(16, 16, 64, 4), touched_bytes(256, 256, 256, 4)
    rows = (Contention("dense", 2, small, 1.0), Contention("dense", 2, large, 1.5))
    profile = replace(made_up_profile(), contention=rows)

    def ratio(rows: int, columns: int, batch: int, devices: int, kernel: str = "dense") -> float:
        alone, together = (profile.seconds(kernel, rows, columns, 1.0, batch, count) for count in (1, devices))
        return together / alone

    assert ratio(16, 16, 64, 2) == pytest.approx(1.0)
    assert [ratio(256, 256, 256, 2), ratio(4096, 4096, 256, 2), ratio(256, 256, 256, 4)] == pytest.approx([1.5] * 3)
    assert 1.0 < ratio(64, 64, 64, 2) < 1.5
    assert ratio(256, 256, 256, 2, "csr") == pytest.approx(1.5)  # as dense ones: its own was not measured


def test_a_halo_costs_two_exchanges_and_what_was_measured_beyond_them() -> None:
    def truth(own: float, remote: float) -> float:
        return 2 * (LATENCY_S + remote / BANDWIDTH) + 1e-4 + 2e-10 * own + 5e-10 * remote

    sizes = [(10**own, 10**remote) for own in (4, 6) for remote in (3, 5)]
    profile = replace(made_up_profile(), halos=tuple(HaloTime(2, own, remote, truth(own, remote)) for own, remote in sizes))
    assert profile.halo_seconds(2, 10**7, 10**6) == pytest.approx(truth(10**7, 10**6))
    assert profile.halo_seconds(2, 10**7, 0) == profile.halo_seconds(1, 10**7, 10**6) == 0.0
    assert made_up_profile().halo_seconds(2, 10**6, 10**6) == pytest.approx(2 * (LATENCY_S + 10**6 / BANDWIDTH))


def test_a_halo_whose_units_lie_together_takes_its_own_measured_time() -> None:
    def truth(own: float, remote: float, by_unit: bool) -> float:
        return 2 * (LATENCY_S + remote / BANDWIDTH) + 1e-4 + (1e-10 if by_unit else 5e-10) * (own + remote)

    points = product((10**4, 10**6), (10**3, 10**5), (False, True))
    rows = tuple(HaloTime(2, own, remote, truth(own, remote, by_unit), 0.0, by_unit) for own, remote, by_unit in points)
    profile = replace(made_up_profile(), halos=rows)
    for by_unit in (False, True):
        assert profile.halo_seconds(2, 10**7, 10**6, by_unit=by_unit) == pytest.approx(truth(10**7, 10**6, by_unit))
    one = replace(profile, halos=tuple(row for row in rows if not row.by_unit))
    assert one.halo_seconds(2, 10**7, 10**6, by_unit=True) == pytest.approx(truth(10**7, 10**6, False))  # what was measured at all


def test_coefficients_stretch_what_they_name_and_nothing_else() -> None:
    plain = made_up_profile()
    profile = replace(plain, coefficients=Coefficients(alone=1.1, together=1.2, halo=1.5, sum=2.0))
    ratios = [profile.seconds("dense", 16, 16, 1.0, 64, count) / plain.seconds("dense", 16, 16, 1.0, 64, count) for count in (1, 2)]
    assert ratios == pytest.approx([1.1, 1.2])
    assert profile.halo_seconds(2, 1e6, 1e6) == pytest.approx(1.5 * plain.halo_seconds(2, 1e6, 1e6))
    assert profile.collective_seconds("sum", 2, 1e6) == pytest.approx(2 * plain.collective_seconds("sum", 2, 1e6))
    assert profile.collective_seconds("gather", 2, 1e6) == plain.collective_seconds("gather", 2, 1e6)
    called = replace(plain, coefficients=Coefficients(call_s=1.0))
    assert called.collective_seconds("sum", 2, 1e6) == pytest.approx(1 + plain.collective_seconds("sum", 2, 1e6))
    assert called.halo_seconds(2, 1e6, 1e6) == pytest.approx(2 + plain.halo_seconds(2, 1e6, 1e6))


def test_a_sum_hides_what_the_measured_overlap_lets_it_hide() -> None:
    profile = replace(made_up_profile(), overlaps=(Overlap(2, 10**6, 4.0, 2.0, 4.5), Overlap(2, 10**6, 4.0, 2.0, 5.0)))
    assert profile.slowdown(2) == profile.slowdown(4) == (4 / 3 + 2) / 2
    assert made_up_profile().slowdown(2) == 100.0  # one core computes or communicates


@pytest.mark.parametrize(("computation", "communication", "together"), [(4, 2, 4), (4, 2, 5), (4, 2, 5.9), (1, 2, 2), (1, 2, 2.5)])
def test_a_measured_overlap_is_simulated_to_the_time_it_took(computation: float, communication: float, together: float) -> None:
    tasks = [Task("sum", "communication", communication, ("wire",)), Task("layer", "forward", computation, ("core",), (), ("wire",))]
    assert schedule(tasks, Overlap(2, 10**6, computation, communication, together).slowdown).seconds == pytest.approx(together)


def test_what_was_measured_one_after_the_other_is_simulated_so() -> None:
    """Noise lets both at once take longer than one after the other, or less than the computation alone."""
    tasks = [Task("sum", "communication", 2, ("wire",)), Task("layer", "forward", 4, ("core",), (), ("wire",))]
    slowdowns = [Overlap(2, 10**6, 4, 2, together).slowdown for together in (3.9, 6, 6.1)]
    assert [schedule(tasks, slowdown).seconds for slowdown in slowdowns] == pytest.approx([4, 5.98, 5.98])


def test_json_gives_the_same_profile_back(tmp_path: Path) -> None:
    made_up_profile().save(tmp_path / "deep" / "profile.json")
    assert Profile.load(tmp_path / "deep" / "profile.json") == made_up_profile()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["profile.json"]


@pytest.mark.parametrize("text", ["", "{", f'{{"schema_version": {SCHEMA_VERSION}}}'])
def test_a_damaged_profile_is_named_with_its_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"profile .*profile\.json has .* wrong .*; measure it with `grow profile`"):
        Profile.load(path)


def test_a_profile_of_another_version_is_refused(tmp_path: Path) -> None:
    replace(made_up_profile(), schema_version=1).save(tmp_path / "profile.json")
    with pytest.raises(ValueError, match=f"schema_version of .* is 1, but must be {SCHEMA_VERSION}"):
        Profile.load(tmp_path / "profile.json")


def test_figures_of_another_machine_are_simulated() -> None:
    profile = made_up_profile()
    assert profile.word == "simulated"
    assert replace(profile, key=key_of(profile.devices)).word == "predicted"


def test_the_key_tells_devices_and_dtypes_apart() -> None:
    devices = made_up_profile().devices
    assert len({key_of(devices), key_of(devices[:1]), key_of(devices, "float64")}) == 3


def test_what_is_cached_is_not_measured_again_and_another_machine_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = made_up_profile()
    asked: list[int] = []

    def measure(devices: tuple[Device, ...], dtype: str, *, grid: Grid, progress: object) -> Profile:
        asked.append(len(devices))
        return replace(made, devices=devices, key=key_of(devices, dtype))

    monkeypatch.setattr(sweep, "measure", measure)
    assert obtain(made.devices) == obtain(made.devices)
    obtain(made.devices[:2])
    obtain(made.devices, anew=True)
    assert asked == [4, 2, 4]


def test_a_cache_without_a_kernel_that_came_since_says_so_and_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made, messages = made_up_profile(), list[str]()

    def measure(devices: tuple[Device, ...], dtype: str, **_: object) -> Profile:
        return replace(made, key=key_of(devices, dtype), machine=machine())

    def obtained(kernels: str) -> str:
        monkeypatch.setattr(key, "kernels", lambda: kernels)
        return obtain(made.devices, progress=messages.append).machine["kernels"]

    monkeypatch.setattr(sweep, "measure", measure)
    asked = ["dense, csr", "dense, compiled", "dense, csr"]
    assert [obtained(kernels) for kernels in asked] == asked
    assert messages == [f"the cached profile of {made.made_at} is stale, since kernels was 'dense, csr' and is 'dense, compiled'"]


def test_the_kernels_of_a_machine_are_those_that_can_be_compiled_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "compiled (numba " in machine()["kernels"]
    monkeypatch.setattr(key, "find_spec", lambda name: None)
    assert "compiled" not in machine()["kernels"]


def test_a_damaged_cache_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = made_up_profile()
    path = tmp_path / "grow" / "profiles" / f"{key_of(made.devices)}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    monkeypatch.setattr(sweep, "measure", lambda *_, **__: replace(made, key=path.stem))
    messages: list[str] = []
    assert obtain(made.devices, progress=messages.append).key == path.stem
    assert messages == ["the cached profile is damaged or of another version"]


def test_a_calibrated_profile_says_what_lies_beyond_its_range(tmp_path: Path) -> None:
    calibration = Calibration("2026-01-01", 30, 0.05, 0.2, 0.95, ("single", "units"), {"density": 0.01}, {"density": 1.0})
    profile = calibrated(made_up_profile(), Coefficients(halo=1.5), calibration)
    profile.save(tmp_path / "profile.json")
    found = Profile.load(tmp_path / "profile.json")
    assert found == profile
    assert found.calibration is not None
    assert found.calibration.beyond("units", density=0.5) == []
    assert found.calibration.beyond("units", density=0.001) == ["density is 0.001, calibrated 0.01 to 1"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"links": ()}, r"falls apart into \[\[0\], \[1\], \[2\], \[3\]\]"),
        ({"links": (MeasuredLink(0, 1, 1e-5, 0.0),)}, "bandwidth_bytes_per_s is 0.0, but must be positive"),
        ({"devices": ()}, "devices is empty"),
        ({"tile_bytes": ()}, r"tile_bytes is \(\), but must be positive and not empty"),
        ({"kernels": ()}, "kernels is empty, but must have the times of one at least; measure it with `grow profile`"),
        ({"collectives": (CollectiveTime("sum", 2, 8, -1.0),)}, "seconds of .* is -1.0, but must be positive"),
    ],
)
def test_a_profile_of_what_cannot_be_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    replace(made_up_profile(), **wrong).save(tmp_path / "profile.json")
    with pytest.raises(ValueError, match=message):
        Profile.load(tmp_path / "profile.json")


def test_more_devices_than_were_profiled_are_refused() -> None:
    made_up_profile().check_devices(4)
    with pytest.raises(ValueError, match=r"gpus is 5, but must be in 1..4, the devices of 4 x cpu \(nowhere\)"):
        made_up_profile().check_devices(5)


def test_another_machine_is_told_from_this_one() -> None:
    assert made_up_profile().differences()[0].startswith("host was 'nowhere' and is ")
    here = replace(made_up_profile(), machine=machine())
    assert here.differences() == ["the devices are others"]
    assert replace(here, key=key_of(here.devices)).differences() == []
    unsaid = {name: value for name, value in machine().items() if name != "kernels"}
    assert replace(here, machine=unsaid).differences() == ["it does not say which kernels it has times of"]
