"""Which implementation of an op runs.

`implementation=None` means: the kernel where a stored measurement on this kind of device, with
this jax, says that it wins at these shapes, and XLA everywhere else. Nothing is measured here.
"""

import dataclasses
import difflib
import functools
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from jaxlab.core.varying import on_one_device, varied, varying
from jaxlab.kernels.measured import Problem, stored

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
      TypeError: neither a name nor a sequence.
      ValueError: an unknown name, or an empty sequence.
    """
    if implementation is None:
        return ()
    if not isinstance(implementation, (str, Sequence)):
        raise TypeError(
            f"{op}: implementation={implementation!r} must be a name, or a sequence of names; "
            f"valid: {', '.join(IMPLEMENTATIONS)}"
        )
    given = (implementation,) if isinstance(implementation, str) else tuple(implementation)
    if not given:
        raise ValueError(f"{op}: implementation=() names none; valid: {', '.join(IMPLEMENTATIONS)}")
    for name in given:
        if name not in IMPLEMENTATIONS:
            near = difflib.get_close_matches(name, IMPLEMENTATIONS, 1, 0.0) if name else ["xla"]
            raise ValueError(
                f"{op}: implementation={name!r} is unknown; nearest: {near[0]!r}; "
                f"valid: {', '.join(IMPLEMENTATIONS)}"
            )
    return given


def asked(
    op: str, implementation: Choice, interpret: bool | None, config: Any | None = None
) -> tuple[str, ...]:
    """`names` of an argument or else of the environment; only one kernel can be interpreted.

    Raises:
      TypeError: as `names`; a `config` that is no cut.
      ValueError: as `names`; the message says if it was the environment.
    """
    if config is not None and (isinstance(config, type) or not dataclasses.is_dataclass(config)):
        raise TypeError(f"{op}: config must be a Config or None, not {config!r}")
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


class Chosen(NamedTuple):
    """What runs where nothing is asked for, and how a kernel is cut, whoever asks for it.

    Without a kernel there is no cut.
    """

    name: str
    config: Any


def choice(op: str, problem: Problem, config: Any | None, named: tuple[str, ...]) -> Chosen:
    """What the stored measurements say of a problem; its cut is `config`, the stored one or a rule
    of thumb.

    XLA on several devices: it cannot split a kernel, which `jax.shard_map` does. Likewise where the
    number of rows is not known, as in a program that `jax.export` makes for all of them.
    """
    if not isinstance(problem.rows, int):
        return Chosen("xla", config)
    platform, kind = device()
    entry = (stored(op, kind, problem) if platform != "cpu" else None) or {}
    name = entry.get("implementation", "xla") if on_one_device() else "xla"
    if config is None and set(named or (name,)) != {"xla"}:
        config = problem.cut(entry.get("config"))
    return Chosen(name, config)


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
    if platform == "cpu" or not on_one_device() or not isinstance(problem.rows, int):
        return False
    return (stored(op, kind, problem) or {}).get("implementation", "xla") != "xla"


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
            if name != "xla":
                _require_known(name, args)
            result = implementations[name](*args)
        except NotImplementedError as error:
            if len(named) == 1:
                raise
            refused.append(f"{name}: {error}")
            continue
        _note(op, name)
        return varied(result, axes)
    raise NotImplementedError(f"{op}: no implementation left; " + "; ".join(refused))


def _require_known(name: str, args: tuple[Any, ...]) -> None:
    for shape in (leaf.shape for leaf in jax.tree.leaves(args)):
        if not all(isinstance(size, int) for size in shape):
            raise NotImplementedError(
                f"{name}: an array of shape {shape}, whose sizes are not known; nearest: 'xla'"
            )


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
