"""Taps: the means of a layer's inputs and of the gradients at its outputs, as gradients.

A tap is an argument that no value depends on. The derivative rule of `tap` makes the sums of the
rows its cotangent, so that jit, scan, remat, vmap, weight sharing, accumulation over parts of a
batch and sharding treat the sums as they treat gradients.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlab.core.collect import replaced
from jaxlab.core.convolution import Convolution
from jaxlab.core.lifecycle import matrices
from jaxlab.core.match import first_match, leaf_paths
from jaxlab.core.matrix import Matrix, matmul, matrix
from jaxlab.core.observe import Wrapped


class Tap(NamedTuple):
    """The sums of a layer's rows, in float32.

    Attributes:
      a: (..., n + 1), of the inputs, and how many there were.
      g: (..., o), of the loss's gradients at the outputs.
    """

    a: jax.Array
    g: jax.Array


@jax.custom_vjp
def tap(
    x: jax.Array, y: jax.Array, ta: jax.Array, tg: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """The identity on `y`; the cotangents of `ta` and `tg` are sums over all leading axes.

    For a loss that is the mean over rows, the sum of the gradients of the loss is the mean of the
    gradients of its terms; of a layer with a bias it is the bias's gradient.

    Args:
      x: (..., n), the layer's inputs.
      y: (..., o), its outputs.
      ta: (n + 1,), whose cotangent is the sum of x, and the number of rows.
      tg: (o,), whose cotangent is the sum of y's cotangent.
      weight: of the rows of x, broadcast from their first axes; 0 leaves one out. None is 1.

    >>> x, w = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones((2, 1))
    >>> loss = lambda ta, tg: jnp.mean(tap(x, x @ w, ta, tg))
    >>> [g.tolist() for g in jax.grad(loss, (0, 1))(jnp.zeros(3), jnp.zeros(1))]
    [[4.0, 6.0, 2.0], [1.0]]
    """
    return y


def _forward(x, y, ta, tg, weight):
    return y, (x, ta, tg, weight)


def _backward(saved, dy):
    x, ta, tg, weight = saved
    leading = tuple(range(x.ndim - 1))
    ones = jnp.ones(x.shape[:-1], ta.dtype)
    if weight is not None:
        each = weight.astype(ta.dtype)
        ones = jnp.broadcast_to(
            each.reshape(each.shape + (1,) * (x.ndim - 1 - each.ndim)), x.shape[:-1]
        )
        x = x.astype(ta.dtype) * ones[..., None]
    # vmap adds up cotangents that depend on the mapped axis only, and a count alone would not.
    rows = jnp.sum(jnp.where(x[..., 0] > 0, ones, ones))
    sums = jnp.sum(x, axis=leading, dtype=ta.dtype)
    slopes = jnp.sum(dy, axis=leading, dtype=tg.dtype)
    return None, dy, jnp.append(sums, rows), slopes, None


tap.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap_windows(
    convolve: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    y: jax.Array,
    one: jax.Array,
    ta: jax.Array,
    tg: jax.Array,
) -> jax.Array:
    """As `tap`, where the rows are the windows of a convolution, which is not written as rows.

    Args:
      convolve: (x, kernel) -> outputs, channels last.
      x: (B, ..., channels), the convolution's input.
      y: (..., o), its outputs.
      one: zeros, a kernel of one output and n entries.
      ta: (n + 1,), in whose cotangent windows have the order of the kernel's entries.
      tg: (o,).
    """
    return y


def _windows_forward(convolve, x, y, one, ta, tg):
    return y, (x, one, ta, tg)


def _windows_backward(convolve, saved, dy):
    x, one, ta, tg = saved
    # All is linear in x, and the sum of a convolution's windows is the gradient of the sum of its
    # outputs: no window is written down, and only the sum of the images is convolved.
    image = jnp.sum(x, axis=0, keepdims=True, dtype=ta.dtype)
    with jax.default_matmul_precision("highest"):
        outputs, pull = jax.vjp(lambda w: convolve(image, w), one.astype(ta.dtype))
        (windows,) = pull(jnp.ones_like(outputs))
    each = jnp.full_like(outputs, x.shape[0])
    rows = jnp.sum(jnp.where(outputs > 0, each, each))  # as in `_backward`
    slopes = jnp.sum(dy, axis=tuple(range(dy.ndim - 1)), dtype=tg.dtype)
    return None, dy, None, jnp.append(windows.reshape(-1), rows), slopes


tap_windows.defvjp(_windows_forward, _windows_backward)


@matrix()
class Tapped(Wrapped):
    """Another matrix or array, whose rows' sums leave the model as the gradient of `tap`."""

    tap: Tap
    weight: jax.Array | None

    def rmatmul(self, x: jax.Array) -> jax.Array:
        """`x @ base`, tapped."""
        # An array multiplies as it would without a tap, in whatever dtype that gives.
        base = self.base
        y = matmul(x, base) if isinstance(base, Matrix) else x @ base
        return tap(x, y, *self.tap, self.weight)

    def convolve(self, x: jax.Array, how: Convolution) -> jax.Array:
        """The base's convolution, tapped; as rows where these have weights, or the base's do."""
        base = self.base
        if self.weight is not None or (isinstance(base, Matrix) and not base.dense_product):
            return super().convolve(x, how)
        one = jnp.zeros((self.shape[-2], 1), x.dtype)
        return tap_windows(how.dense, x, how.dense(x, self.to_dense()), one, *self.tap)


