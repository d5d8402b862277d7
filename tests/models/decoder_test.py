import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlab
from jaxlab.core.match import leaf_paths
from jaxlab.models.decoder import decoder, rotary

T, V, D = 6, 6, 16
# Compiling is most of the time here, and a third of it without optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.cache
def split(**overrides):
    arguments = {"d_model": D, "depth": 1, "heads": 4, "kv_heads": 2, "d_mlp": 12} | overrides

    def make():
        return decoder(vocab_size=V, seq_len=T, rngs=nnx.Rngs(0), **arguments)

    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, x.dtype)  # noqa: E731
    return graphdef, jax.tree.map(draw, nnx.to_pure_dict(state))


def apply(graphdef, params, tokens):
    call = jax.jit(lambda params: nnx.merge(graphdef, params)(tokens), compiler_options=QUICK)
    return call(params)


def llama(params, tokens, *, heads, eps=1e-5, theta=10000.0):
    """The architecture once more, in NumPy and float64, position by position."""
    p = {path: np.asarray(x, np.float64) for path, x in leaf_paths(params).items()}

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale

    def heads_of(x, w, turn):
        y = (x @ w).reshape(len(x), -1, D // heads)
        half = D // heads // 2
        z = y[..., :half] + 1j * y[..., half:]
        angle = np.arange(len(x))[:, None] / theta ** (np.arange(half) / half)
        z = z * np.exp(1j * angle)[:, None] if turn else z
        return np.concatenate([z.real, z.imag], -1)

    x = p["embed/embedding"][tokens]
    for i in params["layers"]:
        name = f"layers/{i}"
        y = norm(x, p[f"{name}/attn_norm/scale"])
        q, k, v = (heads_of(y, p[f"{name}/attn/{n}/kernel"], n != "v") for n in "qkv")
        mixed = np.zeros_like(q)
        for t in range(len(x)):
            for n in range(heads):
                shared = n * k.shape[1] // heads
                weight = np.exp(k[: t + 1, shared] @ q[t, n] / np.sqrt(D // heads))
                mixed[t, n] = weight / weight.sum() @ v[: t + 1, shared]
        x = x + mixed.reshape(len(x), D) @ p[f"{name}/attn/out/kernel"]
        y = norm(x, p[f"{name}/mlp_norm/scale"])
        gate = y @ p[f"{name}/mlp/gate/kernel"]
        y = gate / (1 + np.exp(-gate)) * (y @ p[f"{name}/mlp/up/kernel"])
        x = x + y @ p[f"{name}/mlp/down/kernel"]
    return norm(x, p["final_norm/scale"]) @ p["head/kernel"]


def test_equals_the_architecture_written_out():
    graphdef, params = split(depth=2)
    tokens = np.array([3, 1, 5, 0, 2, 2])
    got = apply(graphdef, params, jnp.asarray(tokens)[None])[0]
    np.testing.assert_allclose(got, llama(params, tokens, heads=4), atol=1e-4)


def test_causal():
    graphdef, params = split()

    def logits(table):
        # Token t stands at position t only, so that row t of the table is input t.
        y = nnx.merge(graphdef, params | {"embed": {"embedding": table}})(jnp.arange(T)[None])
        return jnp.sum(y[0] * jnp.cos(jnp.arange(1.0, V + 1))[None], axis=-1)

    jacobian = jax.jit(jax.jacrev(logits), compiler_options=QUICK)(params["embed"]["embedding"])
    seen = np.abs(jacobian).max(-1)
    np.testing.assert_array_equal(seen > 0, np.tri(T, dtype=bool))


def test_grouped_queries_equal_repeated_heads():
    graphdef, params = split()
    full_graphdef, _ = split(kv_heads=4)
    tokens = jnp.arange(T)[None]

    def repeat(key_path, w):
        if key_path[-2].key not in ("k", "v"):
            return w
        return jnp.repeat(w.reshape(D, 2, 4), 2, axis=1).reshape(D, D)

    full = jax.tree_util.tree_map_with_path(repeat, params)
    np.testing.assert_allclose(
        apply(graphdef, params, tokens), apply(full_graphdef, full, tokens), atol=1e-5
    )


def test_tied_head_is_the_embedding():
    graphdef, _ = split()
    tied_graphdef, tied = split(tie_embeddings=True)
    assert "head" not in tied
    untied = tied | {"head": {"kernel": tied["embed"]["embedding"].T}}
    tokens = jnp.arange(T)[None]
    np.testing.assert_allclose(
        apply(tied_graphdef, tied, tokens), apply(graphdef, untied, tokens), atol=1e-5
    )


def test_remat_changes_what_is_kept_and_nothing_else():
    _, params = split()

    def grad(graphdef):
        loss = lambda p: jnp.sum(jnp.sin(nnx.merge(graphdef, p)(jnp.arange(T)[None])))  # noqa: E731
        traced = jax.jit(jax.grad(loss), compiler_options=QUICK).trace(params)
        return str(traced.jaxpr), traced.lower().compile()(params)

    plain_jaxpr, plain = grad(split()[0])
    remat_jaxpr, remat = grad(split(remat=True)[0])
    assert "remat" in remat_jaxpr or "checkpoint" in remat_jaxpr
    assert "remat" not in plain_jaxpr
    assert "checkpoint" not in plain_jaxpr
    for path, g in leaf_paths(remat).items():
        np.testing.assert_allclose(g, leaf_paths(plain)[path], atol=1e-4, err_msg=path)


def test_rotary_depends_on_relative_positions():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, T, 2, 8)), jnp.float32) for _ in range(2))

    def scores(shift):
        positions = jnp.arange(T) + shift
        turned = (rotary(x, positions, theta=100.0) for x in (q, k))
        return jnp.einsum("btnh,bsnh->bnts", *turned)

    np.testing.assert_allclose(scores(0), scores(17), atol=1e-4)
    assert np.abs(scores(0) - jnp.einsum("btnh,bsnh->bnts", q, k)).max() > 0.1
    turned = rotary(q, jnp.arange(T))
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), 1e-5)


