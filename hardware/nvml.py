"""What NVIDIA's management library says about the GPUs of this machine. Without a driver there are none, and nothing is linked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One GPU of the machine. numa: memory node that it is next to, None where the library does not say."""

    name: str
    id: str
    memory_bytes: int
    numa: int | None


@cache
def gpus() -> tuple[Gpu, ...]:
    """All GPUs of the machine, in the library's order."""
    with _library() as nvml:
        if nvml is None:
            return ()
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(
            Gpu(
                _text(nvml.nvmlDeviceGetName(handle)),
                _text(nvml.nvmlDeviceGetUUID(handle)),
                int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                _asked(nvml, "nvmlDeviceGetNumaNodeId", handle),
            )
            for handle in handles
        )
    return ()  # the library failed on the way


@cache
def driver() -> str:
    """Version of the driver, empty without one."""
    with _library() as nvml:
        return "" if nvml is None else _text(nvml.nvmlSystemGetDriverVersion())
    return ""


@cache
def medium(first: str, second: str) -> str:
    """What joins two GPUs, by their ids: ``NVLink x4``, ``PCIe``, ``PCIe across NUMA nodes``; empty where it is not known."""
    with _library() as nvml:
        if nvml is None or first == second:
            return ""
        one, other = (nvml.nvmlDeviceGetHandleByUUID(identity) for identity in (first, second))
        lanes = _nvlinks(nvml, one, other)
        if lanes:
            return f"NVLink x{lanes}"
        level = _asked(nvml, "nvmlDeviceGetTopologyCommonAncestor", one, other)
        if level is None:
            return ""
        return "PCIe across NUMA nodes" if level >= nvml.NVML_TOPOLOGY_SYSTEM else "PCIe"
    return ""


def _nvlinks(nvml: ModuleType, one: object, other: object) -> int:
    """Active NVLinks of one GPU that end at the other, or at a switch which the other is joined to as well."""
    address = _text(nvml.nvmlDeviceGetPciInfo(other).busId)
    direct = sum(end is not None and _text(end.busId) == address for end, switch in _ends(nvml, one) if not switch)
    return direct + min(sum(switch for _, switch in _ends(nvml, gpu)) for gpu in (one, other))


def _ends(nvml: ModuleType, gpu: object) -> list[tuple[Any, bool]]:
    """Of every active NVLink of a GPU: the address of what it ends at, where that is known, and whether it is a switch."""
    active = [
        link
        for link in range(nvml.NVML_NVLINK_MAX_LINKS)
        if _asked(nvml, "nvmlDeviceGetNvLinkState", gpu, link) == nvml.NVML_FEATURE_ENABLED
    ]
    kinds = [_asked(nvml, "nvmlDeviceGetNvLinkRemoteDeviceType", gpu, link) for link in active]
    ends = [_asked(nvml, "nvmlDeviceGetNvLinkRemotePciInfo", gpu, link) for link in active]
    return [(end, kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH) for end, kind in zip(ends, kinds, strict=True)]


def _asked(nvml: ModuleType, question: str, *arguments: object) -> Any:
    """The answer, or None where this GPU, driver or version of the library has none."""
    try:
        return getattr(nvml, question)(*arguments)
    except (nvml.NVMLError, AttributeError):
        return None


@contextmanager
def _library() -> Iterator[ModuleType | None]:
    """The library, or None without a driver; an error of its own ends the block."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        yield None
        return
    except pynvml.NVMLError:
        yield None  # no driver
        return
    try:
        yield pynvml
    except pynvml.NVMLError:
        return
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
