"""Scores and a count -> a choice of connections. The count is exact; ties go to the first in the order (layer, position).

Unstructured patterns look at one connection at a time. Priced ones know the parts that the units lie on: what a part must be
sent is a whole *group*, the connections from one source unit into one other part, over all layers that read the same value of the
unit (a residual space has many values, and each is sent by itself). A connection is remote if its source unit and its target unit
lie on different parts; input and output have no parts, are everywhere, and cost nothing. A halo unit costs ``price`` median scores,
times what the way between the two parts costs where ``ways`` (k, k) says so.

Legend: N candidates of all layers together, K keys = (value of any unit, target part), k parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grow.axes import IntArray, Segment, entry_units
from grow.topology import Connections, Topology, among

BoolArray: TypeAlias = NDArray[np.bool_]
FloatArray: TypeAlias = NDArray[np.float64]

Scored: TypeAlias = Mapping[str, tuple[IntArray, NDArray[np.float32]]]
"""Per layer: sorted flat positions of the candidates, and their scores."""

MANY, SAMPLED = 2**15, 61
"""Scores of which a sample is looked at first, one of so many: an odd number, so that it meets all columns of a weight."""

Choice: TypeAlias = dict[str, IntArray]
"""Per layer of the candidates: sorted flat positions, possibly none."""


def lowest(scored: Scored, count: int) -> Choice:
    """The ``count`` candidates of the lowest scores, over all layers.

    >>> lowest({"a": (np.array([0, 3]), np.array([2, 1], np.float32)), "b": (np.array([7]), np.array([1], np.float32))}, 1)
    {'a': array([3]), 'b': array([], dtype=int64)}
    """
    return as_choice(scored, smallest(_joined(scored, count), count))


def highest(scored: Scored, count: int) -> Choice:
    """The ``count`` candidates of the highest scores, over all layers."""
    return as_choice(scored, smallest(-_joined(scored, count), count))


def lowest_groups(
    scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int, ways: FloatArray | None = None
) -> Choice:
    """For pruning: whole groups, since removing some connections of a group saves no communication.

    ``scored`` holds existing connections. A connection that is not remote is a group of its own, and so is one whose group has
    members that are no candidates: the unit would still be sent. The value of a group is the mean score of its connections, less
    price * median score / size where it is remote. Groups go in ascending value; one that would exceed ``count`` is passed over for
    the next that fits, and only when none fits, a part of one is taken.
    """
    scores = checked_scores(scored, count)
    keys = _whole(_remote_keys(scored, topology, parts, price), scored, topology, parts)
    group = _groups(keys, key_count(topology, parts))  # (N,)
    sizes = np.bincount(group)
    costs = np.zeros(len(sizes))
    costs[group[keys >= 0]] = price * _median(scores) * _way(keys[keys >= 0], topology, parts, ways)
    values = (np.bincount(group, scores) - costs) / sizes
    return as_choice(scored, whole_groups(scores, group, values, sizes, count))


def whole_groups(scores: FloatArray, group: IntArray, values: FloatArray, sizes: IntArray, count: int) -> BoolArray:
    """Marks whole groups in ascending value, as many as fit into ``count``, and of the next one the lowest that are still missing, (N,)."""
    taken = _fitting(values, sizes, count)
    chosen = taken[group] if len(group) else np.zeros(0, bool)
    missing = count - int(chosen.sum())
    if missing:
        best = np.where(taken, np.inf, values).argmin()
        members = np.flatnonzero(group == best)
        chosen[members[smallest(scores[members], missing)]] = True
    return chosen


def highest_priced(
    scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int, ways: FloatArray | None = None
) -> Choice:
    """For growth: the highest scores, less price * median score where the connection would add a unit to a halo.

    ``scored`` holds absent connections; a halo holds what the existing connections of ``topology`` carry.
    """
    return as_choice(scored, smallest(-_all_worth(scored, topology, parts, price, count, ways), count))


def highest_groups(
    scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int, ways: FloatArray | None = None
) -> Choice:
    """For growth: whole groups, since the first connection of a group pays for all of it. The counterpart of `lowest_groups`.

    ``scored`` holds absent connections. The value of a group is the mean score of its absent connections, less price * median score /
    size where the unit is not sent yet. Groups go in descending value; one that would exceed ``count`` is passed over for the next
    that fits, and only when none fits, a part of one is taken.
    """
    scores = checked_scores(scored, count)
    keys = _remote_keys(scored, topology, parts, price)
    group = _groups(keys, key_count(topology, parts))  # (N,)
    sizes, costs = np.bincount(group), np.zeros(int(group.max(initial=-1)) + 1)
    new = keys >= 0
    new[new] = ~existing_halo(topology, parts)[keys[new]]
    costs[group[new]] = price * _median(scores) * _way(keys[new], topology, parts, ways)
    values = (np.bincount(group, scores) - costs) / sizes
    return as_choice(scored, whole_groups(-scores, group, -values, sizes, count))


def highest_balanced(
    scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int, ways: FloatArray | None = None
) -> Choice:
    """As `highest_priced`, but the parts of a space get what evens their work out.

    What `highest_priced` would give to a target space is shared out so that the incoming connections of its parts come as near to
    equal as they can. Without this the larger part, which has more places to grow into, outgrows the others.
    """
    values, spaces = np.negative(_all_worth(scored, topology, parts, price, count, ways)), list(parts)
    labels = (target_labels(topology.layer(layer), positions, parts, spaces) for layer, (positions, _) in scored.items())
    kind = np.concatenate([np.zeros(0, np.int32), *labels])
    kinds = len(spaces) * part_count(parts) + 1
    places, free = np.bincount(kind, minlength=kinds), np.bincount(kind[np.flatnonzero(smallest(values, count))], minlength=kinds)
    chosen = np.zeros(len(values), bool)
    for number, share in enumerate(share_out(free, places, topology, parts, spaces).tolist()):
        members = np.flatnonzero(kind == number)
        chosen[members[np.flatnonzero(smallest(values[members], share))]] = True
    return as_choice(scored, chosen)


def _all_worth(
    scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float, count: int, ways: FloatArray | None
) -> FloatArray:
    """Scores of absent connections less the price of the halo units that they would add, (N,)."""
    cost = price * _median(_joined(scored, count))
    check_parts(topology, parts, price)
    halo = existing_halo(topology, parts)
    values = (worth(topology.layer(layer), p, s, topology, parts, halo, cost, ways) for layer, (p, s) in scored.items())
    return np.concatenate([np.zeros(0), *values])


def existing_halo(topology: Topology, parts: Mapping[str, IntArray]) -> BoolArray:
    """Marks the keys of which a connection exists, (K,)."""
    halo = np.zeros(key_count(topology, parts) + 1, bool)  # the last one takes what is not remote, whose key is -1
    for layer in topology.layers:
        halo[layer_keys(layer, layer.positions(), topology, parts)] = True
    return halo[:-1]


def worth(
    layer: Connections,
    positions: IntArray,
    scores: NDArray[np.float32],
    topology: Topology,
    parts: Mapping[str, IntArray],
    halo: BoolArray,
    cost: float,
    ways: FloatArray | None = None,
) -> FloatArray:
    """Scores of absent connections of a layer, less ``cost`` where a connection would add a unit to a halo, (N,)."""
    values, keys = scores.astype(np.float64), _keys(layer, topology, parts)
    if keys is None:
        return values
    adds = np.append(~halo, False)[keys]  # the last one is read for -1
    costs = np.zeros(keys.shape)
    costs[adds] = cost * _way(keys[adds], topology, parts, ways)
    values -= costs.take(_places(layer, positions, parts))
    return values


def target_labels(layer: Connections, positions: IntArray, parts: Mapping[str, IntArray], spaces: list[str]) -> NDArray[np.int32]:
    """(space, part) that each position leads into, as one number, (N,); the last number for what leads into no part."""
    k = part_count(parts)
    if layer.target_space is None or layer.target_space not in parts:
        return np.full(len(positions), len(spaces) * k, np.int32)
    labels = (spaces.index(layer.target_space) * k + parts[layer.target_space]).astype(np.int32)
    return labels.take(positions // prod(layer.shape[1:]))


def share_out(free: IntArray, places: IntArray, topology: Topology, parts: Mapping[str, IntArray], spaces: list[str]) -> IntArray:
    """What each (space, part) gets of what its space would get freely; what leads into no part stays as it is."""
    k = part_count(parts)
    load = np.zeros((len(spaces), k), np.int64)
    for layer in topology.layers:
        if layer.target_space is not None and layer.target_space in parts:
            rows, _ = layer.rows_and_columns(layer.positions())
            load[spaces.index(layer.target_space)] += np.bincount(parts[layer.target_space][rows], minlength=k)
    shares = free.copy()
    for number in range(len(spaces)):
        own = slice(number * k, (number + 1) * k)
        shares[own] = even_out(load[number], places[own], int(free[own].sum()))
    return shares


def even_out(load: IntArray, places: IntArray, count: int) -> IntArray:
    """Share ``count`` out so that ``load`` becomes as even as it can, no part getting more than its ``places``; ties to the first.

    >>> even_out(np.array([10, 4, 7]), np.array([9, 9, 1]), 8).tolist()
    [1, 6, 1]
    """
    low, high = int(load.min()), int((load + places).max())
    while low < high:  # the highest level that needs no more than count
        level = (low + high + 1) // 2
        low, high = (level, high) if int(np.clip(level - load, 0, places).sum()) <= count else (low, level - 1)
    shares = np.clip(low - load, 0, places)
    more = np.flatnonzero((shares < places) & (load + shares <= low))[: count - int(shares.sum())]
    shares[more] += 1
    return shares


def checked_scores(scored: Scored, count: int) -> FloatArray:
    """All scores in the order (layer, position), (N,), once everything that can be wrong with them has been looked at."""
    return _joined(scored, count).astype(np.float64)


def _joined(scored: Scored, count: int) -> NDArray[np.float32]:
    """The same, as wide as they are: half of the numbers' bits take half of the time to choose among."""
    for layer, (positions, scores) in scored.items():
        if len(positions) != len(scores):
            raise ValueError(f"scores of layer {layer!r} has {len(scores)} entries, but must have one per position, {len(positions)}")
        if not np.isfinite(scores).all():
            raise ValueError(f"scores of layer {layer!r} has NaN or infinity, but must be finite; lower the learning rate")
    candidates = sum(len(positions) for positions, _ in scored.values())
    if not 0 <= count <= candidates:
        raise ValueError(f"count is {count}, but must be between 0 and the number of candidates, {candidates}; choose fewer connections")
    return np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in scored.values())])


