from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from grow.kernels import KernelCase
from hardware import profile as module
from hardware.devices import Device, discover
from hardware.execute.ranks import run_ranks
from hardware.profile import CollectiveTime, KernelTime, MeasuredLink, Profile, key_of, measure_rank, obtain

LAYER_S, FLOP_S, CSR_FLOP_S, OVERHEAD_S = 1e-5, 1e-10, 1e-9, 1e-4
LATENCY_S, BANDWIDTH = 2e-5, 1e9


def made_up_profile(ranks: int = 4) -> Profile:
    """Powers of every quantity, so that interpolation meets them everywhere: dense 1e-10 s, csr 1e-9 s per product; 20 us + 1 GB/s."""
    grid = list(product((16, 256), (16, 256), (64, 256)))
    dense = [KernelTime(name, r, c, b, 1.0, FLOP_S * r * c * b) for r, c, b in grid for name in ("dense", "conv dense")]
    csr = [
        KernelTime(name, r, c, b, d, CSR_FLOP_S * r * c * b * d) for r, c, b in grid for d in (0.02, 0.3) for name in ("csr", "conv csr")
    ]
    devices = tuple(Device("cpu", "cpu", index, 2**33, f"nowhere/worker{index}") for index in range(ranks))
    return Profile(
        schema_version=1,
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
def test_power_laws_are_met_between_and_beyond_the_measured_points(case: tuple[int, int, int]) -> None:
    rows, columns, batch = case
    assert made_up_profile().seconds("dense", rows, columns, 1.0, batch) == pytest.approx(FLOP_S * rows * columns * batch)
    assert made_up_profile().seconds("csr", rows, columns, 0.6, batch) == pytest.approx(CSR_FLOP_S * rows * columns * batch * 0.6)


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


def test_latency_and_bandwidth_are_found_again_in_a_sweep() -> None:
    sizes = np.array(module.SIZES, float)
    link = module._fit(sizes, 2e-5 + sizes / 1e9)
    assert link.latency_s == pytest.approx(2e-5, rel=0.01)
    assert link.bandwidth_bytes_per_s == pytest.approx(1e9, rel=0.01)


def test_json_gives_the_same_profile_back(tmp_path: Path) -> None:
    made_up_profile().save(tmp_path / "deep" / "profile.json")
    assert Profile.load(tmp_path / "deep" / "profile.json") == made_up_profile()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["profile.json"]


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1}'])
def test_a_damaged_profile_is_named_with_its_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"profile .*profile\.json has .* wrong .*; measure it with `grow profile`"):
        Profile.load(path)


def test_a_profile_of_another_version_is_refused(tmp_path: Path) -> None:
    replace(made_up_profile(), schema_version=2).save(tmp_path / "profile.json")
    with pytest.raises(ValueError, match=r"schema_version of .* is 2, but must be 1"):
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

    def measure(devices: tuple[Device, ...], dtype: str, progress: object) -> Profile:
        asked.append(len(devices))
        return replace(made, devices=devices, key=key_of(devices, dtype))

    monkeypatch.setattr(module, "measure", measure)
    assert obtain(made.devices) == obtain(made.devices)
    obtain(made.devices[:2])
    obtain(made.devices, anew=True)
    assert asked == [4, 2, 4]


def test_a_damaged_cache_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = made_up_profile()
    path = tmp_path / "grow" / "profiles" / f"{key_of(made.devices)}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    monkeypatch.setattr(module, "measure", lambda *_, **__: replace(made, key=path.stem))
    messages: list[str] = []
    assert obtain(made.devices, progress=messages.append).key == path.stem
    assert messages == ["the cached profile is damaged"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": (16, 32), "COLUMNS": (16, 32), "BATCHES": (16, 32), "DENSITIES": (0.1, 0.3)}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "CONV_CASES", {"rows": (4, 8), "columns": (25, 50), "batch": (64, 128)})


@pytest.mark.usefixtures("small")
def test_a_measured_table_has_every_kernel_at_every_point() -> None:
    bench = module._Bench(torch.device("cpu"), torch.float32)
    rows = bench.kernels()
    assert {row.kernel for row in rows} == {"dense", "csr", "conv dense", "conv csr"}
    assert len(rows) == 2 * (8 + 8 * 2)
    assert all(row.seconds > 0 for row in rows)
    assert np.isfinite(replace(made_up_profile(), kernels=rows).seconds("csr", 20, 20, 0.2, 20))
    assert 0 < bench.overhead() < 0.1
    assert all(0 < share <= 1 for share in bench.without_input_gradient().values())


@pytest.mark.slow
def test_two_ranks_measure_kernels_links_and_collectives() -> None:
    first, second = run_ranks(measure_rank, "float32", ranks=2)
    assert not second.kernels
    assert first.links == second.links
    (link,) = first.links
    assert 0 < link.latency_s < 0.1
    assert link.bandwidth_bytes_per_s > 1e6
    assert {(row.collective, row.ranks) for row in first.collectives} == {("exchange", 2), ("sum", 2)}


@pytest.mark.gpu
def test_a_gpu_is_measured_by_its_own_clock() -> None:
    devices = discover("cuda", 1).devices
    assert module.measure(devices).seconds("dense", 256, 256, 1.0, 256) > 0
