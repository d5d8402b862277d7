"""The encoder against a NumPy forward, and the published weights against reference embeddings."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core.compress import compress
from jaxlab.core.match import leaf_paths
from jaxlab.core.registry import build
from jaxlab.data.text_tokenizer import TextTokenizer
from jaxlab.interop.bert import names
from jaxlab.models.sentence_encoder import (
    EncoderConfig,
    embed,
    encode_tokens,
    load_minilm,
    minilm_folder,
    normalize,
    pool,
    stack_layers,
    unstack_layers,
)

SMALL = EncoderConfig(vocab=40, hidden=12, layers=2, heads=3, intermediate=20, positions=9)
TEXTS = [
    "This is an example sentence",
    "Each sentence is converted",
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "",
    "hello" * 60,
]


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    params = {}
    for path, shape in names(SMALL).values():
        tree = params
        for key in path[:-1]:
            tree = tree.setdefault(key, {})
        tree[path[-1]] = jnp.asarray(rng.normal(size=shape) / 2 + (path[-1] == "scale"), "float32")
    ids = rng.integers(0, 40, (3, 7)).astype(np.int32)
    mask = (np.arange(7) < np.array([[7], [4], [1]])).astype(np.int32)
    return params, ids, mask


@pytest.fixture(scope="module")
def minilm():
    """Sizes, parameters, and token ids of `TEXTS`: of the published model."""
    try:
        folder = minilm_folder()
    except FileNotFoundError as error:
        pytest.skip(f"the published weights are not here: {error}")
    return *load_minilm(folder), *TextTokenizer(folder)(TEXTS)


@pytest.fixture(scope="module")
def embeddings(minilm):
    cfg, params, ids, mask = minilm
    with jax.default_matmul_precision("highest"):
        return np.asarray(_jitted(cfg)(stack_layers(params), ids, mask))


@functools.cache
def _jitted(cfg, dtype=jnp.float32):
    return jax.jit(lambda p, i, m: embed(p, i, m, cfg=cfg, dtype=dtype))


def _numpy_layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def _numpy_forward(params, ids, mask, type_ids):
    """Hidden states as the published description of BERT has them, in float64, row by row."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tables = {k: p["embeddings"][k]["embedding"] for k in ("word", "position", "token_type")}
    linear = lambda x, w: x @ w["kernel"] + w["bias"]  # noqa: E731
    rows = []
    for row, seen, types in zip(ids, mask, type_ids, strict=True):
        x = tables["word"][row] + tables["position"][: len(row)] + tables["token_type"][types]
        x = _numpy_layer_norm(x, p["embeddings"]["norm"])
        for i in range(SMALL.layers):
            layer, heads = p["layers"][i], []
            q, k, v = (linear(x, layer["attn"][name]) for name in "qkv")
            for head in np.split(np.arange(SMALL.hidden), SMALL.heads):
                scores = q[:, head] @ k[:, head].T / math.sqrt(len(head))
                weights = np.exp(scores) * seen
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, head])
            attended = linear(np.concatenate(heads, -1), layer["attn"]["out"])
            x = _numpy_layer_norm(x + attended, layer["attn_norm"])
            h = linear(x, layer["mlp"]["up"])
            h = h * (1 + np.vectorize(math.erf)(h / math.sqrt(2))) / 2
            x = _numpy_layer_norm(x + linear(h, layer["mlp"]["down"]), layer["mlp_norm"])
        rows.append(x)
    return np.stack(rows)


def test_hidden_states_are_those_of_the_description(small):
    params, ids, mask = small
    types = (np.arange(7) > 2).astype(np.int32)[None].repeat(3, 0)
    expected = _numpy_forward(params, ids, mask, types)
    hidden = encode_tokens(params, ids, mask, cfg=SMALL, type_ids=jnp.asarray(types))
    counted = mask > 0
    np.testing.assert_allclose(np.asarray(hidden)[counted], expected[counted], atol=1e-5)
    means = np.stack([x[m > 0].mean(0) for x, m in zip(expected, mask, strict=True)])
    np.testing.assert_allclose(pool(hidden, mask), means, atol=1e-5)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True)
    np.testing.assert_allclose(normalize(pool(hidden, mask)), means / lengths, atol=1e-5)


