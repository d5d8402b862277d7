"""A row block of a kernel's table, for products that are not a skinny one with packed weights."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Cell(NamedTuple):
    """What is timed together: a kernel, XLA and torch on the same arguments.

    Attributes:
      problem: what the choice of an implementation looks at: `dispatch.Problem`.
      nbytes: the fewest bytes that must move: inputs read once, outputs written once.
      flops: the fewest operations; 0 where bytes decide.
      peak: whose ceiling `flops` have: "bf16", "int8" or "float32".
      calls: argument tuples that take turns: more than 110 MB together, or 16 of them.
      configs: of the kernel, the best guess first; dataclasses.
      kernel: of a configuration, the function of one call's arguments.
      reference: the function that is right, of the same arguments.
      xla: functions of the same arguments, by the name of their row; "xla" at least.
      torch: by the name of their row, of the module torch: a function and its argument tuples.
      tolerance: of `kernel_timing.worst` between a kernel and the reference.
    """

    problem: Any
    nbytes: int
    flops: float
    peak: str
    calls: list[tuple[Any, ...]]
    configs: list[Any]
    kernel: Callable[[Any], Callable[..., Any]]
    reference: Callable[..., Any]
    xla: dict[str, Callable[..., Any]]
    torch: dict[str, Callable[[Any], tuple[Callable[..., Any], list[tuple[Any, ...]]]]]
    tolerance: float
