"""The embedding task: its metrics against plain NumPy and SciPy, with and without a teacher."""

import functools
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

import jaxlab
from jaxlab.core import registry
from jaxlab.core.calibration import collect_grams
from jaxlab.core.plan import Plan
from jaxlab.data.docstrings import Docstrings, Pair
from jaxlab.tasks.embed import bags_of_words, recall, similarity_spearman

MODEL = {"name": "sentence_encoder", "d_model": 8, "depth": 1, "heads": 2, "d_mlp": 12}
MODEL |= {"positions": 8, "scan_layers": True}
COUNT = 5


class _Letters:
    """A tokenizer of letters, between a first and a last token."""

    vocab_size = 29

    def __call__(self, texts, max_length, buckets):
        ids = np.zeros((len(texts), max_length), np.int32)
        for i, text in enumerate(texts):
            letters = [27, *(ord(x) - 96 for x in text[: max_length - 2]), 28]
            ids[i, : len(letters)] = letters
        return ids, (ids > 0).astype(np.int32)


def _data(*, seed, batch_size):
    """Pairs of made-up words, of which a code repeats three letters of its docstring."""
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + i) for i in rng.permutation(26)[:4]) for _ in range(12)]
    pairs = [Pair(word, word[1:3] + word[:1]) for word in words]
    how = {"tokenizer": _Letters(), "seq_len": 8, "seed": seed, "batch_size": batch_size}
    return Docstrings(pairs[COUNT:], pairs[:COUNT], **how)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    registry.names("data")
    monkeypatch.setitem(registry._PARTS["data"], "tested", _data)


def _make(**settings):
    context = {"data": {"name": "tested"}, "model": MODEL, "seed": 0, "batch_size": 4}
    return registry.build("task", {"name": "embed", **settings}, **context)


@functools.cache
def _params():
    shapes = jax.eval_shape(_make().init, jax.eval_shape(lambda: jax.random.key(0)))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype), shapes)


@functools.cache
def _embed():
    """The model, compiled once for all tests."""
    return jax.jit(_make().network.apply)


@pytest.fixture
def teacher(tmp_path):
    jaxlab.save(tmp_path / "teacher.safetensors", _params())
    return str(tmp_path / "teacher.safetensors")


def test_metrics_are_those_of_numpy(teacher):
    task = _make(teacher=teacher)
    assert task.quality == ("mean_cosine", "max")
    (batch,) = task.eval_batches()
    assert batch["weight"].tolist() == [1] * COUNT + [0] * 3
    eval_sums = jax.jit(task.eval_sums)

    def metrics(params):
        return task.eval_metrics({k: float(v) for k, v in eval_sums(params, batch).items()})

    # The teacher agrees with itself.
    found = metrics(_params())
    np.testing.assert_allclose([found["mean_cosine"], found["spearman"]], 1, atol=1e-6)
    for k in (1, 10):
        assert found[f"recall_at_{k}"] == pytest.approx(found[f"dense_recall_at_{k}"])
    # Five texts are always among the ten nearest, whatever else padding holds.
    assert found["recall_at_10"] == found["bag_recall_at_10"] == pytest.approx(1)
    assert set(found) == {
        "mean_cosine", "spearman", "recall_at_1", "recall_at_10", "dense_recall_at_1",
        "dense_recall_at_10", "bag_recall_at_1", "bag_recall_at_10",
    }  # fmt: skip
    other = jax.tree.map(lambda x: np.roll(x, 1, 0) * np.float32(0.5) + x, _params())
    found = metrics(other)
    docs, codes = (
        np.concatenate(
            [_embed()(other, batch[f"{s}ids"][i : i + 4], batch[f"{s}mask"][i : i + 4])
             for i in (0, 4)]
        )[:COUNT]
        for s in ("", "code_")
    )  # fmt: skip
    dense = batch["target"][:COUNT]
    cosine = np.sum(docs * dense, -1).mean()
    assert -1 < cosine < 0.99
    assert found["mean_cosine"] == pytest.approx(cosine, abs=1e-6)
    pairs = np.triu_indices(COUNT, 1)
    expected = spearmanr((docs @ docs.T)[pairs], (dense @ dense.T)[pairs]).statistic
    assert found["spearman"] == pytest.approx(expected, abs=1e-5)
    nearest = np.argmax(docs @ codes.T, -1)
    assert found["recall_at_1"] == pytest.approx(np.mean(nearest == np.arange(COUNT)))


