"""The same products by torch, where it is installed, in CUDA graphs: cuBLAS and what it offers."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from kernel_timing import REPEATS, Times, copies_of, summary


def peers(kind: str, rows: int, size: int) -> dict[str, Any]:
    """Times by name; an error's text where a peer fails. Nothing without torch or CUDA."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    made = {"torch bf16": _dense, **_OF_KIND.get(kind, {})}
    return {name: _timed(make, rows, size) for name, make in made.items()}


@functools.cache
def _timed(make: Callable[[Any, int, int], Any], rows: int, size: int) -> dict[str, Any]:
    torch = importlib.import_module("torch")
    try:
        with torch.no_grad():
            return _time(torch, *make(torch, rows, size)).as_dict()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[:120]}"}
    finally:
        torch.cuda.empty_cache()


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


def _semi_structured(torch: Any, rows: int, size: int) -> Any:
    weights = []
    for _ in range(copies_of(size * size)):
        dense = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
        kept = torch.tensor([1, 1, 0, 0], dtype=torch.bool, device="cuda").tile(size, size // 4)
        weights.append(torch.sparse.to_sparse_semi_structured(dense * kept))
    product = torch.nn.functional.linear
    return product, _inputs(torch, rows, size, len(weights)), weights


def _inputs(torch: Any, rows: int, size: int, copies: int) -> list[Any]:
    return [torch.randn(rows, size, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]


_OF_KIND: dict[str, dict[str, Callable[[Any, int, int], Any]]] = {
    "int4": {"torch tinygemm int4": _tinygemm},
    "2:4": {"torch semi-structured": _semi_structured},
}


def _time(torch: Any, fn: Callable[..., Any], xs: list[Any], weights: list[Any]) -> Times:
    def every() -> list[Any]:
        return [fn(x, w) for x, w in zip(xs, weights, strict=True)]

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
