"""What holds for every model, and the arguments that each one refuses."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxlab.core.match import leaf_paths
from jaxlab.core.registry import build

# Compiling is most of the time here, and a third of it without optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
IMAGES = {"image_shape": (8, 8, 2), "num_classes": 5}
TEXT = {"vocab_size": 11, "seq_len": 6}
CASES = {
    "mlp": (IMAGES, {"hidden": (12, 8), "activation": "gelu"}),
    "resnet": (IMAGES, {"depth": 8, "width": 4, "groups": 2}),
    "vit": (IMAGES, {"patch": 4, "d_model": 12, "depth": 1, "heads": 3}),
    "decoder": (TEXT, {"d_model": 16, "depth": 1, "heads": 4, "kv_heads": 2, "d_mlp": 20}),
}
AFFINE = r"\w+norm\d?/(scale|bias)"
DENSE = r"(kernel|bias)"
PATHS = {
    "mlp": rf"(layers/[01]|head)/{DENSE}",
    "resnet": rf"stem/kernel|blocks/[012]/conv[12]/kernel|(blocks/[012]/)?{AFFINE}"
    rf"|blocks/[012]/norm[12]/(scale|bias)|head/{DENSE}",
    "vit": rf"(embed|head)/{DENSE}|positions|final_norm/(scale|bias)"
    rf"|blocks/0/({AFFINE}|attn/(q|k|v|out)/{DENSE}|mlp/(up|down)/{DENSE})",
    "decoder": r"embed/embedding|layers/0/((attn|mlp)_norm/scale|attn/(q|k|v|out)/kernel"
    r"|mlp/(gate|up|down)/kernel)|final_norm/scale|head/kernel",
}
COUNTS = {"mlp": 6, "resnet": 1 + 2 + 3 * 6 + 2, "vit": 4 + 1 + 2 + 16, "decoder": 3 + 9}


@functools.cache
def split(name, dtype="float32"):
    """Graph and parameters, made abstractly and filled here: initialisers take long to compile."""
    context, arguments = CASES[name]
    section = {"name": name, "dtype": dtype, **arguments}
    model = nnx.eval_shape(lambda: build("model", section, rngs=nnx.Rngs(0), **context))
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        value = rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])
        return jnp.asarray(value + ("scale" in str(path)), leaf.dtype)

    return graphdef, jax.tree_util.tree_map_with_path(fill, nnx.to_pure_dict(state))


def inputs(name):
    rng = np.random.default_rng(1)
    if CASES[name][0] is TEXT:
        return jnp.asarray(rng.integers(0, 11, (3, 6)), jnp.int32)
    return jnp.asarray(rng.normal(size=(3, 8, 8, 2)), jnp.float32)


def value_and_grads(name, params, dtype="float32"):
    graphdef, _ = split(name, dtype)

    def loss(params):
        logits = nnx.merge(graphdef, params)(inputs(name))
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[..., 0]), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (_, logits), grads = step(params)
    return logits, grads


@functools.cache
def reference(name):
    return value_and_grads(name, split(name)[1])


@pytest.mark.parametrize("name", CASES)
def test_parameters(name):
    graphdef, params = split(name)
    paths = leaf_paths(params)
    assert [p for p in paths if not re.fullmatch(PATHS[name], p)] == []
    assert len(paths) == COUNTS[name]
    for dtype in ("float32", "bfloat16"):
        assert {x.dtype for x in jax.tree.leaves(split(name, dtype)[1])} == {jnp.dtype("float32")}
    assert {leaf.ndim for path, leaf in paths.items() if path.endswith("kernel")} == {2}
    again = nnx.to_pure_dict(nnx.state(nnx.merge(graphdef, params)))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for path, leaf in leaf_paths(again).items():
        np.testing.assert_array_equal(leaf, paths[path])


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients(name):
    logits, grads = reference(name)
    assert logits.dtype == jnp.float32
    assert logits.shape == ((3, 6, 11) if CASES[name][0] is TEXT else (3, 5))
    for path, g in leaf_paths(grads).items():
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 0 or path.endswith("attn/k/bias"), path


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_close_to_float32(name):
    logits, grads = reference(name)
    low_logits, low_grads = value_and_grads(name, split(name)[1], "bfloat16")
    assert low_logits.dtype == jnp.float32
    error = np.abs(low_logits - logits).max() / np.abs(logits).max()
    assert 0 < error < 0.05
    assert {g.dtype for g in jax.tree.leaves(low_grads)} == {jnp.dtype("float32")}
    flat = np.concatenate([g.ravel() for g in jax.tree.leaves(grads)])
    low = np.concatenate([g.ravel() for g in jax.tree.leaves(low_grads)])
    assert np.linalg.norm(low - flat) < 0.1 * np.linalg.norm(flat)


@pytest.mark.parametrize("name", CASES)
def test_matrices_stand_where_arrays_stood(name, stored):
    logits, grads = reference(name)

    def put(key_path, leaf):
        return stored(leaf) if key_path[-1].key in ("kernel", "embedding") else leaf

    params = jax.tree_util.tree_map_with_path(put, split(name)[1])
    got_logits, got_grads = value_and_grads(name, params)
    np.testing.assert_allclose(got_logits, logits, atol=1e-4)
    expected = leaf_paths(grads)
    for path, g in leaf_paths(got_grads).items():
        np.testing.assert_allclose(g, expected[path.removesuffix("/w")], atol=1e-4, err_msg=path)


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_depend_on_the_batch(name):
    graphdef, params = split(name)
    call = jax.jit(lambda p, x: nnx.merge(graphdef, p)(x), compiler_options=QUICK)
    alone = call(params, inputs(name)[1:2])
    np.testing.assert_allclose(alone, reference(name)[0][1:2], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mlp", {"dtype": "bfloat"}, r"dtype='bfloat' .*did you mean 'bfloat16'"),
        ("mlp", {"activation": "rellu"}, r"activation='rellu' .*did you mean 'relu'"),
        ("mlp", {"activation": "one_hot"}, r"activation='one_hot' .*valid: celu, elu"),
        ("mlp", {"hidden": (8, 0)}, r"hidden=\(8, 0\) has 0; nearest: 1"),
        ("resnet", {"depth": 18}, r"depth=18 must be 6n \+ 2; nearest: 14, 20"),
        ("resnet", {"depth": 2}, r"depth=2 .*nearest: 8$"),
        ("resnet", {"groups": 3}, r"groups=3 must divide width=4; nearest: 2, 4"),
        ("vit", {"patch": 3}, r"patch=3 must divide .*\(8, 8\); nearest: 2, 4"),
        ("vit", {"heads": 5}, r"heads=5 must divide d_model=12; nearest: 4, 6"),
        ("vit", {"depth": 0}, r"depth=0 must be positive; nearest: 1"),
        ("decoder", {"heads": 3}, r"heads=3 must divide half of d_model=16; nearest: 2, 4"),
        ("decoder", {"heads": 16, "kv_heads": 1}, r"heads=16 .*nearest: 8$"),
        ("decoder", {"kv_heads": 3}, r"kv_heads=3 must divide heads=4; nearest: 2, 4"),
        ("decoder", {"d_model": 15}, r"d_model=15 must be even; nearest: 16"),
        ("decoder", {"rope_theta": 0.0}, r"rope_theta=0.0 must be positive"),
        ("decoder", {"dtype": "float16"}, r"dtype='float16' .*valid: bfloat16, float32"),
    ],
)
def test_bad_arguments(name, arguments, message):
    context, good = CASES[name]
    section = {"name": name, **good, **arguments}
    with pytest.raises(ValueError, match=rf"^{name}: {message}"):
        build("model", section, rngs=nnx.Rngs(0), **context)
