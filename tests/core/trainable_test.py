"""Partition and combine are inverse; what is frozen is what was said."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxlab
from jaxlab.core.match import leaf_paths


def params():
    tree = {"a": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}, "b": {"kernel": jnp.eye(8)}}
    return jaxlab.finalize(jaxlab.compress(tree, [("a/kernel", "nm", {"n": 2, "m": 4})]))


def trained(mask):
    return {path for path, keep in leaf_paths(mask).items() if keep}


def test_integers_are_never_trained():
    assert trained(jaxlab.trainable_mask(params())) == {"a/kernel/values", "a/bias", "b/kernel"}


def test_freeze_by_path():
    mask = jaxlab.trainable_mask(params(), freeze=("a/.*",))
    assert trained(mask) == {"b/kernel"}
    with pytest.raises(ValueError, match="freeze: pattern 'c/.*'"):
        jaxlab.trainable_mask(params(), freeze=("c/.*",))
    # Each letter of a string would be a pattern: "." matches the path of one array alone.
    with pytest.raises(ValueError, match=r"freeze='\.' must be a list; nearest: \['\.'\]"):
        jaxlab.trainable_mask({"a": jnp.ones(2)}, ".")


def test_a_matrix_declares_frozen_children():
    import dataclasses

    from jaxlab.core.matrix import Matrix

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Adapter(Matrix):
        base: jax.Array
        delta: jax.Array
        frozen = ("base",)

    tree = {"x": Adapter(jnp.ones((2, 2)), jnp.ones((2, 2)))}
    assert trained(jaxlab.trainable_mask(tree)) == {"x/delta"}


@given(st.lists(st.booleans(), min_size=4, max_size=4))
def test_combine_undoes_partition(flags):
    tree = params()
    mask = jax.tree.unflatten(jax.tree.structure(tree), flags)
    first, second = jaxlab.partition(tree, mask)
    assert len(jax.tree.leaves(first)) == sum(flags)
    joined = jaxlab.combine(first, second)
    assert jax.tree.structure(joined) == jax.tree.structure(tree)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(tree), strict=True))
