"""u_xx = f with solutions of high frequency, by a Gaussian process that learns the frequencies.

Claim: sin(100 x) on [0, 2 pi] to a relative L2 error of 1e-4, in under 2 minutes on 2 CPU cores.
Command: python train.py --config=configs/pde_poisson_1d.py
Wall time, 2 CPU cores: 28 s, load 13 (1 run)
Wall time, one H100: not run
Result: relative L2 1.8e-07 after 200 steps, 1.8e-07 at step 200, which the criterion chooses
"""

from jaxlab.config import Config, base_config

# Solutions with a part that no wave describes: when a second process joins, in the published runs.
SECOND = {"mix_sin": 0.5, "x2_add_sinx": 0.01}


def get_config(arg: str | None = None) -> Config:
    """The experiment; `arg` is e.g. "adam" or "solution=mix_sin".

    With "adam" grid values are trained as published, without it they are solved for.
    """
    c = base_config(__file__, arg, adam=False, solution="single_sin")
    c.x64 = True
    c.steps = 20 if c.smoke else 100000 if c.adam else 200
    problem = {"name": "poisson_1d", "solution": c.solution, "points": 60 if c.smoke else 0}
    c.task.update(
        name="pde",
        problem=problem,
        u_update="adam" if c.adam else "solve",
        jitter=1e-6 if c.adam else 1e-8,
    )
    if c.smoke:
        c.task.update(components=4, test_points=50)
    if c.adam and c.solution in SECOND:
        at = SECOND[c.solution]
        c.phases.second = {"at": at, "name": "second_process", "opt_state": "reset_all"}
        c.freeze = ("first/.*",)
    c.optim.update(name="adamw", lr=1e-2 if c.adam else 0.1, weight_decay=0.0, clip=0.0)
    c.optim.schedule.update(name="constant" if c.adam else "cosine", warmup=0.0)
    c.steps_per_call = 10 if c.smoke or not c.adam else 100
    c.log.every = c.steps_per_call
    # An evaluation and its checkpoint take as long as several steps of solved grid values.
    c.eval.every = 20 if c.smoke else c.steps // (10 if c.adam else 5)
    c.checkpoint.every = c.eval.every
    return c
