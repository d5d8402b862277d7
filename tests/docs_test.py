"""Code on pages that stands alone does what they say."""

import re
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def running():
    """Yields, after each block of a page's code, the names that there are."""

    def run(page):
        names = {}
        for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
            exec(compile(block, page, "exec"), names)
            yield names

    return run


def test_own_flax_models(running):
    blocks = running("flax_models.md")
    linen = next(blocks)
    assert linen["y"].shape == (8, 10)
    packed = linen["matrix_apply"](linen["model"].apply)({"params": linen["small"]}, linen["x"])
    np.testing.assert_allclose(packed, linen["y"], rtol=1e-5, atol=1e-5)
    nnx = next(blocks)
    assert nnx["y"].shape == (8, 64)
    mean = nnx["rest"]["layers"][1]["mean"]
    assert float(abs(mean[...]).max()) > 0  # the running statistics of this batch
    assert next(blocks, None) is None


def test_a_differential_equation(running):
    *_, names = running("gphm.md")
    x = np.linspace(0, 1, 200)
    # The cube adds about a thousandth to what solves u'' = 100 cos(30 x).
    slope = (np.cos(30) - 1) / 9
    exact = (1 - np.cos(30 * x)) / 9 + slope * x
    np.testing.assert_allclose(names["found"], exact, rtol=0, atol=0.02)
