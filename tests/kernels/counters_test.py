"""What a profiler prints of a kernel, and what is read from it."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def module(monkeypatch):
    """A module of the benchmarks by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


CSV = """==PROF== Connected to process 1
==PROF== Profiling "body" - 0: 0%
"ID","Kernel Name","gpu__time_duration.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed",\
"sm__inst_executed.sum","smsp__issue_active.avg.pct_of_peak_sustained_active",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_wait_per_issue_active.ratio","lts__t_bytes.sum"
"","","ns","%","inst","%","inst","inst","Kbyte"
"0","wrapped_atan2","1,000","1","1","1","1","1","1"
"1","loop_transpose_fusion","3,000","1","1","1","1","1","1"
"2","body_mosaic_gpu_kernel","10,500","61.5","2,097,152","49.0","0.75","n/a","8,704"
"3","wrapped_atan2","1,000","1","1","1","1","1","1"
"4","body_mosaic_gpu_kernel","20,000","50","1","51.0","0.1","0.55","1"
"5","wrapped_atan2","1,000","1","1","1","1","1","1"
"""


def test_counters_are_read_as_the_profiler_prints_them(module):
    counters = module("kernel_counters")
    first, second, rest = counters.blocks(counters.parse(CSV), "atan2")
    assert [launch["Kernel Name"] for launch in first] == [
        "loop_transpose_fusion", "body_mosaic_gpu_kernel",
    ]  # fmt: skip
    assert rest == []
    launch = max(first, key=counters.seconds)
    assert counters.seconds(launch) == pytest.approx(10.5e-6)
    assert launch["lts__t_bytes.sum"] == pytest.approx(8.704e6)
    assert list(counters.ceilings(launch)) == ["memory", "issue slots"]
    assert list(counters.ceilings(second[0])) == ["issue slots", "memory"]
    assert counters.stalls(launch) == {"long_scoreboard": 0.75}
    assert list(counters.stalls(second[0])) == ["wait", "long_scoreboard"]
    kept = counters.kept(launch)
    assert set(kept) == set(launch)
    line = module("publish_kernel_profile").line
    entry = {"counters": kept, "weights": 2**25, "others": [["transpose", 3e-6]]}
    # 2^21 instructions of 32 threads for 2^25 weights.
    assert "10.5 us, memory 62 % (then issue slots 49 %), 2.00 instructions a weight" in line(
        "x", entry
    )


def test_without_a_profiler_the_output_has_no_launches(module):
    counters = module("kernel_counters")
    assert counters.parse("==ERROR== no permission\n") == []
    assert list(counters.blocks([], "atan2")) == []