class Layer(NamedTuple):
    """How the array of a kernel is read: `stack` layers of `rows` inputs and `columns` outputs."""

    stack: tuple[int, ...]
    rows: int
    columns: int


# A pattern of paths; or one with the numbers of input and of output axes, the last of an array.
Spec = Sequence[str | tuple[str, int, int]]


def second_order(
    params: Any, spec: Spec | None = None, *, strict: bool = False
) -> dict[str, Layer]:
    """By path, the arrays that a model multiplies its rows with.

    Args:
      params: tree of arrays and matrices.
      spec: patterns of whole paths of arrays (..., n, o); or (pattern, axes of the input, axes of
        the output) for others: (".*/kernel", 3, 1) is a convolution of two dimensions. None is
        every array that is named `kernel`, and the factors of matrices that are arrays.
      strict: whether a pattern that matches nothing is an error.

    Raises:
      ValueError: a pattern matches no such array, or one of too few axes.
    """
    arrays = {
        path: x
        for path, x in leaf_paths(params).items()
        if x.ndim >= 2 and jnp.issubdtype(x.dtype, jnp.floating)
    }
    if spec is None:
        factors = {
            f"{path}/{name}" if path else name
            for path, w in matrices(params).items()
            for name in w.factors
        }
        axes = {p: (1, 1) for p in arrays if p.split("/")[-1] == "kernel" or p in factors}
    else:
        rules = [(r, (1, 1)) if isinstance(r, str) else (r[0], (r[1], r[2])) for r in spec]
        axes = first_match(rules, arrays, owner="mkor.spec", strict=strict)
    found = {}
    for path, (inputs, outputs) in axes.items():
        shape = arrays[path].shape
        if len(shape) < inputs + outputs:
            raise ValueError(
                f"mkor.spec: {path!r} of shape {shape} has no {inputs} input and {outputs} output "
                "axes"
            )
        stack = len(shape) - inputs - outputs
        rows, columns = shape[stack : stack + inputs], shape[stack + inputs :]
        found[path] = Layer(shape[:stack], math.prod(rows), math.prod(columns))
    return found


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
    """Puts a matrix that is tapped in the place of every array that has a tap.

    Args:
      params: tree of arrays and matrices, multiplied with `@`.
      taps: of `init_taps`; those of arrays that are not there are left out.
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
    loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, Any, dict[str, Tap]]]:
    """`jax.value_and_grad` that returns statistics, too.

    Args:
      loss_fn: (params, *args) -> scalar, or (scalar, auxiliary outputs).
      has_aux: which of both.

    Returns:
      A function (params, taps, *args) -> (what loss_fn returns, gradients, statistics).

    >>> params, x = {"kernel": jnp.ones((2, 1))}, jnp.array([[1.0, 2.0]])
    >>> step = value_grad_stats(lambda params, x: jnp.sum(x @ params["kernel"]))
    >>> step(params, init_taps(params), x)[2]["kernel"].g.tolist()
    [1.0]
    """

    def tapped_loss(params, taps, *args):
        return loss_fn(attach_taps(params, taps), *args)

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
