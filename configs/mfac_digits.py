"""Gradual pruning of a small MLP on digits to 90 % sparsity, by M-FAC's saliency or by size.

Claim: at 90 % sparsity, reached in four steps with fine-tuning between and after them, accuracy is
  at most 1 point below dense.
Command: python train.py --config=configs/mfac_digits.py
Wall time, 2 CPU cores: 54 s (median of 3)
Wall time, one H100: not run
Result: accuracy 0.9671 ± 0.0039 finalized,
  0.9693 ± 0.0010 dense (3 seeds);
  6.37x smaller on disk
"""

from jaxlab.config import Config, base_config

# From training/pruning.py: cubic_sparsity(t, 0.9) after each quarter of the pruning.
SPARSITIES = (0.52, 0.7875, 0.886, 0.9)


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "saliency=magnitude,seed=3"."""
    c = base_config(__file__, arg, dense=False, saliency="mfac")
    c.steps = 20 if c.smoke else 800
    c.batch_size = 64
    c.task.name = "classify"
    c.data.name = "digits"
    c.model.update(name="mlp", hidden=(128, 128))
    for number, sparsity in enumerate(() if c.dense else SPARSITIES):
        c.phases[f"prune_{number}"] = {
            "at": 0.4 + 0.1 * number,
            "name": "prune",
            "sparsity": sparsity,
            "gradients": 16 if c.smoke else 256,
            "rows": 16,
            "recomputations": 2 if c.smoke else 4,
            "saliency": c.saliency,
        }
    c.optim.update(lr=1e-3, weight_decay=0.01)
    return c
