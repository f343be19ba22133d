"""Vectors of a fixed length as values of numba's compiled functions, so that a tile of a batch stays in registers.

LLVM splits a vector of any length into the registers of the machine: 128 float32 are eight of AVX-512, sixteen of AVX2. numba itself
has no such type, and its loops over arrays go through memory at every connection.

All operations are intrinsics: they have a meaning inside of compiled functions only. Pointers count in elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

Emit: TypeAlias = Callable[[Any, Any, Any, Sequence[Any]], Any]
"""What numba calls to emit the code of an intrinsic: target, builder, signature, arguments -> value."""

PART_BYTES = 64
"""Length of the partial sums of a dot product: one AVX-512 register."""


class Vector(types.Type):  # type: ignore[misc]
    """``lanes`` floating-point numbers."""

    def __init__(self, scalar: types.Float, lanes: int) -> None:
        self.scalar, self.lanes = scalar, lanes
        super().__init__(f"Vector({scalar}, {lanes})")


def _llvm(scalar: types.Float, lanes: int) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if scalar.bitwidth == 32 else ir.DoubleType(), lanes)


def _model(manager: Any, vector: Vector) -> Any:
    return models.PrimitiveModel(manager, vector, _llvm(vector.scalar, vector.lanes))


register_model(Vector)(_model)


def _place(builder: Any, pointer: Any, index: Any, vector: ir.VectorType) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def _load(context: Any, pointer: Any, index: Any, lanes: Any) -> tuple[Any, Emit]:
    """``lanes`` consecutive elements from an index on."""
    vector = Vector(pointer.dtype, lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        place = _place(builder, arguments[0], arguments[1], _llvm(vector.scalar, vector.lanes))
        return builder.load(place, align=vector.scalar.bitwidth // 8)

    return vector(pointer, types.intp, lanes), emit


def _store(context: Any, pointer: Any, index: Any, value: Any) -> tuple[Any, Emit]:
    """Write a vector to consecutive elements from an index on."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        place = _place(builder, arguments[0], arguments[1], _llvm(value.scalar, value.lanes))
        builder.store(arguments[2], place, align=value.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), emit


