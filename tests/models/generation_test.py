"""Tokens one by one are those of the whole sequence at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlab
from jaxlab.models.decoder import decoder
from jaxlab.models.generation import generate

V, SEQ_LEN = 11, 12
RULES = {
    "dense": [],
    "low_rank": [(".*/(q|out|up)/kernel", "low_rank", {"rank": 4})],
    "nm": [(".*/mlp/.*/kernel", "nm", {"n": 2, "m": 4})],
    "quantized": [(".*/attn/.*/kernel", "quantized", {"quant": "int8", "group": None})],
}


@functools.cache
def model(**settings):
    settings = {"depth": 2, "kv_heads": 2, "d_mlp": 24, **settings}

    def make():
        rngs = nnx.Rngs(0)
        return decoder(vocab_size=V, seq_len=SEQ_LEN, d_model=16, heads=4, rngs=rngs, **settings)

    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype)  # noqa: E731
    return graph, jax.tree.map(draw, nnx.to_pure_dict(state))


TOKENS = np.random.default_rng(1).integers(0, V, (3, SEQ_LEN))


@pytest.mark.parametrize(
    "settings",
    [{}, {"scan_layers": True}, {"tie_embeddings": True, "rope_scaling": (("factor", 4.0),)}],
    ids=str,
)
@pytest.mark.parametrize("parts", [[1] * 12, [5, 1, 2, 4]], ids=str)
def test_logits_are_those_of_the_whole_sequence(settings, parts):
    settings = {k: dict(v) if k == "rope_scaling" else v for k, v in settings.items()}
    graph, params = model.__wrapped__(**settings)
    tokens = jnp.asarray(TOKENS)
    expected = jax.jit(lambda p: nnx.merge(graph, p)(tokens))(params)

    def read(params):
        net, got, at = nnx.merge(graph, params), [], 0
        cache = net.empty_cache(3, SEQ_LEN)
        for part in parts:
            logits, cache = net.extend(tokens[:, at : at + part], cache)
            at += part
            got.append(logits)
        return jnp.stack(got, 1), cache.length

    got, length = jax.jit(read)(params)
    ends = np.cumsum(parts) - 1
    np.testing.assert_allclose(got, expected[:, ends], atol=2e-5)
    assert int(length) == SEQ_LEN


@pytest.mark.parametrize("method", list(RULES))
@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_likeliest_tokens_with_packed_kernels(method, scan_layers):
    graph, params = model(scan_layers=scan_layers)
    params = jaxlab.finalize(jaxlab.compress(params, RULES[method], key=jax.random.key(0)))
    prompt = jnp.asarray(TOKENS[:, :4])
    got = np.asarray(generate(graph, params, prompt, length=8))
    assert got.shape == (3, 8)
    # Each is the likeliest behind all before it, as the whole sequence at once has it.
    whole = jnp.concatenate([prompt, jnp.asarray(got)], axis=1)
    logits = np.asarray(jax.jit(lambda p: nnx.merge(graph, p)(whole[:, :-1]))(params))[:, 3:]
    chosen = np.take_along_axis(logits, got[..., None], -1)[..., 0]
    np.testing.assert_allclose(chosen, logits.max(-1), atol=1e-4)


def test_draws_are_those_of_the_key_and_follow_the_softmax():
    graph, params = model(depth=1)
    prompt = jnp.broadcast_to(jnp.asarray(TOKENS[:1, :3]), (4000, 3))
    draw = functools.partial(generate, graph, params, prompt, temperature=2.0, length=1)
    tokens = np.asarray(draw(key=jax.random.key(1)))[:, 0]
    np.testing.assert_array_equal(tokens, np.asarray(draw(key=jax.random.key(1)))[:, 0])
    assert np.any(tokens != np.asarray(draw(key=jax.random.key(2)))[:, 0])
    logits = nnx.merge(graph, params)(prompt[:1])[0, -1]
    expected = np.asarray(jax.nn.softmax(logits / 2))
    shares = np.bincount(tokens, minlength=V) / len(tokens)
    error = np.sqrt(expected * (1 - expected) / len(tokens))
    assert np.all(np.abs(shares - expected) < 4.5 * error + 1e-3)


def test_tokens_are_the_same_in_a_context_of_float64():
    graph, params = model(depth=1)
    expected = generate(graph, params, jnp.asarray(TOKENS[:, :3]), length=4)
    with jax.enable_x64(True):
        got = generate(graph, params, jnp.asarray(TOKENS[:, :3]), length=4)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("method", ["quantized", "low_rank"])
def test_ids_are_checked_beside_a_compressed_table_and_pass_when_traced(method):
    graph, params = model(depth=1)
    rules = [("embed/embedding", *RULES[method][0][1:])]
    params = jaxlab.finalize(jaxlab.compress(params, rules, key=jax.random.key(0)))
    with pytest.raises(ValueError, match="prompt has id 11; vocab_size=11"):
        generate(graph, params, jnp.array([[V]]), length=2)
    prompt = jnp.asarray(TOKENS[:, :3])
    got = jax.jit(lambda p: generate(graph, params, p, length=2))(prompt)
    np.testing.assert_array_equal(got, generate(graph, params, prompt, length=2))


def test_a_cold_draw_is_the_likeliest():
    graph, params = model(depth=1)
    prompt = jnp.asarray(TOKENS[:, :3])
    cold = generate(graph, params, prompt, length=4, temperature=1e-6, key=jax.random.key(0))
    np.testing.assert_array_equal(cold, generate(graph, params, prompt, length=4))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"prompt": jnp.zeros((1, 0), jnp.int32)}, "one token or more"),
        ({"prompt": jnp.zeros((1, 2))}, "integers"),
        ({"prompt": jnp.array([[5, V]])}, "prompt has id 11; vocab_size=11; nearest: 10"),
        ({"prompt": np.array([[-1, V]])}, "prompt has id -1; vocab_size=11; nearest: 0"),
        ({"length": 0}, "nearest: 1"),
        ({"length": 11}, "nearest: length=10"),
        ({"temperature": -1.0}, "nearest: 0"),
        ({"temperature": 1.0}, "no key"),
    ],
)
def test_bad_arguments_are_named(changed, says):
    graph, params = model(depth=1)
    arguments = {"prompt": jnp.zeros((1, 2), jnp.int32), "length": 2, **changed}
    with pytest.raises(ValueError, match=says):
        generate(graph, params, arguments.pop("prompt"), **arguments)
