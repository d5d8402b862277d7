"""The window on two devices: placed like its parameters, and only m numbers are exchanged."""

import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlab.optim.mfac import ihvp, scale_by_mfac, window_init, window_push
from jaxlab.training.sharding import make_mesh, param_specs, put_tree, state_shardings
from jaxlab.training.state import init_state

M = 3
PARAMS = {"up": jnp.ones((6, 4)), "down": {"kernel": jnp.ones((4, 8))}, "bias": jnp.ones(5)}
RULES = [("up", ("model", None)), ("down/kernel", (None, "model"))]
DIMS = r"\w+\[([\d,]*)\]"
TX = scale_by_mfac(M, 0.1, momentum=0.9, weight_decay=0.1)


@pytest.fixture(autouse=True)
def _loose_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        yield


def gradients(steps, like=PARAMS):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        yield jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), like)


def run(update, params, state, put=lambda grads: grads, like=PARAMS):
    seen = []
    for grads in gradients(5, like):
        updates, state = update(put(grads), state, params)
        seen.append(updates)
    return seen, state


def assert_close(actual, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def reduced(text):
    """Numbers in each all-reduce of a program, all it has; and the names of other collectives."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    calls = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)
    sizes = [
        sum(math.prod(int(n) for n in dims.split(",") if n) for dims in re.findall(DIMS, shapes))
        for shapes, kind in calls
        if kind == "all-reduce"
    ]
    return sizes, {kind for _, kind in calls} - {"all-reduce"}


def test_two_devices_agree_with_one_and_exchange_m_numbers_for_each_leaf():
    mesh = make_mesh(data=1, model=2)
    state = init_state(PARAMS, TX, freeze=(), ema=0.0)
    specs = param_specs(PARAMS, RULES, mesh)
    places = state_shardings(state, specs, mesh)
    rows = places.opt.window.rows
    assert rows["up"].spec == PartitionSpec(None, "model", None)
    assert rows["down"]["kernel"].spec == PartitionSpec(None, None, "model")
    assert places.opt.window.gram.spec == PartitionSpec()
    expected, last = run(jax.jit(TX.update), PARAMS, state.opt)
    like = jax.tree.map(
        lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
    )
    put = lambda grads: put_tree(grads, like)  # noqa: E731
    update = jax.jit(TX.update, out_shardings=(like, places.opt), donate_argnums=1)
    params, opt = put(PARAMS), put_tree(state.opt, places.opt)
    sizes, others = reduced(update.lower(put(PARAMS), opt, params).compile().as_text())
    assert others == set()
    # A number of each sharded leaf for whether it is finite, and m for the products with the rows.
    assert sorted(sizes) == [len(RULES), M * len(RULES)]
    actual, opt = run(update, params, opt, put)
    assert_close(actual, expected)
    assert_close(opt, last)
    assert opt.window.rows["up"].addressable_shards[0].data.shape == (M, 3, 4)


def test_devices_that_split_the_batch_split_the_window():
    params = {"up": jnp.ones((6, 4)), "odd": jnp.ones((5, 8)), "bias": jnp.ones(5)}
    params["scale"] = jnp.ones(())
    tx = scale_by_mfac(M, 0.1, momentum=0.9)
    mesh, state = make_mesh(data=2, model=1), init_state(params, tx, freeze=(), ema=0.0)
    places = state_shardings(state, param_specs(params, (), mesh), mesh)
    rows = jax.tree.map(lambda s: s.spec, places.opt.window.rows)
    # The last axis that the devices divide.
    split = PartitionSpec(None, None, "data")
    whole = {"bias": PartitionSpec(None, None), "scale": PartitionSpec()}
    assert rows == {"up": split, "odd": split, **whole}
    assert places.opt.velocity["up"].spec == PartitionSpec(None, None)
    copies = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    put = lambda grads: put_tree(grads, copies)  # noqa: E731
    expected, last = run(jax.jit(tx.update), params, state.opt, like=params)
    update = jax.jit(tx.update, out_shardings=(copies, places.opt), donate_argnums=1)
    actual, opt = run(update, put(params), put_tree(state.opt, places.opt), put, like=params)
    assert_close(actual, expected, 1e-6)
    assert_close(opt, last, 1e-6)
    assert opt.window.rows["up"].addressable_shards[0].data.shape == (M, 6, 2)


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxlab.optim.mfac import ihvp, scale_by_mfac, window_init, window_push
from jaxlab.training.sharding import make_mesh

tx, split = scale_by_mfac(4, 0.1), NamedSharding(make_mesh(1, 8), PartitionSpec("model"))
one, eight = tx.init(jnp.zeros((16, 3))), tx.init(jnp.zeros((16, 3)))
rows = jax.device_put(eight.window.rows, NamedSharding(split.mesh, PartitionSpec(None, "model")))
eight = eight._replace(window=eight.window._replace(rows=rows))
step = jax.jit(tx.update)
for g in np.random.default_rng(0).normal(size=(6, 16, 3)).astype(np.float32):
    (u, one), (v, eight) = step(g, one), step(jax.device_put(g, split), eight)
    np.testing.assert_allclose(v, u, rtol=1e-5, atol=1e-6)
print(len(v.sharding.device_set), eight.window.rows.addressable_shards[0].data.shape)
"""


def test_eight_devices_agree_with_one():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT],
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "8 (4, 2, 3)\n", done.stderr


