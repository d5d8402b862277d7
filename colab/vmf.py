# %% [markdown]
# # Distributions on spheres of thousands of dimensions
#
# Deep features are compared by their angle: what counts is a point on a sphere of 2048 or more
# dimensions. The von Mises-Fisher distribution is the normal distribution of such a sphere. Its
# constant holds a modified Bessel function $I_v(x)$ of order $p/2 - 1$, and that is where the usual
# libraries stop: the number itself is 0 or infinite. Its logarithm is not.
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
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.special

from jaxlab.special.bessel import log_iv
from jaxlab.special.vmf import vmf_fit, vmf_kappa_from_r, vmf_log_prob, vmf_sample

# %% [markdown]
# ## Where the logarithm of a number fails, and the number of a logarithm does not
#
# On the left $\log_{10}|\log I_v(x)|$, computed as a logarithm throughout. On the right, where
# scipy's exponentially scaled function gives a finite logarithm: white is 0 or infinity.

# %%
v, x = np.geomspace(1, 1e5, 120), np.geomspace(1e-2, 1e6, 120)
with jax.enable_x64(True):
    ours = np.asarray(jax.jit(log_iv)(v[:, None], x[None, :]))
with np.errstate(divide="ignore"):
    theirs = np.log(scipy.special.ive(v[:, None], x[None, :])) + x

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
surface = left.pcolormesh(x, v, np.log10(np.abs(ours) + 1e-3))
right.pcolormesh(x, v, np.where(np.isfinite(theirs), np.log10(np.abs(ours) + 1e-3), np.nan))
for axes, title in ((left, "here"), (right, "scipy")):
    axes.set(xscale="log", yscale="log", xlabel="x", title=title)
left.set_ylabel("order v")
figure.colorbar(surface, ax=(left, right), label="log10 |log I|")
plt.show()
print(f"finite: here {np.mean(np.isfinite(ours)):.0%}, scipy {np.mean(np.isfinite(theirs)):.0%}")

# %% [markdown]
# ## Fits in 2, 64 and 2048 dimensions
#
# Points are drawn at a known concentration and fitted. In more dimensions a larger concentration is
# needed for the same spread: what is comparable is the length of the mean, $A_p(\kappa)$.

# %%
resultants = (0.2, 0.5, 0.9)
found = {}
for p in (2, 64, 2048):
    mu = jnp.eye(1, p)[0]
    kappa = vmf_kappa_from_r(p, jnp.array(resultants))
    points = vmf_sample(jax.random.key(p), mu, kappa, (1000,))
    found[p] = kappa, vmf_fit(points)[1]

for p, (true, fitted) in found.items():
    plt.loglog(true, fitted, "o", label=f"p = {p}")
plt.loglog([0.1, 1e5], [0.1, 1e5], color="grey", linewidth=0.5)
plt.xlabel("kappa, drawn")
plt.ylabel("kappa, fitted to 1000 points")
plt.legend()
plt.show()

# %% [markdown]
# ## Two concentrations that share a direction
#
# An angle alone cannot tell these two classes apart; their densities can.

# %%
mu = jnp.eye(1, 2048)[0]
classes = [
    vmf_sample(jax.random.key(seed), mu, kappa, (200,)) for seed, kappa in enumerate((900, 1300))
]
train, test = zip(*[(y[:100], y[100:]) for y in classes], strict=True)
fits = [vmf_fit(y) for y in train]
scores = [[vmf_log_prob(y, *fit) for fit in fits] for y in test]
accuracy = np.mean([np.mean(scores[c][c] > scores[c][1 - c]) for c in (0, 1)])
print(f"accuracy {accuracy:.3f}")

# %% [markdown]
# A task of the training program does the same with features of real data:
#
#     python train.py --config=configs/vmf_digits.py

# %%
assert np.all(np.isfinite(ours))
assert np.mean(np.isfinite(theirs)) < 0.7
assert all(np.allclose(true, fitted, rtol=0.35) for true, fitted in found.values())
assert accuracy > 0.8
