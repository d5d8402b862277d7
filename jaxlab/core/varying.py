"""What devices share of arrays: whether one has all, and over which mesh axes they vary."""

import jax


def on_one_device() -> bool:
    """Whether one device is known to hold whole arrays, as inside `jax.shard_map`.

    What is outside a mesh may be anywhere while it is traced, so this is False there on a host of
    several devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.axis_names and mesh.abstract_device is None:
        return jax.device_count() == 1
    # Over axes that are not manual XLA splits the program: what needs a whole array, as a kernel
    # does or a branch on all elements, would have the devices exchange theirs.
    return all(size == 1 for axis, size in mesh.shape.items() if axis not in mesh.manual_axes)


def varying(*arrays: jax.Array) -> frozenset[str]:
    """The axes over which any of the arrays varies inside a `jax.shard_map`.

    None where it does not check what devices share.

    >>> sorted(varying(jax.numpy.ones(3)))
    []
    """
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def varied(x: jax.Array, axes: frozenset[str]) -> jax.Array:
    """`x`, said to vary over `axes` too, as an operand beside one that does."""
    missing = tuple(sorted(axes - varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
