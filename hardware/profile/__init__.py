"""What a machine's devices and links really do, as a record: measured once, cached, never used for another machine in silence.

Kernel times are what a layer adds to a step on one device: forward, both gradients, activation and the optimizer's update.

    Profile         here             what is asked of it, and its file
    measurements    measurements.py  the records that it consists of
    calibration     calibration.py   what corrects them, and how good predictions then are
    key             key.py           what it is valid for

Legend: rows, columns and batch are those of the product (batch, columns) x (columns, rows); a convolution counts its taps as
columns and its output positions as batch. Times in seconds, sizes in bytes; a collective's bytes are what one rank hands in.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from math import exp, isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from hardware.devices import Device, DeviceGraph, Link
from hardware.profile.calibration import Calibration, Coefficients
from hardware.profile.key import KEYED, key_of, machine
from hardware.profile.measurements import (
    LEAST_HIDDEN,
    Collective,
    CollectiveTime,
    Contention,
    HaloTime,
    KernelTime,
    MeasuredLink,
    MessageTime,
    OperatorTime,
    Overlap,
)
from hardware.tables import FloatArray, KernelTable, SizeTable

if TYPE_CHECKING:
    from grow.kernels import KernelCase

SCHEMA_VERSION = 8
Progress: TypeAlias = Callable[[str], None]

MASKED = " masked"
"""Ends the name of a dense kernel's table of times with a mask: without one every connection exists."""
FIRST = " first"
"""Ends the name of a kernel's table of times in a first layer, which reads data row-major and leaves the gradient of its input out."""

TILED = "compiled"
"""Computes whole tiles of the batch. In a convolution the positions of all samples fill many."""
CONVOLUTION_TAPS = (9, 25)
"""Of the convolutions that are measured: kernels of 3 x 3 and of 5 x 5."""
FEW_CHANNELS = 4
"""The channels of an image."""


def table_name(kernel: str, *, convolution: bool, taps: int = CONVOLUTION_TAPS[1]) -> str:
    """Name of the table of a kernel's times, which for a convolution are other ones: it unfolds its input."""
    if not convolution:
        return kernel
    return f"conv {kernel}" if taps == CONVOLUTION_TAPS[1] else f"conv 3x3 {kernel}"


