"""The one matcher: whole paths, first match wins, unused rules are errors that point somewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxlab.core.match import first_match, leaf_paths

PATHS = ["blocks/0/mlp/up/kernel", "blocks/0/mlp/up/bias", "blocks/1/attn/q/kernel", "head/kernel"]


def test_first_match_wins_on_whole_paths():
    rules = [("blocks/.*/kernel", "a"), (".*kernel", "b")]
    found = first_match(rules, PATHS, owner="test")
    assert found == {PATHS[0]: "a", PATHS[2]: "a", PATHS[3]: "b"}


def test_a_prefix_is_no_match():
    with pytest.raises(ValueError, match="matches no path"):
        first_match([("blocks/0", 1)], PATHS, owner="test")


def test_unused_rule_names_the_nearest_path():
    with pytest.raises(ValueError, match=r"freeze: pattern 'hed/kernel'.*'head/kernel'"):
        first_match([("hed/kernel", 1)], PATHS, owner="freeze")


def test_shadowed_rule_names_who_took_its_path():
    with pytest.raises(ValueError, match=r"'head/kernel' is never used.*first matched by '\.\*'"):
        first_match([(".*", 1), ("head/kernel", 2)], PATHS, owner="test")


def test_broken_pattern_is_named():
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        first_match([("(", 1)], PATHS, owner="test")


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(), min_size=1))
def test_leaf_paths_name_every_leaf_once(tree):
    nested = {"x": [tree, (1, 2)], "y": tree}
    paths = leaf_paths(nested)
    assert len(paths) == 2 * len(tree) + 2
    assert {p for p in paths if p.startswith("x/1")} == {"x/1/0", "x/1/1"}
