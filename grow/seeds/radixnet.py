"""The RadiX-Net nearest to a density, planted onto the widths that a topology has. The nets themselves: `grow.seeds.radix`.

A *node* is a unit, or a row of an attention head: the smallest piece that all layers which compute or read a space share. Node u
of a space stands at place u mod N'; a width that is no multiple of N' is the next multiple, trimmed. Nodes that are joined are
joined in all taps of a kernel and in all positions of a flattened map.

At the ends of the net a space may have fewer than N' nodes. Then whole residue classes are trimmed, which takes no path from
those that remain, since inputs and outputs all have equally many. In between, trimming makes path counts uneven: a place has D
nodes or D - 1, but none is ever empty.

Legend: N' places, D nodes a place, L levels (the longest chain of sparse layers), P places of a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, gcd, isqrt, log, prod

import numpy as np

from grow.allocate import check_density
from grow.axes import IntArray, SpaceAxis
from grow.seeds.radix import Ring, rings
from grow.seeds.structure import Structure, check_excluded
from grow.topology import Connections, Topology

SPREAD = 4
"""Largest radix over smallest of one system that the search looks at: far apart, some layers would be dense and others starved."""

ALIKE = 0.01
"""Nets whose densities lie so near together, as a ratio, count as equally near to what was asked."""

EXAMINED = 32
"""Nets whose density is counted exactly, the nearest by estimate."""


ENDS = 3
"""Narrow layers at the ends of which every choice is tried to be trimmed or dense; of more, all or none."""


@dataclass(frozen=True, eq=False)
class RadixPlan:
    """A RadiX-Net on a topology.

    systems: as planted, a radix a level (an incomplete one has more). widths: nodes a place (D) of every space that a sparse layer
    reads or computes. trimmed: nodes cut from the D N' of those spaces. levels: of every sparse layer, from 0; all other layers are
    dense. spaced: trimmed spaces whose places are spread around the circle; those of others are the first. connections, density:
    of the whole network, exactly. complete: whether a whole system lies between the ends, so that every end reaches every other.
    """

    systems: tuple[tuple[int, ...], ...]
    widths: Mapping[str, int]
    trimmed: Mapping[str, int]
    levels: Mapping[str, int]
    spaced: frozenset[str]
    connections: int
    density: float
    complete: bool


def radixnet(topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()) -> Structure:
    """The RadiX-Net nearest to a density (`nearest`). Nothing is random. The density met is that of the structure."""
    return planted(topology, nearest(topology, density, excluded))


def radixnet_permuted(
    topology: Topology, density: float, generator: np.random.Generator, excluded: frozenset[str] = frozenset()
) -> Structure:
    """The same with the nodes permuted at random before every system, where it changes no number of paths."""
    return planted(topology, nearest(topology, density, excluded), generator)


def nearest(topology: Topology, density: float, excluded: frozenset[str] = frozenset()) -> RadixPlan:
    """The RadiX-Net nearest to a density, in the ratio of the densities.

    - One system repeats from level to level, the last time perhaps in part. Its radices differ by `SPREAD` at most. Among nets
      that are equally near (`ALIKE`) the one with most sparse layers is taken, then the most even radices, then the least trimmed.
    - Excluded and depthwise layers stay dense, and layers between the ends with fewer than N' nodes on a side, which would lose
      places. So do the layers into the output space when they take at most half of the connections asked for.
    - Systems longer than L levels, in which an input no longer reaches every place, are used only when the density is lower than
      that of all others. Then their radices differ by 1 at most.

    ValueError if the density is not in (0, 1] or a layer does not exist. How near it came is the plan's ``density``:

    >>> from grow.axes import Segment
    >>> from grow.topology import Space
    >>> layer = Connections("fc", (64, 64), (Segment("b"),), (Segment("a"),), None)
    >>> hidden = Connections("fc2", (64, 64), (Segment("c"),), (Segment("b"),), None)
    >>> spaces = (Space("a", 64, "input"), Space("b", 64, "hidden"), Space("c", 64, "output"))
    >>> plan = nearest(Topology(spaces, (layer, hidden)), 0.125)
    >>> plan.systems, plan.widths["b"], plan.trimmed["b"], plan.density
    (((8, 8),), 1, 0, 0.125)
    """
    check_density(density)
    check_excluded(topology, excluded)
    asked = density * topology.possible
    layers = _sparse_candidates(topology, asked, excluded)
    dense = RadixPlan((), {}, {}, {}, frozenset(), topology.possible, 1.0, True)
    found = [dense, *_nearest_plans(topology, layers, asked, complete=True)]
    if asked < min(plan.connections for plan in found):
        found += _nearest_plans(topology, layers, asked, complete=False)
    closest = min(_distance(plan.connections, asked) for plan in found)
    alike = [plan for plan in found if _distance(plan.connections, asked) <= closest + ALIKE]
    return min(alike, key=lambda plan: (-len(plan.levels), _unevenness(plan), sum(plan.trimmed.values())))


def plan(topology: Topology, systems: Sequence[Sequence[int]], layers: Collection[str] | None = None) -> RadixPlan:
    """What given systems make of a topology: a radix a level of the named layers (all but depthwise ones), in the order of the network.

    ValueError if the systems are none of a RadiX-Net, if there are fewer radices than levels, or if a layer cannot carry them: a space
    between the ends with fewer than N' nodes, or ends with so few that some node would have no connection.
    """
    for name in layers or ():
        topology.layer(name)
    chosen = [layer for layer in topology.layers if not layer.depthwise and (layers is None or layer.layer in layers)]
    if not chosen:
        raise ValueError(f"layers is {layers}, but must name one that is not depthwise at least; leave it out for all of them")
    levels = _levels(chosen)
    radices = sum(map(len, systems))
    depth = max(levels.values(), default=-1) + 1
    rules = rings(systems)
    if radices < depth:
        raise ValueError(f"systems is {systems}, but must have a radix for each of {depth} levels; add systems or name fewer layers")
    found = _plan(topology, chosen, tuple(map(tuple, systems)), rules)
    if found is None:
        raise ValueError(
            f"systems is {systems}, but must have a product N' that the widths can carry, not {rules[0].nodes}; choose smaller radices"
        )
    return found


def planted(topology: Topology, plan: RadixPlan, generator: np.random.Generator | None = None) -> Structure:
    """The structure of a plan. With a generator the nodes before every system are permuted (see `radix.radix_matrices`)."""
    if not plan.systems:
        return Structure({}, {layer.layer: None for layer in topology.layers})
    rules, starts = rings(plan.systems), {0}
    for system in plan.systems[:-1]:
        starts.add(max(starts) + len(system))
    pieces, index, orders = _pieces(topology), dict[str, IntArray | None](), dict[tuple[str, int], IntArray]()
    for layer in topology.layers:
        index[layer.layer] = None
        if layer.layer not in plan.levels:
            continue
        level = plan.levels[layer.layer]
        ring = rules[level]
        places = {space: _places(count, ring.nodes, space in plan.spaced) for space, count in _nodes(topology, layer, pieces).items()}
        read = dict(places)
        if generator is not None and level in starts:
            for segment in layer.source:
                key = (segment.space, level)
                if key not in orders:
                    orders[key] = generator.permutation(places[segment.space])
                read[segment.space] = orders[key]
        joined = ring.joined(_entries(layer.source, read, pieces), _entries(layer.target, places, pieces)).T  # (O, I)
        index[layer.layer] = np.flatnonzero(np.repeat(joined.reshape(-1), prod(layer.shape[2:])))
        if joined.all():
            index[layer.layer] = None
    return Structure({}, index)


# ---------------------------------------------------------------- which layers, which levels


def _sparse_candidates(topology: Topology, asked: float, excluded: frozenset[str]) -> list[Connections]:
    """Layers that may become sparse."""
    outputs = [layer for layer in topology.layers if any(topology.space(s.space).role == "output" for s in layer.target)]
    kept = outputs if sum(layer.possible for layer in outputs) <= asked / 2 else []
    return [layer for layer in topology.layers if layer not in kept and layer.layer not in excluded and not layer.depthwise]


def _levels(layers: Sequence[Connections]) -> dict[str, int]:
    """How many sparse layers lie before each, on the longest way so far; those that read the same node share their level."""
    reached: dict[str, int] = {}
    levels = {}
    for layer in layers:
        levels[layer.layer] = max((reached.get(segment.space, 0) for segment in layer.source), default=0)
        for segment in layer.target:
            reached[segment.space] = max(reached.get(segment.space, 0), levels[layer.layer] + 1)
    return levels


def _pieces(topology: Topology) -> dict[str, int]:
    """Nodes per unit of every space: what the repeats of all axes that hold it have in common."""
    pieces = {space.name: 0 for space in topology.spaces}
    for layer in topology.layers:
        for segment in (*layer.target, *layer.source):
            pieces[segment.space] = gcd(pieces[segment.space], segment.repeat)
    return {name: count or 1 for name, count in pieces.items()}


def _nodes(topology: Topology, layer: Connections, pieces: Mapping[str, int]) -> dict[str, int]:
    """Nodes of the spaces that a layer reads and computes."""
    return {s.space: topology.units[s.space] * pieces[s.space] for s in (*layer.source, *layer.target)}


def _entries(axis: SpaceAxis, places: Mapping[str, IntArray], pieces: Mapping[str, int]) -> IntArray:
    """The place of every entry of an axis."""
    return np.concatenate([np.repeat(places[segment.space], segment.repeat // pieces[segment.space]) for segment in axis])


def _places(count: int, nodes: int, spaced: bool) -> IntArray:
    """Where the nodes of a space stand, (count,)."""
    return np.arange(count) * nodes // count if spaced else np.arange(count) % nodes


# ---------------------------------------------------------------- search


def _distance(connections: float, asked: float) -> float:
    return abs(log(connections / asked))


def _unevenness(plan: RadixPlan) -> float:
    return max(plan.systems[0]) / min(plan.systems[0]) if plan.systems else 1.0


def _nearest_plans(topology: Topology, layers: Sequence[Connections], asked: float, complete: bool) -> list[RadixPlan]:
    """The nearest plans by estimate, counted exactly, with at least one whole system or with none."""
    pieces = _pieces(topology)
    sizes = {layer.layer: _nodes(topology, layer, pieces) for layer in layers}
    estimates: list[tuple[float, tuple[int, ...], tuple[Connections, ...]]] = []
    carriers: dict[int, list[_Carrier]] = {}
    for system in _systems(max((max(count.values()) for count in sizes.values()), default=1), len(layers), complete):
        nodes = prod(system)
        if nodes not in carriers:
            carriers[nodes] = [_carrier(kept, sizes) for kept in _carrying(layers, sizes, nodes)]
        for carrier in carriers[nodes]:
            depth = len(carrier.possible)
            radices = (system * depth)[:depth]
            reach = all(narrow * radix >= nodes for narrow, radix in zip(carrier.narrowest, radices, strict=True))
            if reach and complete == (len(system) <= depth):
                absent = sum(count * (1 - radix / nodes) for count, radix in zip(carrier.possible, radices, strict=True))
                estimates.append((_distance(topology.possible - absent, asked), system, carrier.layers))
    found: list[RadixPlan] = []
    for examined, (_, system, kept) in enumerate(sorted(estimates, key=lambda estimate: estimate[0])):
        if examined >= EXAMINED and found:
            break
        depth = max(_levels(kept).values()) + 1
        rounds = ceil(depth / len(system)) if complete else 1
        systems = tuple(system[: depth - at * len(system)] if complete else system for at in range(rounds))
        exact = _plan(topology, kept, systems, rings(systems))
        found += [exact] if exact is not None else []
    return found


@dataclass(frozen=True, eq=False)
class _Carrier:
    """Layers that may carry a net; per level their possible connections and the nodes on their narrowest side."""

    layers: tuple[Connections, ...]
    possible: tuple[int, ...]
    narrowest: tuple[int, ...]


def _carrier(layers: Sequence[Connections], sizes: Mapping[str, Mapping[str, int]]) -> _Carrier:
    levels = _levels(layers)
    at = [[layer for layer in layers if levels[layer.layer] == level] for level in range(max(levels.values()) + 1)]
    narrowest = (min(min(sizes[layer.layer].values()) for layer in group) for group in at)
    return _Carrier(tuple(layers), tuple(sum(layer.possible for layer in group) for group in at), tuple(narrowest))


def _carrying(layers: Sequence[Connections], sizes: Mapping[str, Mapping[str, int]], nodes: int) -> list[list[Connections]]:
    """Which layers may carry N' places: none that is narrower between the ends, and at the ends every choice of those that are."""
    inner = {s.space for layer in layers for s in layer.target} & {s.space for layer in layers for s in layer.source}
    narrow = {layer.layer: {space for space, count in sizes[layer.layer].items() if count < nodes} for layer in layers}
    ends = [layer.layer for layer in layers if narrow[layer.layer] and not narrow[layer.layer] & inner]
    choices = [set(c) for size in range(len(ends) + 1) for c in combinations(ends, size)] if len(ends) <= ENDS else [set(), set(ends)]
    kept = ([layer for layer in layers if not narrow[layer.layer] or layer.layer in chosen] for chosen in choices)
    return [some for some in kept if some]


