"""Which implementation of an op runs, and the rules of derivative and batching that they share.

`implementation=None` means: the kernel where a stored measurement on this kind of device, with
this jax, says that it wins at these shapes, and XLA everywhere else. Nothing is measured here.
"""

import difflib
import functools
import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

import jax
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxlab.kernels.plan import Config, Plan

VERSION = jax.__version_info__[:2]
IMPLEMENTATIONS = ("xla", "mosaic_gpu", "mosaic_tpu")

# An environment variable: the implementation where none is asked for. "xla" helps against a kernel
# that does not compile.
EVERYWHERE = "JAXLAB_KERNELS"

Choice = str | Sequence[str] | None
Implementation = Callable[..., jax.Array]

_log = logging.getLogger(__name__)


def device() -> tuple[str, str]:
    """Platform ("cpu", "gpu", "tpu") and kind of the device that is compiled for.

    That of the abstract mesh, where one is set to compile for a device that is not here.
    """
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None:
        return abstract.platform, abstract.device_kind
    first = jax.devices()[0]
    return first.platform, first.device_kind


def names(op: str, implementation: Choice) -> tuple[str, ...]:
    """The names that an `implementation` argument lists, checked; none for None.

    Raises:
      ValueError: an unknown name, or an empty sequence.
    """
    if implementation is None:
        return ()
    given = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not given:
        raise ValueError(f"{op}: implementation=() names none; valid: {', '.join(IMPLEMENTATIONS)}")
    for name in given:
        if name not in IMPLEMENTATIONS:
            near = difflib.get_close_matches(str(name), IMPLEMENTATIONS, 1, 0.0)
            raise ValueError(
                f"{op}: implementation={name!r} is unknown; nearest: {near[0]!r}; "
                f"valid: {', '.join(IMPLEMENTATIONS)}"
            )
    return given


def on_demand(package: str, name: str) -> Implementation:
    """The kernel `name` of a package here, imported when it is called: that takes half a second."""

    def run(*args: Any, **settings: Any) -> jax.Array:
        module = importlib.import_module(f"jaxlab.kernels.{package}.pallas_{name}")
        return getattr(module, name)(*args, **settings)

    return run


def file_name(kind: str) -> str:
    """Of the stored configurations of a kind of device."""
    return kind.replace(" ", "-") + ".json"


@functools.cache
def _table(op: str, kind: str) -> dict[str, Any]:
    file = resources.files("jaxlab.kernels") / op / "configs" / file_name(kind)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class Problem(Protocol):
    """What the choice of an implementation looks at."""

    @property
    def rows(self) -> int:
        """Of x."""
        ...

    @property
    def label(self) -> str:
        """What was measured together: a kind of weights."""
        ...

    @property
    def numbers(self) -> int:
        """Entries of the dense matrix."""
        ...

    @property
    def key(self) -> str:
        """Under which a measurement is stored."""
        ...

    @property
    def plan(self) -> Plan:
        """The sizes of the kernel."""
        ...


def choice(
    op: str, problem: Problem, config: Config | None
) -> tuple[dict[str, Any] | None, Config]:
    """What the stored measurements say of a problem.

    Returns:
      `(entry, config)`: what was measured, with its "implementation", or None where nothing was;
      and `config`, or else the stored one, or else a rule of thumb.
    """
    platform, kind = device()
    entry = stored(op, kind, problem) if platform != "cpu" else None
    if config is None:
        cut = entry.get("config") if entry else None
        config = Config(**cut) if cut else next(iter(problem.plan.candidates(1)), Config())
    return entry, config


def stored(op: str, kind: str, problem: Problem) -> dict[str, Any] | None:
    """What was measured for a problem: `implementation`, `config`, `us`, `xla_us`; or None.

    For what was not measured itself, the kernel is the choice where the kind of weights won at
    every measured size: between the least and the most rows, and from the least numbers on. Entries
    count from the version of jax on that they were measured with.
    """
    table = _table(op, kind)
    measured_with = tuple(int(v) for v in table.get("jax", "99.0").split(".")[:2])
    if measured_with > VERSION:
        return None
    if entry := table.get("entries", {}).get(problem.key):
        return entry
    won = table.get("won", {}).get(problem.label)
    if won is None:
        return None
    least, most = won["rows"]
    inside = least <= problem.rows <= most and problem.numbers >= won["numbers"]
    return {"implementation": won["implementation"]} if inside else None


