"""Ways to divide the hidden units over devices, behind one protocol."""

from importlib.util import find_spec

from hardware.partitioners.base import Partitioner
from hardware.partitioners.contiguous import contiguous
from hardware.partitioners.metis import metis
from hardware.partitioners.mtkahypar import mtkahypar

PARTITIONERS: dict[str, Partitioner] = {"mtkahypar": mtkahypar, "metis": metis, "contiguous": contiguous}

_MODULES = {"mtkahypar": "mtkahypar", "metis": "pymetis"}


def default_partitioner() -> str:
    """The best partitioner whose library is installed."""
    return next((name for name, module in _MODULES.items() if find_spec(module) is not None), "contiguous")


__all__ = ["PARTITIONERS", "Partitioner", "default_partitioner"]
