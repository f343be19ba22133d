"""This machine, as far as measurements hold for it alone: its processors, driver and libraries, and the key of all that."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from importlib.util import find_spec

from hardware.devices import Device, cpu_name
from hardware.nvml import driver

ANYWHERE = ("dense", "csr", "compiled")
"""The engine's kernels for connections anywhere that are measured."""
STRUCTURED = ("columns", "condensed", "radix", "block_16", "block_32", "block_64")
"""Those that are made for some structures, and measured on these."""
COMPILERS = {"compiled": "numba"}
"""What some kernels are compiled by, and are not measured without."""

KEYED = ("host", "cpu", "driver", "torch", "kernels")
"""What a profile is valid for, beside its devices and its dtype."""


def machine() -> dict[str, str]:
    """This machine."""
    return {"host": platform.node(), "cpu": cpu_name(), "driver": driver(), "torch": version("torch"), "kernels": kernels()}


def kernels() -> str:
    """The kernels that are measured here, with what computes or compiles them: another one takes the place of those that miss it."""
    from grow.kernels.linear import library
    from grow.kernels.tiles import tiles_here

    found = []
    for name in (*ANYWHERE, *STRUCTURED):
        compiler = COMPILERS.get(name)
        if name == "dense":
            found.append(f"{name} ({library()})")
        elif compiler is None:
            found.append(name)
        elif find_spec(compiler) is not None:
            found.append(f"{name} ({compiler} {version(compiler)}, {tiles_here()[0]} bytes)")
    return ", ".join(found)


def key_of(devices: tuple[Device, ...], dtype: str = "float32") -> str:
    """What a profile is valid for: these devices on this machine, with this driver, torch, kernels and dtype."""
    here = machine()
    facts = [*(f"{device.kind} {device.name} {device.id}" for device in devices), *(here[name] for name in KEYED), dtype]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