def test_refuses_more_tokens_than_seq_len():
    graphdef, params = split()
    with pytest.raises(ValueError, match="7 tokens are more than seq_len=6"):
        nnx.merge(graphdef, params)(jnp.zeros((1, 7), jnp.int32))
    assert apply(graphdef, params, jnp.zeros((1, 3), jnp.int32)).shape == (1, 3, V)


def test_kernels_that_end_a_branch_start_smaller():
    def make():
        model = decoder(vocab_size=V, seq_len=T, d_model=64, depth=2, rngs=nnx.Rngs(0))
        layer = model.layers[1]
        return [jnp.std(linear.kernel.get_value()) for linear in (layer.attn.out, layer.mlp.down)]

    out, down = jax.jit(make, compiler_options=QUICK)()
    np.testing.assert_allclose(out, 1 / np.sqrt(64 * 4), rtol=0.05)
    np.testing.assert_allclose(down, 1 / np.sqrt(192 * 4), rtol=0.05)


def test_default_width_of_the_feed_forward_layers():
    _, params = split(d_mlp=None)
    assert params["layers"][0]["mlp"]["up"]["kernel"].shape == (D, 64)


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_layers_are_the_layers_one_after_another(remat):
    graphdef, params = split(depth=2)
    scanned, _ = split(depth=2, scan_layers=True, remat=remat)
    layers = [params["layers"][i] for i in range(2)]
    stacked = {**params, "layers": jax.tree.map(lambda *x: jnp.stack(x), *layers)}
    rule = [(r"layers/.*mlp/.*/kernel", "nm", {"n": 1, "m": 4, "recipe": "ste"})]
    tokens = jnp.arange(T)[None]

    def loss(graphdef, params):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, jaxlab.compress(params, rule))(tokens)))

    one, many = (
        jax.jit(jax.value_and_grad(functools.partial(loss, g)), compiler_options=QUICK)(p)
        for g, p in ((scanned, stacked), (graphdef, params))
    )
    np.testing.assert_allclose(one[0], many[0], rtol=1e-5)
    for path, g in leaf_paths(one[1]["layers"]).items():
        expected = jnp.stack([leaf_paths(many[1]["layers"][i])[path] for i in range(2)])
        np.testing.assert_allclose(g, expected, atol=1e-4, err_msg=path)


def test_scanned_layers_start_as_the_others_do():
    def init(scan_layers):
        arguments = {"d_model": D, "depth": 2, "heads": 2, "scan_layers": scan_layers}
        model = decoder(vocab_size=V, seq_len=T, rngs=nnx.Rngs(0), **arguments)
        return nnx.to_pure_dict(nnx.state(model))

    stack, layers = (jax.jit(functools.partial(init, s), compiler_options=QUICK)() for s in (1, 0))
    for i in range(2):
        for path, x in leaf_paths(layers["layers"][i]).items():
            np.testing.assert_array_equal(leaf_paths(stack["layers"])[path][i], x, err_msg=path)


def test_cudnn_attention_needs_bfloat16():
    with pytest.raises(ValueError, match="attention='cudnn' needs dtype='bfloat16'"):
        decoder(vocab_size=V, seq_len=T, attention="cudnn", rngs=nnx.Rngs(0))
