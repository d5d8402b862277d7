"""The same products by torch, where it is installed: cuBLAS and tinygemm, in CUDA graphs."""

import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.kernel_timing import LEAST_CALLS, REPEATS, Times, copies_of, summary


def peers(kind: str, rows: int, size: int) -> dict[str, Any]:
    """Times by name; an error's text where a peer fails. Nothing without torch or CUDA."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    made: dict[str, Callable[[Any, int, int], Any]] = {"torch bf16": _dense}
    made |= {"torch tinygemm int4": _tinygemm} if kind in _FOUR_BITS else {}
    results: dict[str, Any] = {}
    for name, make in made.items():
        try:
            with torch.no_grad():
                results[name] = _time(torch, *make(torch, rows, size)).as_dict()
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {str(error)[:120]}"}
        torch.cuda.empty_cache()
    return results


_FOUR_BITS = ("int4",)


def _dense(torch: Any, rows: int, size: int) -> Any:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    weights = [torch.randn(size, size, **made) for _ in range(copies_of(2 * size * size))]
    return (lambda x, w: x @ w.T), _inputs(torch, rows, size, len(weights)), weights


def _tinygemm(torch: Any, rows: int, size: int) -> Any:
    weights = []
    for _ in range(copies_of(size * size // 2)):
        q = torch.randint(0, 256, (size, size // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(q, 8)
        scales = torch.rand(size // 128, size, 2, dtype=torch.bfloat16, device="cuda")
        weights.append((packed, scales))
    product = torch.ops.aten._weight_int4pack_mm
    return (
        lambda x, w: product(x, w[0], 128, w[1]),
        _inputs(torch, rows, size, len(weights)),
        weights,
    )


def _inputs(torch: Any, rows: int, size: int, copies: int) -> list[Any]:
    calls = max(copies, LEAST_CALLS)
    return [torch.randn(rows, size, dtype=torch.bfloat16, device="cuda") for _ in range(calls)]


def _time(torch: Any, fn: Callable[..., Any], xs: list[Any], weights: list[Any]) -> Times:
    def every() -> list[Any]:
        return [fn(x, weights[i % len(weights)]) for i, x in enumerate(xs)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        every()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = every()
    graph.replay()
    torch.cuda.synchronize()
    seconds = []
    for _ in range(REPEATS):
        once = []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(4):
                graph.replay()
            end.record()
            torch.cuda.synchronize()
            once.append(start.elapsed_time(end) / 1e3 / (4 * len(xs)))
        seconds.append(once)
    del kept
    return summary(seconds)
