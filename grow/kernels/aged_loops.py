"""The loop of Adam's update of elements that came into being at different steps: one pass over the memory.

Corrections are looked up by age in a table. Wherever in a tensor an element stands, the same bits come out: what fills no vector is
computed by the same operations, one lane at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from numba import types

from grow.kernels.loops import SCALARS, Compiled, machine_code
from grow.kernels.vectors import divided, filled, load, multiply_add, root, store, zeros

BLOCK = 512
"""Elements whose corrections are looked up before they are used: what was just written can then be read in wider pieces."""


@cache
def aged(dtype: torch.dtype, lanes: int) -> Compiled:
    """The update of elements, as many at a time as there are ``lanes``.

    Takes first and last element, the step, parameter, gradient, both averages and births (float32), all (N,); the greatest age A that each
    of two tables tells apart, and the corrections of both averages, (A + 1,); eight settings (see `_aged`); room for 2 * `BLOCK` values.
    """
    values = types.CPointer(SCALARS[dtype])
    births, tensors = types.CPointer(types.float32), (values, values, values, values)
    return machine_code(_aged(lanes), *[types.intp] * 3, *tensors, births, types.intp, values, types.intp, values, values, values)


def _aged(lanes: int) -> Any:
    def aged(  # type: ignore[no-untyped-def]
        first, last, step, parameter, gradient, mean, square, birth, most1, corrections1, most2, corrections2, settings, room
    ):
        """Elements first..last, whose number is a multiple of ``lanes``.

        Settings: beta1, 1 - beta1, beta2, 1 - beta2, -learning rate, epsilon, what decay leaves of a parameter, what it adds to a gradient.
        """
        nothing, decays = zeros(parameter, lanes), settings[7] != 0
        kept1, added1, kept2, added2 = (
            filled(settings[0], lanes), filled(settings[1], lanes), filled(settings[2], lanes), filled(settings[3], lanes)
        )  # fmt: skip
        rate, epsilon = filled(settings[4], lanes), filled(settings[5], lanes)
        shrunk, pulled = filled(settings[6], lanes), filled(settings[7], lanes)
        for block in range(first, last, BLOCK):
            count = min(BLOCK, last - block)
            for at in range(count):
                gap = step - birth[block + at]  # compared as a number: what is none has no age
                room[at] = corrections1[max(int(gap), 1) if gap < most1 else most1]
                room[BLOCK + at] = corrections2[max(int(gap), 1) if gap < most2 else most2]
            for at in range(0, count, lanes):
                place = block + at
                value, slope = load(parameter, place, lanes), load(gradient, place, lanes)
                if decays:
                    slope = multiply_add(value, pulled, slope)
                average = multiply_add(slope, added1, multiply_add(load(mean, place, lanes), kept1, nothing))
                spread = multiply_add(load(square, place, lanes), kept2, nothing)
                spread = multiply_add(multiply_add(slope, slope, nothing), added2, spread)
                store(mean, place, average)
                store(square, place, spread)
                below = multiply_add(root(spread), load(room, BLOCK + at, lanes), epsilon)
                moved = divided(multiply_add(average, load(room, at, lanes), nothing), below)
                store(parameter, place, multiply_add(moved, rate, multiply_add(value, shrunk, nothing)))

    return aged
