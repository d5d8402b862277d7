"""Claims of Kronecker products are judged by their results."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def claims(monkeypatch):
    """The module of the claims."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("publish_kron")


def test_images_are_judged_by_the_worst_mask(claims):
    cells = {f"white, mask {i}": {"process": p, "bilinear": 1.0} for i, p in enumerate((0.8, 0.89))}
    assert claims.images_better({"cells": cells}) == "reproduced"
    assert "15.5 ± 6.4 % (2 masks)" in claims.images_words({"cells": cells})
    cells["white, mask 1"]["process"] = 0.91
    assert "not" in claims.images_better({"cells": cells})


def test_steps_are_judged_against_the_better_of_the_others(claims):
    name = "masked {} 1000 x 1000 float64"
    steps = {"spectral": 30, "eigh": 150, "none": 500}
    about = {"ok": True, "residual": 1e-7, "seconds": 1.0, "observed": 5, "cells": 10}
    cells = {name.format(p): {"iterations": n, **about} for p, n in steps.items()}
    assert claims.masked_fewer({"cells": cells}) == "reproduced"
    assert "none 500;" in claims.masked_words({"cells": cells})
    cells[name.format("eigh")]["iterations"] = 149
    assert "not" in claims.masked_fewer({"cells": cells})


def test_times_are_judged_by_floor_and_peer(claims):
    ours = {"seconds": 1.0, "floor": 0.7, "ratio": 1.4}
    cells = {f"speed 1000 x 1000 {d}": {"matvec": dict(ours)} for d in ("float64", "float32")}
    cells["gpytorch 1000 x 1000 float64"] = {"matvec": {"seconds": 1.2}}
    assert claims.product_near({"cells": cells}) == "reproduced"
    assert claims.peer_slower({"cells": cells}) == "reproduced"
    cells["speed 1000 x 1000 float32"]["matvec"]["ratio"] = 1.6
    cells["gpytorch 1000 x 1000 float64"]["matvec"]["seconds"] = 0.9
    assert "not" in claims.product_near({"cells": cells})
    assert "not" in claims.peer_slower({"cells": cells})
