"""Compression by the inputs: what a method is told, in which order, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.core import registry
from jaxlab.core.calibration import collect_grams, compress_calibrated
from jaxlab.core.gram import Gram
from jaxlab.core.matrix import Matrix, matrix
from jaxlab.methods.nm.mask import NMPattern
from jaxlab.methods.nm.oneshot import nm_one_shot


@matrix()
class Pruned(Matrix):
    """A method that needs its inputs, registered for a test."""

    array: jax.Array

    axes = {"array": ("in", "out")}

    @classmethod
    def from_dense(cls, w, *, gram: Gram | None = None, total_steps: int = 0, key=None):
        got, _ = nm_one_shot(w, NMPattern(2, 4), scores="sparsegpt", gram=gram)
        return cls(got + total_steps)

    @property
    def shape(self):
        return self.array.shape

    def to_dense(self):
        return self.array


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    registry.names("matrix")
    monkeypatch.setitem(registry._PARTS["matrix"], "pruned_by_inputs", Pruned)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# Sorted otherwise than used.
PARAMS = {"z": normal(0, 8, 12), "m": normal(1, 12, 8), "a": normal(2, 8, 3), "b": jnp.ones(3)}
ORDER = ("z", "m", "a")
BATCHES = [normal(i, 20, 8) + 1 for i in range(3)]
RULES = [("[zma]", "pruned_by_inputs", {})]
TRACES = []


def model(params, x):
    TRACES.append(x.shape)
    return jnp.tanh(jnp.tanh(x @ params["z"]) @ params["m"]) @ params["a"] + params["b"][None, :]


def test_parallel_is_one_pass_and_compress():
    got = compress_calibrated(model, PARAMS, RULES, iter(BATCHES))
    grams = collect_grams(model, PARAMS, BATCHES, ORDER)
    for path in ORDER:
        expected, _ = nm_one_shot(
            PARAMS[path], NMPattern(2, 4), scores="sparsegpt", gram=grams[path]
        )
        np.testing.assert_allclose(got[path].to_dense(), expected, atol=1e-6)
    assert got["b"] is PARAMS["b"]


def test_sequential_sees_what_is_compressed_before():
    TRACES.clear()
    got = compress_calibrated(model, PARAMS, RULES, lambda: iter(BATCHES), sequential=True)
    # Once for the order and once to compile, for all kernels and batches.
    assert len(TRACES) == 2
    params = PARAMS
    for path in ORDER:
        gram = collect_grams(model, params, BATCHES, [path])[path]
        pruned, _ = nm_one_shot(PARAMS[path], NMPattern(2, 4), scores="sparsegpt", gram=gram)
        params = params | {path: pruned}
        np.testing.assert_allclose(got[path].to_dense(), pruned, atol=1e-5)
    # Which is not what the dense model would have said.
    parallel = compress_calibrated(model, PARAMS, RULES, BATCHES)
    assert float(jnp.abs(parallel["m"].to_dense() - got["m"].to_dense()).max()) > 1e-3


@pytest.mark.parametrize("sequential", [False, True])
def test_methods_without_inputs_and_what_others_offer(sequential):
    rules = [
        ("z", "pruned_by_inputs", {}),
        ("m", "low_rank", {"rank": 2, "decomposition": "svd"}),
        ("a", "dense", {}),
    ]
    got = compress_calibrated(
        model, PARAMS, rules, BATCHES, sequential=sequential, offered=lambda _: {"total_steps": 5}
    )
    assert [type(got[path]).__name__ for path in ORDER] == ["Pruned", "LowRank", "Dense"]
    plain = compress_calibrated(model, PARAMS, rules, BATCHES, sequential=sequential)
    np.testing.assert_allclose(got["z"].array, plain["z"].array + 5, rtol=1e-6)
    np.testing.assert_array_equal(got["m"].u, plain["m"].u)


@pytest.mark.parametrize("sequential", [False, True])
def test_factors_in_a_second_call(sequential):
    first = jaxlab.compress(PARAMS, [("m", "low_rank", {"rank": 4})])
    got = compress_calibrated(
        model, first, [("m/u", "pruned_by_inputs", {})], BATCHES, sequential=sequential
    )
    gram = collect_grams(model, first, BATCHES, ["m/u"])["m/u"]
    expected, _ = nm_one_shot(first["m"].u, NMPattern(2, 4), scores="sparsegpt", gram=gram)
    np.testing.assert_allclose(got["m"].u.to_dense(), expected, atol=1e-5)
    assert got["m"].v is first["m"].v


@pytest.mark.parametrize("sequential", [False, True])
def test_shapes_alone_are_enough(sequential):
    def compressed(params):
        return compress_calibrated(model, params, RULES, BATCHES, sequential=sequential)

    shapes = jax.eval_shape(compressed, PARAMS)
    assert jax.tree.structure(shapes) == jax.tree.structure(compressed(PARAMS))


def test_refusals_come_before_the_data():
    def read():
        raise AssertionError("the batches were read")

    def refused(rules, message, batches=read, **how):
        with pytest.raises(ValueError, match=message):
            compress_calibrated(model, PARAMS, rules, batches, **how)

    refused([("q", "pruned_by_inputs", {})], "matches no path")
    refused([("z", "pruned_by_inputs", {"gram": 1})], "'gram' is set by the program")
    refused([("z", "dense", {"gram": 1})], "takes no 'gram'")
    refused([("m", "pruned_by_inputs", {}), ("z", "low_rank", {"rank": 9})], "nearest: 8")
    refused(RULES, "read.*once for each kernel; nearest: a list", iter(BATCHES), sequential=True)
    refused(RULES, "there are no batches", [], sequential=True)
    nested = [("m", "low_rank", {"rank": 4}), ("m/u", "pruned_by_inputs", {})]
    refused(nested, "'m/u'.*needs the Gram of the layer's inputs")
