"""One density for the whole network -> a density for every layer -> a whole number of connections for every layer.

Legend: O, I target and source entries of a weight (O, I, *kernel); n = O I prod(kernel) its possible connections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import floor, prod
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Allocation: TypeAlias = Callable[[Shapes, float], Mapping[str, float]]
"""Shapes of the layers' weights and the density of all of them together -> density of every layer."""


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """Every layer the same density."""
    _check(shapes, density)
    return dict.fromkeys(shapes, density)


def erdos_renyi(shapes: Shapes, density: float) -> dict[str, float]:
    """Densities in proportion to (O + I) / (O I), whatever the kernel (Mocanu et al. 2018, arXiv 1707.04780).

    >>> {name: round(d, 4) for name, d in erdos_renyi({"a": (300, 784), "b": (100, 300), "c": (10, 100)}, 0.1).items()}
    {'a': 0.0796, 'b': 0.2302, 'c': 1.0}
    """
    return _in_proportion(shapes, density, lambda shape: sum(shape[:2]) / prod(shape[:2]))


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdős-Rényi with the kernel counted: in proportion to (O + I + kh + kw) / (O I kh kw) (Evci et al. 2019, arXiv 1911.11134)."""
    return _in_proportion(shapes, density, lambda shape: sum(shape) / prod(shape))


def counts(shapes: Shapes, densities: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole connections per layer, exactly ``total`` in all: rounded down, then up where the remainder is largest (ties: the first).

    >>> counts({"a": (1, 3), "b": (1, 3)}, {"a": 0.5, "b": 0.5}, 3)
    {'a': 2, 'b': 1}
    """
    ideal = {name: densities[name] * prod(shape) for name, shape in shapes.items()}
    if abs(sum(ideal.values()) - total) >= 1:
        expected = sum(ideal.values())
        raise ValueError(f"total is {total}, but must be what the densities add up to, {expected:.6g}; allocate the density anew")
    whole = {name: floor(value) for name, value in ideal.items()}
    by_remainder = sorted(ideal, key=lambda name: whole[name] - ideal[name])  # stable: ties stay in the layers' order
    for name in by_remainder[: total - sum(whole.values())]:
        whole[name] += 1
    return whole


ALLOCATIONS: Mapping[str, Allocation] = {"uniform": uniform, "erdos_renyi": erdos_renyi, "erk": erk}
"""The allocations that a user may name. Without one the allocation is global: where the connections lie, the scores say."""


def allocation(name: str) -> Allocation:
    """The allocation of that name; ValueError names the ones that exist."""
    if name in ALLOCATIONS:
        return ALLOCATIONS[name]
    remedy = "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, ALLOCATIONS, 1))
    raise ValueError(f"allocation is {name!r}, but must be one of {', '.join(ALLOCATIONS)}{remedy}")


def shares(shapes: Shapes, total: int, allocate: Allocation, kept: Mapping[str, int]) -> dict[str, int]:
    """Connections per layer, ``total`` in all: those of ``kept`` as they are, the rest allocated over the other layers.

    ValueError if the kept layers have more than the total already, or if the others could not hold the rest.

    >>> shares({"a": (2, 4), "b": (4, 4), "c": (4, 1)}, 10, uniform, {"c": 4})
    {'a': 2, 'b': 4, 'c': 4}
    """
    free = {name: shape for name, shape in shapes.items() if name not in kept}
    rest, possible = total - sum(kept.values()), sum(prod(shape) for shape in free.values())
    if not 0 < rest <= possible:
        raise ValueError(
            f"connections is {total}, but must be in [{sum(kept.values()) + 1}, {sum(kept.values()) + possible}] where "
            f"{', '.join(kept) or 'no layer'} is kept as it is; change the density or keep fewer layers"
        )
    counted = counts(free, allocate(free, rest / possible), rest)
    return {name: kept[name] if name in kept else counted[name] for name in shapes}


def check_density(density: float) -> None:
    """ValueError unless in (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}, but must be in (0, 1]; pass connections / possible connections")


def _in_proportion(shapes: Shapes, density: float, raw: Callable[[tuple[int, ...]], float]) -> dict[str, float]:
    """Densities eps * raw(shape) that meet the budget; a layer that would exceed 1 is fixed dense and eps solved again without it."""
    _check(shapes, density)
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    raws = {name: raw(shape) for name, shape in shapes.items()}
    budget = density * sum(sizes.values())
    free = list(shapes)
    while free:
        left = budget - sum(size for name, size in sizes.items() if name not in free)
        eps = left / sum(raws[name] * sizes[name] for name in free)
        largest = max(raws[name] for name in free)
        if eps * largest <= 1:
            return {name: eps * raws[name] if name in free else 1.0 for name in shapes}
        free = [name for name in free if raws[name] < largest]
    return dict.fromkeys(shapes, 1.0)


def _check(shapes: Shapes, density: float) -> None:
    check_density(density)
    if not shapes:
        raise ValueError("shapes is empty, but must name at least one layer; pass the shape of every layer's weight")
