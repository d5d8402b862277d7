"""How products with packed weights are cut: what is refused, and what is tried first."""

import pytest

from jaxlab.kernels.plan import PROCESSORS, SHARED_BYTES, TILE, Config
from jaxlab.kernels.quantized_matmul import Problem
from jaxlab.kernels.quantized_matmul.shapes import refuse

KINDS = [("int4", 128), ("uint4", 128), ("int8", 0), ("ternary", 0), ("binary", 0)]


def test_cuts_that_do_not_fit_are_refused_by_name():
    plan = Problem(16, 512, 4096, "int4", 128, 64).plan
    for config, says in [
        (Config(depth=3), "4 x 1 x 3"),
        (Config(parts=3), "3 parts"),
        (Config(8, 2, parts=4, slots=5), "32 barriers"),
        (Config(16, 1), "8 warpgroups"),
        (Config(4, 4), "bytes of shared memory"),
    ]:
        assert says in plan.refuse(config)
    assert "no multiple of 64" in Problem(16, 96, 4096, "int4", 128, 64).plan.refuse(Config())


def goes_on(pieces, per_group, config, steps):
    """Whether the loop ends, by the order in which it fetches, awaits and releases parts."""
    per_part = pieces // config.parts
    fetched = {*range(config.slots)}
    for i in range(steps):
        released = 0
        for piece in range(pieces):
            if i * config.parts + piece // per_part not in fetched:
                return False
            last = piece if (piece + 1) % per_group == 0 else piece - config.in_flight
            while (released + 1) * per_part - 1 <= last:
                fetched.add(i * config.parts + released + config.slots)
                released += 1
    return True


@pytest.mark.parametrize(("kind", "group"), [("binary", 0), ("int8", 0), ("int4", 128)])
def test_a_cut_whose_products_hold_all_slots_is_refused(kind, group):
    problem = Problem(8, 512, 8192, kind, group, 64)
    pieces, refused = problem.block // 64, 0
    per_group = group // 64 or pieces
    for parts in (p for p in (2, 4, 8, 16) if pieces % p == 0):
        for slots in range(1, 6):
            for in_flight in range(8):
                config = Config(1, 2, in_flight=in_flight, parts=parts, slots=slots)
                reason = problem.plan.refuse(config)
                assert goes_on(pieces, per_group, config, 3) == (not reason), config
                assert ("in_flight" in reason) == bool(reason)
                refused += bool(reason)
    assert refused


@pytest.mark.parametrize(("kind", "group"), KINDS)
@pytest.mark.parametrize("width", [32, 64])
def test_every_candidate_fits(kind, group, width):
    for rows in (1, 16, 64):
        problem = Problem(rows, 4096, 4096, kind, group, width)
        found = problem.plan.candidates()
        assert found
        assert len(set(found)) == len(found)
        grouped = group and problem.block % group
        assert all(bool(refuse(problem, config)) == bool(grouped) for config in found)


@pytest.mark.parametrize(("kind", "group"), KINDS)
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_what_is_tried_first_has_steps_on_their_way(kind, group, rows):
    plan = Problem(rows, 28672, 8192, kind, group, 64).plan
    first, second = plan.candidates(2)
    assert plan.stages(first) > 1
    assert plan.candidates()[:2] == [first, second]
    # One step more of it does not fit, or there is none.
    more = Config(**{**vars(first), "stages": 2 * plan.stages(first)})
    assert plan.stages(more) == plan.stages(first) or plan.refuse(more)


@pytest.mark.parametrize("n", [1024, 8192, 28672])
def test_few_rows_of_weights_are_split_early(n):
    second = Problem(16, n, 8192, "int8", 0, 64).plan.candidates(2)[1]
    blocks = n // TILE * second.split_k
    assert (second.split_k > 1) == (n // TILE < PROCESSORS)
    assert second.split_k == 1 or blocks <= 2 * PROCESSORS


def test_a_machine_and_a_third_of_blocks_run_at_once():
    plan = Problem(16, 11264, 4096, "int8", 0, 64).plan
    first, second = plan.candidates(2)
    assert first.split_k == second.split_k == 1
    assert 2 * plan.shared_bytes(second) <= SHARED_BYTES < 2 * plan.shared_bytes(first)
