"""Meshes, and the sharding of every leaf of the state from the sharding of the dense arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlab.core.match import first_match, leaf_paths, owner_path, path_str
from jaxlab.core.matrix import Matrix, is_matrix

# (pattern of a parameter's path, mesh axis or None for each axis of its dense array)
ShardingRule = tuple[str, Sequence[str | None]]


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data` and `model`.

    Args:
      data: devices that split the batch; -1 takes all that `model` leaves.
      model: devices that split parameters.
      devices: the devices to use; all of them by default.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if model < 1 or len(devices) % model or (data != -1 and data * model != len(devices)):
        raise ValueError(
            f"mesh: data={data} x model={model} does not fit {len(devices)} devices; "
            f"nearest: data=-1, model={_nearest_divisor(len(devices), model)}"
        )
    return Mesh(np.asarray(devices).reshape(-1, model), ("data", "model"))


def param_specs(params: Any, rules: Sequence[ShardingRule], mesh: Mesh) -> Any:
    """The partition of every leaf of a parameter tree.

    A matrix's children follow from the partition of the dense array it stands for, by the axes
    that its class declares. An axis that the devices do not divide into whole tiles is replicated.

    Args:
      params: tree of arrays and matrices, or of their shapes.
      rules: (pattern, mesh axes of the dense array) pairs; paths that none matches are replicated.
      mesh: the mesh.

    Returns:
      A tree of `PartitionSpec` with the structure of `params`.

    Raises:
      ValueError: a pattern matches nothing, a mesh axis is unknown, or there are more mesh axes
        than array axes.
    """
    found = first_match(
        [(p, tuple(spec)) for p, spec in rules],
        leaf_paths(params, is_leaf=is_matrix),
        owner="mesh.rules",
    )

    def specs_of(key_path, leaf):
        path = path_str(key_path)
        spec = found.get(path, ())
        unknown = set(spec) - {None, *mesh.axis_names}
        if unknown or len(spec) > len(leaf.shape):
            raise ValueError(
                f"mesh.rules: {spec} does not fit {path!r} of shape {tuple(leaf.shape)}; "
                f"valid axes: None, {', '.join(mesh.axis_names)}, one for each array axis"
            )
        return _specs(leaf, (*spec, *[None] * (len(leaf.shape) - len(spec))), mesh)

    return jax.tree_util.tree_map_with_path(specs_of, params, is_leaf=is_matrix)


def state_shardings(state: Any, specs: Any, mesh: Mesh) -> Any:
    """Shardings of a whole train state from those of its parameters.

    A leaf of the optimizer state whose path ends in a parameter's path, with the same shape, is
    sharded like that parameter; so is a stack of such (a window of gradients), its first axis
    whole, and over `data` as well: along the last free axis that the devices divide. Every other
    leaf is replicated.

    Args:
      state: the `TrainState`, or its shapes.
      specs: what `param_specs` returned for `state.params`.
      mesh: the mesh.
    """
    spec_of = leaf_paths(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    shape_of = {path: leaf.shape for path, leaf in leaf_paths(state.params).items()}

    def sharding(key_path, leaf):
        path = owner_path(path_str(key_path), shape_of)
        if path is not None and leaf.shape == shape_of[path]:
            return NamedSharding(mesh, spec_of[path])
        if path is not None and leaf.shape[1:] == shape_of[path] != ():
            return NamedSharding(mesh, _split_over_data(leaf.shape, spec_of[path], mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, state)


def put_batch(batch: Any, mesh: Mesh, *, stacked: bool = False) -> Any:
    """Puts a host batch on the mesh, its rows split over `data`; each host sends its own rows.

    Args:
      batch: arrays with rows first, or, of several batches that are `stacked`, second.
      mesh: the mesh.
      stacked: whether the first axis counts batches.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*(None,) * stacked, "data"))
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), batch
    )


def put_tree(tree: Any, shardings: Any) -> Any:
    """Puts a tree on the mesh; each leaf is whole on every host, or on the mesh already."""
    if all(s.is_fully_addressable for s in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)

    def spread(x, sharding):
        if not x.is_fully_addressable:
            return x
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.jit(lambda t: t, out_shardings=shardings)(jax.tree.map(spread, tree, shardings))


def to_host(tree: Any) -> Any:
    """The whole tree on every host, as arrays that one process can address."""
    from jax.experimental import multihost_utils

    def fetch(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        return jax.numpy.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def _specs(leaf: Any, spec: tuple[str | None, ...], mesh: Mesh) -> Any:
    if leaf is None:
        return None
    if not isinstance(leaf, Matrix):
        return PartitionSpec(*_divisible(leaf.shape, spec, (1,) * len(spec), mesh))
    *stack, row, column = _divisible(leaf.shape, spec, (*[1] * (len(spec) - 2), *leaf.tile), mesh)
    along = {"in": row, "out": column, None: None}
    children, treedef = jax.tree_util.tree_flatten_with_path(leaf, is_leaf=lambda x: x is not leaf)
    return treedef.unflatten(
        [
            _specs(child, (*stack, *(along[a] for a in leaf.axes[path_str(path)])), mesh)
            for path, child in children
        ]
    )


def _split_over_data(shape: Any, spec: Any, mesh: Mesh) -> PartitionSpec:
    # Many times the size of the parameters, and read by sums: each device may hold a part.
    axes = [None, *spec, *[None] * (len(shape) - 1 - len(spec))]
    over = mesh.shape.get("data", 1)
    free = [i for i in range(1, len(shape)) if axes[i] is None and shape[i] % over == 0]
    if over > 1 and free and "data" not in axes:
        axes[free[-1]] = "data"
    return PartitionSpec(*axes)


def _divisible(shape: Any, spec: Any, tile: Any, mesh: Mesh) -> tuple[str | None, ...]:
    return tuple(
        None if axis is None or size % (mesh.shape[axis] * step) else axis
        for size, axis, step in zip(shape, spec, tile, strict=True)
    )


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return min(divisors, key=lambda d: abs(d - wanted))
