"""What is claimed of Kronecker products and processes on grids, and their page."""

import statistics
import textwrap
from typing import Any

from claim import Claim, machine, spread, stored, verdict
from numerics_page import table

SIZES = ("kron-large", "kron-small")
OPERATIONS = ("matvec", "solve", "cholesky and logdet", "eigh, solve and logdet")
IMAGES = "gp_images"
# Of the product with a vector of a million entries: times its floor.
_LIMIT = 1.5
_MILLION = "speed 1000 x 1000 {dtype}"
_MASKED = "masked {precond} 1000 x 1000 float64"


def product_words(result: Any) -> str:
    """The product with a million entries, in both dtypes."""
    rows = [(d, result["cells"][_MILLION.format(dtype=d)]["matvec"]) for d in _DTYPES]
    parts = [
        f"{d}: {1e3 * c['seconds']:.3g} ms, floor {1e3 * c['floor']:.3g} ms, ratio {c['ratio']:.2f}"
        for d, c in rows
    ]
    return "; ".join(parts)


def product_near(result: Any) -> str:
    """Whether both keep to the limit."""
    ratios = [result["cells"][_MILLION.format(dtype=d)]["matvec"]["ratio"] for d in _DTYPES]
    return verdict(max(ratios) <= _LIMIT)


def masked_words(result: Any) -> str:
    """Steps of all ways to half of a million cells."""
    cells = {p: result["cells"][_MASKED.format(precond=p)] for p in ("spectral", "eigh", "none")}
    parts = [
        f"{p} {c['iterations']}{'' if c['ok'] else ' and not there'}" for p, c in cells.items()
    ]
    ours = cells["spectral"]
    return (
        f"steps: {', '.join(parts)}; {ours['observed']} of {ours['cells']} cells, residual "
        f"{ours['residual']:.0e}, {ours['seconds']:.2f} s"
    )


def masked_fewer(result: Any) -> str:
    """Whether the default gets there in a fifth of the steps of the others."""
    cells = {p: result["cells"][_MASKED.format(precond=p)] for p in ("spectral", "eigh", "none")}
    ours = cells["spectral"]
    others = min(cells[p]["iterations"] for p in ("eigh", "none"))
    return verdict(ours["ok"] and 5 * ours["iterations"] <= others)


def peer_ratios(result: Any, operation: str) -> list[float]:
    """Gpytorch's time over ours, for each grid and dtype that both ran."""
    cells = result["cells"]
    keys = [k.removeprefix("gpytorch ") for k in cells if k.startswith("gpytorch ")]
    return [
        cells[f"gpytorch {k}"][operation]["seconds"] / cells[f"speed {k}"][operation]["seconds"]
        for k in keys
        if operation in cells.get(f"speed {k}", {}) and operation in cells[f"gpytorch {k}"]
    ]


def peer_words(result: Any) -> str:
    """Ratios of all operations, smallest to largest."""
    parts = []
    for operation in (o for o in OPERATIONS if peer_ratios(result, o)):
        ratios = peer_ratios(result, operation)
        parts.append(f"{operation} {min(ratios):.2f} to {max(ratios):.2f}")
    return f"gpytorch's time over ours: {'; '.join(parts)}"


def peer_slower(result: Any) -> str:
    """Whether the median of the ratios of each operation is 1 or more."""
    known = [r for o in OPERATIONS if (r := peer_ratios(result, o))]
    return verdict(all(statistics.median(r) >= 1 for r in known))


def gains(result: Any, kernel: str) -> list[float]:
    """By mask, the share of bilinear fill-in's RMSE that is saved."""
    cells = [c for k, c in result["cells"].items() if k.rpartition(", mask ")[0] == kernel]
    return [1 - c["process"] / c["bilinear"] for c in cells]


def kernels(result: Any) -> list[str]:
    """Those that were run, in order."""
    return list(dict.fromkeys(k.rpartition(", mask ")[0] for k in result["cells"]))


def _percent(shares: list[float]) -> str:
    mean = f"{100 * statistics.mean(shares):.1f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else mean


def images_words(result: Any) -> str:
    """RMSE saved by each kernel."""
    parts = [f"{k}: {_percent(gains(result, k))} %" for k in kernels(result)]
    count = max(len(gains(result, k)) for k in kernels(result))
    return f"RMSE saved: {'; '.join(parts)} ({count} masks)"


def images_better(result: Any) -> str:
    """Whether every kernel saves a tenth on each mask."""
    return verdict(min(g for k in kernels(result) for g in gains(result, k)) >= 0.1)


