"""N:M recipes on a small MLP of digits: learned masks against fixed and one-shot ones.

Claim: at 1:16 STE, SR-STE and exponential mask decay end at least 4 points of accuracy above a
  mask fixed half-way (ASP) and 40 above one-shot pruning; SR-STE at most 2.5 below dense.
Verdict: docs/claims.md, by benchmarks/nm_digits.py; the margin over ASP did not come out.
Command: python train.py --config=configs/nm_digits.py:recipe=srste,n=1,m=16
Wall time, 2 CPU cores: 7 s (median of 4)
Wall time, one H100: not run
Result: accuracy 0.9615 ± 0.0067 finalized,
  0.9690 ± 0.0010 dense (4 seeds);
  7.16x smaller on disk
"""

from jaxlab.config import Config, base_config


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "recipe=mdgf_exp,n=2,m=4,seed=3"."""
    c = base_config(__file__, arg, recipe="srste", n=1, m=16)
    c.steps = 20 if c.smoke else 800
    c.batch_size = 64
    c.task.name = "classify"
    c.data.name = "digits"
    c.model.update(name="mlp", hidden=(128, 128))
    c.compress.hidden = {
        "path": r"layers/.*/kernel",
        "name": "nm",
        "n": c.n,
        "m": c.m,
        "recipe": c.recipe,
        "beta_total": {"mdgf_exp": 7.0}.get(c.recipe),
        # A fixed mask needs a trained model to choose from; STE and SR-STE need no dense phase.
        "dense_frac": {"asp": 0.5, "ste": 0.0, "srste": 0.0}.get(c.recipe, 0.1),
        "finetune_frac": 0.2,
    }
    c.optim.update(lr=1e-3, weight_decay=0.01)
    return c
