"""The points at which a machine is measured."""

from __future__ import annotations

from dataclasses import dataclass

from hardware.profile.key import ANYWHERE, STRUCTURED


@dataclass(frozen=True)
class Grid:
    """Kernels, of which those are measured that run on the device; rows, columns, batches and densities of the layer steps; sizes in
    bytes of what ranks send, which reach ``exchanged_bytes`` where the bytes are not those of gradients.

    The fewest rows are those of an output layer of ten classes: libraries take twice as long for 10 as for 16.

    Batches fill the compiled kernel's tiles; what it costs where they do not is measured beside.

    ``structured`` kernels are made for some structures and are measured on these, at fewer points.

    Convolutions have kernels of 5 x 5, which their columns count, and maps of 8 x 8, which their batch counts; ``wide_columns`` and
    ``wide_batch`` are those of dense ones of many channels, and of such whose maps fit into no cache.
    """

    kernels: tuple[str, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    batches: tuple[int, ...]
    densities: tuple[float, ...]
    conv_rows: tuple[int, ...]
    conv_columns: tuple[int, ...]
    conv_batches: tuple[int, ...]
    wide_columns: int
    wide_batch: int
    sizes: tuple[int, ...]
    exchanged_bytes: int
    repeats: int
    budget_s: float
    structured: tuple[str, ...] = ()
    structured_sides: tuple[int, ...] = ()
    structured_conv_columns: tuple[int, ...] = ()
    structured_densities: tuple[float, ...] = ()


QUICK = Grid(
    kernels=ANYWHERE,
    rows=(10, 256, 2048),
    columns=(64, 512, 2048),
    batches=(64, 128, 512),
    densities=(0.01, 0.1, 0.5),
    conv_rows=(16, 64),
    conv_columns=(25, 400),
    conv_batches=(1024, 8192),
    wide_columns=1600,
    wide_batch=16384,
    sizes=(8, 64, 512, 2**12, 2**15, 2**18, 2**21, 2**24, 2**26),
    exchanged_bytes=2**24,
    repeats=30,
    budget_s=0.009,
    structured=STRUCTURED,
    structured_sides=(256, 1024),
    structured_conv_columns=(400, 1600),
    structured_densities=(1 / 16, 1 / 4),
)
"""Measured before a run, in seconds."""

FULL = Grid(
    kernels=ANYWHERE,
    rows=(10, 64, 256, 1024, 4096),
    columns=(16, 64, 256, 1024, 4096),
    batches=(64, 128, 512),
    densities=(0.002, 0.01, 0.05, 0.2, 0.5),
    conv_rows=(16, 64, 256),
    conv_columns=(25, 400, 1600),
    conv_batches=(1024, 4096, 16384),
    wide_columns=6400,
    wide_batch=131072,
    sizes=tuple(2**power for power in range(3, 27)),
    exchanged_bytes=2**26,
    repeats=100,
    budget_s=0.15,
    structured=STRUCTURED,
    structured_sides=(256, 1024, 4096),
    structured_conv_columns=(400, 1600),
    structured_densities=(1 / 64, 1 / 16, 1 / 4),
)
"""Measured when asked for, in minutes."""
