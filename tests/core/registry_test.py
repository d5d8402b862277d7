"""Names, signatures and types of what a config may say."""

from typing import Literal

import numpy as np
import pytest

from jaxlab.core import registry


@registry.register("schedule", "test_part")
def part(
    *,
    width: int,
    rate: float = 0.5,
    mode: Literal["a", "b"] = "a",
    size: int | None = None,
    kind: Literal["int8", "wide"] | float | None = None,
):
    """A part."""
    return width, rate, mode, size


def build(**arguments):
    return registry.build("schedule", {"name": "test_part", **arguments})


def test_builds_with_defaults_and_context():
    assert build(width=3) == (3, 0.5, "a", None)
    assert registry.build("schedule", {"name": "test_part"}, width=4)[0] == 4
    assert build(width=3, kind="wide") == build(width=3, kind=0.5) == build(width=3)
    assert build(width=3, rate=1) == (3, 1, "a", None)


def test_numbers_of_numpy_arrive_as_pythons():
    made = build(width=np.int64(3), rate=np.float32(0.25), size=np.uint8(4))
    assert made == (3, 0.25, "a", 4)
    assert [type(value) for value in made] == [int, float, str, int]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 3, "raet": 1.0}, "takes no 'raet'; did you mean 'rate'"),
        ({}, "needs 'width'"),
        ({"width": 2.5}, "width=2.5 is not int"),
        ({"width": True}, "width=True is not int"),
        ({"width": 3, "rate": "fast"}, "rate='fast' is not float"),
        ({"width": 3, "mode": "c"}, r"mode='c' is not known; valid: a, b\. Signature"),
        ({"width": 3, "mode": None}, "mode=None is not known; valid: a, b"),
        ({"width": 3, "kind": "int3"}, "kind='int3' is not known; did you mean 'int8'"),
        ({"width": 3, "kind": "x"}, r"kind='x' is not known; valid: None, float, int8, wide\."),
        ({"width": np.bool_(True)}, "width=True is not int"),
        ({"width": np.float32(2.5)}, "width=2.5 is not int"),
        ({"width": 3, "size": "x"}, "size='x' is not"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_unknown_name_and_kind_suggest_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        registry.build("schedule", {"name": "cosin"})
    with pytest.raises(ValueError, match="did you mean 'model'"):
        registry.names("modle")
    with pytest.raises(ValueError, match="has no 'name'"):
        registry.build("schedule", {"width": 3})


def test_context_is_not_the_users_to_set():
    with pytest.raises(ValueError, match="'width' is set by the program"):
        registry.build("schedule", {"name": "test_part", "width": 1}, width=2)
    with pytest.raises(ValueError, match="takes no 'height'"):
        registry.build("schedule", {"name": "test_part", "width": 1}, height=2)


def test_a_name_has_one_owner():
    with pytest.raises(ValueError, match=r"already .*registry_test\.part"):

        @registry.register("schedule", "test_part")
        def other():
            """Another."""
