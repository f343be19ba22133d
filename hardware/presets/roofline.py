"""Times of a machine that was never measured, from its data sheet: the roofline model (Williams, Waterman and Patterson 2009).

Every product takes the longer of its arithmetic at the share of the peak that its kernel reaches, and its bytes at the memory's
bandwidth; every kernel launch takes a constant beside it. A layer step is three products (forward, gradients of weight and input), the
bias and the activation both ways, and SGD with momentum. Collectives are Hockney's: a constant, a latency a step, bytes over bandwidth.

Legend: rows, columns and batch as in `hardware.profile`; k ranks; n bytes that a rank hands in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

from hardware.devices import Device
from hardware.profile import MASKED, SCHEMA_VERSION, Profile, table_name
from hardware.profile.measurements import Collective, CollectiveTime, HaloTime, KernelTime, MeasuredLink, OperatorTime, Overlap

WIDTHS = (16, 64, 256, 1024, 4096, 16384)
BATCHES = (16, 128, 1024, 8192)
CONV_WIDTHS = (16, 64, 256, 1024, 4096)
CONV_BATCHES = (64, 1024, 16384, 262144)
DENSITIES = (0.001, 0.01, 0.1, 0.5)
OVERLAPPED_BYTES = 2**22
SIZES = tuple(2**power for power in range(3, 31, 3))
VALUE_BYTES, INDEX_BYTES = 4, 4
LAUNCHES = 10
"""Kernels of a layer step: three products, sum of the bias gradient, activation both ways, and four of the optimizer."""
ACCESSES = {
    "max_pool": (1.75, 1.75),  # a quarter comes out, with places of 8 bytes
    "avg_pool": (1.25, 1.25),
    "batch_norm": (3.0, 5.0),  # moments first, then the values; back the same with two tensors
    "layer_norm": (2.0, 5.0),
    "curved": (2.0, 3.0),
    "sum": (3.0, 3.0),
    "dropout": (2.25, 2.25),  # with a mask of 1 byte
}
"""Values that an operator of `hardware.operators` reads and writes for each that goes in, forward and backward."""
OPTIMIZER_ACCESSES = 5
"""SGD with momentum reads weight, gradient and momentum, and writes weight and momentum."""


@dataclass(frozen=True)
class Chip:
    """A GPU. dense_share, csr_share: of the peak that products reach. launch_s: a kernel launch out of PyTorch."""

    name: str
    memory_bytes: int
    flop_per_s: float
    memory_bytes_per_s: float
    dense_share: float
    csr_share: float
    launch_s: float


@dataclass(frozen=True)
class Wire:
    """What joins GPUs: latency of one step of a collective, bandwidth each way. ``total``: of all wires of a host together."""

    medium: str
    latency_s: float
    bandwidth_bytes_per_s: float
    total_bytes_per_s: float


@dataclass(frozen=True)
class Machine:
    """Hosts of equal GPUs. within, between: what joins those of one host, and the hosts. collective_s: the constant of a collective.

    slowdown: of a computation while a sum runs under it, whose kernels take multiprocessors and bandwidth of the memory.
    sources: where each figure comes from; what nobody states is named as assumed.
    """

    name: str
    hosts: int
    gpus: int
    chip: Chip
    within: Wire
    between: Wire | None
    collective_s: float
    step_overhead_s: float
    slowdown: float
    sources: dict[str, str]

    @property
    def count(self) -> int:
        """GPUs in all."""
        return self.hosts * self.gpus

    def profile(self) -> Profile:
        """The profile that this machine should have."""
        chip = self.chip
        devices = tuple(Device(chip.name, "cuda", n, chip.memory_bytes, f"{self.name}/{n // self.gpus}/{n}") for n in range(self.count))
        kernels = tuple(kernel_times(chip))
        return Profile(
            schema_version=SCHEMA_VERSION,
            key=f"preset {self.name}",
            made_at="",
            machine={"preset": self.name},
            dtype="float32",
            devices=devices,
            links=tuple(self._links()),
            kernels=kernels,
            without_input_gradient=dict.fromkeys((row.kernel for row in kernels), 2 / 3),  # two products of three
            collectives=tuple(self._collectives()),
            step_overhead_s=self.step_overhead_s,
            halos=tuple(self._halos()),
            overlaps=tuple(self._overlaps()),
            operators=tuple(operator_times(chip)),
            sources=self.sources,
        )

    def _wire(self, first: int, second: int) -> Wire:
        if first // self.gpus == second // self.gpus or self.between is None:
            return self.within
        return self.between

    def _links(self) -> Iterator[MeasuredLink]:
        for first, second in combinations(range(self.count), 2):
            wire = self._wire(first, second)
            yield MeasuredLink(first, second, self.collective_s + wire.latency_s, wire.bandwidth_bytes_per_s, wire.medium)

    def _collectives(self) -> Iterator[CollectiveTime]:
        counts = {2**power for power in range(1, self.count.bit_length()) if 2**power <= self.count}
        names: tuple[Collective, ...] = ("exchange", "sum", "gather")
        for count, name, size in product(sorted(counts | {self.count}), names, SIZES):
            yield CollectiveTime(name, count, size, self.collective_seconds(name, count, size))

    def _overlaps(self) -> Iterator[Overlap]:
        """A computation twice as long as the sum under it, which has 1 / slowdown of its rate for as long as that takes."""
        sum_s = self.collective_seconds("sum", self.count, OVERLAPPED_BYTES)
        yield Overlap(self.count, OVERLAPPED_BYTES, 2 * sum_s, sum_s, 2 * sum_s + sum_s * (1 - 1 / self.slowdown))

    def _halos(self) -> Iterator[HaloTime]:
        """Two exchanges, and both ways the own values read and written, the remote ones twice, by three kernels."""
        for count, own, share in product(sorted({2, self.count}), SIZES, (1 / 16, 1)):
            remote = max(1, round(own * share))
            copied = 4 * (own + 2 * remote) / self.chip.memory_bytes_per_s + 2 * 3 * self.chip.launch_s
            yield HaloTime(count, own, remote, 2 * self.collective_seconds("exchange", count, remote) + copied)

    def collective_seconds(self, name: Collective, ranks: int, size_bytes: float) -> float:
        """Rings for sums and gathers, whose every wire carries the same; all pairs at once for exchanges."""
        hosts = -(-ranks // self.gpus)
        within, between = self.within, self.between if hosts > 1 and self.between is not None else self.within
        if name == "exchange":
            remote = (ranks - self.gpus) / (ranks - 1) if hosts > 1 else 0.0
            busy = max((1 - remote) * size_bytes / within.bandwidth_bytes_per_s, remote * size_bytes / between.bandwidth_bytes_per_s)
            return self.collective_s + between.latency_s + busy
        rounds = 2 if name == "sum" else 1
        latency = rounds * ((ranks - hosts) * within.latency_s + (hosts - 1) * between.latency_s)
        passed = rounds * (ranks - 1) * (size_bytes / ranks if name == "sum" else size_bytes)  # through every device
        return self.collective_s + latency + passed / min(within.bandwidth_bytes_per_s, between.total_bytes_per_s)


def kernel_times(chip: Chip) -> Iterator[KernelTime]:
    """The tables of all kernels."""
    for convolution, widths, batches in ((False, WIDTHS, BATCHES), (True, CONV_WIDTHS, CONV_BATCHES)):
        for rows, columns, batch in product(widths, widths, batches):
            dense = layer_seconds(chip, rows, columns, batch)
            mask = 3 * VALUE_BYTES * rows * columns / chip.memory_bytes_per_s + chip.launch_s
            yield KernelTime(table_name("dense", convolution=convolution), rows, columns, batch, 1.0, dense)
            yield KernelTime(table_name("dense" + MASKED, convolution=convolution), rows, columns, batch, 1.0, dense + mask)
            for density in DENSITIES:
                seconds = layer_seconds(chip, rows, columns, batch, density, unfolded=convolution)
                yield KernelTime(table_name("csr", convolution=convolution), rows, columns, batch, density, seconds)


def operator_times(chip: Chip) -> Iterator[OperatorTime]:
    """The tables of all operators, which are bound by the memory: a launch and their accesses, each way."""
    for (kind, (there, back)), values in product(ACCESSES.items(), SIZES):
        forward, backward = (chip.launch_s + share * VALUE_BYTES * values / chip.memory_bytes_per_s for share in (there, back))
        yield OperatorTime(kind, values, forward + backward, forward)


def layer_seconds(chip: Chip, rows: int, columns: int, batch: int, density: float | None = None, *, unfolded: bool = False) -> float:
    """A layer step, dense or (with a density) compressed; ``unfolded``: a convolution that first writes out its columns.

    >>> chip = Chip("ideal", 1, 1.0, float("inf"), 1.0, 1.0, 0.0)
    >>> layer_seconds(chip, 2, 3, 5), layer_seconds(chip, 2, 3, 5, 0.5)
    (180.0, 90.0)
    """
    connections = rows * columns * (1.0 if density is None else density)
    share = chip.dense_share if density is None else chip.csr_share
    weight_bytes = connections * (VALUE_BYTES if density is None else VALUE_BYTES + INDEX_BYTES)
    values_bytes = VALUE_BYTES * batch * (rows + columns)
    one = max(2 * connections * batch / (share * chip.flop_per_s), (weight_bytes + values_bytes) / chip.memory_bytes_per_s)
    passed = 4 * VALUE_BYTES * batch * rows + OPTIMIZER_ACCESSES * VALUE_BYTES * connections
    passed += 6 * VALUE_BYTES * batch * columns if unfolded else 0  # written and read, forward and for both gradients
    return 3 * one + passed / chip.memory_bytes_per_s + LAUNCHES * chip.launch_s
