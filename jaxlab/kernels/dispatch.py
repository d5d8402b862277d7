"""Which implementation of an op runs.

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
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax

from jaxlab.core.varying import on_one_device, varied, varying

VERSION = jax.__version_info__[:2]
# Of these an op has some: what it has not is refused with NotImplementedError, as on a CPU.
IMPLEMENTATIONS = ("xla", "mosaic_gpu", "triton", "mosaic_tpu")

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
    of = _absent() or jax.devices()[0]
    return of.platform, of.device_kind


def _absent() -> Any:
    """The device that is compiled for, where it is of another kind than those here; or None.

    Every mesh names its devices' kind, so that one is named does not mean that it is not here.
    """
    named = jax.sharding.get_abstract_mesh().abstract_device
    first = jax.devices()[0]
    here = (first.platform, first.device_kind)
    return None if named is None or (named.platform, named.device_kind) == here else named


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


def asked(op: str, implementation: Choice, interpret: bool | None) -> tuple[str, ...]:
    """`names` of an argument or else of the environment; only one kernel can be interpreted.

    Raises:
      ValueError: as `names`; the message says if it was the environment.
    """
    if implementation is None and interpret:
        return names(op, "mosaic_gpu")
    if implementation is None and (everywhere := os.environ.get(EVERYWHERE)):
        return names(f"{op}, by {EVERYWHERE}", everywhere)
    return names(op, implementation)


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
    def family(self) -> str:
        """What may be measured at some sizes and taken at those between: a kind of weights."""
        ...

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs of the dense matrix."""
        ...

    @property
    def key(self) -> str:
        """Under which a measurement is stored."""
        ...

    @property
    def layout_version(self) -> int:
        """Of packed weights: what was measured with another does not count."""
        ...

    def cut(self, stored: Mapping[str, Any] | None) -> Any:
        """How its kernel is cut: a stored configuration, or else by a rule of thumb."""
        ...


class Chosen(NamedTuple):
    """What runs where nothing is asked for, and how a kernel is cut, whoever asks for it."""

    name: str
    config: Any


def choice(op: str, problem: Problem, config: Any | None) -> Chosen:
    """What the stored measurements say of a problem; its cut is `config`, the stored one or a rule
    of thumb.

    XLA on several devices: it cannot split a kernel, which `jax.shard_map` does.
    """
    platform, kind = device()
    entry = (stored(op, kind, problem) if platform != "cpu" else None) or {}
    if config is None:
        config = problem.cut(entry.get("config"))
    return Chosen(entry.get("implementation", "xla") if on_one_device() else "xla", config)


def takes(op: str, problem: Problem) -> bool:
    """Whether anything but XLA may run where a call names nothing: by the environment, or else by
    the stored measurements.

    For those that multiply in another way than the op's where XLA runs.

    Raises:
      ValueError: the environment has an unknown name.
    """
    if named := asked(op, None, None):
        return named != ("xla",)
    platform, kind = device()
    if platform == "cpu" or not on_one_device():
        return False
    return (stored(op, kind, problem) or {}).get("implementation", "xla") != "xla"


def stored(op: str, kind: str, problem: Problem) -> dict[str, Any] | None:
    """What was measured for a problem: `implementation`, `config`, `us`, `xla_us`; or None.

    For what was not measured itself, the table's `won` has a range of rows, outputs and inputs for
    a family, whose corners were measured and in which the kernel won wherever it was; within it the
    kernel is the choice. Entries count from the version of jax on that they were measured with, and
    for the layout of packed weights that they were.
    """
    table = _table(op, kind)
    measured_with = tuple(int(v) for v in table.get("jax", "99.0").split(".")[:2])
    if measured_with > VERSION or table.get("layout") != problem.layout_version:
        return None
    if entry := table.get("entries", {}).get(problem.key):
        return entry
    won = table.get("won", {}).get(problem.family)
    if won is None:
        return None
    where = dict(zip(("rows", "n", "k"), (problem.rows, *problem.sizes), strict=True))
    inside = all(won[axis][0] <= at <= won[axis][1] for axis, at in where.items())
    return {"implementation": won["implementation"]} if inside else None


