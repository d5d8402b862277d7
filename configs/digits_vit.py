"""N:M on the MLP kernels and low rank on the attention kernels of a small ViT, in one run.

Claim: at most 1 point of accuracy below the dense model (`:dense`), at less than half the bytes.
Command: python train.py --config=configs/digits_vit.py
Wall time, 2 CPU cores: 60 s (median of 5)
Wall time, one H100: 45 s (median of 5, 5 runs at once)
Result: accuracy 0.9685 ± 0.0051 finalized,
  0.9715 ± 0.0047 dense (5 seeds);
  2.55x smaller on disk
"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "smoke,seed=3"."""
    c = base_config(__file__, arg, dense=False)
    c.steps = 20 if c.smoke else 400
    c.batch_size = 64
    c.task.name = "classify"
    c.data.name = "digits"
    c.model.update(name="vit", patch=2, d_model=64, depth=4, heads=4, d_mlp=256)
    if not c.dense:
        c.compress.mlp = {"path": r".*/mlp/(up|down)/kernel", "name": "nm", "n": 2, "m": 8}
        c.compress.attn = {"path": r".*/attn/(q|k|v|out)/kernel", "name": "low_rank", "rank": 16}
    c.optim.update(name="adamw", lr=4e-3, weight_decay=0.3)
    c.eval.every = 10 if c.smoke else 200
    c.checkpoint.every = 10 if c.smoke else 200
    return c
