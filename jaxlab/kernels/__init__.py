"""Products with packed weights: one reference an op, and implementations that may be faster.

Each op is a package: `api` (the public function), `reference` (what it means, in jax.numpy),
`shapes` (checks and tile sizes) and one module for each backend.
"""
