"""One file per method: pure functions on arrays first, then the method's `Matrix` class."""
