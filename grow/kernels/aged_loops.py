"""The loop of Adam's update of elements that came into being at different steps: one pass over the memory.

Corrections are looked up by age in a table. Wherever in a tensor an element stands, the same bits come out: what fills no vector is
computed by the same operations, one lane at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numba import types

from grow.kernels.loops import Compiled, machine_code
from grow.kernels.vectors import divided, filled, load, multiply_add, root, store, zeros

BLOCK = 512
"""Elements whose corrections are looked up before they are used: what was just written can then be read in wider pieces."""


@cache
def aged(dtype: torch.dtype, lanes: int) -> Compiled:
    """The update of elements, as many at a time as there are ``lanes``.

    Takes first and last element, the step, the greatest age A, parameter, gradient, both averages and births (float32), all (N,), the
    corrections (A + 1, 2), eight settings (see `_aged`) and room for 2 * `BLOCK` values.
    """
    values = types.CPointer({torch.float32: types.float32, torch.float64: types.float64}[dtype])
    births = types.CPointer(types.float32)
    return machine_code(_aged(lanes), *[types.intp] * 4, values, values, values, values, births, values, values, values)


def _aged(lanes: int) -> Any:
    def aged(  # type: ignore[no-untyped-def]
        first, last, step, most, parameter, gradient, mean, square, birth, table, settings, room
    ):
        """Elements first..last, whose number is a multiple of ``lanes``.

        Settings: 1 - beta1, beta2, 1 - beta2, -learning rate, epsilon, what decay leaves of a parameter, what it adds to a gradient, -1.
        """
        nothing, minus = zeros(parameter, lanes), filled(settings[7], lanes)
        towards, kept, added = filled(settings[0], lanes), filled(settings[1], lanes), filled(settings[2], lanes)
        rate, epsilon = filled(settings[3], lanes), filled(settings[4], lanes)
        shrunk, pulled = filled(settings[5], lanes), filled(settings[6], lanes)
        for block in range(first, last, BLOCK):
            count = min(BLOCK, last - block)
            for at in range(count):
                age = min(max(step - int(birth[block + at]), 1), most)
                room[at], room[BLOCK + at] = table[2 * age], table[2 * age + 1]
            for at in range(0, count, lanes):
                place = block + at
                value, average = load(parameter, place, lanes), load(mean, place, lanes)
                slope = multiply_add(value, pulled, load(gradient, place, lanes))
                average = multiply_add(multiply_add(average, minus, slope), towards, average)
                spread = multiply_add(load(square, place, lanes), kept, nothing)
                spread = multiply_add(multiply_add(slope, slope, nothing), added, spread)
                store(mean, place, average)
                store(square, place, spread)
                below = multiply_add(root(spread), load(room, BLOCK + at, lanes), epsilon)
                moved = divided(multiply_add(average, load(room, at, lanes), nothing), below)
                store(parameter, place, multiply_add(moved, rate, multiply_add(value, shrunk, nothing)))

    return aged
