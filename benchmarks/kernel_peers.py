"""The same products by torch, where it is installed, in CUDA graphs: cuBLAS and what it offers."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from kernel_timing import REPEATS, Times, copies_of, summary

# Of the module torch: a function, and the argument tuples of calls that take turns.
Peer = Callable[[Any], tuple[Callable[..., Any], list[tuple[Any, ...]]]]


def dense_peers(rows: int, n: int, k: int) -> dict[str, Peer]:
    """Of x (rows, k) with a dense W (n, k)."""
    return {"bf16": functools.partial(_dense, rows, n, k)}


def packed_peers(kind: str, rows: int, n: int, k: int) -> dict[str, Peer]:
    """Of x (rows, k) with a packed W (n, k)."""
    return {
        name: functools.partial(make, rows, n, k) for name, make in _OF_KIND.get(kind, {}).items()
    }


def time_peers(peers: Mapping[str, Peer]) -> dict[str, dict[str, Any]]:
    """Times by name; an error's text where a peer fails. Nothing without torch or CUDA."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    return {name: _timed(torch, make) for name, make in peers.items()}


def _timed(torch: Any, make: Peer) -> dict[str, Any]:
    try:
        with torch.no_grad():
            return _time(torch, *make(torch)).as_dict()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    finally:
        torch.cuda.empty_cache()


def _dense(rows: int, n: int, k: int, torch: Any) -> Any:
    made = {"dtype": torch.bfloat16, "device": "cuda"}
    weights = [torch.randn(n, k, **made) for _ in range(copies_of(2 * n * k))]
    xs = _inputs(torch, rows, k, len(weights))
    return (lambda x, w: x @ w.T), list(zip(xs, weights, strict=True))


def _tinygemm(rows: int, n: int, k: int, torch: Any) -> Any:
    weights = []
    for _ in range(copies_of(n * k // 2)):
        q = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
        packed = torch.ops.aten._convert_weight_to_int4pack(q, 8)
        scales = torch.rand(k // 128, n, 2, dtype=torch.bfloat16, device="cuda")
        weights.append((packed, scales))
    product = torch.ops.aten._weight_int4pack_mm
    xs = _inputs(torch, rows, k, len(weights))
    calls = [(x, *w) for x, w in zip(xs, weights, strict=True)]
    return (lambda x, packed, scales: product(x, packed, 128, scales)), calls


def _weight_int8(rows: int, n: int, k: int, torch: Any) -> Any:
    weights = []
    for _ in range(copies_of(n * k)):
        q = torch.randint(-127, 128, (n, k), dtype=torch.int8, device="cuda")
        weights.append((q, torch.rand(n, dtype=torch.bfloat16, device="cuda")))
    xs = _inputs(torch, rows, k, len(weights))
    calls = [(x, *w) for x, w in zip(xs, weights, strict=True)]
    return torch.ops.aten._weight_int8pack_mm, calls


def _semi_structured(rows: int, n: int, k: int, torch: Any) -> Any:
    weights = []
    for _ in range(copies_of(n * k)):
        dense = torch.randn(n, k, dtype=torch.bfloat16, device="cuda")
        kept = torch.tensor([1, 1, 0, 0], dtype=torch.bool, device="cuda").tile(n, k // 4)
        weights.append(torch.sparse.to_sparse_semi_structured(dense * kept))
    xs = _inputs(torch, rows, k, len(weights))
    return torch.nn.functional.linear, list(zip(xs, weights, strict=True))


def _inputs(torch: Any, rows: int, k: int, copies: int) -> list[Any]:
    return [torch.randn(rows, k, dtype=torch.bfloat16, device="cuda") for _ in range(copies)]


_OF_KIND: dict[str, dict[str, Callable[..., Any]]] = {
    "int4": {"tinygemm int4": _tinygemm},
    "int8": {"weight-only int8": _weight_int8},
    "2:4": {"semi-structured": _semi_structured},
}


def _time(torch: Any, fn: Callable[..., Any], calls: list[tuple[Any, ...]]) -> Times:
    def every() -> list[Any]:
        return [fn(*call) for call in calls]

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
            once.append(start.elapsed_time(end) / 1e3 / (4 * len(calls)))
        seconds.append(once)
    del kept
    return summary(seconds)
