"""The compressed encoders of the benchmark: every method, with statistics that are shared."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments import config_of
from minilm_encoder import PATHS, Encoder, Statistics

from jaxlab.core.calibration import Gram
from jaxlab.core.collect import kernels, put
from jaxlab.core.compress import Rule
from jaxlab.core.cost import nbytes
from jaxlab.core.lifecycle import finalize
from jaxlab.core.matrix import is_matrix, to_dense
from jaxlab.core.plan import Plan
from jaxlab.interop.pretrained import stack_layers, unstack_layers
from jaxlab.methods.low_rank import allocate_ranks, lord_spectrum

RATIOS = (0.9, 0.7, 0.5)


def _at_ratios(method: str, **more: int) -> dict[str, str]:
    settings = "".join(f",{k}={v}" for k, v in more.items())
    return {f"{method} {r}": f"method={method},ratio={r}{settings}" for r in RATIOS}


def _patterns(method: str) -> dict[str, str]:
    return {f"{method} {n}:{m}": f"method={method},n={n},m={m}" for n, m in ((2, 4), (4, 8))}


# By key of the cell, the argument of configs/minilm.py. These use no data, so that one draw is all.
WITHOUT_DATA = {
    **_at_ratios("svd"),
    **_patterns("magnitude"),
    "block_diagonal 0.5": "method=block_diagonal,ratio=0.5",
}
# Measured first, on all draws: most claims compare these.
_COMPARED = {
    **_at_ratios("lord_centred"),
    **_at_ratios("lord"),
    **_at_ratios("asvd"),
    **_patterns("sparsegpt"),
    **_patterns("wanda"),
}
_FURTHER = {
    **_at_ratios("whiten"),
    "lord_sparsegpt 0.5": "method=lord_sparsegpt,ratio=0.5,n=2,m=4",
    "lord_sparsegpt 0.7": "method=lord_sparsegpt,ratio=0.7,n=3,m=4",
    "lord_sparsegpt 0.9": "method=lord_sparsegpt,ratio=0.9,n=3,m=4",
    **_at_ratios("monarch"),
}
# What a config cannot say: ranks that follow from data, and gradients that the task's loss lacks.
GREEDY = {f"greedy {r}": r for r in RATIOS}
KFAC = {f"kfac {r}": r for r in RATIOS}
COMPARED = (*WITHOUT_DATA, *_COMPARED)
CELLS = (*COMPARED, *_FURTHER, *KFAC, *GREEDY)
RETRIEVED = [key for key in CELLS if key.split()[1] in ("0.7", "2:4")]


def by_config(encoder: Encoder, seen: Statistics, argument: str) -> Any:
    """The parameters as configs/minilm.py has them compressed, with statistics that are shared."""
    config = config_of("minilm", argument).to_dict()
    made = _planned(
        encoder.params, _rules(config), seen, correct_bias=config["calibrate"]["correct_bias"]
    )
    for phase in config["phases"].values():
        grams = dict(seen.grams)
        for path, w in kernels(made).items():
            if path.endswith("/kernel/u"):
                kernel = path.removesuffix("/u")
                grams |= {path: seen.grams[kernel], f"{kernel}/v": _behind(seen.grams[kernel], w)}
        made = _planned(made, phase["rules"], seen, grams=grams)
    return made


def _rules(config: dict[str, Any]) -> list[Rule]:
    rules = [dict(rule) for rule in config["compress"].values()]
    return [(rule.pop("path"), rule.pop("name"), rule) for rule in rules]


def _planned(
    params: Any,
    rules: Any,
    seen: Statistics,
    *,
    correct_bias: bool = False,
    grams: dict[str, Gram] | None = None,
    slopes: dict[str, Gram] | None = None,
    means: Any = None,
) -> Any:
    """What `compress_calibrated` does once it has its statistics."""
    grams = seen.grams if grams is None else grams
    how: dict[str, Any] = {"sequential": False, "key": None, "offered": None}
    plan = Plan(params, rules, correct_bias=correct_bias, **how)
    told = {path: plan.told(path, grams[path], slopes or {}) for path in plan.asking("gram")}
    made = plan.compress(params, told)
    return put(made, plan.corrected(params, made, means or seen.means))


def _behind(gram: Gram, u: jax.Array) -> Gram:
    """The statistics of x @ u by those of x; the mean of absolute values does not follow."""
    with jax.default_matmul_precision("highest"):
        mean = jnp.einsum("...i,...ir->...r", gram.mean + gram.tail, u)
        m2 = jnp.swapaxes(u, -1, -2) @ gram.m2 @ u
    return Gram(gram.count, mean, jnp.zeros_like(mean), m2, jnp.full_like(mean, jnp.nan))


def by_greedy(encoder: Encoder, seen: Statistics, ratio: float) -> Any:
    """Centred LoRD whose ranks, one for each layer, share the budget out by spectra."""
    params, found = unstack_layers(encoder.params), kernels(encoder.params)
    spectra, shapes, grams, means = {}, {}, {}, {}
    for path in PATHS:
        w = jnp.swapaxes(found[path], -1, -2)
        values = np.asarray(lord_spectrum(w, seen.grams[path], center=True)[0])
        for i in range(len(w)):
            own = path.replace("layers/", f"layers/{i}/")
            spectra[own], shapes[own] = values[i], w.shape[1:]
            grams[own] = jax.tree.map(lambda x, i=i: x[i], seen.grams[path])
            means[own] = (grams[own].mean + grams[own].tail,) * 2
    budget = int(ratio * sum(o * i for o, i in shapes.values()))
    ranks = allocate_ranks(spectra, shapes, budget, method="greedy", align=1)
    rules = [
        (re.escape(path), "low_rank", {"rank": rank, "decomposition": "lord"})
        for path, rank in ranks.items()
        if rank is not None
    ]
    return _planned(params, rules, seen, correct_bias=True, grams=grams, means=means)


def by_kfac(encoder: Encoder, seen: Statistics, ratio: float) -> Any:
    """Low rank nearest in the sampled loss, to second order."""
    hyper = {"ratio": ratio, "decomposition": "kfac"}
    rules = [(re.escape(path), "low_rank", hyper) for path in PATHS]
    return _planned(encoder.params, rules, seen, slopes=seen.slopes)


def by_rank(encoder: Encoder, seen: Statistics, rank: int) -> Any:
    """Centred LoRD of one rank."""
    hyper = {"rank": rank, "decomposition": "lord"}
    rules = [(re.escape(path), "low_rank", hyper) for path in PATHS]
    return _planned(encoder.params, rules, seen, correct_bias=True)


def makers() -> dict[str, Callable[[Encoder, Statistics], Any]]:
    """By key of a cell, who makes its parameters."""
    configured = {**WITHOUT_DATA, **_COMPARED, **_FURTHER}
    return {
        **{k: lambda e, s, a=argument: by_config(e, s, a) for k, argument in configured.items()},
        **{k: lambda e, s, r=ratio: by_greedy(e, s, r) for k, ratio in GREEDY.items()},
        **{k: lambda e, s, r=ratio: by_kfac(e, s, r) for k, ratio in KFAC.items()},
    }


def sizes(params: Any) -> dict[str, float]:
    """Bytes of the finalized tree and of its MLP kernels, and their kept share of numbers."""
    final = finalize(params)
    mlp = [
        w for path, w in kernels(final).items() if re.fullmatch(r"layers/.*mlp/\w+/kernel", path)
    ]
    numbers = sum(x.size for x in jax.tree.leaves(mlp) if jnp.issubdtype(x.dtype, jnp.floating))
    dense = sum(int(np.prod(w.shape)) for w in mlp)
    return {"bytes": nbytes(final), "mlp_bytes": nbytes(mlp), "kept": numbers / dense}


def dense_tree(params: Any) -> Any:
    """The compressed model as stacked arrays."""
    return stack_layers(jax.tree.map(to_dense, params, is_leaf=is_matrix))