def run(
    op: str,
    implementations: Mapping[str, Callable[..., jax.Array]],
    *args: Any,
    named: tuple[str, ...],
    chosen: Chosen,
) -> jax.Array:
    """Runs an implementation, as the argument `implementation` of every op says.

    Args:
      op: its name, for messages.
      implementations: by name; each raises NotImplementedError for what it does not handle, and
        "xla" handles everything.
      *args: what the implementation is called with.
      named: one name runs that one and raises what it raises; of several, the first that does not
        raise NotImplementedError; none, as the module says.
      chosen: by the stored measurements.

    Raises:
      NotImplementedError: what was named does not handle this.
    """
    axes = varying(*jax.tree.leaves(args))
    if not named:
        return _best(op, implementations, args, chosen, axes)
    refused: list[str] = []
    for name in named:
        if name not in implementations:
            refused.append(f"{name}: {op} has only {', '.join(implementations)}")
            continue
        try:
            result = implementations[name](*args)
        except NotImplementedError as error:
            if len(named) == 1:
                raise
            refused.append(f"{name}: {error}")
            continue
        _note(op, name)
        return varied(result, axes)
    raise NotImplementedError(f"{op}: no implementation left; " + "; ".join(refused))


def _best(
    op: str,
    implementations: Mapping[str, Callable[..., jax.Array]],
    args: tuple[Any, ...],
    chosen: Chosen,
    axes: frozenset[str],
) -> jax.Array:
    xla = implementations["xla"]
    kernel = implementations.get(chosen.name, xla)
    if kernel is xla or not _works(op, chosen, kernel, args):
        return xla(*args)
    _note(op, chosen.name)
    # What is traced on a GPU may be lowered for another platform, as `jax.export` does.
    return lax.platform_dependent(
        *args,
        cuda=lambda *a: varied(kernel(*a), axes),
        default=lambda *a: varied(xla(*a), axes),
    )


# By problem, whether a kernel was found to compile.
_found: dict[Any, bool] = {}


def _works(op: str, chosen: Chosen, kernel: Implementation, args: tuple[Any, ...]) -> bool:
    """Whether a kernel compiles, tried alone and once for each problem.

    Inside a larger program it would be too late to take another: lowering comes after tracing.
    """
    leaves, tree = jax.tree.flatten(args)
    # Indices are of 64 bits then, which a kernel may not take.
    wide = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    key = op, chosen, device(), wide, tree, tuple((x.shape, x.dtype) for x in leaves)
    if key not in _found:
        shapes = tree.unflatten([jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves])
        _found[key] = False
        try:
            jax.eval_shape(kernel, *shapes)
        except NotImplementedError:  # it says so itself that it does not take this
            return False
        except Exception as error:
            _warn(op, chosen, error)
            return False
        try:
            _compile(kernel, shapes)
        except Exception as error:
            _warn(op, chosen, error)
            return False
        _found[key] = True
    return _found[key]


def _compile(kernel: Implementation, shapes: tuple[Any, ...]) -> None:
    # Outside the mesh of a `shard_map` that is being traced, for the same kind of device.
    absent = _absent()
    alone = jax.sharding.AbstractMesh((), (), abstract_device=absent)
    with jax.sharding.use_abstract_mesh(alone):
        lowered = jax.jit(kernel).trace(*shapes).lower(lowering_platforms=("cuda",))
        if absent is None:
            lowered.compile()


def _warn(op: str, chosen: Chosen, error: Exception) -> None:
    _log.warning("%s: %s failed, XLA runs instead: %s", op, chosen.name, error)


@functools.cache
def _note(op: str, name: str) -> None:
    _log.info("%s: %s", op, name)


def require_hopper(interpret: bool | None) -> None:
    """Raises NotImplementedError where a kernel for Hopper has nothing to run on."""
    if interpret:
        return
    platform, _ = device()
    if platform not in ("gpu", "cuda"):
        raise NotImplementedError(
            f"the kernel needs a GPU, not {platform!r}; interpret=True runs it on a CPU"
        )
    if _absent() is None:
        capability = getattr(jax.devices()[0], "compute_capability", "unknown")
        if str(capability).split(".")[0] != "9":
            raise NotImplementedError(
                f"the kernel needs a GPU of compute capability 9.0 (Hopper), not {capability}"
            )
