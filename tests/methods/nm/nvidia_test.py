"""Export to sparse tensor cores: worked codes, and a decoder of the format in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.methods.nm.mask import NMPattern, nm_mask
from jaxlab.methods.nm.nvidia import pack_24_nvidia

# Kept positions of a group of four, and its code `i | j << 2`.
CODES = {
    (0, 1): 4,
    (0, 2): 8,
    (0, 3): 12,
    (1, 2): 9,
    (1, 3): 13,
    (2, 3): 14,
    (): 14,
    (0,): 8,
    (1,): 9,
    (2,): 14,
    (3,): 14,
}
# dtype: members of a group, groups in a word, type of a word.
FORMATS = {
    "float16": (4, 4, np.uint16),
    "bfloat16": (4, 4, np.uint16),
    "int8": (4, 8, np.uint32),
    "float32": (2, 4, np.uint16),
}


def mask_of(*kept, members=4):
    return np.array([[i in positions for positions in kept for i in range(members)]])


def decode(values, metadata, members, groups):
    """Dense rows from values and words, a group at a time; refuses positions out of order."""
    values, metadata = np.asarray(values), np.asarray(metadata)
    dense = np.zeros((values.shape[0], values.shape[1] * 2), values.dtype)
    kept = members // 2
    for row in range(values.shape[0]):
        for group in range(dense.shape[1] // members):
            code = int(metadata[row, group // groups]) >> (4 * (group % groups)) & 15
            low, high = code & 3, code >> 2
            assert low < high
            if members == 2:
                assert (low, high) in {(0, 1), (2, 3)}
            places = [low, high] if members == 4 else [low // 2]
            for k, place in enumerate(places):
                dense[row, group * members + place] = values[row, group * kept + k]
    return dense


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_worked_codes(dtype):
    _, groups, word = FORMATS[dtype]
    for positions, code in CODES.items():
        # The group stands second in its word; the others keep {0, 1}.
        mask = mask_of((0, 1), positions, *[(0, 1)] * (groups - 2))
        w = np.arange(1, mask.size + 1).reshape(mask.shape).astype(dtype)
        values, metadata = pack_24_nvidia(jnp.asarray(w), jnp.asarray(mask))
        assert metadata.shape == (1, 1)
        assert metadata.dtype == word
        others = sum(4 << (4 * g) for g in range(groups))
        assert int(metadata[0, 0]) == others + ((code - 4) << 4), positions
        # What fills a group up is zero, whatever the weight is there.
        places = [code & 3, code >> 2]
        expected = [w[0, 4 + p] if p in positions else 0 for p in places]
        assert np.asarray(values)[0, 2:4].tolist() == expected


def test_words_hold_the_first_group_in_the_lowest_bits():
    kept = [(0, 1), (0, 2), (1, 3), (2, 3)]
    w = jnp.ones((1, 16), jnp.bfloat16)
    _, metadata = pack_24_nvidia(w, jnp.asarray(mask_of(*kept)))
    assert hex(metadata[0, 0]) == "0xed84"
    kept += [(0, 3), (1, 2), (), (0,)]
    _, metadata = pack_24_nvidia(jnp.ones((1, 32), jnp.int8), jnp.asarray(mask_of(*kept)))
    assert hex(metadata[0, 0]) == "0x8e9ced84"


def test_32_bit_values_are_kept_one_of_two():
    mask = mask_of((0,), (1,), (), (0,), members=2)
    values, metadata = pack_24_nvidia(jnp.arange(1.0, 9.0)[None], jnp.asarray(mask))
    assert values.tolist() == [[1.0, 4.0, 0.0, 7.0]]
    assert hex(metadata[0, 0]) == "0x4ee4"


@pytest.mark.parametrize("dtype", FORMATS)
def test_round_trip_is_exact(dtype, maybe_jit):
    members, groups, word = FORMATS[dtype]
    w = (50 * jax.random.normal(jax.random.key(0), (5, 64))).astype(dtype)
    mask = nm_mask(jnp.abs(w.astype(jnp.float32)), NMPattern(members // 2, members, -1))
    # Some groups keep fewer than they may.
    mask &= jax.random.bernoulli(jax.random.key(1), 0.8, mask.shape)
    values, metadata = maybe_jit(pack_24_nvidia)(w, mask)
    assert (values.dtype, values.shape) == (dtype, (5, 32))
    assert (metadata.dtype, metadata.shape) == (word, (5, 64 // members // groups))
    expected = np.where(mask, w, np.zeros_like(w))
    np.testing.assert_array_equal(decode(values, metadata, members, groups), expected)


def test_a_stack_is_packed_matrix_by_matrix():
    w = jax.random.normal(jax.random.key(0), (3, 4, 32), jnp.float16)
    mask = nm_mask(jnp.abs(w), NMPattern(2, 4, -1))
    together = pack_24_nvidia(w, mask)
    for i in range(3):
        for whole, single in zip(together, pack_24_nvidia(w[i], mask[i]), strict=True):
            np.testing.assert_array_equal(whole[i], single)


def test_bad_arguments():
    half = jnp.ones((4, 32), jnp.float16)
    with pytest.raises(ValueError, match="keeps 3 of 4; at most 2"):
        pack_24_nvidia(half, jnp.asarray(mask_of(*[(0, 1, 2)] * 8)).repeat(4, 0))
    with pytest.raises(ValueError, match="keeps 2 of 2; at most 1"):
        pack_24_nvidia(half.astype(jnp.float32), jnp.ones(half.shape, bool))
    with pytest.raises(ValueError, match="40 long, must be divisible by 16.*nearest: 32"):
        pack_24_nvidia(jnp.ones((4, 40), jnp.float16), jnp.zeros((4, 40), bool))
    with pytest.raises(ValueError, match=r"mask \(32,\)"):
        pack_24_nvidia(half, jnp.ones(32, bool))
    with pytest.raises(TypeError, match="int32; valid: float16, bfloat16, int8, float32"):
        pack_24_nvidia(half.astype(jnp.int32), jnp.zeros(half.shape, bool))