def _plan(
    topology: Topology, layers: Sequence[Connections], systems: tuple[tuple[int, ...], ...], rules: Sequence[Ring]
) -> RadixPlan | None:
    """The plan, counted exactly; None where the widths cannot carry it."""
    pieces, levels, places_of = _pieces(topology), _levels(layers), rules[0].nodes
    sizes: dict[str, int] = {}
    for layer in layers:
        sizes |= _nodes(topology, layer, pieces)
    inner = {s.space for layer in layers for s in layer.target} & {s.space for layer in layers for s in layer.source}
    if any(count < places_of for space, count in sizes.items() if space in inner):
        return None
    spaced: set[str] = set()
    connections = topology.possible
    for layer in layers:
        ring = rules[levels[layer.layer]]
        narrow = [space for space in _nodes(topology, layer, pieces) if sizes[space] < places_of]
        options = [spaced | set(chosen) for chosen in ([], narrow)] if not spaced & set(narrow) else [spaced]
        counted = [(option, _count(layer, ring, sizes, pieces, option)) for option in options]
        covered = [(option, count) for option, count in counted if count is not None]
        if not covered:
            return None
        spaced = covered[0][0]
        connections += covered[0][1] - layer.possible
    widths = {space: ceil(count / places_of) for space, count in sizes.items()}
    trimmed = {space: widths[space] * places_of - count for space, count in sizes.items()}
    complete = len(systems[0]) <= max(levels.values()) + 1
    density = connections / topology.possible
    return RadixPlan(systems, widths, trimmed, levels, frozenset(spaced), connections, density, complete)