@pytest.mark.parametrize("checks", [True, False])
def test_a_shard_map_names_its_axis_and_exchanges_one_vector_of_m(checks):
    mesh = make_mesh(data=1, model=2)
    rng = np.random.default_rng(0)
    every = {"w": rng.normal(size=(4, 6, 3)), "b": rng.normal(size=(4, 8))}
    every["b"][2, 0] = np.nan  # on one device
    split = jax.tree.map(lambda _: PartitionSpec(None, "model"), every)

    def steps(every, axis_name=None):
        tx = scale_by_mfac(M, 0.1, axis_name=axis_name)
        state, seen = tx.init(jax.tree.map(lambda g: g[0], every)), []
        for i in range(4):
            updates, state = tx.update(jax.tree.map(lambda g: g[i], every), state)  # noqa: B023
            seen.append(updates)
        return jax.tree.map(lambda *u: jnp.stack(u), *seen), state.n_skipped

    every = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), every)
    out = (split, PartitionSpec())
    sharded = jax.shard_map(
        lambda every: steps(every, "model"),
        mesh=mesh,
        in_specs=(split,),
        out_specs=out,
        check_vma=checks,
    )
    compiled = jax.jit(sharded).lower(every).compile()
    # Here the sum over the leaves comes first. XLA may merge the vector with the next step's flag.
    sizes, others = reduced(compiled.as_text())
    assert others == set()
    assert sum(sizes) == 4 * (1 + M)
    actual, skipped = compiled(every)
    assert_close(actual, jax.jit(steps)(every)[0])
    assert int(skipped) == 1


def test_products_inside_shard_map_are_those_of_one_device():
    like = {"up": jnp.zeros((6, 4)), "bias": jnp.zeros(8)}
    win = window_init(M, like)
    for grads in gradients(4, like):
        win = window_push(win, grads)
    (x,) = gradients(1, like)
    part = jax.tree.map(lambda _: PartitionSpec("model"), like)
    rows = jax.tree.map(lambda _: PartitionSpec(None, "model"), like)
    whole = PartitionSpec()
    split = jax.shard_map(
        lambda win, x: ihvp(win, x, 0.1, axis_name="model"),
        mesh=make_mesh(1, 2),
        in_specs=(win._replace(rows=rows, gram=whole, head=whole, count=whole), part),
        out_specs=part,
    )
    assert_close(jax.jit(split)(win, x), ihvp(win, x, 0.1))
