"""Machines that were never measured: their data sheets, met by the profile that is made of them."""

from pathlib import Path

import pytest

from hardware.operators import KINDS
from hardware.presets import PRESETS, hardware, preset
from hardware.presets.machines import H100, INFINIBAND, MACHINES, NVLINK
from hardware.presets.roofline import layer_seconds
from hardware.profile import Profile
from tests.hardware.test_profile import made_up_profile


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_profile_with_sources_and_simulated_figures(name: str, tmp_path: Path) -> None:
    profile, machine = preset(name), MACHINES[name]
    profile.check()
    assert profile.word == "simulated"
    assert len(profile.devices) == machine.count
    assert any("https://" in source for source in profile.sources.values())
    assert {"chip", "within", "latency_s", "csr_share", "dense_share"} <= set(profile.sources)
    assert all("assumed: " in profile.sources[figure] for figure in ("launches", "accesses", "optimizer_accesses"))
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize("name", PRESETS)
def test_a_sum_slows_the_computation_down_that_hides_it_as_was_published(name: str) -> None:
    profile = preset(name)
    assert [profile.slowdown(ranks) for ranks in (2, len(profile.devices))] == pytest.approx([1.189, 1.189])
    assert "18.9 %" in profile.sources["slowdown"]


def test_large_products_run_at_their_share_of_the_peak_and_small_ones_at_the_launches() -> None:
    profile = preset("nvlink-8")
    flops = 3 * 2 * 4096 * 4096 * 8192
    assert profile.seconds("dense", 4096, 4096, 1.0, 8192) == pytest.approx(flops / (0.7 * 67e12), rel=0.03)
    assert profile.seconds("dense", 16, 16, 1.0, 16) == pytest.approx(10 * H100.launch_s, rel=0.01)


def test_every_operator_takes_a_launch_and_its_way_through_the_memory() -> None:
    profile = preset("nvlink-8")
    for kind in KINDS:
        both, forward = profile.operator_seconds(kind, 16)
        assert (both, forward) == (pytest.approx(2 * H100.launch_s, rel=0.01), pytest.approx(H100.launch_s, rel=0.01))
    assert profile.operator_seconds("curved", 2**30)[0] == pytest.approx(5 * 4 * 2**30 / 3.35e12, rel=0.01)


def test_few_connections_pay_on_a_gpu_only_when_they_are_very_few() -> None:
    """At 7 % of the peak against 70 % the lines cross where a tenth of the connections exist."""
    dense = layer_seconds(H100, 4096, 4096, 1024)
    assert layer_seconds(H100, 4096, 4096, 1024, 0.02) < dense < layer_seconds(H100, 4096, 4096, 1024, 0.2)


def test_one_gigabyte_is_summed_at_the_bandwidth_of_the_slowest_wire() -> None:
    size = 2**30
    within = preset("nvlink-8").collective_seconds("sum", 8, size)
    assert within == pytest.approx(2 * 7 / 8 * size / NVLINK.bandwidth_bytes_per_s, rel=0.01)
    across = preset("infiniband-2x8").collective_seconds("sum", 16, size)
    assert across == pytest.approx(2 * 15 / 16 * size / INFINIBAND.total_bytes_per_s, rel=0.02)


def test_hosts_exchange_over_the_network_and_that_is_slower() -> None:
    profile = preset("infiniband-2x8")
    assert (profile.graph.link(0, 7).medium, profile.graph.link(0, 8).medium) == ("NVLink 4", "InfiniBand NDR")
    assert len(profile.graph.links) == 16 * 15 // 2
    assert profile.collective_seconds("exchange", 16, 2**26) > 4 * profile.collective_seconds("exchange", 8, 2**26)


def test_hardware_is_named_by_a_preset_or_a_file(tmp_path: Path) -> None:
    made_up_profile().save(tmp_path / "there.json")
    assert hardware(str(tmp_path / "there.json")) == made_up_profile()
    assert hardware("pcie-2") == preset("pcie-2")
    with pytest.raises(ValueError, match=r"hardware is 'absent', but must be a file .* or one of pcie-2, pcie-4, nvlink-8, infiniband-2x8"):
        hardware("absent")
    with pytest.raises(ValueError, match="preset is 'absent'"):
        preset("absent")
