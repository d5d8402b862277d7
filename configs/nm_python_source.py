"""N:M recipes on a byte-level decoder: does closing the pattern slowly beat SR-STE?

Claim: at 1:16 and 1:32 an exponentially decaying mask ends at fewer bits per byte than SR-STE, by
  more than the spread of the seeds; at 2:4 they tie.
Verdict: docs/claims.md; the lead came out, the tie did not.
Command: python train.py --config=configs/nm_python_source.py:recipe=mdgf_exp,n=1,m=32
Wall time, 2 CPU cores: not measured for a single run
Wall time, one H100: not measured for a single run
Result: docs/nm_language_model.md, by benchmarks/nm_language_model.py
"""

from jaxlab.config import Config, base_config

_SIZES = {
    "small": {
        "steps": 1500,
        "lr": 3e-3,
        "model": {"d_model": 64, "depth": 2, "heads": 4, "d_mlp": 256},
        "seq_len": 64,
    },
    "large": {
        "steps": 2500,
        "lr": 1e-3,
        "model": {
            "d_model": 512,
            "depth": 6,
            "heads": 8,
            "d_mlp": 2048,
            "dtype": "bfloat16",
            "scan_layers": True,
            "attention": "cudnn",
        },
        "seq_len": 256,
    },
}


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "recipe=srste,n=1,m=16,size=large,seed=3".

    `beta_total` 0 is the recipe's own. A recipe "dense" prunes nothing, "one_shot" at the end.
    """
    c = base_config(
        __file__, arg, recipe="mdgf_exp", n=1, m=32, beta_total=0.0, lam=2e-4, size="small"
    )
    size = _SIZES["small" if c.smoke else c.size]
    c.steps = 20 if c.smoke else size["steps"]
    c.batch_size = 16
    c.task.name = "language_model"
    c.data.update(
        name="python_source",
        seq_len=size["seq_len"],
        eval_bytes=16_384 if c.smoke else 262_144,
    )
    c.model.update(name="decoder", **size["model"])
    c.compress.mlp = {
        "path": r".*/mlp/(gate|up|down)/kernel",
        "name": "nm",
        "n": c.n,
        "m": c.m,
        "recipe": c.recipe,
        "beta_total": c.beta_total or None,
        "lam": c.lam,
        # A fixed mask needs a trained model to choose from.
        "dense_frac": {"asp": 0.5}.get(c.recipe, 0.0),
    }
    c.optim.update(lr=size["lr"], weight_decay=0.01, clip=1.0)
    return c
