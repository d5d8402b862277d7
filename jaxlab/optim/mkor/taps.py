"""Taps of a model: which of its kernels have one, and the statistics that come out."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlab.core.collect import replaced
from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import first_match, leaf_paths
from jaxlab.core.trainable import combine
from jaxlab.optim.mkor.tapped import Tap, Tapped


class Layer(NamedTuple):
    """How the array of a kernel is read: `stack` layers of `rows` inputs and `columns` outputs.

    array: the path of that array: the kernel's own, or that of its dense master.
    """

    stack: tuple[int, ...]
    rows: int
    columns: int
    array: str


# A pattern of paths; or one with the numbers of input and of output axes, the last of an array.
Spec = Sequence[str | tuple[str, int, int]]


def second_order(
    params: Any, spec: Spec | None = None, *, strict: bool = False
) -> dict[str, Layer]:
    """By path, the kernels that a model multiplies its rows with.

    A kernel is an array, or a matrix with a dense master (N:M, sparse) under its own path: so it
    stays the same kernel when a phase prunes it.

    Args:
      params: tree of arrays and matrices.
      spec: patterns of whole paths of kernels (..., n, o); or (pattern, axes of the input, axes of
        the output) for others: (".*/kernel", 3, 1) is a convolution of two dimensions. None is
        every kernel that is named `kernel`, and the factors of matrices.
      strict: whether a pattern that matches nothing is an error.

    Raises:
      ValueError: a pattern matches no such array, or one of too few axes.

    >>> second_order({"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})
    {'up/kernel': Layer(stack=(), rows=2, columns=3, array='up/kernel')}
    """
    arrays = {
        path: x
        for path, x in leaf_paths(params).items()
        if x.ndim >= 2 and jnp.issubdtype(x.dtype, jnp.floating)
    }
    masters = _masters(params, arrays)
    array_of = {masters.get(path, path): path for path in arrays}
    if spec is None:
        factors = {_join(path, n) for path, w in matrices(params).items() for n in w.factors}
        axes = {p: (1, 1) for p in array_of if p.split("/")[-1] == "kernel" or p in factors}
    else:
        rules = [(r, (1, 1)) if isinstance(r, str) else (r[0], (r[1], r[2])) for r in spec]
        axes = first_match(rules, array_of, owner="mkor.spec", strict=strict)
    found = {}
    for path, (inputs, outputs) in axes.items():
        shape = arrays[array_of[path]].shape
        if len(shape) < inputs + outputs:
            raise ValueError(
                f"mkor.spec: {path!r} of shape {shape} has no {inputs} input and {outputs} output "
                "axes"
            )
        stack = len(shape) - inputs - outputs
        rows, columns = shape[stack : stack + inputs], shape[stack + inputs :]
        found[path] = Layer(shape[:stack], math.prod(rows), math.prod(columns), array_of[path])
    return found


def is_part(params: Any) -> bool:
    """Whether leaves are left out of a tree, as cohorts, frozen leaves and `optax.masked` do it.

    What a pattern is to match may then be in the other part, and `strict` would be wrong.
    """
    is_hole = lambda x: x is None or isinstance(x, optax.MaskedNode)  # noqa: E731
    return any(map(is_hole, jax.tree.leaves(params, is_leaf=is_hole)))


def _masters(params: Any, arrays: Mapping[str, Any]) -> dict[str, str]:
    """Path of every dense master among the arrays -> path of the matrix that multiplies with it."""
    found = {}
    for path, w in matrices(params).items():
        whole = [_join(path, name) for name, axes in w.axes.items() if axes == ("in", "out")]
        whole = [p for p in whole if p in arrays]
        # A packed matrix stores fewer entries, whose gradient is not that of a kernel.
        if w.dense_product and len(whole) == 1 and _shape(w) == arrays[whole[0]].shape:
            found[whole[0]] = path
    return found


def _shape(w: Any) -> tuple[int, ...] | None:
    try:
        return w.shape
    except AttributeError:  # that of a child which is not trained, and so not here
        return None


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def init_taps(params: Any, spec: Spec | None = None) -> dict[str, Tap]:
    """Zeros by path, for `attach_taps`; args and errors as of `second_order`, `strict`.

    >>> init_taps({"up": {"kernel": jnp.ones((2, 3))}})["up/kernel"].a.shape
    (3,)
    """
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)  # noqa: E731
    return {
        path: Tap(zeros(*layer.stack, layer.rows + 1), zeros(*layer.stack, layer.columns))
        for path, layer in second_order(params, spec, strict=True).items()
    }


def attach_taps(params: Any, taps: dict[str, Tap], *, weight: jax.Array | None = None) -> Any:
    """Puts a matrix that is tapped in the place of every kernel that has a tap.

    Args:
      params: tree of arrays and matrices, multiplied with `@`.
      taps: of `init_taps`; those of kernels that are not there are left out.
      weight: what rows count, of the shape of the first axes of every layer's input: 0 for
        padding. Of the inputs only: a loss that leaves rows out has no gradient there.

    >>> params = {"kernel": jnp.ones((2, 1))}
    >>> loss = lambda taps: jnp.mean(jnp.ones((4, 2)) @ attach_taps(params, taps)["kernel"])
    >>> jax.grad(loss)(init_taps(params))["kernel"].a.tolist()
    [4.0, 4.0, 4.0]
    """

    def tapped(path: str) -> Callable[[Any], Any]:
        def put(w: Any) -> Any:
            each = weight
            if weight is not None:
                # Of a stack that is scanned, every layer has its own.
                each = jnp.broadcast_to(weight, (*w.shape[:-2], *weight.shape))
            return Tapped(w, taps[path], each)

        return put

    return replaced(params, {path: tapped(path) for path in taps})


def value_grad_stats(
    loss_fn: Callable[..., Any],
    *,
    has_aux: bool = False,
    weight: Callable[..., jax.Array] | None = None,
    frozen: Any = None,
) -> Callable[..., tuple[Any, Any, dict[str, Tap]]]:
    """`jax.value_and_grad` that returns statistics, too.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, auxiliary outputs).
      has_aux: which of both.
      weight: (*args) -> what rows count, as of `attach_taps`; None is 1.
      frozen: parameters that are not trained, as `jaxlab.partition` returns them: `loss_fn` gets
        them combined with those that are. None is that all are trained.

    Returns:
      A function (params, taps, *args) -> (what loss_fn returns, gradients, statistics).

    >>> params, x = {"kernel": jnp.ones((2, 1))}, jnp.array([[1.0, 2.0]])
    >>> step = value_grad_stats(lambda params, x: jnp.sum(x @ params["kernel"]))
    >>> step(params, init_taps(params), x)[2]["kernel"].g.tolist()
    [1.0]
    """

    def tapped_loss(params, taps, *args):
        # Before the taps: a matrix that is tapped no longer fits the hole in `frozen`.
        params = params if frozen is None else combine(params, frozen)
        each = None if weight is None else weight(*args)
        return loss_fn(attach_taps(params, taps, weight=each), *args)

    def value_grads(params, taps, *args):
        both = jax.value_and_grad(tapped_loss, argnums=(0, 1), has_aux=has_aux)
        value, (grads, stats) = both(params, taps, *args)
        return value, grads, stats

    return value_grads


def merge_stats(stats: Sequence[dict[str, Tap]]) -> dict[str, Tap]:
    """The statistics of micro-batches as those of the batch that they are equal parts of.

    What `optax.MultiSteps` does to gradients, for an update that is given the statistics of all
    micro-batches at the last of them.

    Args:
      stats: of every micro-batch, each by its own mean loss.

    >>> stats = [{"kernel": Tap(jnp.array([a, 1]), jnp.array([a - 1]))} for a in (2.0, 4.0)]
    >>> merge_stats(stats)["kernel"]
    Tap(a=Array([3., 1.], dtype=float32), g=Array([2.], dtype=float32))
    """
    return jax.tree.map(lambda *parts: sum(parts) / len(parts), *stats)


def unused(stats: dict[str, Tap]) -> list[str]:
    """The paths of kernels that no row reached, whose factors `mkor` leaves as they are.

    Args:
      stats: of a step, outside jit.

    >>> unused({"kernel": Tap(jnp.zeros(3), jnp.zeros(1))})
    ['kernel']
    """
    return [path for path, t in stats.items() if not bool(jnp.all(t.a[..., -1] > 0))]


def stats_to_vectors(
    stats: dict[str, Tap], clip: jax.typing.ArrayLike = 100.0
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """The means that a step's statistics are of.

    Args:
      stats: by path.
      clip: largest absolute value of an entry; the authors' code clips every row instead, which a
        sum cannot.

    Returns:
      By path: the mean of the inputs (..., n), the sum of the gradients (..., o), and booleans
      (...,), whether both are finite and there was a row. Where not, the vectors are 0.
    """
    found = {}
    for path, (a, g) in stats.items():
        rows = a[..., -1:]
        mean = a[..., :-1] / jnp.where(rows > 0, rows, 1)
        finite = jnp.all(jnp.isfinite(mean), -1) & jnp.all(jnp.isfinite(g), -1)
        good = finite & (rows[..., 0] > 0)
        vectors = [
            jnp.where(good[..., None], jnp.clip(v, jnp.negative(clip), clip), jnp.zeros_like(v))
            for v in (mean, g)
        ]
        found[path] = (vectors[0], vectors[1], good)
    return found