def test_batches_are_pure_and_may_be_asked_for_in_a_trace(teacher):
    task = _make(teacher=teacher)
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, task.batch(1)))
    batch = task.batch(1)
    assert isinstance(batch["target"], np.ndarray)
    assert shapes["target"].shape == batch["target"].shape == (4, 8)
    for name, x in _make(teacher=teacher).batch(1).items():
        np.testing.assert_array_equal(batch[name], x)
    expected = _embed()(_params(), batch["ids"], batch["mask"])
    np.testing.assert_allclose(batch["target"], expected, atol=1e-6)
    loss, extra = jax.jit(task.loss)(_params(), batch, jax.random.key(0))
    np.testing.assert_allclose([loss, extra["cosine"]], [0, 1], atol=1e-6)
    np.testing.assert_array_equal(task.calibration_weight(batch), batch["mask"])


def test_without_a_teacher_functions_are_told_apart():
    task = _make(temperature=0.1)
    assert task.quality == ("recall_at_10", "max")
    batch = task.batch(0)
    loss, extra = jax.jit(task.loss)(_params(), batch, jax.random.key(0))
    docs, codes = (
        np.asarray(_embed()(_params(), batch[f"{s}ids"], batch[f"{s}mask"]), np.float64)
        for s in ("", "code_")
    )
    logits = docs @ codes.T / 0.1
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - np.diagonal(logits))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert extra["accuracy"] == np.mean(logits.argmax(-1) == np.arange(4))
    (held_out,) = task.eval_batches()
    sums = jax.eval_shape(task.eval_sums, _params(), held_out)
    assert set(sums) == {"recall_at_1", "recall_at_10", "weight"}


def test_padding_does_not_count_in_calibration():
    task = _make()
    batch, path = task.batch(0), "layers/mlp/up/kernel"
    loss = lambda params, batch: task.loss(params, batch, None)[0]  # noqa: E731
    grams = collect_grams(loss, _params(), [batch], [path], weight=task.calibration_weight)
    expected = batch["mask"].sum() + batch["code_mask"].sum()
    np.testing.assert_allclose(np.ravel(grams[path].count), expected)


def test_spearman_has_mean_ranks_for_ties_and_leaves_out_weightless_rows():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, (9, 3)).astype(np.float32)
    b = rng.normal(size=(9, 4)).astype(np.float32)
    weight = np.array([1, 1, 0, 1, 1, 1, 0, 1, 1], np.float32)
    kept = weight > 0
    pairs = np.triu_indices(kept.sum(), 1)
    similar = [(x[kept] @ x[kept].T)[pairs] for x in (a, b)]
    got = jax.jit(similarity_spearman)(jnp.asarray(a), jnp.asarray(b), jnp.asarray(weight))
    np.testing.assert_allclose(got, spearmanr(*similar).statistic, atol=1e-5)


def test_ties_do_not_count_as_found():
    same = jnp.ones((3, 2)) / jnp.sqrt(2.0)
    assert recall(same, same, jnp.ones(3), 1) == 0
    assert recall(same, same, jnp.ones(3), 3) == 1
    assert recall(same, same, jnp.array([1.0, 0.0, 0.0]), 1) == 1


