"""Special functions and what is built on them: arrays in, arrays out, no dependency but jax."""
