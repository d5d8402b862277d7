"""Claims about one step of M-FAC, and their verdicts."""

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


def figures(dtype: str) -> Any:
    """Time, floor and ratio of the windows of a dtype, in words."""

    def said(result: Any) -> str:
        parts, row = [], {}
        for m in windows(result, dtype):
            row = row_named(result, dtype, m)
            parts.append(
                f"m = {m}: {row['milliseconds']:.1f} ms, two passes "
                f"{row['floor_milliseconds']:.1f} ms, ratio {row['ratio']:.2f}"
            )
        return f"{'; '.join(parts)}; {row['parameters'] / 1e6:.1f} million parameters"

    return said


def near_the_floor(result: Any) -> str:
    """Whether the windows of float32 keep to the limit."""
    ratios = [row_named(result, "float32", m)["ratio"] for m in windows(result, "float32")]
    return verdict(max(ratios) <= LIMIT)


def half_of_that(result: Any) -> str:
    """Whether the windows of bfloat16 take half of what is allowed to those of float32."""
    pairs = [
        (row_named(result, "bfloat16", m), row_named(result, "float32", m))
        for m in windows(result, "bfloat16")
    ]
    return verdict(all(b["milliseconds"] <= LIMIT / 2 * f["floor_milliseconds"] for b, f in pairs))


def memory(result: Any) -> str:
    """The process's peak over the window, in words."""
    shares = [row["peak_share"] for row in result["rows"]]
    return f"peak over window: {min(shares):.3f} to {max(shares):.3f}"


_COMMAND = "python benchmarks/mfac_step.py"
MFAC_STEP_CLAIMS = [
    Claim(
        f"A step of M-FAC with a window of {dtype} takes at most {limit} two passes over one of "
        "float32 at the bandwidth of a copy",
        "ours",
        _COMMAND,
        "mfac_step",
        figures(dtype),
        judge,
    )
    for dtype, limit, judge in (
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
        lambda result: verdict(max(row["peak_share"] for row in result["rows"]) < 1.1),
    )
]
