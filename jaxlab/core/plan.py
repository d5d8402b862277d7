"""What rules ask of calibration, path by path, and what compression leaves to the biases."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxlab.core import registry
from jaxlab.core.collect import kernels, no_grams
from jaxlab.core.compress import Offered, Rule, check_inputs, compress, declares
from jaxlab.core.gram import Cross, Gram, gram_init, gram_split
from jaxlab.core.match import first_match, leaf_paths
from jaxlab.core.matrix import Array, accumulator, is_matrix, matmul

# By path of a kernel, the means of its inputs in the original model and in the compressed one.
Means = dict[str, tuple[jax.Array, jax.Array]]


def corrected_bias(
    bias: jax.Array, w: Array, replacement: Array, before: jax.Array, after: jax.Array
) -> jax.Array:
    """The bias under which replacing a kernel leaves the mean of the layer's output where it was.

    Args:
      bias: (..., d_out).
      w: (..., d_in, d_out), the kernel.
      replacement: what stands in its place.
      before: (..., d_in), the mean of the kernel's inputs.
      after: (..., d_in), the mean of the replacement's inputs.

    Returns:
      `bias + before @ w - after @ replacement`, in the bias's dtype.

    >>> import jax.numpy as jnp
    >>> w, x = jnp.array([[1.0], [2.0]]), jnp.array([3.0, 4.0])
    >>> corrected_bias(jnp.zeros(1), w, 0 * w, x, x).tolist()
    [11.0]
    """
    product = matmul
    for _ in w.shape[:-2]:
        product = jax.vmap(product)
    dtype = accumulator(bias.dtype)
    with jax.default_matmul_precision("highest"):
        # As the model multiplies: to_dense() of bfloat16 factors would round them once more.
        change = product(before.astype(dtype), w) - product(after.astype(dtype), replacement)
    return (bias.astype(dtype) + change).astype(bias.dtype)


class Plan:
    """The rules, and by path what their methods want to be told."""

    def __init__(
        self,
        params: Any,
        rules: Sequence[Rule],
        *,
        sequential: bool,
        correct_bias: bool,
        key: jax.Array | None,
        offered: Offered | None,
    ):
        self.rules, self.key, self.offered = rules, key, offered
        check_inputs(params, rules, key, offered)
        chosen = [(pattern, (method, hyper)) for pattern, method, hyper in rules]
        methods = first_match(chosen, kernels(params), owner="compress", strict=False)
        withheld = frozenset() if sequential else {"cross"}
        self.needs = {path: _needs(*rule) - withheld for path, rule in methods.items()}
        self.biases = biases_beside(params, self.asking("gram")) if correct_bias else {}

    @property
    def paths(self) -> list[str]:
        """Every kernel that a rule matches."""
        return list(self.needs)

    def asking(self, name: str) -> list[str]:
        """The paths whose method wants to be told this."""
        return [path for path, needs in self.needs.items() if name in needs]

    def told(
        self, path: str, gram: Gram, slopes: dict[str, Gram], cross: Cross | None = None
    ) -> dict[str, Any]:
        """What is measured about a path, by the names of arguments."""
        told = {"gram": gram, "center": path in self.biases}
        told |= {"gradient_gram": slopes[path]} if path in slopes else {}
        return told if cross is None else {**told, "cross": cross}

    def compress(self, params: Any, told: dict[str, dict[str, Any]], strict: bool = True) -> Any:
        """`compress` by the rules; empties `told`, so that statistics go with their kernel."""

        def everything(path: str) -> dict[str, Any]:
            return {**(self.offered(path) if self.offered else {}), **told.pop(path, {})}

        return compress(params, self.rules, key=self.key, offered=everything, strict=strict)

    def shapes(self, params: Any) -> Any:
        """The shapes of what `compress` returns; raises what it would, before any measurement."""

        def abstract(params: Any) -> Any:
            slopes, told = no_grams(params, self.asking("gradient_gram"), "gradients"), {}
            for path, gram in no_grams(params, self.asking("gram")).items():
                d, stack = gram.mean.shape[-1], gram.count.shape
                joint = gram_init(2 * d, stack=stack, dtype=gram.mean.dtype)
                cross = gram_split(joint) if "cross" in self.needs[path] else None
                told[path] = self.told(path, gram, slopes, cross)
            return self.compress(params, told)

        return jax.eval_shape(abstract, params)

    def corrected(self, params: Any, made: Any, means: Means) -> dict[str, jax.Array]:
        """By path, the corrected biases beside those kernels whose means are known."""
        old, new = kernels(params), kernels(made)
        biases = leaf_paths(params, is_leaf=is_matrix)
        return {
            self.biases[path]: corrected_bias(biases[self.biases[path]], old[path], new[path], *m)
            for path, m in means.items()
            if path in self.biases
        }


def _needs(method: str, hyper: dict[str, Any]) -> frozenset[str]:
    costly = registry.get("matrix", method).needs(hyper)  # pyright: ignore
    return frozenset(name for name in {"gram", *costly} if declares(method, name))


def biases_beside(params: Any, paths: Sequence[str]) -> dict[str, str]:
    """By path of a kernel, that of the bias beside it."""
    leaves, found = leaf_paths(params, is_leaf=is_matrix), {}
    for path, w in kernels(params).items():
        *above, name = path.split("/")
        beside = "/".join([*above, "bias"])
        bias = leaves.get(beside)
        if path not in paths or name != "kernel" or is_matrix(bias):
            continue
        if bias is not None and bias.shape == (*w.shape[:-2], w.shape[-1]):
            found[path] = beside
    return found
