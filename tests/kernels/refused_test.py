"""Cuts that no kernel has: refused by field and value, before anything is divided by them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxlab.kernels import (
    gemv,
    kron_matvec,
    low_rank_matmul,
    monarch_matmul,
    plan,
    quantized_matmul,
)
from jaxlab.kernels.monarch_matmul.shapes import refuse
from jaxlab.kernels.nm_matmul import nm_matmul
from jaxlab.kernels.packing import pack
from jaxlab.kernels.packing_nm import pack_nm

STREAMED = quantized_matmul.Problem(16, 512, 16384, "int4", 128, 64).plan
KRON = kron_matvec.Problem(4, 32, 32, 32, 32, "float32")
LOW_RANK = low_rank_matmul.Problem(8, 32768, 512, 512, "bfloat16")
MONARCH = monarch_matmul.Problem(256, 4, 64, 4, 64, 16)
GEMV = gemv.Problem(1, 512, 65536, "bfloat16", "float32")
OPS = {
    "gemv": (GEMV.refuse, gemv.Config, ("tall", "wide", "stages", "blocks")),
    "gemv_transposed": (
        GEMV._replace(transposed=True).refuse,
        gemv.Config,
        ("tall", "wide", "stages", "blocks"),
    ),
    "streamed": (STREAMED.refuse, plan.Config, ("ways", "stages", "split_k", "depth", "parts")),
    "kron": (KRON.refuse, kron_matvec.Config, ("ways", "stages", "blocks")),
    "low_rank": (LOW_RANK.refuse, low_rank_matmul.Config, ("ways", "stages", "down", "up")),
    "monarch": (
        lambda config: refuse(MONARCH, config),
        monarch_matmul.Config,
        ("ways", "stages", "outs", "blocks"),
    ),
}


@pytest.mark.parametrize("op", OPS)
def test_fields_below_one_are_named(op):
    refused, config, fields = OPS[op]
    for field in fields:
        for value in (0, -1):
            assert f"{field}={value}" in refused(config(**{field: value}))


def test_more_barriers_than_a_register_knows_are_refused_where_memory_has_room():
    small = kron_matvec.Problem(4, 16, 16, 16, 16, "float32")
    assert "32 barriers" in small.refuse(kron_matvec.Config(4, 9))
    # Tiles of the others take more memory than there is before they take so many barriers.
    assert "bytes" in LOW_RANK.refuse(low_rank_matmul.Config(4, 9))
    assert "bytes" in refuse(MONARCH, monarch_matmul.Config(ways=4, stages=9))


def test_more_products_in_flight_than_are_counted_are_refused():
    assert "in_flight=8; it takes 0 to 7" in STREAMED.refuse(plan.Config(in_flight=8))


def test_sizes_of_nothing_are_refused_before_anything_is_divided_by_them():
    for change, says in (
        ({"n": 0}, "0 outputs"),
        ({"rank": 0}, "0 outputs"),
        ({"k": 0}, "0 inputs"),
    ):
        config = low_rank_matmul.Config(1, 1, 1, 1)
        assert says in LOW_RANK._replace(**change).refuse(config)
    for field in ("width", "out_width"):
        assert "0 " in refuse(MONARCH._replace(**{field: 0}), monarch_matmul.Config())


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float64])
def test_scales_that_do_not_align_are_refused(on_an_h100, dtype):
    """A kernel that is one of several leaves them to XLA."""
    with jax.enable_x64(True):
        w, x = jax.ShapeDtypeStruct((128, 1024), jnp.int8), jnp.zeros((8, 1024), jnp.bfloat16)
        packed = jax.eval_shape(functools.partial(pack, kind="int4"), w)
        sparse = jax.eval_shape(lambda w: pack_nm(w, w > 0, 2, 4, kind="int4"), w)
        scale = jax.ShapeDtypeStruct((8, 128), dtype)
        for op, weights in ((quantized_matmul.quantized_matmul, packed), (nm_matmul, sparse)):
            with on_an_h100():
                with pytest.raises(NotImplementedError, match="scale is float.*takes float32"):
                    jax.eval_shape(
                        functools.partial(op, implementation="mosaic_gpu"), x, weights, scale
                    )
                either = functools.partial(op, implementation=("mosaic_gpu", "xla"))
                assert jax.eval_shape(either, x, weights, scale).shape == (8, 128)
