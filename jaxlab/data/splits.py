"""Splits by a hash of the name: an item stays on its side when other items come or go."""

import hashlib
from collections.abc import Callable, Iterable


def split_by_hash(
    names: Iterable[str],
    held_out: float,
    *,
    salt: str,
    group_of: Callable[[str], str] = lambda name: name,
) -> tuple[list[str], list[str]]:
    """Splits names into a training and a held-out part.

    A group is held out if its hash, read as a number in [0, 1), is below `held_out`.

    Args:
      names: what to split.
      held_out: expected fraction of the groups that are held out, in (0, 1).
      salt: hashed with each name, so that two data sets split independently.
      group_of: the group of a name; a group is never divided.

    Returns:
      (train, held_out), each in the order of the names' hashes, so that the start of a part is a
      sample of it and not the first names of the alphabet.

    Raises:
      ValueError: `held_out` is not in (0, 1).

    >>> split_by_hash("abcdefgh", 0.25, salt="doctest")
    (['h', 'g', 'b', 'd', 'f', 'a', 'c'], ['e'])
    """
    if not 0 < held_out < 1:
        nearest = 0.01 if held_out <= 0 else 0.99
        raise ValueError(f"{salt}: held_out={held_out} is not between 0 and 1; nearest: {nearest}")
    parts: tuple[list[str], list[str]] = [], []
    for name in sorted(names, key=lambda n: _fraction(salt, n)):
        parts[_fraction(salt, group_of(name)) < held_out].append(name)
    return parts


def _fraction(salt: str, name: str) -> float:
    # surrogateescape: a file's name need not be valid UTF-8.
    digest = hashlib.sha256(f"{salt}/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
