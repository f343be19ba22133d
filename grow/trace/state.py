"""What is known in the middle of a trace, and the few questions that every operator asks of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from torch import Tensor, fx, nn

from grow.axes import IntArray
from grow.trace.atoms import Atoms, Group, Layout, along, group_of
from grow.trace.errors import TraceError, where
from grow.trace.spaces import Resolved

Outcome: TypeAlias = "Layout | tuple[Layout, ...] | None"
"""What a node gives: a tensor, several, or something that is no tensor."""

Handler: TypeAlias = "Callable[[Tracing, fx.Node], Outcome]"
"""Follows one node."""


@dataclass(frozen=True)
class RawSite:
    """A `Site` whose spaces are not yet known. source is None for a depthwise layer."""

    layer: str
    target: IntArray
    source: IntArray | None
    source_values: int
    target_values: int


@dataclass
class Tracing:
    """``late`` is called when all units are known; ``tensors`` holds the atoms of every dimension of every tensor."""

    module: fx.GraphModule
    atoms: Atoms = field(default_factory=Atoms)
    outcomes: dict[fx.Node, Outcome] = field(default_factory=dict)
    sites: list[RawSite] = field(default_factory=list)
    tensors: dict[str, tuple[IntArray | None, ...]] = field(default_factory=dict)
    fills: dict[str, float] = field(default_factory=dict)
    checked: list[tuple[Group, str]] = field(default_factory=list)
    pieces: list[IntArray] = field(default_factory=list)
    late: list[Callable[[Resolved], None]] = field(default_factory=list)

    def layout(self, argument: object) -> Layout | None:
        """The layout of an argument that is one tensor."""
        found = self.outcomes.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, Layout) else None

    def only_input(self, node: fx.Node) -> Layout:
        """The layout of the first argument, which must be a tensor."""
        found = self.layout(node.args[0]) if node.args else None
        if found is None:
            raise TraceError(f"{where(node)} reads no tensor of units as its first argument, but must; pass the tensor by position")
        return found

    def axis(self, node: fx.Node, layout: Layout, dim: int) -> tuple[IntArray, Layout]:
        """The atoms of one dimension (A,), and the layout in which no other dimension shares them.

        A dimension that carried none gets units of its own, which are fixed: the network's input, or positions.
        """
        group = layout.group(dim)
        if group is None:
            taken = any(creator == "input" for _, creator, _, _ in self.atoms.creators)
            atoms = self.atoms.fresh(layout.shape[dim], f"{node.target} input" if taken else "input", "input")
            return atoms, replace(layout, groups=(*layout.groups, group_of([dim], along(dim, len(layout.shape), atoms))))
        left = self.atoms.squash(group, sorted(group.dims - {dim}))
        assert left is not None
        others = tuple(other for other in layout.groups if other is not group)
        return left.atoms.reshape(-1), replace(layout, groups=(*others, left))

    def fixed(self, node: fx.Node, layout: Layout, dims: Iterable[int], remedy: str) -> Layout:
        """The layout without atoms along ``dims``, which an operator needs as they are."""
        groups: list[Group] = []
        for group in layout.groups:
            asked = sorted(group.dims & set(dims))
            if asked and not group.free and not group.dims - set(asked):
                raise TraceError(
                    f"{where(node)} works across dimension {asked[0]}, whose entries are units, but must leave them apart; {remedy}"
                )
            if asked and group.free:
                self.atoms.pinned.append(group.atoms.reshape(-1))
            left = self.atoms.squash(group, asked) if asked else group
            if left is not None:
                groups.append(left)
        return replace(layout, groups=tuple(groups))

    def tensor(self, name: str, atoms: tuple[IntArray | None, ...], fill: float = 0.0) -> None:
        """Record the atoms of a parameter or buffer; what is used twice is united."""
        for one, other in zip(self.tensors.get(name, ()), atoms, strict=False):
            if one is not None and other is not None:
                self.atoms.unite(one, other)
        self.tensors[name] = atoms
        if fill:
            self.fills[name] = fill

    def parameters(self, path: str, atoms: tuple[IntArray | None, ...]) -> None:
        """Record what a norm holds: its scale and its running variance start at 1."""
        module = self.module.get_submodule(path)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.dim() == len(atoms):
                self.tensor(f"{path}.{name}", atoms, 1.0 if name in ("weight", "running_var") else 0.0)

    def replace(self, path: str, replacement: nn.Module) -> None:
        """Put a module of ours in the place of torch's."""
        parent, _, name = path.rpartition(".")
        setattr(self.module.get_submodule(parent), name, replacement.train(self.module.get_submodule(path).training))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape that a node's tensor has for the example."""
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """An argument by position or by name."""
    found: object = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    return found


def parameter_layout(tracing: Tracing, name: str, tensor: Tensor) -> Layout:
    """A parameter outside of layers: every dimension may turn out to scale."""
    atoms: list[IntArray | None] = [None if size == 1 else tracing.atoms.fresh(size, name, free=True) for size in tensor.shape]
    tracing.tensor(name, tuple(atoms))
    groups = tuple(group_of([dim], along(dim, len(atoms), found), free=True) for dim, found in enumerate(atoms) if found is not None)
    return Layout(tuple(tensor.shape), groups)


def several(layouts: Iterable[object]) -> tuple[Layout, ...]:
    """The tensors among some layouts."""
    return tuple(layout for layout in layouts if isinstance(layout, Layout))


def joined(sizes: Iterable[int]) -> int:
    """Product of sizes, 1 of none."""
    return int(np.prod(list(sizes), dtype=np.int64))
