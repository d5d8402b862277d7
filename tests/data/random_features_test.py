"""Random features of images: unit rows, a Gaussian kernel, one draw for one seed."""

import numpy as np
import pytest
import scipy.stats

from jaxlab.core import registry
from jaxlab.data.random_features import normal, random_features

DIGITS = {"name": "digits"}


def test_products_are_a_gaussian_kernel():
    data = random_features(source=DIGITS, dim=20000, bandwidth=0.8, seed=0, batch_size=20)
    images = registry.build("data", DIGITS, seed=0, batch_size=20)
    x = images.batch(3)["image"].reshape(20, -1)
    y = data.batch(3)["feature"]
    np.testing.assert_allclose(np.linalg.norm(y, axis=1), 1, atol=1e-6)
    square = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    kernel = np.exp(-square / (2 * 0.8**2 * x.shape[1]))
    np.testing.assert_allclose(y @ y.T, kernel, atol=0.04)


def test_held_out_rows_and_data_from_elsewhere():
    data = random_features(source=DIGITS, dim=40, seed=0, batch_size=500)
    first, last = data.eval_batches()
    for name in ("feature", "outside"):
        assert first[name].shape == (500, 40)
        assert first[name].dtype == np.float32
    assert last["weight"].sum() == 97
    assert not np.allclose(first["feature"], first["outside"], atol=0.1)
    assert (data.num_classes, data.dim, data.info["source"]) == (10, 40, "digits")


def test_the_features_have_a_seed_of_their_own():
    def rows(seed, feature_seed):
        data = random_features(
            source=DIGITS, dim=16, feature_seed=feature_seed, seed=seed, batch_size=8
        )
        (batch, *_) = data.eval_batches()
        return batch["feature"]

    np.testing.assert_array_equal(rows(0, 0), rows(5, 0))
    assert not np.allclose(rows(0, 0), rows(0, 1))
    drawn = normal(1, 2, (20001,))
    assert scipy.stats.kstest(drawn, "norm").pvalue > 0.01
    np.testing.assert_array_equal(normal(1, 2, (20001,))[:100], drawn[:100])


def test_convolutions_see_shapes():
    data = random_features(source=DIGITS, dim=64, filters=6, seed=0, batch_size=16)
    rows = data.batch(0)["feature"]
    assert rows.shape == (16, 64)
    assert np.isfinite(rows).all()
    assert data.info["filters"] == 6


def test_bad_settings_are_named():
    for setting, message in (
        ({"dim": 1}, "dim=1; nearest: 2"),
        ({"filters": -1}, "filters=-1; nearest: 0"),
        ({"bandwidth": 0.0}, "bandwidth=0.0 must be positive"),
        ({"source": {"name": "python_source", "seq_len": 8}}, "has no images; nearest: digits"),
        ({"source": {"name": "digit"}}, "did you mean 'digits'"),
    ):
        section = {"name": "random_features", "source": DIGITS, **setting}
        with pytest.raises(ValueError, match=message):
            registry.build("data", section, seed=0, batch_size=4)
