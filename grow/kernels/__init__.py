"""How a sparse layer is computed. Every kernel equals the masked dense product, in its output and in all its gradients."""

from grow.kernels.base import Kernel, KernelCase, Product, Storage, UnfitStructureError
from grow.kernels.blocks import BLOCKS
from grow.kernels.choose import Picked, Timings, fastest, suited, unfit
from grow.kernels.columns import COLUMNS
from grow.kernels.compiled import COMPILED
from grow.kernels.condensed import CONDENSED
from grow.kernels.csr import CSR
from grow.kernels.dense import DENSE
from grow.kernels.radix import RADIX

KERNELS: dict[str, Kernel] = {kernel.name: kernel for kernel in (DENSE, CSR, COLUMNS, RADIX, COMPILED, CONDENSED, *BLOCKS)}

__all__ = [
    "KERNELS", "Kernel", "KernelCase", "Picked", "Product", "Storage", "Timings", "UnfitStructureError", "fastest", "suited", "unfit",
]  # fmt: skip
