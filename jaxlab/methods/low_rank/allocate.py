"""Ranks for many layers under one budget of parameters.

Sources: A. Kaushal et al., "LORD", 2023, for the outputs' spectra; Z. Yuan et al., "ASVD", 2023,
for the search by sensitivity, which here ends at the bound it converges to.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxlab.core.registry import suggest
from jaxlab.methods.low_rank.rank import breakeven_rank, check_align

# None keeps a layer dense.
Ranks = dict[str, int | None]
# (path, ratio) -> how bad the model is with that layer alone at that ratio; lower is better.
Quality = Callable[[str, float], float]


class _Layer(NamedTuple):
    """A layer, or a stack of them with one rank for all."""

    spectrum: np.ndarray
    o: int
    i: int
    count: int
    align: int

    @property
    def dense(self) -> int:
        return self.count * self.o * self.i

    @property
    def breakeven(self) -> float:
        return breakeven_rank(self.o, self.i)

    @property
    def highest(self) -> int:
        """The largest legal rank that is below break-even; 0 if there is none."""
        most = math.ceil(self.breakeven) - 1
        return most // self.align * self.align

    @property
    def near(self) -> float:
        """Ranks from here on cost so much that dense is worth a try."""
        return min(0.9 * self.breakeven, self.highest)

    def cost(self, rank: int | None) -> int:
        return self.dense if rank is None else self.count * rank * (self.o + self.i)

    def legal(self, rank: int) -> int | None:
        """The nearest legal rank not above `rank`, or the smallest; dense if none is below."""
        if not self.highest:
            return None
        return min(max(rank // self.align, 1) * self.align, self.highest)

    def share(self, ratio: float) -> int | None:
        """The rank of a kept fraction of the parameters."""
        return None if ratio >= 1 else self.legal(int(ratio * self.breakeven))

    def tail(self, rank: int | None) -> float:
        return 0.0 if rank is None else float(self.spectrum[rank:].sum())


def allocate_ranks(
    spectra: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    budget: int,
    *,
    method: str = "greedy",
    align: int = 1,
    weights: Mapping[str, float] | None = None,
    quality: Quality | None = None,
) -> Ranks:
    """Ranks that together hold at most `budget` parameters. NumPy, on the host.

    Args:
      spectra: by path, (..., k) eigenvalues in descending order, of `lord_spectrum`.
      shapes: by path, (..., o, i), with the leading axes of the spectrum; one rank for a stack.
      budget: parameters of all these layers together, biases not counted.
      method: "uniform" keeps the same fraction of each layer's parameters, "energy" of each layer's
        spectrum; "greedy" keeps eigenvalues in the order of weight * value per parameter, which is
        the least weighted error but for what is left of the budget in the end; "sensitivity" goes
        by `quality`.
      align: ranks are multiples of it.
      weights: by path, for "greedy"; None is 1 / sum of the spectrum, the relative error.
      quality: (path, ratio) -> perplexity or the like with that layer alone compressed, for
        "sensitivity", asked for ratios from 0.1 to 0.9.

    Returns:
      By path, a rank below break-even, or None for dense.

    Raises:
      ValueError: an argument is out of range, or even the smallest ranks exceed the budget.

    >>> spectra = {"a": np.array([8.0, 1.0]), "b": np.array([8.0, 7.0])}
    >>> allocate_ranks(spectra, {"a": (9, 9), "b": (9, 9)}, 54, weights={"a": 1, "b": 1})
    {'a': 1, 'b': 2}
    """
    check_align(align)
    if method not in _METHODS:
        raise ValueError(f"low_rank: allocation={method!r} is unknown; {suggest(method, _METHODS)}")
    layers = {path: _layer(path, s, shapes[path], align) for path, s in spectra.items()}
    least = sum(min(x.cost(x.align), x.dense) for x in layers.values())
    if budget < least:
        raise ValueError(
            f"low_rank: budget={budget} is below what align={align} needs at least; nearest: "
            f"{least}"
        )
    gains = {
        path: 1 / max(layer.spectrum.sum(), 1e-300) if weights is None else float(weights[path])
        for path, layer in layers.items()
    }
    for path, gain in gains.items():
        if not 0 <= gain < np.inf:
            raise ValueError(f"low_rank: weights[{path!r}]={gain} must be finite and not negative")
    return _METHODS[method](layers, budget, gains, quality)


def _layer(path: str, spectrum: np.ndarray, shape: tuple[int, ...], align: int) -> _Layer:
    *stack, o, i = shape
    values = np.asarray(spectrum, np.float64)
    if values.shape[:-1] != tuple(stack) or values.shape[-1] > max(o, i):
        raise ValueError(
            f"low_rank: the spectrum {values.shape} of {path!r} does not fit {shape}; nearest: "
            f"{(*stack, min(o, i))}"
        )
    if not np.all(np.isfinite(values)):
        raise ValueError(f"low_rank: the spectrum of {path!r} is not finite")
    return _Layer(values.reshape(-1, values.shape[-1]).sum(0), o, i, math.prod(stack), align)


def _uniform(layers: dict[str, _Layer], budget: int, gains: object, quality: object) -> Ranks:
    return _highest(
        layers, budget, lambda ratio: {p: layer.share(ratio) for p, layer in layers.items()}
    )


def _energy(layers: dict[str, _Layer], budget: int, gains: object, quality: object) -> Ranks:
    def at(share: float) -> Ranks:
        ranks = {}
        for path, layer in layers.items():
            total = layer.spectrum.sum()
            kept = np.cumsum(layer.spectrum) / total if total else np.ones(1)
            rank = int(np.searchsorted(kept, share * (1 - 1e-12))) + 1
            up = -(-rank // layer.align) * layer.align
            ranks[path] = up if up <= layer.highest else None
        return ranks

    return _highest(layers, budget, at)


def _highest(layers: dict[str, _Layer], budget: int, at: Callable[[float], Ranks]) -> Ranks:
    """`at` of the largest level in [0, 1] that meets the budget; costs grow with the level."""
    low, high = 0.0, 1.0
    if _cost(layers, at(high)) <= budget:
        return at(high)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _cost(layers, at(middle)) <= budget else (low, middle)
    return at(low)


def _greedy(
    layers: dict[str, _Layer], budget: int, gains: dict[str, float], quality: object
) -> Ranks:
    def loss(ranks: Ranks) -> float:
        return sum(gains[path] * layer.tail(ranks[path]) for path, layer in layers.items())

    dense = {path for path, layer in layers.items() if not layer.highest}
    every: Ranks = dict.fromkeys(layers)
    if _cost(layers, every) <= budget:
        return every
    best = _fill(layers, budget, gains, dense)
    # Next to break-even, the rest of a layer costs little: dense, if the others can pay for it.
    while True:
        near = [p for p, r in best.items() if r and r >= layers[p].near]
        tried = [_fill(layers, budget, gains, dense | {path}) for path in near]
        better = min((t for t in tried if t), key=loss, default=best)
        if not loss(better) < loss(best):
            # What the largest chunks leave of a budget, an even share may use better.
            return min(best, _uniform(layers, budget, gains, quality), key=loss)
        best, dense = better, {path for path, rank in better.items() if rank is None}


def _fill(
    layers: dict[str, _Layer], budget: int, gains: dict[str, float], dense: set[str]
) -> Ranks:
    """The smallest ranks, then chunk by chunk what helps most per parameter; {} if too dear."""
    ranks: Ranks = {p: None if p in dense else layer.align for p, layer in layers.items()}
    left = budget - _cost(layers, ranks)
    if left < 0:
        return {}
    chunks = []
    for path in (p for p in layers if p not in dense):
        layer = layers[path]
        price = layer.cost(layer.align)
        for rank in range(layer.align, layer.highest, layer.align):
            gain = gains[path] * layer.spectrum[rank : rank + layer.align].sum()
            chunks.append((-gain / price, rank, path, price))
    closed = set()
    # Within a layer gains fall, so that sorted order never skips a chunk.
    for _, rank, path, price in sorted(chunks):
        if path in closed or price > left:
            closed.add(path)
            continue
        ranks[path] = rank + layers[path].align
        left -= price
    return ranks


def _sensitivity(
    layers: dict[str, _Layer], budget: int, gains: object, quality: Quality | None
) -> Ranks:
    if quality is None:
        raise ValueError("low_rank: allocation='sensitivity' needs quality, (path, ratio) -> float")
    ratios = [k / 10 for k in range(1, 10)]
    asked = [(quality(path, ratio), path, ratio) for path in layers for ratio in ratios]
    asked.sort(key=lambda entry: -entry[0])

    def at(cut: int) -> Ranks:
        smallest = dict.fromkeys(layers, 1.0)
        for _, path, ratio in asked[cut:]:
            smallest[path] = min(smallest[path], ratio)
        return {path: layers[path].share(ratio) for path, ratio in smallest.items()}

    low, high = 0, len(asked)
    if _cost(layers, at(0)) > budget:
        return _uniform(layers, budget, gains, quality)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _cost(layers, at(middle)) <= budget else (low, middle - 1)
    return at(low)


def _cost(layers: dict[str, _Layer], ranks: Ranks) -> int:
    return sum(layer.cost(ranks[path]) for path, layer in layers.items())


_METHODS = {
    "uniform": _uniform,
    "energy": _energy,
    "greedy": _greedy,
    "sensitivity": _sensitivity,
}
