"""A split by hash is disjoint, complete, and does not move when names are added."""

import pytest

from jaxlab.data.splits import split_by_hash

NAMES = [f"module{i}/file{j}" for i in range(200) for j in range(3)]


def _module(name):
    return name.split("/")[0]


def test_parts_are_disjoint_and_complete():
    train, held_out = split_by_hash(NAMES, 0.3, salt="x")
    assert sorted(train + held_out) == sorted(NAMES)
    assert 0.2 < len(held_out) / len(NAMES) < 0.4


def test_a_group_is_never_divided():
    train, held_out = split_by_hash(NAMES, 0.3, salt="x", group_of=_module)
    assert train
    assert held_out
    assert not {_module(n) for n in train} & {_module(n) for n in held_out}


def test_a_name_stays_on_its_side_and_in_its_place_when_others_come():
    all_parts = split_by_hash(NAMES, 0.3, salt="x")
    half = set(NAMES[::2])
    half_parts = split_by_hash(reversed(NAMES[::2]), 0.3, salt="x")
    for part, of_half in zip(all_parts, half_parts, strict=True):
        assert [name for name in part if name in half] == of_half


def test_the_order_is_not_the_alphabet():
    train, _ = split_by_hash(sorted(NAMES), 0.3, salt="x")
    assert train != sorted(train)
    assert len({_module(n) for n in train[:30]}) > 20


def test_the_salt_changes_the_split():
    assert split_by_hash(NAMES, 0.3, salt="x") != split_by_hash(NAMES, 0.3, salt="y")


@pytest.mark.parametrize("held_out", [0.0, 1.0, -1.0, 2.0])
def test_a_fraction_out_of_range_is_refused(held_out):
    with pytest.raises(ValueError, match=f"x: held_out={held_out} is not between 0 and 1; nearest"):
        split_by_hash(NAMES, held_out, salt="x")
