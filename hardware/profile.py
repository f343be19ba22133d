"""What this machine's devices and links really do: measured once, cached, never used for another machine in silence.

Kernel times are those of a whole layer step on one device: forward, both gradients, activation and the optimizer's update.

Legend: rows, columns and batch are those of the product (batch, columns) x (columns, rows); a convolution counts its taps as
columns and its output positions as batch. Times in seconds, sizes in bytes; a collective's bytes are what one rank hands in.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hardware.devices import Device, DeviceGraph, Link, cpu_name, driver

if TYPE_CHECKING:
    import torch
    from scipy.interpolate import RegularGridInterpolator

    from grow.kernels import KernelCase
    from grow.layers import SparseLayer
    from hardware.execute.exchange import Peers
    from hardware.execute.ranks import Rank

SCHEMA_VERSION = 1
ROWS = (16, 128, 1024)
COLUMNS = (64, 256, 1024)
BATCHES = (64, 256)
DENSITIES = (0.02, 0.1, 0.3)
CONV_CASES = {"rows": (16, 64), "columns": (25, 400), "batch": (1024, 16384)}  # kernel 5 x 5, maps of 8 x 8
SIZES = (8, 64, 512, 4096, 2**15, 2**18, 2**21, 2**23)  # 8 B to 8 MiB
Progress: TypeAlias = Callable[[str], None]
FloatArray: TypeAlias = NDArray[np.float64]
Collective: TypeAlias = Literal["exchange", "sum"]
"""What ranks do together: every one hands the others equal shares of its bytes, or all add up a tensor."""


def table_name(kernel: str, *, convolution: bool) -> str:
    """Name of the table of a kernel's times, which for a convolution are other ones: it unfolds its input."""
    return f"conv {kernel}" if convolution else kernel


@dataclass(frozen=True)
class KernelTime:
    """One measured layer step. ``kernel`` is one of the engine's, or ``conv `` and its name for a convolution."""

    kernel: str
    rows: int
    columns: int
    batch: int
    density: float
    seconds: float


@dataclass(frozen=True)
class MeasuredLink:
    """A link between two devices, by their places."""

    first: int
    second: int
    latency_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True)
