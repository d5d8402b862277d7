"""Numerical methods beside compression: pure functions, one file each."""
