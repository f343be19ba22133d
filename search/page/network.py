"""A network as a picture by parts, as matrices of connections, and what crosses every link.

Networks have thousands of units: a picture shows bins of them, and says how many units a bin holds. A bin never mixes devices.

Legend: U units, k parts, R C bins of rows and of columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grow.axes import IntArray, SpaceAxis, entry_units
from grow.topology import Connections, Topology
from hardware.partition import Partition, exchanges, remote_readers
from hardware.workload import Workload
from search.page import look
from search.page.markup import Chart, text

FloatArray = NDArray[np.float64]
Parts = Mapping[str, IntArray]

BINS = 24
"""Dots that stand for the units of one space, at most."""

CELLS = 48
"""Rows and columns of a matrix, at most."""

SHADES = 6
"""Strengths in which connections are drawn."""


@dataclass(frozen=True, eq=False)
class Binned:
    """Entries of one axis in bins. bin: of every entry, (U,); sizes (R,); part of every bin, -1 where it has none, (R,)."""

    bin: IntArray
    sizes: IntArray
    part: IntArray


def binned(part: IntArray, most: int) -> Binned:
    """Entries with their parts (U,) in ``most`` bins or one for each part, parts one after the other.

    >>> binned(np.array([0, 1, 0, 1, 1, 1]), 3).bin.tolist()
    [0, 1, 0, 1, 2, 2]
    """
    bins, sizes, parts, first = np.zeros(len(part), np.int64), list[int](), list[int](), 0
    for number in np.unique(part).tolist():
        members = np.flatnonzero(part == number)
        count = min(len(members), max(1, round(most * len(members) / len(part))))
        own = np.arange(len(members)) * count // len(members)
        bins[members] = first + own
        sizes += np.bincount(own, minlength=count).tolist()
        parts += [number] * count
        first += count
    return Binned(bins, np.array(sizes, np.int64), np.array(parts, np.int64))


def _part_of_entries(axis: SpaceAxis, topology: Topology, parts: Parts) -> IntArray:
    """Part of every entry of an axis, -1 where its space has none."""
    segment, unit = entry_units(axis, topology.units)
    found = np.full(len(segment), -1)
    for number, piece in enumerate(axis):
        if piece.space in parts:
            inside = segment == number
            found[inside] = parts[piece.space][unit[inside]]
    return found


# ---- matrices ----


def densities(topology: Topology, layer: Connections, parts: Parts, most: int = CELLS) -> tuple[FloatArray, Binned, Binned]:
    """Share of the possible connections that exist, by bins of rows and of columns, (R, C); units of one device stand together."""
    columns = layer.shape[1]
    rows = binned(_part_of_entries(layer.target, topology, parts), most)
    source = np.full(columns, -1) if layer.depthwise else _part_of_entries(layer.source, topology, parts)
    across = binned(source, most)
    at_row, at_column = layer.rows_and_columns(layer.positions())
    keys = rows.bin[at_row] * len(across.sizes) + across.bin[at_column]
    counts = np.bincount(keys, minlength=len(rows.sizes) * len(across.sizes)).reshape(len(rows.sizes), -1)
    return counts / (np.outer(rows.sizes, across.sizes) * prod(layer.shape[2:])), rows, across


def matrix(topology: Topology, layer: Connections, parts: Parts) -> Chart:
    """A heat map of a layer: what reads in rows, what is read in columns."""
    share, rows, columns = densities(topology, layer, parts)
    return {
        "data": [
            {
                "type": "heatmap",
                "z": [[round(100 * value, 3) for value in line] for line in share.tolist()],
                "zmin": 0,
                "zmax": max(round(100 * float(share.max()), 3), 1e-3),
                "colorscale": look.SCALE,
                "colorbar": {"title": {"text": "%", "side": "top"}, "thickness": 10, "len": 0.9, "outlinewidth": 0},
                "hovertemplate": "%{z:.2f} % of the possible connections<br>into bin %{y}, out of bin %{x}<extra></extra>",
            }
        ],
        "layout": look.layout(
            margin={"l": 36, "r": 8, "t": 8, "b": 40},
            xaxis=look.axis("units that are read", showgrid=False, showticklabels=False, ticks=""),
            yaxis=look.axis("units that read", showgrid=False, showticklabels=False, ticks="", autorange="reversed"),
            shapes=[*_borders(columns.part, "x"), *_borders(rows.part, "y")],
        ),
    }


def _borders(part: IntArray, way: str) -> list[dict[str, Any]]:
    """Lines between the devices."""
    line = {"color": look.CROSSING, "width": 1.5}
    found = []
    for place in (np.flatnonzero(np.diff(part)) + 0.5).tolist():
        fixed = {f"{way}0": place, f"{way}1": place}
        other = {"y0": 0, "y1": 1, "yref": "paper"} if way == "x" else {"x0": 0, "x1": 1, "xref": "paper"}
        found.append({"type": "line", "line": line, **fixed, **other})
    return found


# ---- the picture ----

_TOP, _BOTTOM, _HEIGHT, _SIDE, _COLUMN, _GAP = 46, 14, 400, 34, 92, 10

_NAMES = 'font-family="sans-serif" font-size="12" text-anchor="middle" fill="#7b8794"'
"""How names are written where no style sheet says so."""


@dataclass(frozen=True, eq=False)
class _Column:
    """A space in the picture: where it stands, its bins, and how high each of them is drawn."""

    space: str
    x: float
    bins: Binned
    y: FloatArray


def draw(topology: Topology, parts: Parts, alt: str) -> str:
    """The picture for the page, which scrolls where a network has many spaces."""
    return f'<div class="network">{drawing(topology, parts, alt)}</div>'


def drawing(topology: Topology, parts: Parts, alt: str) -> str:
    """An SVG of the network: spaces from left to right, their units by device, and the connections between them.

    Lines within a device have its colour, lines between devices the colour of what crosses; the denser, the stronger.
    """
    columns = _columns(topology, parts)
    width = round(max(column.x for column in columns.values()) + _SIDE)
    lines = [line for layer in topology.layers for line in _lines(topology, layer, parts, columns)]
    lines.sort(key=lambda line: line[0])  # what crosses comes last, above the rest
    body = "".join(markup for _, markup in lines) + "".join(_dots(column) for column in columns.values())
    heads = "".join(_head(column, _size(topology, column.space), len(columns)) for column in columns.values())
    return (
        f'<svg viewBox="0 0 {width} {_HEIGHT}" style="min-width:{min(width, 24 * len(columns) + 120)}px" '
        f'role="img" aria-label="{text(alt)}" xmlns="http://www.w3.org/2000/svg"><title>{text(alt)}</title>'
        f'<g fill="none">{body}</g><g {_NAMES}>{heads}</g></svg>'
    )


def _columns(topology: Topology, parts: Parts) -> dict[str, _Column]:
    found = {}
    distance = _COLUMN if len(topology.spaces) <= 8 else 60
    for number, space in enumerate(topology.spaces):
        bins = binned(parts.get(space.name, np.full(space.units, -1)), BINS)
        found[space.name] = _Column(space.name, _SIDE + number * distance, bins, _heights(bins.part))
    return found


def _heights(part: IntArray) -> FloatArray:
    """Bins at equal distances, with a gap between devices."""
    gaps = np.concatenate([[0], np.cumsum(np.diff(part) != 0)])
    room = _HEIGHT - _TOP - _BOTTOM - _GAP * gaps[-1]
    centres = (np.arange(len(part)) + 0.5) / len(part)
    heights: FloatArray = _TOP + centres * room + _GAP * gaps
    return heights


def _lines(topology: Topology, layer: Connections, parts: Parts, columns: Mapping[str, _Column]) -> list[tuple[int, str]]:
    """Paths of a layer, each with its rank: 0 shared, 1 within a device, 2 across."""
    found: dict[tuple[int, str, int], list[str]] = {}
    target = layer.target[0].space
    if layer.depthwise or target not in columns:
        return []
    _, unit_of_row = entry_units(layer.target, topology.units)
    segments, units, rows = topology.connected_units(layer, layer.positions())
    for number, segment in enumerate(layer.reads):
        a, b, inside = columns[segment.space], columns[target], segments == number
        counts = np.zeros((len(a.bins.sizes), len(b.bins.sizes)), np.int64)
        np.add.at(counts, (a.bins.bin[units[inside]], b.bins.bin[unit_of_row[rows[inside]]]), 1)
        share = counts / np.outer(a.bins.sizes, b.bins.sizes)
        for i, j in np.argwhere(counts).tolist():
            shade = ceil(SHADES * min(1.0, share[i, j] / share.max()) ** 0.5)
            first, second = int(a.bins.part[i]), int(b.bins.part[j])
            rank, colour = _kind(first, second)
            path = f"M{a.x:.0f} {a.y[i]:.1f}L{b.x:.0f} {b.y[j]:.1f}"
            found.setdefault((rank, colour, shade), []).append(path)
    return [
        (
            rank,
            f'<path d="{"".join(paths)}" stroke="{colour}" stroke-opacity="{_opacity(rank, shade)}"/>',
        )
        for (rank, colour, shade), paths in found.items()
    ]


def _kind(first: int, second: int) -> tuple[int, str]:
    if first < 0 or second < 0:
        return 0, look.SHARED
    return (1, look.device(first)) if first == second else (2, look.CROSSING)


def _opacity(rank: int, shade: int) -> float:
    return round((0.16, 0.30, 0.65)[rank] * (shade / SHADES) ** 2, 3)


def _dots(column: _Column) -> str:
    radius = min(5.0, 0.42 * (_HEIGHT - _TOP - _BOTTOM) / len(column.y))
    colours = [look.device(int(part)) for part in column.bins.part]
    return "".join(
        f'<circle cx="{column.x:.0f}" cy="{y:.1f}" r="{radius:.1f}" fill="{c}"/>' for y, c in zip(column.y, colours, strict=True)
    )


def _size(topology: Topology, name: str) -> str:
    """Units of a space; of an input, which is one unit, the values that are read of it."""
    space = topology.space(name)
    read = [segment.repeat * layer.source_values for layer in topology.consumers(name) for segment in layer.source if segment.space == name]
    return f"{space.units * max(read):,} values" if space.role == "input" and read else f"{space.units:,}"


def _head(column: _Column, size: str, spaces: int) -> str:
    """Name and size of a space; where there are many, slanted."""
    name = column.space if len(column.space) <= 12 else column.space[:5] + "\N{HORIZONTAL ELLIPSIS}" + column.space[-6:]
    x = f"{column.x:.0f}"
    slant = "" if spaces <= 8 else f' transform="rotate(-35 {x} 34)" style="text-anchor:start"'
    return f'<text x="{x}" y="16"{slant}>{text(name)}</text><text class="count" x="{x}" y="32"{slant}>{text(size)}</text>'


def units_per_dot(topology: Topology, parts: Parts) -> int:
    """Units of the largest bin of the picture."""
    return max(int(column.bins.sizes.max()) for column in _columns(topology, parts).values())


# ---- links ----


def units_sent(work: Workload, partition: Partition) -> IntArray:
    """Units that each part (row) sends to each other part (column), over all spaces, (k, k): the communication volume by link."""
    found = np.zeros((partition.count, partition.count), np.int64)
    for space, sent in [(name, sent) for name in work.hidden for sent in exchanges(work, name)]:
        needed = remote_readers(work, partition, space, sent)  # (U, k)
        for part in range(partition.count):
            found[part] += needed[partition.parts[space] == part].sum(0)
    return found


def links(cells: Sequence[Sequence[str]], strength: FloatArray, name: str) -> str:
    """A table of senders and receivers whose cells are the darker the more goes there."""
    count = len(cells)
    head = "".join(f'<th scope="col">to {number}</th>' for number in range(count))
    body = ""
    for sender, line in enumerate(cells):
        shaded = "".join(
            _shaded(cell, 0.0 if sender == receiver else float(strength[sender, receiver])) for receiver, cell in enumerate(line)
        )
        body += f'<tr><th scope="row">from {sender}</th>{shaded}</tr>'
    inner = f'<table class="links"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" role="region" aria-label="{text(name)}" tabindex="0">{inner}</div>'


def _shaded(cell: str, strength: float) -> str:
    return (
        f'<td class="number" style="background:rgba(228,87,46,{0.05 + 0.45 * strength:.2f})">{text(cell)}</td>'
        if strength
        else f'<td class="number">{text(cell)}</td>'
    )
