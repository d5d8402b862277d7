"""Mosaic GPU as jax 0.10 to 0.12 spell it; no other file imports it.

Each function here is one place where the versions differ, or where interpreting a kernel on a CPU
needs another way than compiling it.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlab.kernels.dispatch import require_hopper
from jaxlab.kernels.measured import VERSION

try:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu as plgpu
except ImportError:  # an installation for other accelerators may lack it
    pl: Any = None
    plgpu: Any = None


def require(interpret: bool | None, *reasons: str) -> None:
    """Raises NotImplementedError where a kernel has nothing to run on, or does not take this.

    Args:
      interpret: whether it is to run on a CPU.
      *reasons: why it does not take this; empty where it does.
    """
    if plgpu is None:
        raise NotImplementedError("mosaic_gpu: this jax has no Mosaic GPU")
    require_hopper(interpret)
    for reason in filter(None, reasons):
        raise NotImplementedError(f"mosaic_gpu: {reason}")


def not_bfloat16(name: str, array: jax.Array) -> str:
    """Why a kernel does not take an array of another dtype, or nothing."""
    if array.dtype == jnp.bfloat16:
        return ""
    return f"{name} is {array.dtype}; the kernel takes bfloat16"


def not_a_scale(scale: jax.Array | None) -> str:
    """Why a kernel does not take scales of this dtype, or nothing: of a byte they do not align."""
    if scale is None or scale.dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        return ""
    return f"scale is {scale.dtype}; the kernel takes float32, bfloat16 and float16"


def interpreter(warpgroups: int) -> Any:
    """What `interpret=` of a kernel wants, to run it on a CPU.

    Args:
      warpgroups: how many run at a time. Each that waits at a barrier holds a thread of XLA's pool,
        which has one for every core: when all threads wait, nothing is left to end their waiting.

    Raises:
      NotImplementedError: jax 0.10, whose interpreter refuses products from sliced tiles; inside
        `jax.shard_map` over several devices, whose kernels would share what interpreters keep; a
        pool of too few threads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape[axis] > 1 for axis in mesh.manual_axes):
        raise NotImplementedError(
            f"mosaic_gpu: interpreted inside jax.shard_map over {', '.join(mesh.manual_axes)}; "
            "nearest: 'xla'"
        )
    if VERSION < (0, 11):
        raise NotImplementedError(f"mosaic_gpu: jax {jax.__version__} cannot interpret this kernel")
    # As XLA counts; Python 3.13 has `os.process_cpu_count` for it.
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    named = (os.environ.get(name, "") for name in ("PJRT_NPROC", "NPROC"))
    threads = next((int(number) for number in named if number.isdecimal()), len(allowed(0)))
    pool = max(threads, jax.local_device_count("cpu"))
    if pool <= warpgroups:
        raise NotImplementedError(
            f"mosaic_gpu: {warpgroups} warpgroups at a time are interpreted with"
            f" {warpgroups + 1} threads, and XLA's pool has {pool}; set the environment variable"
            f" NPROC={warpgroups + 1} before jax starts"
        )
    return plgpu.InterpretGPUParams()


def kernel(
    body: Callable[..., None],
    *,
    out: Any,
    scratch: dict[str, Any],
    grid: tuple[int, ...],
    grid_names: tuple[str, ...],
    num_threads: int,
    thread_name: str,
    interpret: bool,
    cluster: dict[str, int] | None = None,
    auto_barriers: bool = True,
) -> Callable[..., Any]:
    """`plgpu.kernel` with the semantics that every version has: whole warpgroups.

    Without `auto_barriers` the warps of a warpgroup do not wait for each other around every copy
    and store: the body says where they `meet`.
    """
    semantics = plgpu.LoweringSemantics.Warpgroup
    together = num_threads * math.prod((cluster or {}).values())
    return plgpu.kernel(
        body,
        out_type=out,
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=semantics, unsafe_no_auto_barriers=not auto_barriers
        ),
        grid=grid,
        grid_names=grid_names,
        cluster=tuple((cluster or {}).values()),
        cluster_names=tuple(cluster or {}),
        num_threads=num_threads,
        thread_name=thread_name,
        interpret=interpreter(together) if interpret else None,
    )


def counted(steps: Any, step: Callable[[Any, Any], Any], start: Any) -> Any:
    """`lax.fori_loop` from 0 whose index is int32 under `jax_enable_x64`, too.

    Args:
      steps: an int, of which loops of a known length are made, or an int32 array.
      step: of the index and what is carried.
      start: what is carried.
    """
    if not isinstance(steps, int):
        return lax.fori_loop(np.int32(0), steps, step, start)
    # With two ints the length stays known, but the index has jax's default dtype.
    return lax.fori_loop(0, steps, lambda i, carry: step(i.astype(jnp.int32), carry), start)


def meet() -> None:
    """The warps of a warpgroup wait for each other; not where a kernel is interpreted."""
    from jax.experimental.mosaic.gpu import utils

    plgpu.inline_mgpu()(lambda _: utils.warpgroup_barrier())()


def load(ref: Any, layout: Any, *, optimized: bool = True) -> jax.Array:
    """Reads the whole of a (sliced) reference into registers of a layout."""
    if VERSION < (0, 11):
        return plgpu.load(ref, (), layout=layout, optimized=optimized)
    return plgpu.load(ref, layout=layout, optimized=optimized)


