"""Monarch kernels in a byte-level decoder: throughout, or for a part of the steps only.

Claim: Monarch for the first 70 or 90 % of the steps and dense for the rest (reverse
  sparsification) ends nearer to the dense model than Monarch throughout does.
Command: python train.py --config=configs/monarch_python_source.py:dense_from=0.7
Wall time, 2 CPU cores: not measured
Wall time, one H100: 129 s with size=large (median of 8 runs)
Result: bits per byte with size=large, 2 seeds:
  1.2466 ± 0.0033 dense;
  1.2922 ± 0.0037 monarch;
  1.2956 ± 0.0010 dense from 0.9;
  1.2875 ± 0.0041 dense from 0.7
"""

from jaxlab.config import Config, base_config

_SIZES = {
    "small": {
        "steps": 1000,
        "batch_size": 16,
        "lr": 2e-3,
        "seq_len": 128,
        "model": {"d_model": 128, "depth": 4, "heads": 4, "d_mlp": 384},
    },
    "large": {
        "steps": 1500,
        "batch_size": 32,
        "lr": 6e-4,
        "seq_len": 512,
        "model": {
            "d_model": 768,
            "depth": 12,
            "heads": 12,
            "d_mlp": 2048,
            "dtype": "bfloat16",
            "scan_layers": True,
            "attention": "cudnn",
        },
    },
}


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "dense_from=0.7,size=large,seed=3".

    `dense_from` and `dense_until` are fractions of the steps. From the first on the kernels are
    dense, multiplied out of their factors; 0 is never. Until the second they are dense, and then
    projected; with `--config.init` that is dense-to-sparse fine-tuning of your own model.
    """
    c = base_config(__file__, arg, dense=False, dense_from=0.0, dense_until=0.0, size="small")
    size = _SIZES["small" if c.smoke else c.size]
    c.steps = 20 if c.smoke else size["steps"]
    c.batch_size = 8 if c.smoke else size["batch_size"]
    c.task.name = "language_model"
    c.data.update(
        name="python_source",
        seq_len=size["seq_len"],
        eval_bytes=16_384 if c.smoke else 262_144,
    )
    c.model.update(name="decoder", **size["model"])
    if not c.dense:
        c.compress.all = {
            "path": r".*/(attn/(q|k|v|out)|mlp/(gate|up|down))/kernel",
            "name": "monarch",
            "nblocks": 4,
            "blocked": True,
            # Factors of a projected random kernel would start too small.
            "init": "project" if c.dense_until else "variance_preserving",
        }
        c.compress_at = c.dense_until
    if c.dense_from:
        c.phases.open = {"at": c.dense_from, "name": "densify"}
    c.optim.update(lr=size["lr"], weight_decay=0.1, schedule={"name": "linear", "warmup": 0.05})
    return c
