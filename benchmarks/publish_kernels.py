"""What is claimed of the kernels, and the table of docs/kernels.md."""

from collections.abc import Callable
from typing import Any

from claim import Claim, machine, stored, verdict
from numerics_page import table

NAME = "kernels"
_COMMAND = "python benchmarks/kernels.py"
# Microseconds of the device that were aimed at, 8192 x 8192 and 16 rows.
GOALS = {
    "quantized_matmul int8": 25,
    "quantized_matmul int4": 14,
    "binary_matmul binary": 8,
    "nm_matmul 2:4": 31,
    "nm_matmul 1:8": 14,
}
_PEERS = ("torch bf16", "torch tinygemm int4", "torch semi-structured")


def on_device(timed: dict[str, Any]) -> float:
    """Microseconds of the kernels alone, or where that is not known of the call."""
    return timed.get("device_us", timed.get("us", float("inf")))


def best(cell: dict[str, Any]) -> dict[str, Any]:
    """The fastest configuration that was right; empty where none was."""
    return min((o for o in cell["ours"] if "us" in o), key=on_device, default={})


def kernels_page() -> str:
    """What stands between the markers of docs/kernels.md."""
    parts = []
    for record in stored(NAME):
        result = record["result"]
        parts += [
            f"Machine: {machine(record)}; a copy reads and writes "
            f"{result['bandwidth'] / 1e12:.2f} TB/s.",
            _table(result),
        ]
    return "\n\n".join(parts) or "Not run."


def _table(result: Any) -> str:
    rows = []
    for cell in result["cells"].values():
        mine = best(cell)
        others = [cell["bf16"], cell["xla packed"], *(cell["torch"].get(p, {}) for p in _PEERS)]
        rows.append(
            [
                cell["op"],
                cell["kind"],
                str(cell["size"]),
                str(cell["rows"]),
                f"{cell['floor']:.1f}",
                f"{on_device(mine):.1f}" if mine else "failed",
                f"{mine['us']:.1f} ({mine['low']:.1f} to {mine['high']:.1f})" if mine else "",
                *("" if on_device(o) == float("inf") else f"{on_device(o):.1f}" for o in others),
            ]
        )
    header = ["op", "weights", "n = k", "rows", "floor", "ours", "ours, a call", "XLA bf16"]
    return table([*header, "XLA packed", *_PEERS], rows)


def _figures(kind: str) -> Callable[[Any], str]:
    def words(result: Any) -> str:
        cell = result["cells"][_cell(kind)]
        return (
            f"{on_device(best(cell)):.1f} us; XLA {on_device(cell['xla packed']):.1f}, dense "
            f"{on_device(cell['bf16']):.1f}, floor {cell['floor']:.1f}"
        )

    return words


def _cell(kind: str) -> str:
    return f"{kind} 8192 b16"


def _reaches(kind: str) -> Callable[[Any], str]:
    return lambda r: verdict(on_device(best(r["cells"][_cell(kind)])) <= GOALS[kind])


def _least_gain(result: Any) -> tuple[float, str]:
    gains = [
        (min(on_device(cell[p]) for p in ("bf16", "xla packed")) / on_device(best(cell)), name)
        for name, cell in result["cells"].items()
    ]
    return min(gains)


KERNEL_CLAIMS = [
    *(
        Claim(
            f"`{kind.split()[0]}` with {kind.split()[1]} weights, 8192 x 8192 and 16 rows, takes "
            f"at most {goal} us on the device",
            "ours", _COMMAND, NAME, _figures(kind), _reaches(kind), [_cell(kind)],
        )
        for kind, goal in GOALS.items()
    ),
    Claim(
        "Every kernel that is used by itself takes at least a tenth less than the better of XLA's "
        "dense and packed products, at every shape that was measured",
        "ours", _COMMAND, NAME,
        lambda r: "least gain {:.2f}x ({}), {} shapes".format(*_least_gain(r), len(r["cells"])),
        lambda r: verdict(_least_gain(r)[0] >= 1.1), [_cell("quantized_matmul int8")],
    ),
]  # fmt: skip