def run(
    op: str,
    implementations: Mapping[str, Callable[..., jax.Array]],
    *args: Any,
    implementation: Choice,
    entry: Mapping[str, Any] | None = None,
) -> jax.Array:
    """Runs an implementation, as the argument `implementation` of every op says.

    Args:
      op: its name, for messages.
      implementations: by name; each raises NotImplementedError for what it does not handle, and
        "xla" handles everything.
      *args: what the implementation is called with.
      implementation: one name runs that one and raises what it raises; of a sequence, the first
        that does not raise NotImplementedError; None as the module says.
      entry: the stored measurement.

    Raises:
      ValueError: an unknown name, or an empty sequence.
      NotImplementedError: what was named does not handle this.
    """
    implementation = os.environ.get(EVERYWHERE) if implementation is None else implementation
    given = names(op, implementation)
    if implementation is None:
        return _best(op, implementations, args, entry)
    refused: list[str] = []
    for name in given:
        if name not in implementations:
            refused.append(f"{name}: {op} has only {', '.join(implementations)}")
            continue
        try:
            result = implementations[name](*args)
        except NotImplementedError as error:
            if len(given) == 1:
                raise
            refused.append(f"{name}: {error}")
            continue
        _note(op, name)
        return result
    raise NotImplementedError(f"{op}: no implementation left; " + "; ".join(refused))


def _best(
    op: str,
    implementations: Mapping[str, Callable[..., jax.Array]],
    args: tuple[Any, ...],
    entry: Mapping[str, Any] | None,
) -> jax.Array:
    xla = implementations["xla"]
    name = entry["implementation"] if entry else "xla"
    if name not in implementations or implementations[name] is xla:
        return xla(*args)
    kernel = implementations[name]
    try:
        jax.eval_shape(kernel, *args)
    except NotImplementedError:
        return xla(*args)
    except Exception as error:
        _log.warning("%s: %s failed, XLA runs instead: %s", op, name, error)
        return xla(*args)
    _note(op, name)
    # What is traced on a GPU may be lowered for another platform, as `jax.export` does.
    return lax.platform_dependent(*args, cuda=kernel, default=xla)


@functools.cache
def _note(op: str, name: str) -> None:
    _log.info("%s: %s", op, name)


def with_rules(forward: Implementation, reference: Implementation) -> Implementation:
    """A function of (x, packed, floating) that has derivatives and batches well.

    Reverse mode differentiates the reference, in `x` and the floating arguments; integers get no
    cotangent. Under `jax.vmap` over x alone the batch is folded into the rows of x, so that one
    product stays one product; a batch of weights goes to the reference.

    Args:
      forward: (x, packed, floating) to the result, x of (rows, k); `packed` and `floating` are
        trees of arrays.
      reference: the same in jax.numpy.
    """

    @custom_vmap
    def folded(x: jax.Array, packed: Any, floating: Any) -> jax.Array:
        return forward(x, packed, floating)

    @folded.def_vmap
    def _(size: int, batched: Any, x: jax.Array, packed: Any, floating: Any) -> Any:
        if not any(jax.tree.leaves(batched[1:])):
            y = folded(x.reshape((-1, x.shape[-1])), packed, floating)
            return y.reshape((size, -1, y.shape[-1])), True
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
        return jax.vmap(reference, in_axes=axes)(x, packed, floating), True

    @jax.custom_vjp
    def op(x: jax.Array, packed: Any, floating: Any) -> jax.Array:
        return folded(x, packed, floating)

    def ahead(x: jax.Array, packed: Any, floating: Any) -> tuple[jax.Array, Any]:
        return folded(x, packed, floating), (x, packed, floating)

    def back(residuals: Any, g: jax.Array) -> tuple[Any, Any, Any]:
        x, packed, floating = residuals
        _, pull = jax.vjp(lambda x, f: reference(x, packed, f), x, floating)
        d_x, d_floating = pull(g)
        none = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), packed)
        return d_x, none, d_floating

    op.defvjp(ahead, back)
    return op


def require_gpu(interpret: bool | None) -> None:
    """Raises NotImplementedError where a GPU kernel has nothing to run on."""
    if not interpret and device()[0] not in ("gpu", "cuda"):
        raise NotImplementedError(
            f"the kernel needs a GPU, not {device()[0]!r}; interpret=True runs it on a CPU"
        )
