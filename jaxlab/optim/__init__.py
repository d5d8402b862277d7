"""One file per optimizer, in optax form, and the chain that a config section describes."""
