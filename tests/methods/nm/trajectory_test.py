"""Whole training runs of every recipe against a plain float64 re-implementation in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlab
from jaxlab.optim.chain import make_optimizer
from jaxlab.training.loop import make_train_step
from jaxlab.training.state import init_state

STEPS, D_IN, D_OUT, N, M = 40, 64, 6, 1, 8
DENSE, FINAL = 4, 32  # dense_frac 0.1, finetune_frac 0.2
LAM, BETA_TOTAL = 0.05, 5.0
CUSTOM = ((0.1, 3, 8), (0.45, 1, 4), (0.6, 1, 8))
B1, B2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01

# Recipe and what differs from the defaults of its run.
CASES = {
    "dense": {"recipe": "dense"},
    "one_shot": {"recipe": "one_shot"},
    "asp": {"recipe": "asp"},
    "ste": {"recipe": "ste"},
    "srste": {"recipe": "srste"},
    "srste decoupled": {"recipe": "srste", "srste_mode": "decoupled"},
    "mdgf_linear": {"recipe": "mdgf_linear"},
    "mdgf_linear masked": {"recipe": "mdgf_linear", "grad_mode": "masked"},
    "mdgf_exp": {"recipe": "mdgf_exp", "beta_total": BETA_TOTAL},
    "mdgf_exp masked": {"recipe": "mdgf_exp", "beta_total": BETA_TOTAL, "grad_mode": "masked"},
    "sdgf_stepwise": {"recipe": "sdgf_stepwise"},
    "sdgf_geometric": {"recipe": "sdgf_geometric"},
    "sdgf_densify": {"recipe": "sdgf_densify"},
    "custom": {"recipe": "custom", "frames": CUSTOM},
    "every third": {"recipe": "sdgf_stepwise", "mask_update_every": 3},
    "frozen": {"recipe": "srste", "freeze_mask_at": 10},
    "frozen late": {"recipe": "sdgf_geometric", "freeze_mask_at": 27},
}


def mask_of(w, n, m):
    """Of every m rows of a column, the n of largest magnitude; of equal ones the later."""
    mask = np.zeros(w.shape, bool)
    for column in range(w.shape[1]):
        for start in range(0, w.shape[0], m):
            group = np.abs(w[start : start + m, column])
            order = sorted(range(m), key=lambda i, group=group: (group[i], i))
            mask[start + np.array(order[m - n :]), column] = True
    return mask


def frame_of(recipe, step):
    """Kept and total entries at a step, from the definition of the frames."""
    frames = {
        "sdgf_stepwise": [(7, 8), (4, 8), (2, 8), (1, 8)],
        "sdgf_geometric": [(8, 64), (4, 32), (2, 16), (1, 8)],
        "sdgf_densify": [(1, 64), (1, 32), (1, 16), (1, 8)],
    }.get(recipe)
    if recipe == "custom":
        return [(n, m) for start, n, m in CUSTOM if step >= start * STEPS or start == 0.1][-1]
    if frames is None:
        return N, M
    starts = [DENSE + (k * (FINAL - DENSE)) // len(frames) for k in range(len(frames))]
    return frames[max(sum(step >= start for start in starts) - 1, 0)]


def decay_of(recipe, step):
    passed = (step - DENSE) / (FINAL - DENSE)
    curve = {"mdgf_linear": max(0.0, 1 - passed), "mdgf_exp": np.exp(-BETA_TOTAL * passed)}
    return curve.get(recipe, 0.0) if step < FINAL else 0.0


def reference(w, inputs, targets, case, optimizer, rate):
    """The recipe, step by step; returns the master weight and the one that acts at the end."""
    recipe, grad_mode = case["recipe"], case.get("grad_mode", "ste")
    every, freeze = case.get("mask_update_every", 1), case.get("freeze_mask_at", STEPS)
    mean, square = np.zeros_like(w), np.zeros_like(w)
    mask = None
    for step in range(STEPS + 1):
        is_dense = step < DENSE or recipe == "dense" or (recipe == "one_shot" and step < STEPS)
        # A mask is computed every so many steps, and wherever the pattern changes.
        due = step % every == 0 or step == DENSE
        due |= frame_of(recipe, step) != frame_of(recipe, step - 1)
        if mask is None or (due and step <= freeze and not (recipe == "asp" and step > DENSE)):
            mask = mask_of(w, *frame_of(recipe, step))
        if recipe == "asp" and not is_dense:
            w, mean, square = (np.where(mask, x, 0) for x in (w, mean, square))
        factor = np.ones_like(w) if is_dense else np.where(mask, 1.0, decay_of(recipe, step))
        acting = w * factor
        if step == STEPS:
            return w, acting
        x, y = inputs[step], targets[step]
        gradient = x.T @ (x @ acting - y) / len(x)
        if recipe == "asp" and not is_dense:
            gradient = gradient * mask
        if grad_mode == "masked":
            gradient = gradient * factor
        pulled = np.where(mask | is_dense, 0, LAM) if recipe == "srste" else np.zeros_like(w)
        decoupled = case.get("srste_mode") == "decoupled"
        if not decoupled:
            gradient = gradient + pulled * w
        if optimizer == "sgd":
            update = gradient
        else:
            mean, square = (
                B1 * mean + (1 - B1) * gradient,
                B2 * square + (1 - B2) * gradient**2,
            )
            count = step + 1
            update = (mean / (1 - B1**count)) / (np.sqrt(square / (1 - B2**count)) + EPS)
            update = update + WEIGHT_DECAY * w
        if decoupled:
            update = update + pulled * w
        w = w - rate * update


@pytest.mark.parametrize(("optimizer", "tolerance"), [("sgd", 1e-6), ("adamw", 1e-5)])
@pytest.mark.parametrize("name", CASES)
def test_a_run_equals_the_recipe_written_out(name, optimizer, tolerance):
    case = CASES[name]
    generator = np.random.default_rng(7)
    w = generator.normal(size=(D_IN, D_OUT)) / 8
    inputs = generator.normal(size=(STEPS, 16, D_IN))
    targets = generator.normal(size=(STEPS, 16, D_OUT))
    rate = {"sgd": 0.02, "adamw": 0.01}[optimizer]
    hyper = {"n": N, "m": M, "total_steps": STEPS, "dense_frac": 0.1, "finetune_frac": 0.2}
    hyper |= {"lam": LAM, **case}
    section = {"name": optimizer, "lr": rate, "schedule": {"name": "constant"}}
    section |= {
        "sgd": {"momentum": 0.0},
        "adamw": {"weight_decay": WEIGHT_DECAY, "b1": B1, "b2": B2, "eps": EPS},
    }[optimizer]

    def loss_fn(params, batch, key):
        x, y = batch
        return jnp.mean(jnp.sum((x @ params["kernel"] - y) ** 2, -1)) / 2, {}

    params = {"kernel": jnp.asarray(w, jnp.float32)}
    params = jaxlab.compress(params, [("kernel", "nm", hyper)])
    tx, _ = make_optimizer(section, steps=STEPS)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        state = init_state(params, tx, freeze=(), ema=0.0)
        traces = []

        @jax.jit
        def step(state, batch):
            traces.append(None)
            return make_train_step(loss_fn, tx, steps=STEPS)(state, batch)

        for x, y in zip(inputs, targets, strict=True):
            state, _ = step(state, (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))
    assert len(traces) == 1
    master, acting = reference(w, inputs, targets, case, optimizer, rate)
    kernel = state.params["kernel"]
    scale = np.abs(master).max()
    assert np.abs(np.asarray(kernel.weight) - master).max() <= tolerance * scale
    final = kernel.at(jnp.float32(1.0))
    np.testing.assert_allclose(final.to_dense(), acting, atol=tolerance * scale)
    np.testing.assert_array_equal(kernel.finalize().to_dense(), final.to_dense())