class CollectiveTime:
    """One measured collective on the first ``ranks`` devices."""

    collective: Collective
    ranks: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Measured rates of devices and links. ``without_input_gradient``: per kernel, the share of its time that the first layer takes."""

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

    @property
    def element_size(self) -> int:
        """Bytes of one value."""
        return {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]

    @cached_property
    def graph(self) -> DeviceGraph:
        """The device graph."""
        links = {(link.first, link.second): Link(link.latency_s, link.bandwidth_bytes_per_s) for link in self.links}
        return DeviceGraph(self.devices, links)

    @cached_property
    def word(self) -> Literal["predicted", "simulated"]:
        """What a figure that comes out of this profile is called on this machine."""
        return "predicted" if self.key == key_of(self.devices, self.dtype) else "simulated"

    @cached_property
    def _tables(self) -> Mapping[str, RegularGridInterpolator]:
        return {name: _table([row for row in self.kernels if row.kernel == name]) for name in {row.kernel for row in self.kernels}}

    def seconds(self, kernel: str, rows: int, columns: int, density: float, batch: int) -> float:
        """Time of a layer step, interpolated in logarithms and continued by the nearest slopes; 0 where there is nothing to do."""
        if kernel not in self._tables:
            measured = ", ".join(sorted(self._tables))
            raise ValueError(f"kernel is {kernel!r}, but must be one that was measured: {measured}; measure it with `grow profile`")
        if min(rows, columns, batch, density) <= 0:
            return 0.0
        point = np.log([rows, columns, batch, density])
        table = self._tables[kernel]
        return float(np.exp(table(point[: len(table.grid)])[0]))

    def timings(self, kernel: str, case: KernelCase) -> float | None:
        """What ``grow.kernels.fastest`` asks; None for what was not measured."""
        table = table_name(kernel, convolution=case.convolution)
        if table not in self._tables or case.device != self.devices[0].kind:
            return None
        return self.seconds(table, case.rows, case.columns, case.density, case.batch)

    def collective_seconds(self, collective: Collective, ranks: int, size_bytes: float) -> float:
        """Time of a collective on ``ranks`` devices; by the slowest link where this number was not measured."""
        rows = sorted((row.bytes, row.seconds) for row in self.collectives if (row.collective, row.ranks) == (collective, ranks))
        if ranks < 2:
            return 0.0
        if not rows:
            return self._modelled(collective, ranks, size_bytes)
        sizes, seconds = np.array(rows).T
        beyond = seconds[-1] * size_bytes / sizes[-1]  # bandwidth alone
        return float(beyond if size_bytes > sizes[-1] else np.exp(np.interp(np.log(max(size_bytes, 1)), np.log(sizes), np.log(seconds))))

    def _modelled(self, collective: Collective, ranks: int, size_bytes: float) -> float:
        """Hockney's model: a ring's all-reduce has 2 (k - 1) steps of bytes / k, an exchange k - 1 messages of bytes / (k - 1)."""
        links = [link for pair, link in self.graph.links.items() if max(pair) < ranks] or list(self.graph.links.values())
        if not links:
            raise ValueError(
                f"the profile has {len(self.devices)} devices, but must have at least 2 for {ranks} ranks; measure it with `grow profile`"
            )
        steps, message = (2 * (ranks - 1), size_bytes / ranks) if collective == "sum" else (ranks - 1, size_bytes / (ranks - 1))
        return steps * max(link.seconds(message) for link in links)

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
        """Read a profile; ValueError where it is damaged or of another version."""
        from pydantic import TypeAdapter, ValidationError

        try:
            found = TypeAdapter(Profile).validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(
                f"profile {path} has {place or 'its text'} wrong ({first['msg']}), but must be whole; measure it with `grow profile`"
            ) from None
        if found.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version of {path} is {found.schema_version}, but must be {SCHEMA_VERSION}; measure it with `grow profile`"
            )
        return found


def key_of(devices: tuple[Device, ...], dtype: str = "float32") -> str:
    """What a profile is valid for: these devices on this machine, with this driver, torch and dtype."""
    facts = [
        *(f"{device.kind} {device.name} {device.id}" for device in devices),
        platform.node(),
        cpu_name(),
        driver(),
        version("torch"),
        dtype,
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Where profiles are kept for this user."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "grow" / "profiles"


def obtain(
    devices: tuple[Device, ...], dtype: str = "float32", *, anew: bool = False, progress: Progress = lambda message: None
) -> Profile:
    """The cached profile of these devices, or a new one, which is then cached."""
    path = cache_folder() / f"{key_of(devices, dtype)}.json"
    if path.exists() and not anew:
        try:
            found = Profile.load(path)
        except ValueError:
            progress("the cached profile is damaged")
        else:
            if found.key == path.stem:
                return found
    found = measure(devices, dtype, progress=progress)
    try:
        found.save(path)
    except OSError as error:
        progress(f"the profile cannot be cached: {error}")
    return found


def measure(devices: tuple[Device, ...], dtype: str = "float32", *, progress: Progress = lambda message: None) -> Profile:
    """Measure kernels, links and collectives: as many ranks as devices, each pinned to its own; kernels on the first alone."""
    from hardware.execute.ranks import run_ranks

    kind = devices[0].kind
    progress(f"measuring {len(devices)} x {devices[0].name}: kernels, links, collectives")
    begun = time.monotonic()
    first = run_ranks(measure_rank, dtype, ranks=len(devices), kind=kind, timeout_s=120.0)[0]
    progress(f"measured in {time.monotonic() - begun:.1f} s")
    machine = {
        "host": platform.node(),
        "cpu": cpu_name(),
        "driver": driver(),
        "torch": version("torch"),
        "python": platform.python_version(),
        "platform": sys.platform,
    }
    return Profile(
        schema_version=SCHEMA_VERSION,
        key=key_of(devices, dtype),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        dtype=dtype,
        devices=devices,
        links=first.links,
        kernels=first.kernels,
        without_input_gradient=first.without_input_gradient,
        collectives=first.collectives,
        step_overhead_s=first.step_overhead_s,
    )


# ---- in a rank ----


@dataclass(frozen=True)
class Measured:
    """What one rank measured; kernels on rank 0 only."""

    kernels: tuple[KernelTime, ...]
    without_input_gradient: Mapping[str, float]
    step_overhead_s: float
    links: tuple[MeasuredLink, ...]
    collectives: tuple[CollectiveTime, ...]


def measure_rank(rank: Rank, dtype: str) -> Measured:
    """Kernels on rank 0 while the others wait, then links and collectives on all."""
    import torch
    from torch import distributed

    kernels: tuple[KernelTime, ...] = ()
    share: dict[str, float] = {}
    overhead = 0.0
    if rank.number == 0:
        torch.manual_seed(0)
        bench = _Bench(rank.device, getattr(torch, dtype))
        kernels, share, overhead = bench.kernels(), bench.without_input_gradient(), bench.overhead()
    if rank.count == 1:
        return Measured(kernels, share, overhead, (), ())
    distributed.barrier()
    return Measured(kernels, share, overhead, measure_links(rank), measure_collectives(rank))


def measure_links(rank: Rank) -> tuple[MeasuredLink, ...]:
    """Ping-pong between each pair of ranks over all sizes. Latency: of the smallest message; bandwidth: fitted to the larger ones."""
    import torch
    from torch import distributed

    found = []
    for first, second in combinations(range(rank.count), 2):
        times = []
        for size in SIZES:
            tensor = torch.zeros(size, dtype=torch.uint8, device=rank.device)

            def ping_pong(tensor: torch.Tensor = tensor, first: int = first, second: int = second) -> None:
                if rank.number == first:
                    distributed.send(tensor, second)
                    distributed.recv(tensor, second)
                elif rank.number == second:
                    distributed.recv(tensor, first)
                    distributed.send(tensor, first)

            if rank.number in (first, second):
                times.append(_timed(ping_pong, rank.device, repeats=_repeats(size, rank.count), budget_s=None) / 2)
        distributed.barrier()
        link = _fit(np.array(SIZES[: len(times)], float), np.array(times)) if times else Link(0.0, 1.0)
        shared = torch.tensor([link.latency_s, link.bandwidth_bytes_per_s], dtype=torch.float64, device=rank.device)
        distributed.broadcast(shared, first)
        found.append(MeasuredLink(first, second, float(shared[0]), float(shared[1])))
    return tuple(found)


def measure_collectives(rank: Rank) -> tuple[CollectiveTime, ...]:
    """Exchanges and sums of all sizes, as a training step does them, on the first 2, 4, 8, ... and on all ranks."""
    from torch import distributed

    from hardware.execute.exchange import Peers
    from hardware.execute.ranks import settle_gloo

    found: list[CollectiveTime] = []
    counts = sorted({2**power for power in range(1, rank.count.bit_length()) if 2**power < rank.count} | {rank.count})
    for count in counts:
        group = distributed.new_group(list(range(count)))
        settle_gloo()
        if rank.number < count:
            peers = Peers(rank.number, count, group)
            for size in SIZES:
                found += _collectives(rank, peers, size)
        distributed.barrier()
    return tuple(found)


def _collectives(rank: Rank, peers: Peers, size: int) -> tuple[CollectiveTime, CollectiveTime]:
    import torch

    others = [number for number in range(peers.count) if number != peers.rank]
    share = torch.zeros(max(1, size // 4 // len(others)), device=rank.device)
    handed = [share if number in others else None for number in range(peers.count)]
    shapes = [tuple(share.shape) if number in others else (0,) for number in range(peers.count)]
    whole = torch.zeros(max(1, size // 4), device=rank.device)
    repeats = _repeats(size, rank.count)
    exchanged = _timed(partial(peers.exchange, handed, shapes), rank.device, repeats, None)
    summed = _timed(partial(peers.sum, whole), rank.device, repeats, None)
    return CollectiveTime("exchange", peers.count, size, exchanged), CollectiveTime("sum", peers.count, size, summed)


class _Bench:
    """Layer steps on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def kernels(self) -> tuple[KernelTime, ...]:
        """The tables of all kernels."""
        from grow.kernels import KERNELS

        found = []
        for rows in ROWS:
            for columns in COLUMNS:
                for batch in BATCHES:
                    for name, kernel in KERNELS.items():
                        for density in (1.0,) if kernel.storage == "dense" else DENSITIES:
                            seconds = self.layer_step(name, rows, columns, batch, density)
                            found.append(KernelTime(name, rows, columns, batch, density, seconds))
        for rows in CONV_CASES["rows"]:
            for columns in CONV_CASES["columns"]:
                for batch in CONV_CASES["batch"]:
                    for name, kernel in KERNELS.items():
                        for density in (1.0,) if kernel.storage == "dense" else DENSITIES:
                            seconds = self.conv_step(name, rows, columns, batch, density)
                            found.append(KernelTime(table_name(name, convolution=True), rows, columns, batch, density, seconds))
        return tuple(found)

    def without_input_gradient(self) -> dict[str, float]:
        """Per kernel, the time of a step without the gradient of the input over the time with it."""
        from grow.kernels import KERNELS

        found = {}
        for name in KERNELS:
            found[table_name(name, convolution=True)] = 2 / 3  # three products of equal size, of which one is left out
            with_it, without = (self.layer_step(name, 512, 512, 256, 0.1, input_gradient=needed) for needed in (True, False))
            found[name] = min(1.0, without / with_it)
        return found

    def overhead(self) -> float:
        """A step without any layer: loss, autograd and an optimizer of one small parameter."""
        import torch
        from torch.nn import functional

        logits = torch.zeros(256, 10, device=self.device, dtype=self.dtype, requires_grad=True)
        targets = torch.zeros(256, dtype=torch.int64, device=self.device)
        optimizer = torch.optim.SGD([logits], lr=0.0, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()

        return _timed(step, self.device, 20)

    def layer_step(self, kernel: str, rows: int, columns: int, batch: int, density: float, *, input_gradient: bool = True) -> float:
        """One linear layer with its activation, through autograd and SGD with momentum; every connection exists in a dense one."""
        import torch

        from grow.layers import SparseLinear

        layer = SparseLinear(torch.randn(rows, columns, dtype=self.dtype) * 0.01, torch.zeros(rows, dtype=self.dtype))
        _thin_out(layer, kernel, density)
        x = torch.randn(batch, columns, device=self.device, dtype=self.dtype, requires_grad=input_gradient)
        return self._step(layer.to(self.device), x)

    def conv_step(self, kernel: str, rows: int, columns: int, batch: int, density: float) -> float:
        """One 5 x 5 convolution on maps of 8 x 8 with its activation: ``columns`` / 25 channels in, ``batch`` / 64 samples."""
        import torch

        from grow.layers import SparseConv2d

        weight = torch.randn(rows, columns // 25, 5, 5, dtype=self.dtype) * 0.01
        layer = SparseConv2d(weight, torch.zeros(rows, dtype=self.dtype), (1, 1), (2, 2), (1, 1))
        _thin_out(layer, kernel, density)
        x = torch.randn(batch // 64, columns // 25, 8, 8, device=self.device, dtype=self.dtype, requires_grad=True)
        return self._step(layer.to(self.device), x)

    def _step(self, layer: torch.nn.Module, x: torch.Tensor) -> float:
        import torch

        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
        upstream = torch.ones_like(layer(x).detach())

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            x.grad = None
            torch.relu(layer(x)).backward(upstream)  # type: ignore[no-untyped-call,unused-ignore]
            optimizer.step()

        return _timed(step, self.device, 15)


def _thin_out(layer: SparseLayer, kernel: str, density: float) -> None:
    """Give a layer that is to be computed by a compressed kernel so many random connections."""
    import torch

    from grow.kernels import KERNELS

    if KERNELS[kernel].storage == "compressed":
        possible = layer.weight.numel()
        index = np.sort(np.random.default_rng(0).choice(possible, max(1, round(density * possible)), replace=False))
        values = torch.nn.Parameter(layer.weight.detach().reshape(-1)[torch.from_numpy(index)])
        layer.restructure(layer.weight_shape, index, kernel, values)


def _timed(call: Callable[[], object], device: torch.device, repeats: int, budget_s: float | None = 0.06) -> float:
    """Seconds of a call after a warm-up; of all repeats the lower quartile, since other programs only ever add time.

    With a budget it is the device's own work: CUDA events, or the time that the processor spends on this process. Without one
    other ranks take part: then the wall clock, and always the same number of repeats.
    """
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []  # type: ignore[no-untyped-call,unused-ignore]
    clock = time.perf_counter if budget_s is None else time.process_time
    for _ in range(2):
        call()
    times: list[float] = []
    end = time.perf_counter() + (budget_s or 0.0)
    while len(times) < repeats and (budget_s is None or len(times) < 3 or time.perf_counter() < end):
        begun = clock()
        if events:
            events[0].record()
        call()
        if events:
            events[1].record()
            torch.cuda.synchronize(device)
        times.append(events[0].elapsed_time(events[1]) / 1000 if events else clock() - begun)
    return float(np.quantile(times, 0.25))


def _repeats(size: int, ranks: int) -> int:
    return max(3, (40 if size < 2**20 else 8) // max(1, ranks // 2))


def _fit(sizes: FloatArray, seconds: FloatArray) -> Link:
    """Latency of small messages; bandwidth of what larger ones take beyond it, the largest counting most."""
    latency = float(seconds[:3].min())
    larger = sizes >= 2**15
    extra = float((seconds[larger] - latency).sum())
    return Link(latency, float(sizes[larger].sum() / extra if extra > 0 else sizes[-1] / seconds[-1]))


def _table(rows: list[KernelTime]) -> RegularGridInterpolator:
    """Logarithm of the seconds over those of rows, columns and batch, and of the density where it varies."""
    from scipy.interpolate import RegularGridInterpolator

    points = np.array([(row.rows, row.columns, row.batch, row.density) for row in rows])
    axes = [np.unique(points[:, axis]) for axis in range(4)]
    axes = axes if len(axes[3]) > 1 else axes[:3]
    values = np.full([len(axis) for axis in axes], np.nan)
    for row, point in zip(rows, points, strict=True):
        values[tuple(int(np.searchsorted(axis, x)) for axis, x in zip(axes, point, strict=False))] = np.log(row.seconds)
    if np.isnan(values).any():
        raise ValueError(
            f"kernel {rows[0].kernel!r} of the profile has gaps, but must be measured at every point of its grid; run `grow profile`"
        )
    return RegularGridInterpolator([np.log(axis) for axis in axes], values, bounds_error=False, fill_value=None)
