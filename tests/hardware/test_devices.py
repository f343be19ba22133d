import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import networkx
import pynvml
import pytest

from hardware import devices, nvml
from hardware.devices import Device, DeviceGraph, Link, TooFewDevicesError, discover
from hardware.sweep import _media

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


@dataclass(frozen=True)
class Card:
    """A GPU of a stand-in. links: what its NVLinks end at: another card's number, a switch, or None where they are off."""

    number: int
    numa: int | None
    links: tuple[int | str | None, ...] = ()

    @property
    def bus(self) -> str:
        return f"00000000:{self.number:02X}:00.0"


CARDS = (
    Card(0, 0, (1, None, 1)),
    Card(1, 0, (0, 0)),
    Card(2, 1, ("switch", "switch", None, "switch")),
    Card(3, 1, ("switch", "switch", "switch")),
    Card(4, 0),
    Card(5, None),  # it does not know its node
)


def known(value: int | None) -> int:
    """What the library says, or the error with which it says nothing."""
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


def state(card: Card, link: int) -> int:
    end = card.links[link] if link < len(card.links) else known(None)
    return pynvml.NVML_FEATURE_DISABLED if end is None else pynvml.NVML_FEATURE_ENABLED


def kind_of_end(card: Card, link: int) -> int:
    return pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if card.links[link] == "switch" else pynvml.NVML_NVLINK_DEVICE_TYPE_GPU


def address_of_end(card: Card, link: int) -> SimpleNamespace:
    end = card.links[link]
    return SimpleNamespace(busId=CARDS[end].bus if isinstance(end, int) else "00000000:F0:00.0")


def ancestor(one: Card, other: Card) -> int:
    return pynvml.NVML_TOPOLOGY_HOSTBRIDGE if known(one.numa) == known(other.numa) else pynvml.NVML_TOPOLOGY_SYSTEM


LIBRARY: dict[str, Callable[..., object]] = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlSystemGetDriverVersion": lambda: b"570.86",
    "nvmlDeviceGetCount": lambda: len(CARDS),
    "nvmlDeviceGetHandleByIndex": lambda index: CARDS[index],
    "nvmlDeviceGetHandleByUUID": lambda identity: CARDS[int(identity.removeprefix("GPU-card"))],
    "nvmlDeviceGetName": lambda card: "NVIDIA A Card",
    "nvmlDeviceGetUUID": lambda card: f"GPU-card{card.number}".encode(),  # older versions answer with bytes
    "nvmlDeviceGetMemoryInfo": lambda card: SimpleNamespace(total=2**30 * (card.number + 1)),
    "nvmlDeviceGetNumaNodeId": lambda card: known(card.numa),
    "nvmlDeviceGetPciInfo": lambda card: SimpleNamespace(busId=card.bus.encode()),
    "nvmlDeviceGetNvLinkState": state,
    "nvmlDeviceGetNvLinkRemoteDeviceType": kind_of_end,
    "nvmlDeviceGetNvLinkRemotePciInfo": address_of_end,
    "nvmlDeviceGetTopologyCommonAncestor": ancestor,
}
"""What the management library says of these cards, under the names and with the constants and errors of the real one."""


@pytest.fixture
def forgetful() -> Iterator[None]:
    """What the library said is forgotten before and after."""
    asked = (nvml.gpus, nvml.driver, nvml.medium, devices.gpus)
    for answers in asked:
        answers.cache_clear()
    yield
    for answers in asked:
        answers.cache_clear()


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    for name, answer in LIBRARY.items():
        monkeypatch.setattr(pynvml, name, answer)  # which the real one must have
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_what_the_management_library_says(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = devices.gpus()
    assert [device.id for device in found] == [f"GPU-card{number}" for number in range(6)]
    assert [device.numa for device in found] == [0, 0, 1, 1, 0, None]
    assert [device.memory_bytes for device in found] == [2**30 * (number + 1) for number in range(6)]
    assert (found[0].name, nvml.driver()) == ("NVIDIA A Card", "570.86")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-card1")
    devices.gpus.cache_clear()
    assert [(device.index, device.id, device.numa) for device in devices.gpus()] == [(0, "GPU-card3", 1), (1, "GPU-card1", 0)]


@pytest.mark.parametrize(
    ("pair", "medium"),
    [
        ((0, 1), "NVLink x2"),  # of three links one is off
        ((2, 3), "NVLink x3"),
        ((0, 4), "PCIe"),
        ((1, 2), "PCIe across NUMA nodes"),  # links that end elsewhere, and a switch that only one of them is joined to
        ((2, 4), "PCIe across NUMA nodes"),
        ((4, 5), ""),
    ],
)
def test_what_joins_two_gpus_is_told_from_links_switches_and_memory_nodes(cards: None, pair: tuple[int, int], medium: str) -> None:
    one, other = (f"GPU-card{number}" for number in pair)
    assert (nvml.medium(one, other), nvml.medium(other, one), nvml.medium(one, one)) == (medium, medium, "")


def test_the_links_of_a_profile_are_named_by_what_joins_the_devices(cards: None) -> None:
    found = _media(devices.gpus()[:3], ["host"] * 3)
    assert found == {(0, 1): "NVLink x2", (0, 2): "PCIe across NUMA nodes", (1, 2): "PCIe across NUMA nodes"}


def test_without_a_driver_the_management_library_knows_nothing(monkeypatch: pytest.MonkeyPatch, forgetful: None) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    assert (nvml.gpus(), nvml.driver(), nvml.medium("GPU-0", "GPU-1")) == ((), "", "")
