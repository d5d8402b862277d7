"""What becomes of an optimizer's state when the structure of the parameters changes.

A parameter is kept if an old one of its shape stands at its path, or if a kernel became the dense
master of a matrix, or the reverse; its state goes with it. Every other parameter is converted: a
kernel multiplied out of its factors, or the factors of a kernel. What those begin with is a policy:

- "reset_converted": moments and a count of their own, from the start; kept parameters keep theirs.
- "reset_all": with any converted parameter all begin anew, as in a new run from the weights alone.
- "map_first_moment", experimental, for matrices that become dense: the moments are pushed through
  the derivative of the product of the factors, dW = dU V + U dV, and the count goes on. The
  gradients of factors do not determine the gradient of their product: this is an approximation.

T. Dao et al., "Monarch: expressive structured matrices for efficient and accurate training", 2022,
train structured matrices first and dense ones last, and say nothing about the optimizer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import first_match, leaf_paths, owner_path, path_str
from jaxlab.core.matrix import Matrix, is_matrix, to_dense
from jaxlab.core.registry import suggest
from jaxlab.optim.chain import with_schedule_of
from jaxlab.optim.cohorts import is_cohorts, join, members, only, restrict

POLICIES = ("reset_converted", "reset_all", "map_first_moment")


class Trained(NamedTuple):
    """All parameters, and those that are trained: the same tree with None in other places."""

    params: Any
    trainable: Any


def densify_state(
    params: Any,
    opt_state: Any,
    tx: optax.GradientTransformation,
    *,
    path: str = ".*",
    policy: str = "reset_converted",
) -> tuple[Any, Any]:
    """Makes matrices dense, and carries an optimizer's state along: for a loop of one's own.

    Args:
      params: tree of arrays and matrices, all of it trained.
      opt_state: of `tx` for `params`.
      tx: the optimizer, with `jaxlab.optim.cohorts.in_cohorts` in it unless all is reset.
      path: pattern of the whole paths of the matrices.
      policy: "reset_converted", "reset_all" or "map_first_moment".

    Returns:
      The new parameters, with which the model computes the same function, and the state for them.

    Raises:
      ValueError: no matrix matches, or the policy is unknown or does not fit the optimizer.

    >>> import jaxlab
    >>> from jaxlab.optim.cohorts import in_cohorts
    >>> params = jaxlab.compress({"kernel": jnp.eye(4)}, [("kernel", "low_rank", {"rank": 1})])
    >>> tx = in_cohorts(optax.adam(0.1))
    >>> params, state = densify_state(params, tx.init(params), tx)
    >>> params["kernel"].shape
    (4, 4)
    """
    dense = densify(params, path)
    old, new = Trained(params, params), Trained(dense, dense)
    return dense, carry(tx, opt_state, old, new, policy, called=("densify_state", "policy"))


def densify(params: Any, path: str = ".*", progress: jax.Array | None = None) -> Any:
    """The tree with the dense array in the place of every matrix whose whole path matches.

    Args:
      params: tree of arrays and matrices.
      path: the pattern.
      progress: where matrices are in their schedules; None for those that have none.

    Raises:
      ValueError: `path` matches no matrix.
    """
    found = [p for p, w in leaf_paths(params, is_leaf=is_matrix).items() if is_matrix(w)]
    chosen = first_match([(path, True)], found, owner="densify")

    def dense(p: Any, w: Any) -> Any:
        if path_str(p) not in chosen:
            return w
        return to_dense(w if progress is None else w.at(progress))

    return jax.tree_util.tree_map_with_path(dense, params, is_leaf=is_matrix)


def check_policy(owner: str, policy: Any, name: str = "opt_state") -> None:
    """Raises a ValueError if there is no such policy; `name` is that of the caller's argument."""
    if policy not in POLICIES:
        raise ValueError(f"{owner}: {name}={policy!r}: {suggest(str(policy), POLICIES)}")


def carry(
    tx: optax.GradientTransformation,
    opt: Any,
    old: Trained,
    new: Trained,
    policy: str,
    *,
    called: tuple[str, str] = ("carry", "opt_state"),
) -> Any:
    """The optimizer's state after a change of structure; its place in a schedule is kept.

    Args:
      tx: the optimizer.
      opt: its state before.
      old: the parameters before.
      new: the parameters after.
      policy: what converted parameters begin with.
      called: the function that errors name, and what `policy` is called there.

    Raises:
      ValueError: `policy` is unknown, or does not fit the optimizer.
    """
    owner, name = called
    check_policy(owner, policy, name)
    converted = converted_paths(old, new)
    if converted and policy == "reset_all":
        return with_schedule_of(opt, tx.init(new.trainable))
    places = [x for x in jax.tree.leaves(opt, is_leaf=is_cohorts) if is_cohorts(x)]
    if converted and len(places) != 1:
        raise ValueError(
            f"{owner}: {name}={policy!r} wants one in_cohorts(...) in the optimizer, which has "
            f"{len(places)}; nearest: {name}='reset_all'"
        )
    old_names, new_names = _masters(old.params), _masters(new.params)
    ours = {_renamed(path, new_names): path for path in leaf_paths(new.trainable)}
    left, parts, groups = set(ours.values()), [], []
    for index, group in enumerate(members(old.trainable, places[0].paths if places else ())):
        mine = {ours.get(_renamed(path, old_names)) for path in group} - {None, *converted}
        if policy == "map_first_moment":
            mine |= {p for p in converted if any(path.startswith(f"{p}/") for path in group)}
        if mine:
            before = leaf_paths(only(opt, index))
            part = tx.init(restrict(new.trainable, mine))
            known = {_renamed(p, old_names): x for p, x in before.items()}
            whole = {_renamed(p, old_names) for p in group} == {
                _renamed(p, new_names) for p in mine if p
            }
            part = _filled(part, known, new_names, whole)
            if policy == "map_first_moment":
                changed = {p: w for p, w in matrices(old.params).items() if p in mine & converted}
                part = _mapped(part, before, changed)
            parts.append(part)
            groups.append(mine)
            left -= mine
    if left or not parts:
        parts.append(tx.init(restrict(new.trainable, left)))
        groups.append(left)
    return with_schedule_of(opt, join(parts, groups))