def as_choice(scored: Scored, chosen: BoolArray) -> Choice:
    """Positions of the marked candidates (N,), by layer."""
    choice, start = Choice(), 0
    for layer, (positions, _) in scored.items():
        choice[layer] = _marked(positions, chosen[start : start + len(positions)])
        start += len(positions)
    return choice


def _marked(positions: IntArray, marks: BoolArray) -> IntArray:
    """Some of sorted positions. By their places a large share is taken four times as fast as by the marks."""
    places = np.flatnonzero(marks)
    together = len(positions) > 0 and positions[-1] - positions[0] + 1 == len(positions)
    return places + positions[0] if together else positions[places]


def smallest(scores: FloatArray | NDArray[np.float32], count: int) -> BoolArray:
    """Marks the ``count`` smallest in linear time. At the threshold the first win, so that every rank and rerun chooses alike."""
    if count == 0:
        return np.zeros(len(scores), bool)
    if len(scores) < MANY:
        threshold = _nth(scores, count)
        few: BoolArray = scores < threshold
        few[np.flatnonzero(scores == threshold)[: count - int(np.count_nonzero(few))]] = True
        return few
    chosen, near = _around(scores, count)
    values = scores[near]
    threshold = _nth(values, count - int(np.count_nonzero(chosen)))
    chosen[near[np.flatnonzero(values < threshold)]] = True
    chosen[near[np.flatnonzero(values == threshold)[: count - int(np.count_nonzero(chosen))]]] = True
    return chosen


