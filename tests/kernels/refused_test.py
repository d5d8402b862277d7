"""Cuts that no kernel has: refused by field and value, before anything is divided by them."""

import pytest

from jaxlab.kernels import (
    gemv,
    kron_matvec,
    low_rank_matmul,
    monarch_matmul,
    plan,
    quantized_matmul,
)
from jaxlab.kernels.monarch_matmul.shapes import refuse

STREAMED = quantized_matmul.Problem(16, 512, 16384, "int4", 128, 64).plan
KRON = kron_matvec.Problem(4, 32, 32, 32, 32, "float32")
LOW_RANK = low_rank_matmul.Problem(8, 32768, 512, 512, "bfloat16")
MONARCH = monarch_matmul.Problem(256, 4, 64, 4, 64, 16)
GEMV = gemv.Problem(1, 512, 65536, "bfloat16", "float32")
OPS = {
    "gemv": (GEMV.refuse, gemv.Config, ("tall", "wide", "stages", "blocks")),
    "gemv_transposed": (
        GEMV._replace(transposed=True).refuse,
        gemv.Config,
        ("tall", "wide", "stages", "blocks"),
    ),
    "streamed": (STREAMED.refuse, plan.Config, ("ways", "stages", "split_k", "depth", "parts")),
    "kron": (KRON.refuse, kron_matvec.Config, ("ways", "stages", "blocks")),
    "low_rank": (LOW_RANK.refuse, low_rank_matmul.Config, ("ways", "stages", "down", "up")),
    "monarch": (
        lambda config: refuse(MONARCH, config),
        monarch_matmul.Config,
        ("ways", "stages", "outs", "blocks"),
    ),
}


@pytest.mark.parametrize("op", OPS)
def test_fields_below_one_are_named(op):
    refused, config, fields = OPS[op]
    for field in fields:
        for value in (0, -1):
            assert f"{field}={value}" in refused(config(**{field: value}))


def test_more_barriers_than_a_register_knows_are_refused_where_memory_has_room():
    small = kron_matvec.Problem(4, 16, 16, 16, 16, "float32")
    assert "32 barriers" in small.refuse(kron_matvec.Config(4, 9))
    # Tiles of the others take more memory than there is before they take so many barriers.
    assert "bytes" in LOW_RANK.refuse(low_rank_matmul.Config(4, 9))
    assert "bytes" in refuse(MONARCH, monarch_matmul.Config(ways=4, stages=9))
