"""Rules on paths: what becomes a matrix, what is refused and with which words."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import jaxlab
from jaxlab.core import registry
from jaxlab.core.calibration import compress_calibrated
from jaxlab.methods.low_rank import LowRank
from jaxlab.methods.nm import NM, NMPacked


def params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "blocks": {
            i: {"up": {"kernel": jax.random.normal(k, (16, 8)), "bias": jnp.zeros(8)}}
            for i, k in enumerate(keys[:2])
        },
        "head": {"kernel": jax.random.normal(keys[2], (8, 4))},
    }


def test_first_match_wins_and_the_rest_is_untouched():
    before = params()
    after = jaxlab.compress(
        before,
        [
            ("blocks/0/.*kernel", "low_rank", {"rank": 2}),
            ("blocks/.*kernel", "nm", {"n": 1, "m": 4}),
        ],
    )
    assert isinstance(after["blocks"][0]["up"]["kernel"], LowRank)
    assert isinstance(after["blocks"][1]["up"]["kernel"], NM)
    assert after["head"]["kernel"] is before["head"]["kernel"]
    assert after["blocks"][0]["up"]["bias"] is before["blocks"][0]["up"]["bias"]


def test_dense_keeps_a_path_from_later_rules():
    after = jaxlab.compress(
        params(), [("blocks/0/.*kernel", "dense", {}), ("blocks/.*kernel", "low_rank", {"rank": 2})]
    )
    np.testing.assert_array_equal(
        after["blocks"][0]["up"]["kernel"].to_dense(), params()["blocks"][0]["up"]["kernel"]
    )


def test_factors_are_reached_by_their_paths():
    after = jaxlab.compress(
        params(),
        [
            ("blocks/.*/kernel", "low_rank", {"rank": 4}),
            ("blocks/.*/kernel/u", "nm", {"n": 2, "m": 4}),
        ],
    )
    kernel = jaxlab.finalize(after)["blocks"][1]["up"]["kernel"]
    assert isinstance(kernel, LowRank)
    assert isinstance(kernel.u, NMPacked)
    # And in two calls as in one.
    first = jaxlab.compress(params(), [("blocks/.*/kernel", "low_rank", {"rank": 4})])
    second = jaxlab.compress(first, [("blocks/.*/kernel/u", "nm", {"n": 2, "m": 4})])
    assert jax.tree.structure(second) == jax.tree.structure(after)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("blocks/.*kernl", "nm", {"n": 1, "m": 4})], "matches no path.*blocks/./up/kernel"),
        ([(".*up/kernel", "mn", {})], "matrix 'mn' is not registered; did you mean 'nm'"),
        ([(".*up/kernel", "nm", {"n": 1, "M": 4})], "takes no 'M'"),
        ([(".*up/kernel", "nm", {"n": 1})], "needs 'm'"),
        ([(".*up/kernel", "nm", {"n": 1, "m": "4"})], "m='4' is not int"),
        (
            [(".*up/kernel", "nm", {"n": 1, "m": 3})],
            r"'blocks/0/up/kernel' \(16, 8\).*nearest m: 2",
        ),
        ([("head/kernel", "low_rank", {"rank": 5})], r"'head/kernel' \(8, 4\).*nearest: 4"),
        (
            [
                ("head/kernel", "nm", {"n": 1, "m": 4}),
                ("head/kernel/weight", "low_rank", {"rank": 1}),
            ],
            "'head/kernel/weight' cannot be compressed",
        ),
    ],
)
def test_refusals_name_path_value_and_remedy(rules, message):
    with pytest.raises(ValueError, match=message):
        jaxlab.compress(params(), rules)


def test_a_matrix_is_not_compressed_twice():
    once = jaxlab.compress(params(), [("head/kernel", "low_rank", {"rank": 2})])
    with pytest.raises(ValueError, match="already a LowRank; match one of its factors"):
        jaxlab.compress(once, [("head/kernel", "nm", {"n": 1, "m": 4})])


def test_shapes_alone_are_enough_to_check():
    rules = [("blocks/.*kernel", "low_rank", {"rank": 2}), ("head/kernel", "nm", {"n": 1, "m": 4})]
    shapes = jax.eval_shape(lambda p: jaxlab.compress(p, rules), params())
    real = jaxlab.compress(params(), rules)
    assert jax.tree.structure(shapes) == jax.tree.structure(real)
    assert jaxlab.parameter_table(shapes) == jaxlab.parameter_table(real)


def test_a_method_takes_what_it_declares_of_what_is_offered():
    asked = []

    def offered(path):
        asked.append(path)
        return {"total_steps": 1000, "unknown": object()}

    rules = [
        ("blocks/0/.*kernel", "nm", {"n": 1, "m": 4}),
        ("blocks/1/.*kernel", "nm", {"n": 1, "m": 4, "total_steps": 7}),
        ("head/kernel", "low_rank", {"rank": 2}),
    ]
    after = jaxlab.compress(params(), rules, offered=offered)
    assert after["blocks"][0]["up"]["kernel"].config.total_steps == 1000
    # The rule's own settings go before.
    assert after["blocks"][1]["up"]["kernel"].config.total_steps == 7
    assert asked == ["blocks/0/up/kernel", "blocks/1/up/kernel", "head/kernel"]


def test_rules_that_match_nothing_are_allowed_if_said_so():
    rules = [("head/kernel", "low_rank", {"rank": 2}), ("tail", "low_rank", {"rank": 2})]
    assert isinstance(jaxlab.compress(params(), rules, strict=False)["head"]["kernel"], LowRank)
    with pytest.raises(ValueError, match="matches no path"):
        jaxlab.compress(params(), rules)


@given(st.sets(st.sampled_from(["blocks/0/up/kernel", "blocks/1/up/kernel", "head/kernel"])))
def test_exactly_the_matched_paths_become_matrices(chosen):
    after = jaxlab.compress(params(), [(path, "dense", {}) for path in sorted(chosen)])
    rows = {r.path: r.kind for r in jaxlab.parameter_table(after).rows}
    assert {path for path, kind in rows.items() if kind == "Dense"} == chosen


@pytest.mark.parametrize("method", jaxlab.names("matrix"))
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_every_method_refuses_by_path_what_is_not_finite(method, value):
    example = registry.get("matrix", method).EXAMPLE
    w = jax.random.normal(jax.random.key(0), example.shape).at[3, 1].set(value)
    rules = [("a/kernel", method, example.hyper)]
    message = rf"'a/kernel'.*{method}: 1 of {w.size} entries of the matrix are not finite"
    with pytest.raises(ValueError, match=message):
        jaxlab.compress({"a": {"kernel": w}}, rules, key=jax.random.key(1))
    # Also where a traced function closes over the array.
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: jaxlab.compress({"a": {"kernel": w}}, rules, key=jax.random.key(1)))


def test_to_dense_is_for_one_matrix():
    after = jaxlab.compress(params(), [("head/kernel", "low_rank", {"rank": 2})])
    with pytest.raises(TypeError, match=r"w is a dict.*nearest, for a tree: jax\.tree\.map"):
        jaxlab.to_dense(after)
    assert jaxlab.to_dense(after["head"]["kernel"]).shape == (8, 4)
    assert jaxlab.to_dense(np.ones((2, 2))).shape == (2, 2)


@pytest.mark.parametrize("method", [m for m in jaxlab.names("matrix") if m != "dense"])
@pytest.mark.parametrize("pattern", [".*", "a/.*", ".*kernel.*"])
def test_a_rule_does_not_go_on_inside_what_it_made(pattern, method):
    example = registry.get("matrix", method).EXAMPLE
    tree = {"a": {"kernel": jnp.ones(example.shape)}}
    inside = r"'a/kernel' and matches 'a/kernel/\w+' inside it.*with '/kernel'"
    message = rf"rule 1 \('{re.escape(pattern)}'\) makes a matrix of {inside}"
    rules = [("b", "dense", {}), (pattern, method, example.hyper)]
    with pytest.raises(ValueError, match=message):
        jaxlab.compress(tree, rules, key=jax.random.key(0))


def test_what_no_method_takes_is_refused_as_such():
    tree = {"bias": jnp.ones(4), "kernel": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="'bias'.*a kernel has two axes"):
        jaxlab.compress(tree, [(".*", "low_rank", {"rank": 1})])


def test_rules_that_alternate_inside_each_other_end():
    # Rule 0 has the even depths and rule 1 the odd ones, for ever.
    rules = [("kernel(/u/u)*", "low_rank", {"rank": 1}), ("kernel/.*u", "low_rank", {"rank": 1})]
    with pytest.raises(
        ValueError,
        match="rule 0 .*makes a matrix of 'kernel' and matches 'kernel/u/u' inside.*with 'kernel'",
    ):
        jaxlab.compress({"kernel": jnp.ones((4, 4))}, rules)


def test_an_earlier_rule_may_take_the_factors():
    rules = [("k/[uv]", "dense", {}), ("k(/.)?", "low_rank", {"rank": 2})]
    made = jaxlab.compress({"k": jnp.ones((4, 4))}, rules)["k"]
    assert isinstance(made, LowRank)
    assert made.u.is_array
    assert made.v.is_array


RULE = ("head/kernel", "low_rank", {"rank": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rules": RULE}, r"rules=\('head.*must be a list of rules; nearest: \[\('head"),
        ({"rules": {"head/kernel": "low_rank"}}, "must be a list of rules; a rule is"),
        ({"rules": "head/kernel"}, "rules='head/kernel' must be a list of rules; a rule is"),
        ({"rules": None}, "rules=None must be a list"),
        ({"rules": [RULE, RULE[:2]]}, r"rules\[1\]=.*dict of settings.*nearest: .*'low_rank', {}"),
        ({"rules": [RULE, (*RULE[:2], None)]}, r"rules\[1\]=.*nearest: .*'low_rank', {}\)"),
        ({"rules": ["head/kernel"]}, r"rules\[0\]='head/kernel' is no rule; a rule is \(pattern"),
        ({"rules": [(re.compile("h"), "nm", {})]}, r"rules\[0\]=.*pattern and method are strings"),
        ({"params": {}}, "'head/kernel' matches no path.*The tree has no arrays"),
        ({"key": 0}, r"key=0 must be jax\.random\.key\(\.\.\.\)"),
        ({"key": jnp.zeros(3)}, r"key=.* must be jax\.random\.key\(\.\.\.\)"),
        ({"offered": {"total_steps": 10}}, "offered={'total_steps': 10} must be a function"),
    ],
)
def test_arguments_of_another_kind_are_named(arguments, message):
    given = {"params": params(), "rules": [RULE], **arguments}
    with pytest.raises(ValueError, match=message):
        jaxlab.compress(**given)
    with pytest.raises(ValueError, match=message):
        compress_calibrated(lambda params, x: x, batches=[], **given)


def test_parameters_of_nnx_are_named():
    state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)))
    rules = [("kernel", "low_rank", {"rank": 2})]
    for held in (state, dict(state), {"a": state}, nnx.Linear(8, 4, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"params holds a .*nnx\.to_pure_dict\(state\)"):
            jaxlab.compress(held, rules)
    assert isinstance(jaxlab.compress(nnx.to_pure_dict(state), rules)["kernel"], LowRank)


def test_settings_may_be_numpys_numbers():
    for n, m in [(2, 4), (np.int64(2), np.int32(4))]:
        made = jaxlab.compress(params(), [("head/kernel", "nm_packed", {"n": n, "m": m})])
        assert repr(made["head"]["kernel"]).endswith("n=2, m=4, axis=-2, block=1)")
    with pytest.raises(ValueError, match="='svdd' is not known; did you mean 'svd'"):
        jaxlab.compress(
            params(), [("head/kernel", "low_rank", {"rank": 2, "decomposition": "svdd"})]
        )


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("block_diagonal", {"nblocks": 2}),
        ("phm", {"n": 2}),
        ("sparse", {"sparsity": 0.5}),
        ("sparse_packed", {"sparsity": 0.5}),
        ("collapsible", {"width": 8}),
        ("low_rank", {"rank": 2}),
        ("monarch", {"nblocks": 2}),
        ("quantized", {}),
        ("signs", {}),
    ],
)
@pytest.mark.parametrize("shape", [(0, 16), (16, 0), (0, 16, 16)])
def test_kernels_of_nothing_are_refused_by_name(method, settings, shape):
    says = rf"compress: 'kernel' .*{method}: a kernel of shape .* is empty; leave it dense"
    with pytest.raises(ValueError, match=says):
        jaxlab.compress({"kernel": jnp.ones(shape)}, [("kernel", method, settings)])
