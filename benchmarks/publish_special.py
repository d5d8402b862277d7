"""What is claimed of the log Bessel functions, and the tables of docs/special/bessel.md."""

from typing import Any

from claim import Claim, machine, stored, verdict
from numerics_page import table

NAME = "special"
VALUES = ("log_iv", "log_kv")
DERIVATIVES = ("log_iv_dx", "log_kv_dx", "log_iv_dv", "log_kv_dv")
_METHODS = {"auto": "ours", "paper": "published", "scipy": "SciPy", "logbesselk": "logbesselk"}
_MILLION = "time log_kv mixed float64 1000000 auto"
_PEER = "time log_kv mixed float64 1000000 logbesselk"
_LARGE = [f"time {name} order 1023 float64 10000000 auto" for name in VALUES]
_CPU = [f"time {name} order 1023 float64 100000" for name in VALUES]
_ARRAY = [f"time {name} array of large orders float64 100000" for name in VALUES]
_PAPER = "accuracy log_kv float64 paper"
_OURS = "accuracy log_kv float64 auto"


def bessel_page() -> str:
    """What stands between the markers of docs/special/bessel.md."""
    parts = []
    for name in (NAME, f"{NAME}-small"):
        for record in stored(name):
            parts += [f"Machine: {machine(record)}.", *tables(record["result"])]
    return "\n\n".join(parts) or "Not run."


def tables(result: Any) -> list[str]:
    """Of what one machine has stored: accuracy, then times."""
    return [_accuracy(result["cells"]), *_times(result)]


def _accuracy(cells: Any) -> str:
    rows = []
    names = [*VALUES, *DERIVATIVES]
    place = lambda key: (names.index(key[1]), key[2], list(_METHODS).index(key[3]))  # noqa: E731
    keys = [key for key in cells if key.startswith("accuracy ")]
    for key in sorted(keys, key=lambda key: place(key.split())):
        cell = cells[key]
        _, name, dtype, method = key.split()
        at = f"({cell['at'][0]:.2g}, {cell['at'][1]:.2g})"
        error = f"{cell['error']:.1e}"
        failed = f"{cell['not_finite']} of {cell['points']}"
        rows.append([name, dtype, _METHODS[method], error, at, failed])
    header = ["function", "dtype", "scheme", "largest error", "at (v, x)", "not finite"]
    return table(header, rows)


def _times(result: Any) -> list[str]:
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for key, cell in result["cells"].items():
        if key.startswith("time "):
            _, name, *kind, dtype, n, method = key.split()
            row = found.setdefault((name, f"{' '.join(kind)}, {dtype}", n), {})
            row[method] = cell["seconds"]
    rows = []
    # Files that were merged have an order of their own.
    names = (*VALUES, *DERIVATIVES)
    order = sorted(
        found,
        key=lambda r: (int(r[2]), "float32" in r[1], "large" in r[1], r[1], names.index(r[0])),
    )
    for name, kind, n in order:
        by_method = found[name, kind, n]
        wide = 8 if "float64" in kind else 4
        floor = (2 if kind.startswith("order") else 3) * wide * int(n) / _rate(result, int(n))
        shown = [f"{1e3 * by_method[m]:.3g}" if m in by_method else "" for m in _METHODS]
        rows.append([name, kind, f"{int(n):.0e}", *shown, f"{1e3 * floor:.2g}"])
    header = ["function", "arguments", "elements", *_METHODS.values(), "floor"]
    return ["Milliseconds:", table(header, rows)] if rows else []


def copy_key(n: int) -> str:
    """The cell with a copy of so many float64 numbers."""
    return f"copy float64 {n}"


def small_orders_key(method: str) -> str:
    """The cell with errors of log K for orders up to 1 and arguments from 0.1 to 2."""
    return f"small orders log_kv float64 {method}"


def _rate(result: Any, n: int) -> float:
    """Bytes a second of a copy of n float64 numbers, or where none is stored, of 2^27."""
    copy = result["cells"].get(copy_key(n))
    return 2 * 8 * n / copy["seconds"] if copy else result["bandwidth"]


def _fastest(result: Any) -> float:
    """The most bytes a second that a copy is known to reach on the same device."""
    device = next((r["device"] for r in stored(NAME) if r["result"] == result), None)
    others = [r["result"]["bandwidth"] for r in stored("kernels") if r["device"] == device]
    return max(result["bandwidth"], *others) if others else result["bandwidth"]


def _words(key: str) -> Any:
    return lambda r: f"{1e3 * r['cells'][key]['seconds']:.3g} ms"


def _per_core(result: Any, keys: list[str]) -> float:
    """The least of SciPy's time over ours, SciPy on one core and ours on two."""
    cells = result["cells"]
    return min(cells[f"{c} scipy"]["seconds"] / cells[f"{c} auto"]["seconds"] / 2 for c in keys)


