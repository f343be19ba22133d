import subprocess
import sys

import networkx
import pynvml
import pytest

from hardware import devices, nvml
from hardware.devices import Device, DeviceGraph, Link, TooFewDevicesError, discover

GPUS = tuple(Device("H100", "cuda", index, 80 * 2**30, f"GPU-{index}") for index in range(2))
WORKERS = tuple(Device("cpu", "cpu", index, 2**30, f"host/worker{index}") for index in range(3))


def test_gpus_are_taken_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: GPUS)
    found = discover("auto", 2)
    assert (found.devices, found.kind, found.note) == (GPUS, "cuda", None)


def test_cpu_workers_stand_in_for_missing_gpus_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: GPUS[:1])
    monkeypatch.setattr(devices, "cores", lambda: 2)
    found = discover("auto", 2)
    assert [device.kind for device in found.devices] == ["cpu", "cpu"]
    assert found.note == "1 of 2 GPUs found: 2 CPU workers of one core each stand in, and every figure is of them"


def test_cuda_with_too_few_gpus_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: GPUS)
    with pytest.raises(TooFewDevicesError, match="the number of GPUs is 2, but must be at least 3"):
        discover("cuda", 3)


def test_more_workers_than_cores_are_allowed_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 2)
    assert discover("cpu", 2).note is None
    assert discover("cpu", 3).note == "3 workers share 2 cores, so more workers cannot be faster"


def test_no_device_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gpus is 0, but must be at least 1; ask for as many with --gpus"):
        discover("cpu", 0)


def test_finding_devices_does_not_import_torch() -> None:
    code = "import sys; from hardware.devices import discover; discover('auto', 2); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_link_serves_both_directions() -> None:
    link = Link(1e-5, 1e9)
    graph = DeviceGraph(WORKERS[:2], {(0, 1): link})
    assert graph.link(1, 0) is link
    assert graph.links == {(0, 1): link}


def test_a_device_graph_that_falls_apart_is_refused() -> None:
    with pytest.raises(ValueError, match=r"falls apart into \[\[0, 1\], \[2\]\], but must be connected"):
        DeviceGraph(WORKERS, {(0, 1): Link(1e-5, 1e9)})


@pytest.mark.parametrize(("latency_s", "bandwidth", "name"), [(0.0, 0.0, "bandwidth_bytes_per_s"), (-1.0, 1.0, "latency_s")])
def test_a_link_without_bandwidth_or_back_in_time_is_refused(latency_s: float, bandwidth: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        Link(latency_s, bandwidth)


def test_a_link_to_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"link is \(0, 0\)"):
        DeviceGraph(WORKERS[:1], {(0, 0): Link(0.0, 1.0)})


def test_a_message_takes_the_route_on_which_it_is_fastest() -> None:
    fast, slow = Link(1e-6, 1e11, "NVLink"), Link(1e-5, 1e10, "PCIe")
    graph = DeviceGraph(WORKERS, {(0, 1): fast, (1, 2): slow})
    assert graph.route(2, 0) == [(1, 2), (0, 1)]
    assert graph.link(0, 2) == Link(fast.latency_s + slow.latency_s, 1e10, "NVLink+PCIe")
    detour = DeviceGraph(WORKERS, {(0, 1): fast, (1, 2): fast, (0, 2): Link(1e-5, 1e8)})
    assert detour.route(0, 2) == [(0, 1), (1, 2)]


def test_devices_and_links_are_a_networkx_graph() -> None:
    link = Link(1e-5, 1e9)
    graph = DeviceGraph(WORKERS[:2], {(0, 1): link}).graph
    assert graph.nodes[1]["device"] is WORKERS[1]
    assert graph.edges[0, 1]["link"] is link
    with pytest.raises(networkx.NetworkXError):
        graph.add_edge(0, 1)


@pytest.mark.parametrize(("first", "second", "message"), [(0, 7, "device is 7"), (1, 1, "from 1 to itself")])
def test_a_route_to_nowhere_is_refused(first: int, second: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeviceGraph(WORKERS[:2], {(0, 1): Link(1e-5, 1e9)}).link(first, second)


def test_without_a_driver_the_management_library_knows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    for asked in (nvml.gpus, nvml.driver, nvml.medium):
        asked.cache_clear()
    assert (nvml.gpus(), nvml.driver(), nvml.medium("GPU-0", "GPU-1")) == ((), "", "")