def converted_paths(old: Trained, new: Trained) -> set[str]:
    """The paths of trained parameters that are no old ones in another place."""
    old_names, new_names = _masters(old.params), _masters(new.params)
    known = {
        _renamed(p, old_names): (x.shape, x.dtype) for p, x in leaf_paths(old.trainable).items()
    }
    return {
        path
        for path, x in leaf_paths(new.trainable).items()
        if known.get(_renamed(path, new_names)) != (x.shape, x.dtype)
    }


def _filled(state: Any, known: dict[str, Any], names: dict[str, str], whole: bool) -> Any:
    """A fresh state with the arrays that an old one has at the same paths.

    A node with the attribute `joint` mixes all parameters of the state (a Gram matrix of whole
    gradients): unless they are the old ones, all of them (`whole`), it stays fresh.
    """

    def fill(path, x):
        if getattr(x, "joint", False):
            return x
        old = known.get(_renamed(path_str(path), names))
        return x if old is None or old.shape != x.shape else old

    starts_anew = lambda x: not whole and getattr(x, "joint", False)  # noqa: E731
    return jax.tree_util.tree_map_with_path(fill, state, is_leaf=starts_anew)


def _mapped(state: Any, before: dict[str, Any], changed: dict[str, Matrix]) -> Any:
    """A state with the moments of matrices in the places of those of their dense arrays."""

    def fill(key_path, x):
        path = path_str(key_path)
        owner = owner_path(path, changed)
        if owner is None or changed[owner].shape != x.shape:
            return x
        prefix = path.removesuffix(owner)
        push = _MOMENTS.get(prefix.rstrip("/").split("/")[-1])
        if push is None:
            return x
        leaves = leaf_paths(changed[owner])
        moments = {child: before.get(f"{prefix}{owner}/{child}") for child in leaves}
        return push(changed[owner], moments).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(fill, state)


def _first_moment(w: Matrix, moments: dict[str, Any]) -> jax.Array:
    return _pushed(w, moments, lambda x: x)


def _second_moment(w: Matrix, moments: dict[str, Any]) -> jax.Array:
    # A bound on the size of the pushed first moment, so that no first update is too large.
    roots = {child: None if x is None else jnp.sqrt(x) for child, x in moments.items()}
    return jnp.square(_pushed(w, roots, jnp.abs))


# By the names that optax gives to an optimizer's arrays.
_MOMENTS = {"mu": _first_moment, "trace": _first_moment, "nu": _second_moment}


def _pushed(w: Matrix, tangents: dict[str, Any], at: Any) -> jax.Array:
    """The derivative of `to_dense` along `tangents`, where each child is `at` of what it is."""
    leaves, treedef = jax.tree_util.tree_flatten(w)
    known = list(tangents.values())
    moving = [i for i, tangent in enumerate(known) if tangent is not None]

    def dense(*values):
        changed = dict(zip(moving, values, strict=True))
        return treedef.unflatten([changed.get(i, x) for i, x in enumerate(leaves)]).to_dense()

    primals = [at(leaves[i]) for i in moving]
    return jax.jvp(dense, primals, [known[i].astype(leaves[i].dtype) for i in moving])[1]


def _masters(params: Any) -> dict[str, str]:
    """Path of every dense master inside a matrix -> path of the matrix.

    A matrix has a dense master if exactly one child runs along both axes, in the dense shape.
    """
    masters = {}
    for path, w in matrices(params).items():
        children = {n: getattr(w, n) for n, axes in w.axes.items() if axes == ("in", "out")}
        full = [n for n, x in children.items() if _is_floating(x)]
        if len(full) == 1 and children[full[0]].shape == w.shape:
            masters[f"{path}/{full[0]}"] = path
    return masters


def _is_floating(x: Any) -> bool:
    return x is not None and bool(jnp.issubdtype(x.dtype, jnp.floating))


def _renamed(path: str, masters: dict[str, str]) -> str:
    """A path with a master's path in it, below any prefix, replaced by its matrix's.

    What follows stays: an optimizer may keep a parameter's array as several.
    """
    parts = path.split("/")
    for start in range(len(parts)):
        for stop in range(len(parts), start, -1):
            matrix = masters.get("/".join(parts[start:stop]))
            if matrix is not None:
                return "/".join([*parts[:start], matrix, *parts[stop:]])
    return path