def _zeros(context: Any, pointer: Any, lanes: Any) -> tuple[Any, Emit]:
    """``lanes`` zeros of the type that a pointer points to."""
    vector = Vector(pointer.dtype, lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return ir.Constant(_llvm(vector.scalar, vector.lanes), None)

    return vector(pointer, lanes), emit


def _filled(context: Any, scalar: Any, lanes: Any) -> tuple[Any, Emit]:
    """A vector of ``lanes`` times the same number."""
    vector = Vector(scalar, lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        whole = ir.Constant(_llvm(scalar, vector.lanes), ir.Undefined)
        first = builder.insert_element(whole, arguments[0], ir.IntType(32)(0))
        return builder.shuffle_vector(first, whole, _lanes([0] * vector.lanes))

    return vector(scalar, lanes), emit


def _multiply_add(context: Any, a: Any, b: Any, c: Any) -> tuple[Any, Emit]:
    """``a * b + c``, rounded once where the machine can."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return _fused(builder, a.scalar, a.lanes, *arguments)

    return a(a, a, a), emit


def _divided(context: Any, a: Any, b: Any) -> tuple[Any, Emit]:
    """``a / b``."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return builder.fdiv(*arguments)

    return a(a, a), emit


def _root(context: Any, value: Any) -> tuple[Any, Emit]:
    """The square root of every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        vector = _llvm(value.scalar, value.lanes)
        name = f"llvm.sqrt.v{value.lanes}f{value.scalar.bitwidth}"
        return builder.call(get_or_insert_function(builder.module, ir.FunctionType(vector, [vector]), name), arguments)

    return value(value), emit


def _clipped(context: Any, value: Any, highest: Any) -> tuple[Any, Emit]:
    """Every lane within 0 and ``highest``, a vector."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        vector, zeros = _llvm(value.scalar, value.lanes), ir.Constant(_llvm(value.scalar, value.lanes), None)
        kind, suffix = ir.FunctionType(vector, [vector] * 2), f"v{value.lanes}f{value.scalar.bitwidth}"
        least, most = (get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}") for name in ("maxnum", "minnum"))
        return builder.call(most, [builder.call(least, [arguments[0], zeros]), arguments[1]])

    return value(value, highest), emit


def _dot(context: Any, a: Any, b: Any) -> tuple[Any, Emit]:
    """Sum of ``a * b`` over all lanes, always in the same order: two chains of parts, then halves of the last part."""
    lanes = PART_BYTES * 8 // a.scalar.bitwidth

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        part = _llvm(a.scalar, lanes)
        sums = [ir.Constant(part, None), ir.Constant(part, None)]
        for number, start in enumerate(range(0, a.lanes, lanes)):
            chosen = _lanes(range(start, start + lanes))
            left, right = (builder.shuffle_vector(vector, vector, chosen) for vector in arguments)
            sums[number % 2] = _fused(builder, a.scalar, lanes, left, right, sums[number % 2])
        kind = ir.FunctionType(part.element, [part.element, part])
        name = f"llvm.vector.reduce.fadd.v{lanes}f{a.scalar.bitwidth}"
        reduce = get_or_insert_function(builder.module, kind, name)
        return builder.call(reduce, [ir.Constant(part.element, -0.0), builder.fadd(*sums)], fastmath=("reassoc",))

    return a.scalar(a, a), emit


def _transpose(context: Any, source: Any, at: Any, pitch: Any, target: Any, to: Any, step: Any, sides: Any) -> tuple[Any, Emit]:
    """Transpose a square block of ``sides`` elements a side: rows ``pitch`` apart at the source, ``step`` apart at the target.

    Blocks of half the side change places across the diagonal, then blocks of a quarter, down to single elements.
    """
    side = sides.literal_value

    def emit(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        vector, align = _llvm(source.dtype, side), source.dtype.bitwidth // 8

        def row(number: int, pointer: Any, first: Any, distance: Any) -> Any:
            return _place(builder, pointer, builder.add(first, builder.mul(distance, distance.type(number))), vector)

        rows = [builder.load(row(number, *arguments[:3]), align=align) for number in range(side)]
        half = side // 2
        while half:
            low = _lanes([lane if lane & half == 0 else side + lane - half for lane in range(side)])
            high = _lanes([lane + half if lane & half == 0 else side + lane for lane in range(side)])
            for number in range(side):
                if number & half == 0:
                    pair = rows[number], rows[number + half]
                    rows[number], rows[number + half] = (builder.shuffle_vector(*pair, lanes) for lanes in (low, high))
            half //= 2
        for number, value in enumerate(rows):
            builder.store(value, row(number, *arguments[3:6]), align=align)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp, sides), emit


def _fused(builder: Any, scalar: types.Float, lanes: int, a: Any, b: Any, c: Any) -> Any:
    vector = _llvm(scalar, lanes)
    kind = ir.FunctionType(vector, [vector] * 3)
    return builder.call(get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{lanes}f{scalar.bitwidth}"), [a, b, c])


def _lanes(chosen: Sequence[int] | range) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(chosen)), list(chosen))


def _intrinsic(emitted: Callable[..., tuple[Any, Emit]]) -> Any:
    return intrinsic(prefer_literal=True)(emitted)  # a vector's length is part of its type


load, store, zeros, filled = _intrinsic(_load), _intrinsic(_store), _intrinsic(_zeros), _intrinsic(_filled)
multiply_add, dot, transpose = _intrinsic(_multiply_add), _intrinsic(_dot), _intrinsic(_transpose)
clipped, divided, root = _intrinsic(_clipped), _intrinsic(_divided), _intrinsic(_root)
