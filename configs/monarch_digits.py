"""Monarch kernels in a small ViT, trained from the start.

Claim: at most 1 point of accuracy below the dense model (`:dense`), at less than half the bytes.
Command: python train.py --config=configs/monarch_digits.py
Wall time, 2 CPU cores: 89 s (median of 3, machine shared)
Wall time, one H100: not run
Result: accuracy 0.9609 ± 0.0108 finalized,
  0.9726 ± 0.0054 dense (3 seeds);
  2.42x smaller on disk
"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "smoke,seed=3" or "dense_until=0.7" (project, fine-tune)."""
    c = base_config(__file__, arg, dense=False, dense_until=0.0)
    c.steps = 20 if c.smoke else 400
    c.batch_size = 64
    c.task.name = "classify"
    c.data.name = "digits"
    c.model.update(name="vit", patch=2, d_model=64, depth=4, heads=4, d_mlp=256)
    if not c.dense:
        c.compress.all = {
            "path": r".*/(attn/(q|k|v|out)|mlp/(up|down))/kernel",
            "name": "monarch",
            "nblocks": 4,
            "blocked": True,
            # Factors of a projected random kernel would start too small.
            "init": "project" if c.dense_until else "variance_preserving",
        }
        c.compress_at = c.dense_until
    c.optim.update(name="adamw", lr=4e-3, weight_decay=0.3)
    c.eval.every = 10 if c.smoke else 200
    c.checkpoint.every = 10 if c.smoke else 200
    return c
