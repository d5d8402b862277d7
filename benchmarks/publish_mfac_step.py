"""Claims about one step of M-FAC, and their verdicts."""

from collections.abc import Callable
from typing import Any

from claim import Claim, verdict

# The ratio to the floor that is accepted, the system of m included.
LIMIT = 1.15


def windows(result: Any, dtype: str) -> list[int]:
    """The sizes that were measured of a dtype."""
    return [row["m"] for row in result["rows"] if row["dtype"] == dtype]


def row_named(result: Any, dtype: str, m: int) -> dict[str, Any]:
    """The measurement of a window."""
    return next(r for r in result["rows"] if (r["dtype"], r["m"]) == (dtype, m))


def missing(result: Any) -> str:
    """Why a record decides nothing, or an empty string: both dtypes need the same windows."""
    half, full = (sorted(windows(result, dtype)) for dtype in ("bfloat16", "float32"))
    if not half or half != full:
        return f"windows of bfloat16 {half} and of float32 {full}"
    return "" if "calls" in result else "how many steps were waited for together is not stored"


def judged(holds: Callable[[Any], bool]) -> Callable[[Any], str]:
    """The verdict on records that are whole; one of a part of the windows leaves a claim open."""

    def judge(result: Any) -> str:
        reason = missing(result)
        return f"open: {reason}" if reason else verdict(holds(result))

    return judge


def figures(dtype: str) -> Any:
    """Time, floor and ratio of the windows of a dtype, in words.

    Steps that are waited for one by one bear what the host does for each, and queued ones do not:
    how many were queued is said, so that nobody compares one with the other.
    """

    def said(result: Any) -> str:
        rows = [row_named(result, dtype, m) for m in windows(result, dtype)]
        parts = [
            f"m = {row['m']}: {row['milliseconds']:.2f} ms ({spread(row)}), two passes "
            f"{row['floor_milliseconds']:.2f} ms, ratio {row['ratio']:.2f}"
            for row in rows
        ]
        parts += [f"{row['parameters'] / 1e6:.1f} million parameters" for row in rows[:1]]
        return "; ".join([*parts, waited(result)])

    return said


def spread(row: dict[str, Any]) -> str:
    """The fastest and the slowest round of a window, in words: verdicts may hang on less."""
    low, high = row["spread"]
    return f"{low:.2f} to {high:.2f}"


def waited(result: Any) -> str:
    """How many steps were queued before they were waited for, in words."""
    calls = result.get("calls")
    return "steps waited for one by one" if calls == 1 else f"{calls} steps queued at a time"


def near_the_floor(result: Any) -> bool:
    """Whether the windows of float32 keep to the limit."""
    rows = [row_named(result, "float32", m) for m in windows(result, "float32")]
    return all(row["ratio"] <= LIMIT for row in rows)


def half_of_that(result: Any) -> bool:
    """Whether the windows of bfloat16 take half of what is allowed to those of float32."""
    pairs = [
        (row_named(result, "bfloat16", m), row_named(result, "float32", m))
        for m in windows(result, "bfloat16")
    ]
    return all(b["milliseconds"] <= LIMIT / 2 * f["floor_milliseconds"] for b, f in pairs)


def peaks(result: Any) -> list[float]:
    """The process's peaks over the windows; a CPU tells none."""
    return [row["peak_share"] for row in result["rows"] if row["peak_share"] is not None]


def memory(result: Any) -> str:
    """The process's peak over the window, in words."""
    shares = peaks(result)
    if not shares:
        return "no peak was measured"
    return f"peak over window: {min(shares):.3f} to {max(shares):.3f}"


def in_place(result: Any) -> str:
    """Whether no window's peak has room for a second window; open where a peak is unknown."""
    if len(peaks(result)) < len(result["rows"]):
        return "open: a peak is not known"
    return judged(lambda result: max(peaks(result)) < 1.1)(result)


_COMMAND = "python benchmarks/mfac_step.py"
MFAC_STEP_CLAIMS = [
    Claim(
        f"A step of M-FAC with a window of {dtype} takes at most {limit} two passes over one of "
        "float32 at the bandwidth of a copy",
        "ours",
        _COMMAND,
        "mfac_step",
        figures(dtype),
        judged(holds),
    )
    for dtype, limit, holds in (
        ("float32", "1.15 times", near_the_floor),
        ("bfloat16", "half of 1.15 times", half_of_that),
    )
] + [
    Claim(
        "The window is written in place: peak memory is below 1.1 times the window",
        "ours",
        _COMMAND,
        "mfac_step",
        memory,
        in_place,
    )
]
