"""What the compiled scans ask of memory beyond numba's own words: rows before they are needed, and arrays uncounted.

Streams outnumber what caches hold: a scan that asks for one row after the other mostly waits. And numba counts the
owners of an array whenever a slice is cut or a tuple's column is read, with atomic operations that cost more than
most uses of a row: a tenth of a scan's time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped
from numba.extending import intrinsic
from numba.np import arrayobj

cgutils: Any = untyped
arrays: Any = arrayobj

LINE = 64  # bytes that memory gives at once


def _part(typing: Any, array: Any, row: Any, at: Any, size: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = context.make_array(signature.args[0])(context, builder, arguments[0])
        result = context.make_array(signature.return_type)(context, builder)
        width = cgutils.unpack_tuple(builder, whole.shape)[1]
        begin = builder.gep(whole.data, [builder.add(builder.mul(arguments[1], width), arguments[2])])
        arrays.populate_array(result, begin, [arguments[3]], [whole.itemsize], whole.itemsize, None)
        return result._getvalue()

    return types.Array(array.dtype, 1, "C")(array, types.intp, types.intp, types.intp), generate


def _unowned(typing: Any, value: Any) -> Any:
    def stripped(context: Any, builder: Any, kind: Any, given: Any) -> Any:
        if hasattr(kind, "types"):  # a tuple
            items = cgutils.unpack_tuple(builder, given, kind.count)
            uncounted = [stripped(context, builder, *pair) for pair in zip(kind.types, items, strict=True)]
            return context.make_tuple(builder, kind, uncounted)
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, given)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)
            array.parent = cgutils.get_null_value(array.parent.type)
            return array._getvalue()
        return given

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return stripped(context, builder, signature.args[0], arguments[0])

    return value(value), generate


def _prefetch(typing: Any, rows: Any, row: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, whole = ir.IntType(8), ir.IntType(32)
        step = cgutils.unpack_tuple(builder, table.strides)[0]
        begin = builder.gep(builder.bitcast(table.data, byte.as_pointer()), [builder.mul(arguments[1], step)])
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), whole, whole, whole])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")

        def line(at: Any) -> None:
            builder.call(ask, [builder.gep(begin, [at]), whole(1), whole(3), whole(1)])  # to be written, to stay, data

        if rows.ndim == 2:
            lines = builder.udiv(
                builder.add(step, context.get_constant(types.intp, LINE - 1)), context.get_constant(types.intp, LINE)
            )
            with cgutils.for_range(builder, lines) as loop:
                line(builder.mul(loop.index, context.get_constant(types.intp, LINE)))
        else:
            size = getattr(rows.dtype, "size", 1)  # a number lies within a line
            for at in range(0, size + LINE - 1, LINE):  # the last line, too, where a row begins within one
                line(context.get_constant(types.intp, min(at, size - 1)))
        return context.get_dummy_value()

    return types.void(rows, types.intp), generate


part: Any = intrinsic(_part)
"""part(array, row, at, size): array[row, at : at + size] without an owner, of an array of rows that lie together."""

unowned: Any = intrinsic(_unowned)
"""unowned(value): the same array, or tuple of arrays, without an owner; whoever calls the scan keeps them."""

prefetch: Any = intrinsic(_prefetch)
"""prefetch(rows, row): ask for a row of a table, or for one field of a record (`table.field`), before it is needed."""