def nth_smallest(scores: FloatArray | NDArray[np.float32], n: int) -> np.floating[Any]:
    """The n-th smallest of some scores, n = 1 the very smallest."""
    below, near = _around(scores, n)
    return _nth(scores[near], n - int(np.count_nonzero(below)))


def _nth(scores: FloatArray | NDArray[np.float32], n: int) -> np.floating[Any]:
    return np.partition(scores, n - 1)[n - 1]  # type: ignore[no-any-return]


def _around(scores: FloatArray | NDArray[np.float32], n: int) -> tuple[BoolArray, IntArray]:
    """Marks scores that are below the n-th smallest, (N,), and says where those stand among which it is. Of many, a sample tells bounds.

    Floyd and Rivest 1975, Algorithm 489: the sample's ranks are off by less than a few standard deviations; where they are not, all
    scores are gone through.
    """
    if len(scores) >= MANY:
        low, high = bounds(scores, n)
        below = scores < low
        near = np.flatnonzero((scores <= high) ^ below)
        if 1 <= n - int(np.count_nonzero(below)) <= len(near):
            return below, near
    return np.zeros(len(scores), bool), np.arange(len(scores))


def bounds(scores: FloatArray | NDArray[np.float32], n: int) -> tuple[float, float]:
    """Two scores of a sample between which the n-th smallest should lie."""
    sample, share = np.sort(scores[::SAMPLED]), n / len(scores)
    rank = share * len(sample)
    margin = 4 * (rank * (1 - share)) ** 0.5 + 4  # of the rank that a random sample would give it, in standard deviations
    low = sample[int(rank - margin)] if rank >= margin else -np.inf
    return low, sample[int(rank + margin)] if rank + margin < len(sample) else np.inf