def _over_peer(result: Any) -> float:
    return result["cells"][_PEER]["seconds"] / result["cells"][_MILLION]["seconds"]


def _over_copy(result: Any, n: int, rate: float) -> list[float]:
    """The times of log I and log K of one large order, over that of as many bytes at a rate."""
    keys = [key.replace("10000000", str(n)) for key in _LARGE]
    cells = [result["cells"][key] for key in keys if key in result["cells"]]
    return [cell["seconds"] / (2 * 8 * n / rate) for cell in cells]


def _beside_copies(result: Any) -> str:
    parts = []
    for n in (10_000_000, 100_000_000):
        of = f"of {n:.0e}" if copy_key(n) in result["cells"] else "of 2^27"
        rates = {of: _rate(result, n), "the fastest known": _fastest(result)}
        for words, rate in rates.items():
            found = " and ".join(f"{ratio:.2f}" for ratio in _over_copy(result, n, rate))
            if found:
                parts.append(f"{n:.0e}: {found} of a copy, {words} ({rate / 1e12:.2f} TB/s)")
    return "; ".join(parts)


def _copied(result: Any) -> str:
    """By a copy of that size; open where there is none, and the others do not agree."""
    n = 10_000_000
    rates = [_rate(result, n)]
    if copy_key(n) not in result["cells"]:
        rates.append(_fastest(result))
    holds = [max(_over_copy(result, n, rate)) <= 2 for rate in rates]
    return verdict(holds[0]) if len(set(holds)) == 1 else "open"


_NEAR = [small_orders_key(method) for method in ("paper", "auto")]
SPECIAL_CLAIMS = [
    Claim(
        "log K of a million mixed arguments takes at most 5 ms in float64",
        "ours", f"python benchmarks/{NAME}.py", NAME, _words(_MILLION),
        lambda r: verdict(r["cells"][_MILLION]["seconds"] <= 5e-3), [_MILLION],
    ),
    Claim(
        "log K of a million mixed arguments is at least 300 times as fast as logbesselk's, in "
        "float64",
        "ours", f"python benchmarks/{NAME}.py", NAME, lambda r: f"{_over_peer(r):.0f} times",
        lambda r: verdict(_over_peer(r) >= 300), [_MILLION, _PEER],
    ),
    Claim(
        "log I and log K of one large order take at most twice the time of copying as many "
        "numbers, 1e7 of float64",
        "ours", f"python benchmarks/{NAME}.py", NAME, _beside_copies, _copied, _LARGE,
    ),
    Claim(
        "log I and log K of one large order take no longer on a CPU than SciPy's, by the core",
        "ours", f"python benchmarks/{NAME}.py --small", f"{NAME}-small",
        lambda r: f"SciPy's time over ours: {_per_core(r, _CPU):.1f}",
        lambda r: verdict(_per_core(r, _CPU) >= 1), [f"{c} scipy" for c in _CPU],
    ),
    Claim(
        "log I and log K of an array of orders of 30 or more take no longer on a CPU than SciPy's, "
        "by the core",
        "ours", f"python benchmarks/{NAME}.py --small", f"{NAME}-small",
        lambda r: f"SciPy's time over ours: {_per_core(r, _ARRAY):.1f}",
        lambda r: verdict(_per_core(r, _ARRAY) >= 1), [f"{c} scipy" for c in _ARRAY],
    ),
    Claim(
        "The published scheme of log K keeps 1e-12 for all orders and arguments",
        "Plesner et al., 2024", f"python benchmarks/{NAME}.py", NAME,
        lambda r: (
            f"{r['cells'][_PAPER]['error']:.1e} at v = {r['cells'][_PAPER]['at'][0]:.2g}, x = "
            f"{r['cells'][_PAPER]['at'][1]:.2g}; ours {r['cells'][_OURS]['error']:.1e}"
        ),
        lambda r: verdict(r["cells"][_PAPER]["error"] <= 1e-12), [_PAPER, _OURS],
    ),
    Claim(
        "The published scheme of log K loses digits at orders below 1 and arguments near 1/2: more "
        "than 5e-10 of 1 or of the value, whichever is larger, where ours keeps 1e-14",
        "ours", f"python benchmarks/{NAME}.py --small --match='small orders'", f"{NAME}-small",
        lambda r: "; ".join(
            f"{who} {c['error']:.1e} at v = {c['at'][0]:.2g}, x = {c['at'][1]:.2g}"
            for who, c in zip(("published", "ours"), (r["cells"][k] for k in _NEAR), strict=True)
        ),
        lambda r: verdict(
            r["cells"][_NEAR[0]]["error"] > 5e-10 and r["cells"][_NEAR[1]]["error"] <= 1e-14
        ),
        _NEAR,
    ),
]  # fmt: skip
