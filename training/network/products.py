"""Products of many short vectors with one matrix, as a processor's vector registers want them.

A tile of a few rows and columns stays in registers while the depth is run through: each number of the matrix is loaded
once for all rows, each of a row once for all columns. numba's loops keep sums in memory, at half the speed, so a tile
is written as the compiler's own vectors. Each sum is taken in the order of the depth, from the bias on, with a fused
multiply-add where the processor has one: a row's bits are the same in a tile of many rows and of one.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped
from numba.extending import intrinsic
from numpy.typing import NDArray

from training.network.compiled import compiled

Float32 = NDArray[np.float32]


cgutils: Any = untyped


def _has_wide_registers() -> bool:
    """Whether there are 32 registers of 16 numbers each; else it is taken for granted that there are 16 of 8."""
    given = getattr(numba.config, "CPU_FEATURES", None)  # numba declares it at run time
    features = llvmlite.binding.get_host_cpu_features()
    return "+avx512f" in given.split(",") if given is not None else bool(features.get("avx512f"))


WIDE = _has_wide_registers()
LANES = 16 if WIDE else 8  # numbers of a vector
VECTORS = 3  # of a tile's columns
ROWS = 8 if WIDE else 4  # of a tile: with VECTORS sums each they fill the registers
COLUMNS = VECTORS * LANES


def padded(matrix: Float32, columns: int) -> Float32:
    """Return a matrix with columns of zeros up to a multiple of so many."""
    return np.ascontiguousarray(np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % columns))))


def _tile(rows: int, vectors: int) -> Any:
    """Return tile(matrix, v, z, row, at, column) of so many rows and vectors of columns.

    From `row` and `column` on: z = matrix[0] + v[:, at:] matrix[1:].
    """

    def tile(typing: Any, matrix: Any, v: Any, z: Any, row: Any, at: Any, column: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            vector = ir.VectorType(ir.FloatType(), LANES)
            pointer, nothing = vector.as_pointer(), ir.Constant(vector, ir.Undefined)
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            weights, left, out = (
                context.make_array(signature.args[k])(context, builder, arguments[k]) for k in range(3)
            )
            top, begin, first = arguments[3:]

            def row_of(array: Any, row: Any, offset: Any) -> Any:
                width = cgutils.unpack_tuple(builder, array.shape)[1]
                return builder.gep(array.data, [builder.add(builder.mul(row, width), offset)])

            def number(k: int) -> Any:
                return context.get_constant(types.intp, k)

            def load(base: Any, k: int) -> Any:
                at_vector = builder.bitcast(builder.gep(base, [number(k * LANES)]), pointer)
                return builder.load(at_vector, align=4)

            bias = row_of(weights, number(0), first)
            sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(rows)]
            for k in range(vectors):
                value = load(bias, k)
                for r in range(rows):
                    builder.store(value, sums[r][k])
            below = [row_of(left, builder.add(top, number(r)), begin) for r in range(rows)]
            depth = builder.sub(cgutils.unpack_tuple(builder, weights.shape)[0], number(1))
            fused = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{LANES}f32"
            )
            with cgutils.for_range(builder, depth) as loop:
                row = row_of(weights, builder.add(loop.index, number(1)), first)
                columns = [load(row, k) for k in range(vectors)]
                for r in range(rows):
                    factor = builder.load(builder.gep(below[r], [loop.index]))
                    one = builder.insert_element(nothing, factor, ir.Constant(ir.IntType(32), 0))
                    alike = builder.shuffle_vector(one, nothing, zeros)
                    for k in range(vectors):
                        total = builder.call(fused, [alike, columns[k], builder.load(sums[r][k])])
                        builder.store(total, sums[r][k])
            for r in range(rows):
                to = row_of(out, builder.add(top, number(r)), first)
                for k in range(vectors):
                    at_vector = builder.bitcast(builder.gep(to, [number(k * LANES)]), pointer)
                    builder.store(builder.load(sums[r][k]), at_vector, align=4)
            return context.get_dummy_value()

        return types.void(matrix, v, z, row, at, column), generate

    return intrinsic(tile)


_many, _one, _one_wide = _tile(ROWS, VECTORS), _tile(1, VECTORS), _tile(1, 4 * VECTORS)
_many_narrow, _one_narrow = _tile(ROWS, 1), _tile(1, 1)


@compiled
def multiply(matrix: Float32, v: Float32, at: int, z: Float32, rows: int) -> None:
    """Write z = matrix[0] + v[:, at:] matrix[1:] for `rows` rows, at most ROWS: the bias is the matrix's first row.

    v: [ROWS, ...]; z: [ROWS, columns of the matrix, which are padded to a multiple of COLUMNS, or else of LANES].
    """
    columns = matrix.shape[1]
    if 2 * rows > ROWS:  # what lies in the other rows is multiplied, too: still less work than one by one
        if columns % COLUMNS == 0:
            for column in range(0, columns, COLUMNS):
                _many(matrix, v, z, 0, at, column)
        else:
            for column in range(0, columns, LANES):
                _many_narrow(matrix, v, z, 0, at, column)
        return
    for row in range(rows):
        if columns % (4 * COLUMNS) == 0:
            for column in range(0, columns, 4 * COLUMNS):
                _one_wide(matrix, v, z, row, at, column)
        elif columns % COLUMNS == 0:
            for column in range(0, columns, COLUMNS):
                _one(matrix, v, z, row, at, column)
        else:
            for column in range(0, columns, LANES):
                _one_narrow(matrix, v, z, row, at, column)
