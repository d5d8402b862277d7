import dataclasses

import jax
import pytest

from jaxlab.core.matrix import Matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Stored(Matrix):
    """A dense array in the shape of a matrix: what layers compute with it is what they ought to."""

    w: jax.Array

    @property
    def shape(self):
        return self.w.shape

    def to_dense(self):
        return self.w


@pytest.fixture(scope="session")
def stored():
    return _Stored
