"""How every value of a network is held under a strategy, and where that cannot be.

A value has the layout of the units that it carries; what carries none (token numbers, a mean over positions) that of what it is
computed from; what is computed from parameters alone is ``constant`` and suits all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

from torch import fx

from grow.axes import SpaceAxis, Value
from grow.topology import Connections, Topology
from grow.trace.spaces import VALUE
from hardware.layout import Strategy

State: TypeAlias = Literal["whole", "batch", "units", "constant"]


def value_of(node: fx.Node) -> Value:
    """What a node's dimensions carry; nothing where it is no tensor."""
    found = node.meta.get(VALUE)
    return found if isinstance(found, Value) else Value((), None)


def states(graph: fx.Graph, topology: Topology, layouts: Strategy) -> dict[fx.Node, State]:
    """How the value of every node is held. ValueError where values meet that no layout suits, with their names."""
    layers = {layer.layer: layer for layer in topology.layers}
    found: dict[fx.Node, State] = {}
    for node in graph.nodes:
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        found[node] = _state(node, layer, found, topology, layouts)
        if layer is not None:
            _check_other_dimensions(node, layer, topology, layouts)
        elif node.op != "placeholder":
            _check_operands(node, found)
    return found


def _state(node: fx.Node, layer: Connections | None, found: Mapping[fx.Node, State], topology: Topology, layouts: Strategy) -> State:
    if node.op == "get_attr":
        return "constant"
    if layer is not None:
        return _common(f"layer {layer.layer!r}", {s.space: layouts[s.space] for s in layer.target})
    read: set[State] = {found[other] for other in node.all_input_nodes} - {"constant"}
    if node.op != "placeholder" and not read:
        return "constant"
    carried = {name: layouts[name] for name in _spaces(value_of(node).axes) if topology.space(name).role != "input"}
    if carried:
        return _common(f"value {node.name!r}", carried)
    if node.op == "placeholder":
        given = {layouts[name] for name in _spaces(value_of(node).axes)} or set(layouts.values())
        return "batch" if given == {"batch"} else "whole"
    return "batch" if "batch" in read else "units" if "units" in read else "whole"


def _spaces(axes: tuple[SpaceAxis, ...]) -> Iterator[str]:
    for axis in axes:
        for segment in axis:
            yield segment.space


def _common(what: str, layouts: Strategy) -> State:
    """The layout of several spaces that are in one value; ``whole`` ones may stand beside ``units``."""
    given = set(layouts.values())
    if "batch" in given and len(given) > 1:
        found = ", ".join(f"{space!r} {layout}" for space, layout in layouts.items())
        raise ValueError(f"{what} holds {found}, but must hold spaces that are all batch or none; give them one layout")
    return "batch" if "batch" in given else "units" if "units" in given else "whole"


def _check_operands(node: fx.Node, found: Mapping[fx.Node, State]) -> None:
    """What is not a layer reads values in its own layout, but that samples of a whole one may be cut out, and that units may meet it."""
    for other in node.all_input_nodes:
        pair = found[other], found[node]
        if pair[0] == pair[1] or pair[0] == "constant" or pair in (("whole", "batch"), ("whole", "units")):
            continue
        if node.op == "output" or not value_of(node).axes:
            continue
        raise ValueError(
            f"node {node.name!r} reads {other.name!r}, which is {pair[0]}, for a value that is {pair[1]}, but must read it in that layout; "
            "give their spaces one layout"
        )


def _check_other_dimensions(node: fx.Node, layer: Connections, topology: Topology, layouts: Strategy) -> None:
    """A layer may read along one divided dimension only: along the others every rank would have other entries."""
    source = node.all_input_nodes[0]
    place = 1 if len(layer.shape) > 2 else len(value_of(source).axes) - 1
    for dim, axis in enumerate(value_of(source).axes):
        for segment in axis:
            if dim != place and layouts[segment.space] == "units":
                raise ValueError(
                    f"layer {layer.layer!r} reads values with units of {segment.space!r} in dimension {dim}, which is divided by units, "
                    "but must be whole or batch there; give the space another layout"
                )