_DTYPES = ("float64", "float32")
_COMMAND = "python benchmarks/kron.py"
_MILLIONS = tuple(_MILLION.format(dtype=d) for d in _DTYPES)
_WAYS = tuple(_MASKED.format(precond=p) for p in ("spectral", "eigh", "none"))
_SAME = tuple(f"{who} 1000 x 1000 float64" for who in ("speed", "gpytorch"))
KRON_CLAIMS = [
    Claim(
        f"A Kronecker product (1000 x 1000) times a vector takes at most {_LIMIT} times the floor "
        "of dense products and of a copy",
        "ours", _COMMAND, SIZES[0], product_words, product_near, _MILLIONS,
    ),
    Claim(
        "Half of a million cells are solved for in a fifth of the steps that conjugate gradients "
        "take in the coordinates of the values, preconditioned by the whole grid's inverse or not",
        "ours", _COMMAND, SIZES[0], masked_words, masked_fewer, _WAYS,
    ),
    Claim(
        "Products, determinants (by Cholesky factors; gpytorch's by eigendecompositions) and "
        "shifted solves take no longer than gpytorch's",
        "ours", _COMMAND, SIZES[0], peer_words, peer_slower, _SAME,
    ),
    Claim(
        "A Kronecker process, kernels learned per axis, fills in 30 % of the pixels of "
        "Fashion-MNIST with at most 0.9 of the RMSE of bilinear fill-in",
        "ours", "python benchmarks/gp_images.py", IMAGES, images_words, images_better,
    ),
]  # fmt: skip


def kron_page() -> str:
    """What stands between the markers of docs/kron.md."""
    sections = [_section(record) for name in SIZES for record in stored(name)]
    sections += [_images(record) for record in stored(IMAGES)]
    return "\n\n".join(sections) or "Not run."


def _section(record: dict[str, Any]) -> str:
    cells = record["result"]["cells"]
    rates = [
        f"{d}: {c['flops_per_second'] / 1e12:.3g} TFLOP/s, {c['bytes_per_second'] / 1e9:.3g} GB/s"
        for d in _DTYPES
        if (c := cells.get(f"rates {d}"))
    ]
    parts = [f"Machine: {machine(record)}."]
    if rates:
        text = f"Dense product and copy, {'; '.join(rates)}. Milliseconds, and in brackets the "
        parts += [_wrapped(text + "ratio to the floor:"), _speeds(cells)]
    if rows := [_masked_row(k, c) for k, c in cells.items() if k.startswith("masked ")]:
        head = ["half of the cells", "steps", "residual", "tolerance met", "seconds", "RMSE / std"]
        parts += ["Missing cells:", table(head, [r for r in rows if r])]
    estimates = [(k, c) for k, c in cells.items() if k.startswith("masked logdet ")]
    parts += [
        f"Log-determinant of the same cells, {k.removeprefix('masked logdet ')}: "
        f"{c['value']:.0f} ± {c['error']:.2g} ({c['probes']} probes), {c['seconds']:.3g} s."
        for k, c in estimates
    ]
    if any(k.startswith("gpytorch ") for k in cells):
        parts += ["gpytorch's time over ours, in the same run:", _peers(cells)]
    return "\n\n".join(parts)


def _speeds(cells: dict[str, Any]) -> str:
    rows = [
        [
            key.removeprefix("speed "),
            *(f"{1e3 * c[o]['seconds']:.3g} ({c[o]['ratio']:.2g})" for o in OPERATIONS),
        ]
        for key, c in cells.items()
        if key.startswith("speed ")
    ]
    return table(["grid", *OPERATIONS], rows)


def _masked_row(key: str, cell: dict[str, Any]) -> list[str]:
    if "iterations" not in cell:
        return []
    return [
        key.removeprefix("masked "),
        str(cell["iterations"]),
        f"{cell['residual']:.0e}",
        "yes" if cell["ok"] else "**no**",
        f"{cell['seconds']:.3g}",
        f"{cell['rmse_missing'] / cell['deviation']:.3f}",
    ]


def _peers(cells: dict[str, Any]) -> str:
    rows = []
    for key in (k.removeprefix("gpytorch ") for k in cells if k.startswith("gpytorch ")):
        ours, theirs = cells.get(f"speed {key}"), cells[f"gpytorch {key}"]
        if ours:
            ratios = (
                f"{theirs[o]['seconds'] / ours[o]['seconds']:.2f}" if o in theirs else "n/a"
                for o in OPERATIONS
            )
            rows.append([key, *ratios])
    return table(["grid", *OPERATIONS], rows)


def _images(record: dict[str, Any]) -> str:
    result = record["result"]
    about = result["about"]
    head = ["kernels: images, pixels", "RMSE", "bilinear", "saved, %", "seconds"]
    rows = []
    for kernel in kernels(result):
        cells = [c for k, c in result["cells"].items() if k.rpartition(", mask ")[0] == kernel]
        rows.append(
            [
                kernel,
                spread(c["process"] for c in cells),
                spread(c["bilinear"] for c in cells),
                _percent(gains(result, kernel)),
                f"{statistics.median(c['seconds'] for c in cells):.0f}",
            ]
        )
    text = (
        f"{about['images']} photographs of Fashion-MNIST, {about['seen']:.0%} of the pixels seen, "
        f"{about['steps']} steps of fitting; mean ± standard deviation over the masks. Machine: "
        f"{machine(record)}."
    )
    return "\n\n".join([_wrapped(text), table(head, rows)])


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_on_hyphens=False)