def _count(layer: Connections, ring: Ring, sizes: Mapping[str, int], pieces: Mapping[str, int], spaced: Collection[str]) -> int | None:
    """Connections of a layer; None if one of its nodes would have none."""
    at = {s.space: _places(sizes[s.space], ring.nodes, s.space in spaced) for s in (*layer.source, *layer.target)}
    sources, targets = (
        np.bincount(_entries(axis, at, pieces), minlength=ring.nodes) for axis in (layer.source, layer.target)
    )  # entries at every place, (N',)
    fan_in, fan_out = ring.fan_in(sources), ring.fan_out(targets)
    if not fan_in[targets > 0].all() or not fan_out[sources > 0].all():
        return None
    return int(fan_in @ targets) * prod(layer.shape[2:])


def _systems(limit: int, levels: int, complete: bool) -> Iterator[tuple[int, ...]]:
    """Systems of at least 2 radices with products up to ``limit``: whole ones in every rotation of rising and falling order."""
    if not complete:
        yield from (system for length in range(2, limit.bit_length()) for system in _balanced(length, limit))
        return
    for length in range(2, min(levels, limit.bit_length() - 1) + 1):
        for rising in _rising(length, limit):
            orders = {rising[i:] + rising[:i] for i in range(length)}
            yield from sorted(orders | {order[::-1] for order in orders})


def _rising(length: int, limit: int, least: int = 2, most: int | None = None) -> Iterator[tuple[int, ...]]:
    """Rising sequences of so many radices with a product up to ``limit``, from ``least`` to ``most``."""
    if length == 0:
        yield ()
        return
    top = int(limit ** (1 / length) + 1e-9)
    for first in range(least, min(top, most or top) + 1):
        for rest in _rising(length - 1, limit // first, first, most or SPREAD * first):
            yield (first, *rest)


def _balanced(length: int, limit: int) -> Iterator[tuple[int, ...]]:
    """Sequences of so many radices that differ by 1 at most."""
    for radix in range(2, isqrt(limit) + 1):
        for larger in range(length):
            system = (radix,) * (length - larger) + (radix + 1,) * larger
            if prod(system) <= limit:
                yield system