@dataclass(frozen=True)
class Profile:
    """Measured rates of devices and links.

    without_input_gradient: per kernel, the share of its time that the first layer takes, where that has no table of its own. unfilled:
    seconds by which a batch that does not fill its tiles makes a step of the compiled kernel longer, and for every value of them that is
    copied into some that it fills. tile_bytes: what a feature takes in a tile of that kernel. channel_block: channels that a dense
    convolution computes at a time: it takes as long for fewer. unpadded: how much longer one takes whose maps shrink for want of padding.
    sources: where the figures of a machine that was never measured come from, by what they are.
    """

    schema_version: int
    key: str
    made_at: str
    machine: Mapping[str, str]
    dtype: str
    devices: tuple[Device, ...]
    links: tuple[MeasuredLink, ...]
    kernels: tuple[KernelTime, ...]
    without_input_gradient: Mapping[str, float]
    collectives: tuple[CollectiveTime, ...]
    step_overhead_s: float
    messages: tuple[MessageTime, ...] = ()
    contention: tuple[Contention, ...] = ()
    halos: tuple[HaloTime, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    operators: tuple[OperatorTime, ...] = ()
    unfilled: tuple[float, float] = (0.0, 0.0)
    tile_bytes: tuple[int, ...] = (512, 256, 64)
    channel_block: int = 1
    unpadded: float = 1.0
    coefficients: Coefficients = field(default_factory=Coefficients)
    calibration: Calibration | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def element_size(self) -> int:
        """Bytes of one value."""
        return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]

    @cached_property
    def graph(self) -> DeviceGraph:
        """The device graph."""
        links = {(link.first, link.second): Link(link.latency_s, link.bandwidth_bytes_per_s, link.medium) for link in self.links}
        return DeviceGraph(self.devices, links)

    @cached_property
    def word(self) -> Literal["predicted", "simulated"]:
        """What a figure that comes out of this profile is called on this machine."""
        return "predicted" if self.key == key_of(self.devices, self.dtype) else "simulated"

    @property
    def described(self) -> str:
        """The machine in words, such as ``2 x NVIDIA H100 (host7)``."""
        names = [device.name for device in self.devices]
        devices = " and ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        place = self.machine.get("preset") or self.machine.get("host")
        return f"{devices} ({place})" if place else devices

    def differences(self) -> list[str]:
        """In what this machine differs from the one that was profiled, in words; empty if it is the very one."""
        here = machine()
        known = [
            f"{name} was {self.machine[name]!r} and is {here[name]!r}" for name in KEYED if self.machine.get(name, here[name]) != here[name]
        ]
        if not known and "host" in self.machine and "kernels" not in self.machine:
            known = ["it does not say which kernels it has times of"]
        return known or ([] if self.word == "predicted" else ["the devices are others"])

    # ---- what the cost model asks ----

    @cached_property
    def _kernel_tables(self) -> Mapping[str, KernelTable]:
        from grow.kernels.tiles import batch_cost

        tables, in_tiles = {}, partial(batch_cost, element_size=self.element_size, tiles=self.tile_bytes)
        for name in {row.kernel for row in self.kernels}:
            cost_of = in_tiles if name in (TILED, TILED + FIRST) else float
            tables[name] = KernelTable([row for row in self.kernels if row.kernel == name], cost_of)
        return tables

    @cached_property
    def _operator_tables(self) -> Mapping[str, tuple[SizeTable, SizeTable]]:
        """Per kind: seconds there and back, and forward, over the values that go in."""
        found = {}
        for name in {row.operator for row in self.operators}:
            rows = [row for row in self.operators if row.operator == name]
            found[name] = SizeTable([(r.values, r.seconds) for r in rows]), SizeTable([(r.values, r.forward_s) for r in rows])
        return found

    @cached_property
    def _contention_tables(self) -> Mapping[tuple[str, int], SizeTable]:
        tables: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for row in self.contention:
            tables.setdefault((row.kernel, row.devices), []).append((row.bytes, row.ratio))
        return {key: SizeTable(rows) for key, rows in tables.items()}

    @cached_property
    def _collective_tables(self) -> Mapping[tuple[str, int], SizeTable]:
        tables: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for row in self.collectives:
            tables.setdefault((row.collective, row.ranks), []).append((row.bytes, row.seconds))
        return {key: SizeTable(rows) for key, rows in tables.items()}

    @cached_property
    def _halo_rates(self) -> Mapping[tuple[bool, int], FloatArray]:
        """By layout and number of ranks: seconds of a halo beyond its two exchanges, and per byte of its own and of its remote values."""
        from hardware.tables import rates

        found = {}
        for by_unit, ranks in sorted({(row.by_unit, row.ranks) for row in self.halos}):
            rows = [row for row in self.halos if (row.by_unit, row.ranks) == (by_unit, ranks)]
            extra = [row.seconds - 2 * self._exchange_s(ranks, row.halo_bytes) for row in rows]
            found[by_unit, ranks] = rates([(1.0, row.own_bytes, row.halo_bytes) for row in rows], extra, [row.seconds for row in rows])
        return found

    def seconds(
        self, kernel: str, rows: int, columns: int, density: float, batch: int, devices: int = 1, *, input_gradient: bool = True
    ) -> float:
        """Time of a layer step while ``devices`` compute, interpolated and continued by the nearest slopes.

        0 where there is nothing to do. A dense kernel that lacks connections has a mask to apply.
        """
        if min(rows, columns, batch, density) <= 0:
            return 0.0
        name = kernel + MASKED if density < 1 and kernel + MASKED in self._kernel_tables else kernel
        if name not in self._kernel_tables:
            measured = ", ".join(sorted(self._kernel_tables))
            raise ValueError(f"kernel is {kernel!r}, but must be one that was measured: {measured}; measure it with `grow profile`")
        if input_gradient or name + FIRST in self._kernel_tables:
            alone = self._kernel_tables[name if input_gradient else name + FIRST].seconds(rows, columns, batch, density)
        else:
            alone = self._kernel_tables[name].seconds(rows, columns, batch, density) * self.without_input_gradient.get(kernel, 1.0)
        if kernel == TILED:
            alone += self._copied_s(rows, columns if input_gradient else 0, batch)
        if devices == 1:
            return alone * self.coefficients.alone
        return alone * self.coefficients.together * self._contended(kernel, devices, touched_bytes(rows, columns, batch, self.element_size))

    def _copied_s(self, rows: int, columns: int, batch: int) -> float:
        """Time in which outputs' gradients and inputs are copied into whole tiles; those of a first layer are in any case."""
        from grow.kernels.tiles import fills_tiles

        if fills_tiles(batch, self.element_size, self.tile_bytes):
            return 0.0
        call_s, value_s = self.unfilled
        return call_s * (1.0 if columns else 0.5) + value_s * batch * (rows + columns)

    def convolution_seconds(
        self, kernel: str, rows: int, channels: int, taps: int, density: float, positions: int, devices: int = 1, *, padded: bool = True
    ) -> float:
        """Time of a layer step of a convolution: ``positions`` are those of the outputs of all samples; padded: they are as many as go in.

        A dense one takes as long as if its channels filled whole blocks (but for a first layer of few); between and beyond the
        measured numbers of taps it goes by their logarithm; its mask is small against its maps. Others are products of unfolded maps.
        """
        small, whole = (table_name(kernel, convolution=True, taps=taps) for taps in CONVOLUTION_TAPS)
        if kernel != "dense" or small not in self._kernel_tables or min(rows, channels, density, positions) <= 0:
            return self.seconds(whole, rows, channels * taps, density, positions, devices)
        rows, channels = (
            size if size <= FEW_CHANNELS else self.channel_block * -(-size // self.channel_block) for size in (rows, channels)
        )
        less, more = (
            self.seconds(name, rows, channels * measured, 1.0, positions, devices)
            for name, measured in zip((small, whole), CONVOLUTION_TAPS, strict=True)
        )
        share = log(taps / CONVOLUTION_TAPS[0]) / log(CONVOLUTION_TAPS[1] / CONVOLUTION_TAPS[0])
        seconds = exp((1 - share) * log(less) + share * log(more))
        return seconds if padded else seconds * self.unpadded

    def operator_seconds(self, kind: str, values: float, devices: int = 1) -> tuple[float, float]:
        """Time of an operator on so many values, there and back, and forward alone; 0 where its kind was not measured."""
        if kind not in self._operator_tables or values <= 0:
            return 0.0, 0.0
        factor = self.coefficients.alone if devices == 1 else self.coefficients.together
        both, forward = (table.seconds(values) for table in self._operator_tables[kind])
        return factor * both, factor * forward

    def _contended(self, kernel: str, devices: int, size_bytes: float) -> float:
        """The slowdown on so many devices; of the nearest smaller number where this one was not measured, of dense ones for others."""
        kernel = kernel.replace("3x3 ", "")  # measured on the larger one for both
        if all(name != kernel for name, _ in self._contention_tables):
            kernel = table_name("dense", convolution=kernel.startswith("conv "))
        counts = [count for name, count in self._contention_tables if name == kernel and count <= devices]
        return self._contention_tables[kernel, max(counts)].within(size_bytes) if counts else 1.0

    def timings(self, kernel: str, case: KernelCase) -> float | None:
        """What ``grow.kernels.fastest`` asks; None for what was not measured."""
        table = table_name(kernel, convolution=case.convolution)
        if table not in self._kernel_tables or case.device != self.devices[0].kind:
            return None
        if not case.convolution:
            product = case.rows, case.columns, case.density, case.batch
            return self.seconds(kernel, *product, case.devices, input_gradient=case.input_gradient)
        shape = case.rows, case.columns // case.taps, case.taps
        seconds = self.convolution_seconds(kernel, *shape, case.density, case.batch, case.devices, padded=case.padded)
        return seconds if case.input_gradient else seconds * self.without_input_gradient.get(table, 1.0)

    def kernel(self, case: KernelCase) -> str:
        """The engine's kernel that was measured to be the fastest; one that has all its connections is dense."""
        from grow.kernels import KERNELS, fastest

        return fastest(case, self.timings, KERNELS) if case.density < 1 else "dense"

    def fastest(self, case: KernelCase) -> tuple[float, str]:
        """Seconds of a layer step with that kernel, and the kernel: what the cost model counts with is what is executed."""
        kernel = self.kernel(case)
        seconds = self.timings(kernel, case)
        if seconds is None:
            names = ", ".join(sorted(self._kernel_tables))
            raise ValueError(f"kernel is {kernel!r}, but must be one that was measured: {names}; measure it with `grow profile`")
        return seconds, kernel

    def halo_seconds(self, ranks: int, own_bytes: float, halo_bytes: float, *, by_unit: bool = False) -> float:
        """Time that a step spends on the halo of one space, there and back: picking, sending and joining values.

        own_bytes, halo_bytes: values of the batch that a rank holds itself and that it gets from the others. by_unit: as `HaloTime` has it;
        where one layout was not measured, the other one's time.
        """
        if ranks < 2 or halo_bytes <= 0:
            return 0.0
        exchanged = 2 * self._exchange_s(ranks, halo_bytes)
        layout = by_unit if any(row.by_unit == by_unit for row in self.halos) else not by_unit
        known = [count for found, count in self._halo_rates if found == layout and count <= ranks]
        if known:
            constant, own, remote = map(float, self._halo_rates[layout, max(known)])
            exchanged += constant + own * own_bytes + remote * halo_bytes
        return self.coefficients.halo * exchanged + 2 * self.coefficients.call_s

    def _exchange_s(self, ranks: int, size_bytes: float) -> float:
        return self._plain_seconds("exchange", ranks, size_bytes)

    def collective_seconds(self, collective: Collective, ranks: int, size_bytes: float) -> float:
        """Time of a collective on ``ranks`` devices; by the slowest link where this number was not measured."""
        if ranks < 2:
            return 0.0
        factor = self.coefficients.sum if collective == "sum" else 1.0
        return factor * self._plain_seconds(collective, ranks, size_bytes) + self.coefficients.call_s

    def _plain_seconds(self, collective: Collective, ranks: int, size_bytes: float) -> float:
        table = self._collective_tables.get((collective, ranks))
        return self._modelled(collective, ranks, size_bytes) if table is None else table.seconds(size_bytes)

    def _modelled(self, collective: Collective, ranks: int, size_bytes: float) -> float:
        """Hockney's model: a ring's all-reduce has 2 (k - 1) steps of bytes / k, an exchange k - 1 messages of bytes / (k - 1)."""
        links = [link for pair, link in self.graph.links.items() if max(pair) < ranks] or list(self.graph.links.values())
        if not links:
            raise ValueError(
                f"the profile has {len(self.devices)} devices, but must have at least 2 for {ranks} ranks; measure it with `grow profile`"
            )
        steps, message = {
            "sum": (2 * (ranks - 1), size_bytes / ranks),
            "exchange": (ranks - 1, size_bytes / (ranks - 1)),
            "gather": (ranks - 1, size_bytes),
        }[collective]
        return steps * max(link.seconds(message) for link in links)

    def slowdown(self, ranks: int) -> float:
        """By what factor a device computes more slowly while a sum runs under it.

        Where no sum was measured, one core does one thing after the other, and a GPU is taken to do both at once.
        """
        from statistics import median

        rows = [row.slowdown for row in self.overlaps if row.ranks == ranks] or [row.slowdown for row in self.overlaps]
        return median(rows) if rows else 1 / LEAST_HIDDEN if self.devices[0].kind == "cpu" else 1.0

    # ---- files ----

    def check_devices(self, count: int) -> None:
        """ValueError where the machine has fewer than ``count`` devices."""
        if not 1 <= count <= len(self.devices):
            raise ValueError(
                f"gpus is {count}, but must be in 1..{len(self.devices)}, the devices of {self.described}; ask for fewer with --gpus"
            )

    def check(self) -> None:
        """ValueError where a figure cannot be: a time of nothing, a link without bandwidth, a graph that falls apart."""
        if not self.devices:
            raise ValueError("devices is empty, but must name at least one; measure it with `grow profile`")
        if not self.kernels:
            raise ValueError("kernels is empty, but must have the times of one at least; measure it with `grow profile`")
        for rows in (self.kernels, self.collectives, self.messages, self.halos, self.operators):
            for row in rows:
                if not (row.seconds > 0 and isfinite(row.seconds)):
                    raise ValueError(f"seconds of {row} is {row.seconds}, but must be positive and finite; measure it with `grow profile`")
        if not self.tile_bytes or min(self.tile_bytes) < 1:
            raise ValueError(f"tile_bytes is {self.tile_bytes}, but must be positive and not empty; measure it with `grow profile`")
        _ = self.graph, self._kernel_tables

    def save(self, path: Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        import json

        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as stream:
            json.dump(asdict(self), stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(stream.name, path)

    @staticmethod
    def load(path: Path) -> Profile:
        """Read a profile; ValueError where it is damaged, of another version, or describes what cannot be."""
        from pydantic import TypeAdapter, ValidationError

        text = path.read_bytes()
        found = _version_in(text)
        if found is not None and found != SCHEMA_VERSION:
            raise ValueError(f"schema_version of {path} is {found}, but must be {SCHEMA_VERSION}; measure it with `grow profile`")
        try:
            profile = TypeAdapter(Profile).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"profile {path} has {place or 'its text'} wrong ({first['msg']}), but must be whole; measure it with `grow profile`"
            ) from None
        try:
            profile.check()
        except ValueError as error:
            raise ValueError(f"profile {path} is unusable: {error}") from None
        return profile


def _version_in(text: bytes) -> object:
    import json

    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found.get("schema_version") if isinstance(found, dict) else None


def touched_bytes(rows: int, columns: int, batch: int, element_size: int) -> int:
    """Bytes that a layer step reads and writes at least: input, output and weight."""
    return element_size * (rows * columns + batch * (rows + columns))


def calibrated(profile: Profile, coefficients: Coefficients, calibration: Calibration) -> Profile:
    """The profile with coefficients that were fitted, and how good it is with them."""
    return replace(profile, coefficients=coefficients, calibration=calibration)
