"""What compiled loops need and Python cannot say: pointers, prefetches, the bits of numbers.

Numba compiles a loop anew when the loop's own file has changed, not when this one has: after a
change here, remove the compiled code in `__pycache__`.
"""

from __future__ import annotations

from typing import Any, Final

try:
    import numba
    from llvmlite import ir
    from numba.core import cgutils, types
    from numba.extending import intrinsic
except ImportError:  # no wheel for this Python or platform yet: callers do without compiled loops
    numba = None

AVAILABLE: Final = numba is not None

if AVAILABLE:

    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(_: Any, address: Any) -> Any:
        """An address as a pointer that `carray` takes."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(address), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def fetch(_: Any, address: Any) -> Any:
        """Ask for the cache line at an address."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], cgutils.voidptr_t)
            word = ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word])
            fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            # To read, to keep in all caches, data.
            builder.call(fetch, [pointer, word(0), word(3), word(1)])
            return _context.get_dummy_value()

        return types.void(address), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def from_bits(_: Any, bits: Any) -> Any:
        """The fp32 number whose bits an integer has."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            bits32 = context.cast(builder, arguments[0], signature.args[0], types.int32)
            return builder.bitcast(bits32, ir.FloatType())

        return types.float32(bits), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def widen(_: Any, stored: Any) -> Any:
        """An element of a cache as fp32: itself, an integer, or bf16's bits as the upper half."""

        def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if signature.args[0] == types.float32:
                return arguments[0]
            if signature.args[0] == types.int8:
                return builder.sitofp(arguments[0], ir.FloatType())
            word = ir.IntType(32)
            bits = builder.shl(builder.zext(arguments[0], word), ir.Constant(word, 16))
            return builder.bitcast(bits, ir.FloatType())

        return types.float32(stored), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def narrow(_: Any, value: Any, like: Any) -> Any:
        """An fp32 number as an element `like` that of a cache; bf16 by round half to even."""

        def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            if signature.args[1] == types.float32:
                return arguments[0]
            word, half = ir.IntType(32), ir.IntType(16)
            bits = builder.bitcast(arguments[0], word)
            sixteen = ir.Constant(word, 16)
            odd = builder.and_(builder.lshr(bits, sixteen), ir.Constant(word, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
            return builder.trunc(builder.lshr(rounded, sixteen), half)

        return like(value, like), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def larger_magnitude(_: Any, top: Any, value: Any) -> Any:
        """The larger of `top`, the bits of an fp32 magnitude, and those of a number's; NaN wins.

        Compared as integers, which runs in vectors and gives one result in any order.
        """

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            word = ir.IntType(32)
            bits = builder.bitcast(arguments[1], word)
            magnitude = builder.and_(bits, ir.Constant(word, 0x7FFFFFFF))
            larger = builder.icmp_signed(">", magnitude, arguments[0])
            return builder.select(larger, magnitude, arguments[0])

        return types.int32(types.int32, value), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def to_int8(_: Any, value: Any) -> Any:
        """An fp32 number that fits, rounded half to even."""

        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
            rint = cgutils.get_or_insert_function(builder.module, kind, "llvm.rint.f32")
            return builder.fptosi(builder.call(rint, [arguments[0]]), ir.IntType(8))

        return types.int8(value), generate