def test_a_bag_of_words_finds_shared_words():
    ids = np.array([[27, 1, 2, 28], [27, 3, 28, 0], [27, 4, 5, 28]])
    part = {"ids": ids, "mask": ids > 0, "code_ids": ids[:, ::-1], "code_mask": ids[:, ::-1] > 0}
    docs, codes = bags_of_words(part, vocab_size=29)
    np.testing.assert_allclose(docs, codes, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(docs, axis=-1), 1, atol=1e-6)
    # Without the first and last tokens, texts that share nothing are nearly orthogonal.
    assert np.abs(docs @ codes.T - np.eye(3)).max() < 0.2


def test_draws_of_one_part_leave_the_other_alone(monkeypatch):
    monkeypatch.setattr("jaxlab.data.docstrings.TextTokenizer", lambda path: _Letters())
    how = {"name": "docstrings", "seq_len": 16, "max_pairs": 8, "eval_pairs": 8, "tokenizer": "x"}
    base, train, held_out = (
        registry.build("data", {**how, **draw}, seed=0, batch_size=2).info
        for draw in ({}, {"draw": 1}, {"eval_draw": 1})
    )
    assert base["train_sha256"] != train["train_sha256"]
    assert base["eval_sha256"] == train["eval_sha256"] != held_out["eval_sha256"]


@pytest.fixture
def config(monkeypatch, tmp_path):
    """`get_config` of configs/minilm.py, with a folder that has no weights."""
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setenv("JAXLAB_MINILM", str(tmp_path))
    file = Path(__file__).parents[2] / "configs" / "minilm.py"
    spec = importlib.util.spec_from_file_location("minilm", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def _kept(config):
    """What the rules of a config keep of the numbers of a layer's two kernels."""
    shapes = {"up": (384, 1536), "down": (1536, 384)}
    mlp = {
        side: {"kernel": jax.ShapeDtypeStruct((1, *shape), jnp.float32),
               "bias": jax.ShapeDtypeStruct((1, shape[1]), jnp.float32)}
        for side, shape in shapes.items()
    }  # fmt: skip
    params = {"layers": {"mlp": mlp}}
    rules = [dict(rule) for rule in config.to_dict()["compress"].values()]
    rules = [[(rule.pop("path"), rule.pop("name"), rule) for rule in rules]]
    rules += [phase["rules"] for phase in config.to_dict()["phases"].values()]
    how = {"sequential": False, "correct_bias": True, "key": None, "offered": None}
    for each in rules:
        params = Plan(params, each, **how).shapes(params)
    found = [x for side in mlp for x in jax.tree.leaves(params["layers"]["mlp"][side]["kernel"])]
    sizes = [math.prod(x.shape) for x in found if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(sizes) / (2 * 384 * 1536)


@pytest.mark.parametrize("method", ["svd", "lord_centred", "monarch"])
def test_the_experiment_keeps_what_it_says_or_just_less(config, method):
    for ratio in (0.9, 0.7, 0.5):
        c = config(f"method={method},ratio={ratio}")
        assert ratio - 0.015 < _kept(c) <= ratio
    assert c.calibrate.batches * c.batch_size == 512
    assert c.data.draw == c.data.eval_draw == 0


def test_the_experiment_prunes_kernels_and_factors(config):
    assert _kept(config("method=sparsegpt,n=2,m=4")) == 0.5
    assert _kept(config("method=magnitude,n=4,m=8")) == 0.5
    assert 0.485 < _kept(config("method=lord_sparsegpt,ratio=0.5,n=2,m=4")) <= 0.5
    assert 0.685 < _kept(config("method=lord_sparsegpt,ratio=0.7,n=3,m=4")) <= 0.7
    assert _kept(config("method=block_diagonal,ratio=0.7")) == 0.5
    assert not config("method=none").compress
    with pytest.raises(ValueError, match="method='lrd'"):
        config("method=lrd")
    with pytest.raises(ValueError, match="ratio=1.5 must be in"):
        config("ratio=1.5")


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"embed: teacher=.*nothing"):
        _make(teacher=str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="temperature=0.0 must be positive"):
        _make(temperature=0.0)
