"""United atoms -> spaces, and every axis as segments of them.

Legend: A atoms, L length of an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grow.axes import NO_SPACE, Axes, IntArray, Segment, SpaceAxis, Value
from grow.topology import Role, Space
from grow.trace.atoms import Atoms, Group, Layout
from grow.trace.errors import TraceError

INPUT, OUTPUT = "input", "output"
VALUE = "value"
"""Where a node's `Value` is, in its ``meta``."""


@dataclass(frozen=True)
class Site:
    """Where a layer stands in the network: what it computes, what it reads, and how many values per unit and sample.

    depthwise: every row reads the unit that it computes; then there is no source axis.
    """

    layer: str
    target: SpaceAxis
    source: SpaceAxis
    source_values: int
    target_values: int
    depthwise: bool = False


class Resolved:
    """The units and spaces of a finished trace."""

    def __init__(self, atoms: Atoms, axes: Sequence[IntArray]) -> None:
        self._atoms, self._labels = atoms, atoms.labels()
        starts = np.array([creator[0] for creator in atoms.creators], np.int64)
        creator = np.searchsorted(starts, np.arange(atoms.count), side="right") - 1
        free = np.array([found[3] for found in atoms.creators], bool)
        self._creator = creator
        self._known = np.zeros(atoms.count, bool)  # units that a layer, an embedding or the input creates
        self._known[self._labels[~free[creator]]] = True
        read = np.unique(self._labels[np.concatenate([*atoms.read, np.zeros(0, np.int64)]).astype(np.int64)])
        self._bare = read[~self._known[read]]  # entries of parameters that a layer reads, and that are units of nothing else
        self._known[self._bare] = True
        self._roles = self._unit_roles()
        self.counted: dict[str, Axes] = {}
        self._place: dict[int, tuple[int, int]] = {}
        self.spaces = self._spaces(axes)

    def labels(self, atoms: IntArray) -> IntArray:
        """The unit of every atom, -1 where it does not scale."""
        found = self._labels[atoms]
        return np.where(self._known[found], found, -1)

    def scaling(self, group: Group, where: str) -> int | None:
        """The dimension of a group along which its units differ; None where it does not scale."""
        units = self.labels(group.atoms)
        if (units < 0).all():
            return None
        differ = [dim for dim in sorted(group.dims) if (units != units.take([0], axis=dim)).any()]
        if len(differ) > 1:
            sizes = tuple(group.atoms.shape[dim] for dim in differ)
            raise TraceError(
                f"{where} splits units into {sizes}, and nothing tells which of the two scales, but one must; "
                "let the entries of a head meet in one product, or keep the split outside the network"
            )
        if not differ and len(group.dims) > 1 and group.atoms.shape[min(group.dims)] > 1:
            raise TraceError(f"{where} splits entries that are all one unit, but must split at least 2; use 2 heads or more")
        return differ[0] if differ else min(group.dims)

    def axis(self, atoms: IntArray | None) -> SpaceAxis:
        """An axis as segments; nothing where it does not scale."""
        units = None if atoms is None else self.labels(atoms)
        if units is None or (units < 0).any():
            return NO_SPACE
        segments: list[Segment] = []
        for unit, repeat in zip(*_runs(units), strict=True):
            space, index = self._place[unit]
            if index == 0:
                segments.append(Segment(self.spaces[space].name, repeat))
        return tuple(segments)

    def value(self, layout: Layout) -> Value:
        """What the dimensions of a computed tensor carry."""
        axes = [NO_SPACE] * len(layout.shape)
        for group in layout.groups:
            dim = self.scaling(group, "a value")
            if dim is not None:
                axes[dim] = self.axis(np.moveaxis(group.atoms, dim, -1).reshape(-1, group.atoms.shape[dim])[0])
        return Value(tuple(axes), layout.batch)

    def _unit_roles(self) -> dict[int, Role]:
        roles: dict[int, Role] = {}
        for start, _, role, _ in reversed(self._atoms.creators):
            if role != "hidden":
                end = min((other[0] for other in self._atoms.creators if other[0] > start), default=self._atoms.count)
                roles |= dict.fromkeys(self._labels[start:end].tolist(), role)
        for atoms in self._atoms.output:
            for unit in np.unique(self._labels[atoms]).tolist():
                roles.setdefault(unit, "output")
        for atoms in [*self._atoms.pinned, self._bare]:
            for unit in np.unique(self._labels[atoms]).tolist():
                roles.setdefault(unit, "input")
        return roles

    def _spaces(self, axes: Sequence[IntArray]) -> tuple[Space, ...]:
        """Chains of units that follow one another in every axis in which they appear."""
        occurrences: dict[int, list[tuple[int, int, int]]] = {}
        for number, atoms in enumerate(axes):
            units, repeats = _runs(self.labels(atoms))
            for run, (unit, repeat) in enumerate(zip(units, repeats, strict=True)):
                if unit >= 0:
                    occurrences.setdefault(unit, []).append((number, run, repeat))
        chains: list[list[int]] = []
        expected: list[tuple[int, int, int]] = []
        role: str | None = None
        for unit in sorted(occurrences):
            if occurrences[unit] != expected or self._roles.get(unit) != role:
                chains.append([])
            chains[-1].append(unit)
            expected = [(number, run + 1, repeat) for number, run, repeat in occurrences[unit]]
            role = self._roles.get(unit)
        self._place = {unit: (space, index) for space, chain in enumerate(chains) for index, unit in enumerate(chain)}
        names = self._names(chains)
        marks = [self._marked(found) for found in (self._atoms.fed, self._atoms.mixed, self._atoms.contracted)]
        return tuple(
            Space(name, len(chain), self._roles.get(chain[0], "hidden"), *(bool(mark[chain].any()) for mark in marks))
            for name, chain in zip(names, chains, strict=True)
        )

    def _marked(self, marked: Sequence[IntArray]) -> NDArray[np.bool_]:
        found = np.zeros(self._atoms.count, bool)
        for atoms in marked:
            found[self._labels[atoms]] = True
        return found

    def _names(self, chains: Sequence[Sequence[int]]) -> list[str]:
        """Input, output, else the layer that creates the units; heads by the attention that they belong to."""
        roles: list[Role] = [self._roles.get(chain[0], "hidden") for chain in chains]
        heads = self._marked(self._atoms.heads)
        names = [self._name(chain[0], role, bool(heads[chain[0]])) for chain, role in zip(chains, roles, strict=True)]
        if roles.count("output") == 1:
            names[roles.index("output")] = OUTPUT
        found: list[str] = []
        for name in names:
            parts = [other for other in found if other == name or other.startswith(f"{name} part ")]
            found.append(f"{name} part {len(parts) + 1}" if parts else name)
        return found

    def _name(self, unit: int, role: Role, heads: bool) -> str:
        creator = self._atoms.creators[int(self._creator[unit])][1]
        if heads:
            return f"{creator.rpartition('.')[0]}.heads".lstrip(".")
        return f"{creator} units" if creator in (INPUT, OUTPUT) and role != "input" else creator


def _runs(units: IntArray) -> tuple[list[int], list[int]]:
    """Units of neighbouring equal entries, and how many they are."""
    if not len(units):
        return [], []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(units)) + 1])
    return units[starts].tolist(), np.diff(np.append(starts, len(units))).tolist()
