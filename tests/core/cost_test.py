"""Tables and byte counts come from the buffers that are there."""

import jax.numpy as jnp

import jaxlab


def test_table_adds_up_and_shows_what_is_stored():
    params = {"a": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}, "b": jnp.ones((4, 4))}
    small = jaxlab.finalize(jaxlab.compress(params, [("a/kernel", "nm", {"n": 2, "m": 4})]))
    table = jaxlab.parameter_table(small)
    assert table.nbytes == jaxlab.nbytes(small) == (1024 * 4 + 256) + 32 * 4 + 16 * 4
    assert table.dense_nbytes == jaxlab.nbytes(params)
    assert table.flops == 2 * 64 * 32 // 2 + 2 * 16
    drawn = str(table)
    assert "NMPacked  64x32  4,352  1.88x" in drawn
    assert "(1 vectors)" in drawn


def test_a_stack_costs_as_many_products():
    params = {"kernel": jnp.ones((3, 8, 8))}
    stacked = jaxlab.compress(params, [("kernel", "low_rank", {"rank": 2})])
    assert jaxlab.parameter_table(stacked).flops == 3 * 2 * 2 * 16