def test_stacked_layers_and_the_registered_model_are_the_same(small):
    params, ids, mask = small
    expected = _jitted(SMALL)(params, ids, mask)
    stacked = stack_layers(params)
    np.testing.assert_allclose(_jitted(SMALL)(stacked, ids, mask), expected, atol=1e-6)
    again = leaf_paths(unstack_layers(stacked))
    for path, leaf in leaf_paths(params).items():
        np.testing.assert_array_equal(again[path], leaf, err_msg=path)
    sizes = {"vocab_size": 40, "d_model": 12, "depth": 2, "heads": 3, "d_mlp": 20, "positions": 9}
    for scan, given in ((False, params), (True, stacked)):
        section = {"name": "sentence_encoder", "scan_layers": scan, **sizes}
        model = nnx.eval_shape(lambda s=section: build("model", s, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(model)
        shapes = {p: x.shape for p, x in leaf_paths(nnx.to_pure_dict(state)).items()}
        assert shapes == {p: x.shape for p, x in leaf_paths(given).items()}
        got = nnx.merge(graph, given)(jnp.asarray(ids), jnp.asarray(mask))
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_heads_and_channels_may_be_permuted(small):
    params, ids, mask = small
    heads = np.array([4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3])
    channels = np.random.default_rng(1).permutation(20)
    changed = {**params, "layers": dict(params["layers"])}
    for i, layer in params["layers"].items():
        attn = {n: jax.tree.map(lambda x: x[..., heads], layer["attn"][n]) for n in "qkv"}
        out = {**layer["attn"]["out"], "kernel": layer["attn"]["out"]["kernel"][heads]}
        up = jax.tree.map(lambda x: x[..., channels], layer["mlp"]["up"])
        down = {**layer["mlp"]["down"], "kernel": layer["mlp"]["down"]["kernel"][channels]}
        mlp = {"up": up, "down": down}
        changed["layers"][i] = {**layer, "attn": {**attn, "out": out}, "mlp": mlp}
    call = _jitted(SMALL)
    np.testing.assert_allclose(call(changed, ids, mask), call(params, ids, mask), atol=2e-6)


def test_a_row_without_tokens_is_finite_and_so_is_its_gradient(small):
    params, ids, mask = small
    mask = mask.copy()
    mask[1] = 0

    def total(params):
        x = embed(params, ids, mask, cfg=SMALL)
        return jnp.sum(x * x[:1]), x

    (_, x), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_array_equal(x[1], 0)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.abs(grads["layers"][0]["mlp"]["up"]["kernel"]).max() > 0


def test_kernels_may_be_matrices(small):
    params, ids, mask = small
    packed = compress(params, [("layers/.*/kernel", "low_rank", {"rank": 12})])
    call = _jitted(SMALL)
    np.testing.assert_allclose(call(packed, ids, mask), call(params, ids, mask), atol=2e-5)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (np.zeros((1, 10), np.int32), np.ones((1, 10)), r"10 tokens .* nearest: 9"),
        (np.full((1, 3), 40), np.ones((1, 3)), r"ids has 40, .* in 0..39; nearest: 39"),
        (np.full((1, 3), -1), np.ones((1, 3)), r"ids has -1, .* nearest: 0"),
        (np.zeros((1, 3), np.int32), np.ones((1, 4)), r"ids \(1, 3\) and mask \(1, 4\)"),
    ],
)
def test_bad_tokens_are_refused(small, ids, mask, message):
    with pytest.raises(ValueError, match=message):
        embed(small[0], ids, mask, cfg=SMALL)


def test_a_head_must_divide():
    with pytest.raises(ValueError, match=r"sentence_encoder: heads=5 must divide d_model=384"):
        build("model", {"name": "sentence_encoder", "heads": 5}, rngs=nnx.Rngs(0))


def test_published_token_ids(minilm):
    _, _, ids, mask = minilm
    assert ids.shape == mask.shape == (7, 16)
    rows = [row[: m.sum()].tolist() for row, m in zip(ids, mask, strict=True)]
    assert rows[0] == [101, 2023, 2003, 2019, 2742, 6251, 102]
    assert rows[1] == [101, 2169, 6251, 2003, 4991, 102]
    assert rows[5:] == [[101, 102], [101, 100, 102]]


def test_published_embeddings(minilm, embeddings):
    first = [0.0676569, 0.0634959, 0.0487132, 0.0793050, 0.0374480, 0.0026528]
    second = [0.0864386, 0.1027626, 0.0053945, 0.0020444, -0.0099634, 0.0253855]
    np.testing.assert_allclose(embeddings[:2, :6], [first, second], rtol=0, atol=2e-6)
    for i, j, cosine in ((0, 1, 0.4045591), (2, 3, 0.7553370), (2, 4, -0.1049585)):
        assert abs(embeddings[i] @ embeddings[j] - cosine) < 2e-6
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, atol=1e-6)
    cfg, params, ids, mask = minilm
    hidden = jax.jit(lambda p, i, m: encode_tokens(p, i, m, cfg=cfg))
    pooled = pool(hidden(stack_layers(params), ids, mask), mask)
    lengths = np.linalg.norm(pooled, axis=-1)[:3]
    np.testing.assert_allclose(lengths, [5.163484, 6.258902, 5.632678], rtol=0, atol=2e-5)


def test_published_embeddings_do_not_depend_on_padding_or_order(minilm, embeddings):
    cfg, params, ids, mask = minilm
    order = np.array([3, 1, 0, 2, 6, 5, 4])
    wide = [np.pad(x, ((0, 0), (0, 16)))[order] for x in (ids, mask)]
    got = _jitted(cfg)(stack_layers(params), *wide)
    np.testing.assert_allclose(got, embeddings[order], rtol=0, atol=2e-6)


def test_published_embeddings_in_bfloat16(minilm, embeddings):
    cfg, params, ids, mask = minilm
    got = np.asarray(_jitted(cfg, dtype=jnp.bfloat16)(stack_layers(params), ids, mask))
    assert got.dtype == np.float32
    cosines = np.sum(got * embeddings, axis=-1)
    assert 0.999 < cosines.min() < 1 - 1e-7