def sums(rows: int, columns: int, dtype: Any = jnp.float32) -> Any:
    """Scoped registers that tensor-core products add to, 0 at first; int32 those of int8."""
    return plgpu.ACC((rows, columns), dtype)  # pyright: ignore[reportPrivateImportUsage]


def transposed(ref: Any) -> Any:
    """The transpose of a reference of two axes."""
    return plgpu.transpose_ref(ref, (1, 0)) if VERSION < (0, 11) else ref.T


def tiled(columns: int, bits: int) -> tuple[Any, ...]:
    """How shared memory that a tensor-core product reads is arranged: tiles, and swizzled."""
    if columns * bits == 128:  # rows of 16 bytes are too short for that
        return (plgpu.TilingTransform((8, columns)),)
    swizzle = plgpu.find_swizzle(columns * bits)
    return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)


def accumulate(acc: Any, a: jax.Array, b: Any, staging: Any | None) -> None:
    """`acc += a @ b` on tensor cores, `a` in registers and `b` in shared memory.

    Interpreters want `a` in memory: there it goes through `staging`, and the product is awaited.
    """
    if staging is None:
        plgpu.wgmma(acc, a, b)
        return
    staging[...] = a
    plgpu.commit_smem()
    plgpu.wgmma(acc, staging, b)
    plgpu.wgmma_wait(0)


def on_registers(words: jax.Array, per_register: Callable[[Any], Any]) -> jax.Array:
    """Maps registers of two 16-bit words to registers of two bfloat16 numbers.

    Args:
      words: uint16 in the layout of products.
      per_register: from and to 32-bit MLIR values.
    """
    from jax.experimental.mosaic.gpu import fragmented_array, utils
    from jaxlib.mlir import ir

    layout = plgpu.Layout.WGMMA
    result = plgpu.ShapeDtypeStruct(words.shape, jnp.bfloat16, layout=layout)

    @plgpu.inline_mgpu(arg_types=(layout,), return_type=result)
    def convert(_: Any, x: Any) -> Any:
        word = ir.IntegerType.get_signless(32)
        pair = ir.VectorType.get((2,), ir.BF16Type.get())
        out = np.empty_like(x.registers)
        for at, register in np.ndenumerate(x.registers):
            out[at] = utils.bitcast(per_register(utils.bitcast(register, word)), pair)
        return fragmented_array.FragmentedArray(_registers=out, _layout=x.layout, _is_signed=None)

    return convert(words)


def bytes_on_registers(
    words: jax.Array, amounts: Sequence[jax.Array], per_pair: Callable[..., list[Any]]
) -> jax.Array:
    """Maps pairs of registers, of two 16-bit words each, to registers of four int8.

    Args:
      words: uint16, (rows, columns), in the layout of products of int8.
      amounts: int32, one for each of what a pair is mapped to.
      per_pair: of two 32-bit MLIR values, the lower words first, and the amounts: as many values.

    Returns:
      int8 in the same layout: side by side, what each amount made of the words.
    """
    from jax.experimental.mosaic.gpu import fragmented_array, utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import vector

    layout, scalar = plgpu.Layout.WGMMA_8BIT, plgpu.Layout.WG_SPLAT(())
    shape = (words.shape[0], words.shape[1] * len(amounts))
    result = plgpu.ShapeDtypeStruct(shape, jnp.int8, layout=layout)

    @plgpu.inline_mgpu(arg_types=(layout, *(scalar for _ in amounts)), return_type=result)
    def convert(_: Any, x: Any, *by: Any) -> Any:
        pair = ir.VectorType.get((2,), ir.IntegerType.get_signless(32))
        four = ir.VectorType.get((4,), ir.IntegerType.get_signless(8))
        values = [amount.registers.item() for amount in by]
        parts = [np.empty_like(x.registers) for _ in by]
        for at, register in np.ndenumerate(x.registers):
            both = utils.bitcast(register, pair)
            halves = [
                vector.extract(
                    both, dynamic_position=[], static_position=ir.DenseI64ArrayAttr.get([i])
                )
                for i in (0, 1)
            ]
            for part, made in zip(parts, per_pair(*halves, *values), strict=True):
                part[at] = utils.bitcast(made, four)
        # Tiles of columns are the second axis of the registers.
        registers = np.concatenate(parts, axis=1)
        return fragmented_array.FragmentedArray(
            _registers=registers, _layout=x.layout, _is_signed=True
        )

    return convert(words, *amounts)


def shifted(register: Any, right: int) -> Any:
    """A 32-bit MLIR value shifted right, or left where `right` is negative."""
    from jax.experimental.mosaic.gpu import utils
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import arith

    if right == 0:
        return register
    by = utils.c(abs(right), ir.IntegerType.get_signless(32))
    return arith.shrui(register, by) if right > 0 else arith.shli(register, by)


def left_by(register: Any, by: Any) -> Any:
    """A 32-bit MLIR value shifted left by another."""
    from jaxlib.mlir.dialects import arith

    return arith.shli(register, by)


def assembly(code: str, *registers: Any) -> Any:
    """PTX from 32-bit values, `$1` and so on, to another, `$0`."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import llvm

    constraints = ",".join(["=r", *("r" for _ in registers)])
    return llvm.inline_asm(ir.IntegerType.get_signless(32), list(registers), code, constraints)
