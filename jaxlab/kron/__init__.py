"""Kronecker products of any number of factors: products, solves, determinants, Gaussians on grids.

Framework-free. `jaxlab.kron.operator` lists the public names; docs/kron.md is their page.
"""
