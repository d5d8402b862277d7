"""Names, signatures and types of what a config may say."""

from typing import Literal

import pytest

from jaxlab.core import registry


@registry.register("schedule", "test_part")
def part(*, width: int, rate: float = 0.5, mode: Literal["a", "b"] = "a", size: int | None = None):
    """A part."""
    return width, rate, mode, size


def build(**arguments):
    return registry.build("schedule", {"name": "test_part", **arguments})


def test_builds_with_defaults_and_context():
    assert build(width=3) == (3, 0.5, "a", None)
    assert registry.build("schedule", {"name": "test_part"}, width=4)[0] == 4
    assert build(width=3, rate=1) == (3, 1, "a", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 3, "raet": 1.0}, "takes no 'raet'; did you mean 'rate'"),
        ({}, "needs 'width'"),
        ({"width": 2.5}, "width=2.5 is not int"),
        ({"width": True}, "width=True is not int"),
        ({"width": 3, "rate": "fast"}, "rate='fast' is not float"),
        ({"width": 3, "mode": "c"}, "mode='c' is not"),
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