def _median(scores: FloatArray | NDArray[np.float32]) -> float:
    """Of the two in the middle the mean, in double precision."""
    if not len(scores):
        return 0.0
    middle = float(nth_smallest(scores, (len(scores) + 1) // 2))
    return middle if len(scores) % 2 else (middle + float(nth_smallest(scores, len(scores) // 2 + 1))) / 2


def _fitting(values: FloatArray, sizes: IntArray, count: int) -> BoolArray:
    """Marks groups in ascending value whose sizes add up to ``count`` at most; a group that does not fit is passed over.

    Of equal values the first comes first.
    """
    single, within = np.flatnonzero(sizes == 1), np.flatnonzero(sizes > 1)
    order = within[np.argsort(values[within], kind="stable")]
    low = _ordered_before(values, single, order)
    taken, held = np.zeros(len(values), bool), 0
    for group, before, size in zip(order.tolist(), low.tolist(), sizes[order].tolist(), strict=True):
        left = count - held - before  # groups of one always fit
        if left <= 0:
            break
        if size <= left:
            taken[group] = True
            held += size
    taken[single[np.flatnonzero(smallest(values[single], min(count - held, len(single))))]] = True
    return taken


def _ordered_before(values: FloatArray, single: IntArray, groups: IntArray) -> IntArray:
    """How many of the ``single`` ones come before each of the ``groups``, by value and of equal ones by number."""
    ascending, own = np.sort(values[single]), values[groups]
    before, through = (np.searchsorted(ascending, own, side) for side in ("left", "right"))
    for at in np.flatnonzero(before < through).tolist():
        before[at] += np.count_nonzero(single[values[single] == own[at]] < groups[at])
    return before


def _whole(keys: IntArray, scored: Scored, topology: Topology, parts: Mapping[str, IntArray]) -> IntArray:
    """The keys of all candidates, but -1 where connections that have the same key are missing among them."""
    missing = np.zeros(key_count(topology, parts) + 1, bool)  # the last one is for -1
    for layer in topology.layers:
        positions, _ = scored.get(layer.layer, (np.zeros(0, np.int64), None))
        if len(positions) < layer.count:
            missing[layer_keys(layer, layer.positions()[~among(layer, positions)], topology, parts)] = True
    return np.where(missing[keys], -1, keys)


def _way(keys: IntArray, topology: Topology, parts: Mapping[str, IntArray], ways: FloatArray | None) -> FloatArray | float:
    """What the way of each key costs, from the part of its unit to the part that reads it, (len(keys),)."""
    if ways is None:
        return 1.0
    spaces = [space for (space, _, _), _ in _halo_starts(topology)[:-1]]
    owner = np.concatenate([parts.get(space, np.zeros(topology.units[space], np.int64)) for space in spaces])
    units, targets = np.divmod(keys, part_count(parts))
    found: FloatArray = ways[owner[units], targets]
    return found


def _groups(keys: IntArray, key_count: int) -> IntArray:
    """Group number of every candidate, in the order of the groups' first members: equal keys together, each -1 alone."""
    first = np.full(key_count, len(keys))
    remote = np.flatnonzero(keys >= 0)
    np.minimum.at(first, keys[remote], remote)
    leader = np.arange(len(keys))
    leader[remote] = first[keys[remote]]
    number = np.cumsum(leader == np.arange(len(keys))) - 1
    return number[leader]


def _remote_keys(scored: Scored, topology: Topology, parts: Mapping[str, IntArray], price: float) -> IntArray:
    """Key of every candidate, -1 where it is not remote, (N,)."""
    check_parts(topology, parts, price)
    keys = (layer_keys(topology.layer(layer), positions, topology, parts) for layer, (positions, _) in scored.items())
    return np.concatenate([np.zeros(0, np.int64), *keys])


def check_parts(topology: Topology, parts: Mapping[str, IntArray], price: float) -> None:
    """ValueError for a negative price, or labels that do not fit their spaces."""
    if price < 0:
        raise ValueError(f"price is {price}, but must be at least 0; pass median scores per halo unit")
    for space, labels in parts.items():
        if len(labels) != topology.space(space).units:
            units = topology.space(space).units
            raise ValueError(f"parts of space {space!r} has {len(labels)} entries, but must have one per unit, {units}; partition anew")


def layer_keys(layer: Connections, positions: IntArray, topology: Topology, parts: Mapping[str, IntArray]) -> IntArray:
    """Key of each position of one layer, -1 where it is not remote."""
    table = _keys(layer, topology, parts)
    return np.full(len(positions), -1) if table is None else table.take(_places(layer, positions, parts))


def _keys(layer: Connections, topology: Topology, parts: Mapping[str, IntArray]) -> IntArray | None:
    """What connections from each source entry into each part have for a key, -1 where that is the entry's own part or it has none.

    (source entries, k). None where the layer computes no space that is divided.
    """
    if layer.target_space is None or layer.target_space not in parts:
        return None
    k, starts = part_count(parts), dict(_halo_starts(topology))
    segment_of, unit_of = entry_units(layer.reads, topology.units)
    table = np.full((len(unit_of), k), -1)
    for number, segment in enumerate(layer.source):
        if segment.space in parts:
            (inside,) = np.nonzero(segment_of == number)
            first = (starts[_read(layer, number, segment)] + unit_of[inside]) * k
            remote = parts[segment.space][unit_of[inside]][:, None] != np.arange(k)
            table[inside] = np.where(remote, first[:, None] + np.arange(k), -1)
    return table


def _places(layer: Connections, positions: IntArray, parts: Mapping[str, IntArray]) -> IntArray:
    """Where each position stands in a flattened table of source entries and parts."""
    assert layer.target_space is not None
    rows, columns = layer.rows_and_columns(positions)
    places: IntArray = (rows if layer.depthwise else columns) * part_count(parts)
    places += parts[layer.target_space][rows]
    return places


Read: TypeAlias = tuple[str, str, int]
"""Space, value, and which segment of the value."""


def _read(layer: Connections, number: int, segment: Segment) -> Read:
    return segment.space, layer.value, number if layer.value else 0


def _halo_starts(topology: Topology) -> list[tuple[Read, int]]:
    """All that layers read, each with the number of its first unit when all units are counted through, and the end."""
    read = dict.fromkeys(_read(layer, number, segment) for layer in topology.layers for number, segment in enumerate(layer.source))
    ends = np.cumsum([0, *(topology.units[space] for space, _, _ in read)])
    return list(zip([*read, ("", "", 0)], ends.tolist(), strict=True))


def part_count(parts: Mapping[str, IntArray]) -> int:
    """Number of parts."""
    return 1 + max((int(labels.max(initial=0)) for labels in parts.values()), default=0)


def key_count(topology: Topology, parts: Mapping[str, IntArray]) -> int:
    """Number of keys, whether something has them or not."""
    return _halo_starts(topology)[-1][1] * part_count(parts)
