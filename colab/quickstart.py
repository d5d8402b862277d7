# %% [markdown]
# # A first tour of jaxlab
#
# In jaxlab a compressed weight is a *matrix that stands where the array stood*: it has a shape, it
# multiplies with `@`, it trains, and it saves to a small file. This tour builds such matrices by
# hand, trains a network made of them on handwritten digits, and compares it with the dense network.
# It needs no accelerator and takes less than a minute.
#
# The notebook stands in a checkout of jaxlab. Where jaxlab is missing, the first cell installs it
# from that checkout; it takes nothing of this name from a package index.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxlab") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-e", ".."], check=True)

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxlab
from jaxlab.config import base_config
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

# %% [markdown]
# ## Matrices in the place of arrays
#
# Parameters are any tree of arrays. `compress` takes rules: a regular expression for the whole path
# of a parameter, the name of a method, and its settings. The first rule that matches a path wins.
#
# Methods nest. The second rule below splits a kernel into two thin factors `u` and `v`; the third
# one matches the path of `u` and makes that factor sparse as well.

# %%
rng = np.random.default_rng(0)
params = {
    "up": {"kernel": jnp.asarray(rng.normal(size=(64, 256))), "bias": jnp.zeros(256)},
    "down": {"kernel": jnp.asarray(rng.normal(size=(256, 64))), "bias": jnp.zeros(64)},
}
params = jaxlab.compress(
    params,
    [
        ("up/kernel", "nm", {"n": 2, "m": 8}),
        ("down/kernel", "low_rank", {"rank": 16}),
        ("down/kernel/u", "nm", {"n": 2, "m": 4}),
    ],
)
print(jaxlab.names("matrix"), "are the methods; the kernels are now")
print(params["up"]["kernel"])
print(params["down"]["kernel"])

# %% [markdown]
# Code that multiplies need not know. `x @ W` is the product with the dense matrix that `W` stands
# for, and `to_dense` shows that matrix.

# %%
x = jnp.asarray(rng.normal(size=(5, 64)))
hidden = jax.nn.relu(x @ params["up"]["kernel"] + params["up"]["bias"])
y = hidden @ params["down"]["kernel"] + params["down"]["bias"]

dense = jaxlab.to_dense(params["down"]["kernel"])
print(y.shape, "and the largest difference is", jnp.max(jnp.abs(y - hidden @ dense)))

# %% [markdown]
# During training an N:M matrix keeps all its weights, so that a pruned one can come back.
# `finalize` gives every matrix its smallest form: here the kept values and their positions in a few
# bits. It multiplies as before. The table shows bytes, the ratio to the dense array, and the
# operations for one row of `x`.

# %%
final = jaxlab.finalize(params)
print(final["up"]["kernel"])
print(jaxlab.parameter_table(final))

# %% [markdown]
# ## An experiment
#
# A config names the parts: a task, data, a model. `Experiment` checks it whole, before anything is
# compiled, and knows the size of everything. `Run` trains it in a folder of its own and returns the
# summary that it leaves there. First the dense network.


# %%
def make_config(name, folder, seed=0):
    """A small network on 8x8 digits."""
    c = base_config(name)
    c.workdir = str(Path(folder) / name)
    c.seed = seed
    c.steps = 150
    c.task.name = "classify"
    c.data.name = "digits"
    c.model.update(name="mlp", hidden=(256, 256))
    c.optim.lr = 5e-3
    c.log.every = 50
    return c


folder = tempfile.mkdtemp()
dense_run = Run(Experiment(make_config("dense", folder).to_dict()))
dense_summary = dense_run.train()

# %% [markdown]
# Next, the network to compress. It starts from the parameters that the first run has saved, and
# trains for 100 further steps in compressed form. The rules are those of `compress`, each with a
# label. The tables show the parameters before and after.

# %%
c = make_config("compressed", folder)
c.init = str(dense_run.folder)
c.steps = 100
c.compress.first = {"path": "layers/0/kernel", "name": "low_rank", "rank": 16}
c.compress.second = {"path": "layers/1/kernel", "name": "nm", "n": 2, "m": 16}
experiment = Experiment(c.to_dict())
print(experiment.table_before, experiment.table_after, sep="\n\n")

# %%
run = Run(experiment)
summary = run.train()
print(sorted(path.name for path in run.folder.iterdir()))

# %% [markdown]
# ## From file to predictions
#
# `load` gives back the matrices that were saved, in their smallest form. The task's network is a
# pure function of parameters and images. Counting its right answers on the held-out images gives
# the accuracy that the summary states.

# %%
loaded = jaxlab.load(run.folder / "model.safetensors")
print(loaded["layers"][1]["kernel"])

apply = jax.jit(experiment.task.network.apply)
correct = images = 0
for batch in experiment.task.eval_batches():
    right = jnp.argmax(apply(loaded, batch["image"]), -1) == batch["label"]
    correct += int(jnp.sum(right * batch["weight"]))  # the weight is 0 for rows of padding
    images += int(batch["weight"].sum())

print(f"{correct} of {images} right; the summary says {summary['quality']['finalized']:.4f}")
# Another compilation may round a near tie the other way, so one image may differ.
assert abs(correct - images * summary["quality"]["finalized"]) < 1.5

# %% [markdown]
# ## What training adds
#
# How good is the compressed network without its 100 steps? The same rules applied to the dense
# network's file give the same number of bytes, and cost more accuracy.

# %%
dense_params = jaxlab.load(dense_run.folder / "model.safetensors")
rules = [
    ("layers/0/kernel", "low_rank", {"rank": 16}),
    ("layers/1/kernel", "nm", {"n": 2, "m": 16}),
]
untrained = jaxlab.finalize(jaxlab.compress(dense_params, rules))
untrained_bytes = jaxlab.save(Path(folder) / "untrained.safetensors", untrained)
untrained_accuracy = run.evaluate(untrained)["accuracy"]

results = {
    "dense": (dense_summary["bytes"]["file"], dense_summary["quality"]["finalized"]),
    "compressed": (untrained_bytes, untrained_accuracy),
    "compressed, trained": (summary["bytes"]["file"], summary["quality"]["finalized"]),
}
for label, (size, accuracy) in results.items():
    print(f"{label:20}{size:>10,} bytes{accuracy:>10.4f}")

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for label, (size, accuracy) in results.items():
    axes.scatter(size / 1e3, accuracy, label=label)
axes.set(xlabel="file in kB", ylabel="held-out accuracy", xlim=(0, None))
axes.legend(frameon=False, loc="lower right")
axes.grid(alpha=0.25)

# %% [markdown]
# ## The claim
#
# Low rank and N:M sparsity together make the file more than 4 times smaller and cost, after a short
# training, less than 2 points of accuracy.

# %%
dense_size, dense_accuracy = results["dense"]
size, accuracy = results["compressed, trained"]
ratio, lost = dense_size / size, 100 * (dense_accuracy - accuracy)
print(f"{ratio:.2f} times smaller, {lost:.2f} points of accuracy lost")
assert ratio > 4
assert lost < 2
