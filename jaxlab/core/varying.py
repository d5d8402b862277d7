"""Over which mesh axes arrays vary inside a `jax.shard_map` that checks what devices share."""

import jax


def varying(*arrays: jax.Array) -> frozenset[str]:
    """The axes over which any of the arrays varies; none where nothing is checked.

    >>> sorted(varying(jax.numpy.ones(3)))
    []
    """
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def varied(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """`x`, said to vary over `axes` too, as an operand beside one that does."""
    missing = tuple(sorted(axes - varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
