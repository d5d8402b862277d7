"""What every experiment's config starts from, and how its argument string is read."""

from pathlib import Path
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from jaxlab.core.registry import suggest

# An ml_collections.ConfigDict, whose attributes no type checker can know.
Config: TypeAlias = Any


def base_config(file: str, arg: str | None = None, **variants: Any) -> Config:
    """The settings that all experiments share, with their defaults.

    Args:
      file: the config's `__file__`; its stem names the experiment.
      arg: what stands after the colon of `--config=file.py:smoke,seed=3`.
      **variants: further names that `arg` may set, with their defaults; they become settings of
        the config, and those that differ from their default part of its name.

    Returns:
      A ConfigDict. Its top level is complete and `lock` closes it; sections that are bound to a
      constructor (model, data, task, optim, rules, phases) take any key of that constructor;
      `optim` also takes sections under names of optimizers, for the keys of one alone.

    Raises:
      ValueError: `arg` has an unknown name or a value of the wrong type.

    >>> c = base_config("configs/mine.py", "smoke,seed=3")
    >>> c.name, c.seed
    ('mine-smoke', 3)
    """
    chosen = parse_arg(arg, smoke=False, seed=0, **variants)
    # sort_keys=False: the first rule that matches wins, so their order is the file's.
    c: Config = ConfigDict(sort_keys=False)
    changed = {k: v for k, v in chosen.items() if k in variants and v != variants[k]}
    tail = "".join(f"-{k}" if v is True else f"-{k}={v}" for k, v in changed.items())
    c.name = Path(file).stem + tail + ("-smoke" if chosen["smoke"] else "")
    c.workdir = ""  # the run folder; runs/<name>-<seed> if empty
    c.smoke = chosen["smoke"]  # a run of seconds that exercises everything
    for variant in variants:
        c[variant] = chosen[variant]
    c.seed = chosen["seed"]  # of initialisation and of the data's order
    c.steps = 0  # optimizer steps
    c.batch_size = 64  # examples of all devices together, of all accumulated parts together
    # Steps of one call of the compiled function: more cost the host less and need the memory of as
    # many batches. Must divide whatever is due at some step.
    c.steps_per_call = 1
    c.accumulate = 1  # parts a batch is split into, to fit memory
    # Of float32 products: "highest" is float32, "default" what the backend finds fast (TensorFloat
    # on GPUs, bfloat16 on TPUs). For speed, a model's dtype is the better knob.
    c.matmul_precision = "highest"
    c.x64 = False  # float64 for the whole experiment, without turning it on for the process
    c.init = ""  # artefact, or run folder, whose parameters to start from
    c.task = ConfigDict({"name": ""})
    c.data = ConfigDict({"name": ""})
    c.model = ConfigDict({"name": ""})
    c.compress = ConfigDict(sort_keys=False)  # rules: {label: {path, name, ...}}; first match wins
    c.compress_at = 0.0  # fraction of the steps after which the rules apply
    # Training batches that one-shot methods see the inputs of their layers in; `sequential`
    # compresses layer by layer, each on the inputs behind those already compressed; `correct_bias`
    # lets a layer's bias take over what compression changes in the mean of its outputs.
    c.calibrate = ConfigDict({"batches": 0, "sequential": False, "correct_bias": True})
    c.phases = ConfigDict(sort_keys=False)  # {label: {at, name, ...}}: changes of structure
    c.freeze = ()  # patterns of paths that are not trained
    c.ema = 0.0  # decay of the running average of parameters; 0 keeps none
    c.optim = ConfigDict(
        {
            "name": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.01,
            "decay_paths": ((".*(kernel|embedding).*", 1.0),),  # factors of weight_decay; else 0
            "lr_paths": (),  # (pattern, factor of lr); else 1
            "clip": 1.0,  # global norm of the gradient; 0 does not clip
            "schedule": {"name": "cosine", "warmup": 0.05},
        }
    )
    c.eval = ConfigDict({"every": 0})  # steps between evaluations; 0 only at the end
    # Steps between lines of metrics; `diagnostics` adds what matrices report of their gradients.
    c.log = ConfigDict({"every": 10, "tensorboard": False, "diagnostics": False})
    c.checkpoint = ConfigDict({"every": 0, "keep": 1})  # steps; 0 only at the end. latest kept
    c.mesh = ConfigDict(
        {
            "data": -1,  # devices that split the batch; -1 takes what `model` leaves
            "model": 1,  # devices that split the parameters, by `rules`
            "rules": (),  # (pattern, (mesh axis or None for each array axis))
            "distributed": False,  # join the processes of several hosts, found by jax or given by
            "coordinator": "",  # address:port of process 0,
            "processes": 0,  # how many there are, and
            "process": 0,  # which one this is
        }
    )
    c.lock()
    # Sections that are bound to a constructor take any of its keys and are checked by it.
    for key in ("task", "data", "model", "compress", "phases", "optim"):
        c[key].unlock()
    return c


def parse_arg(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Reads `name,name=value,...` with the types of the defaults.

    Raises:
      ValueError: an unknown name (the message names the closest) or a value of the wrong type.

    >>> parse_arg("smoke,seed=3", smoke=False, seed=0)
    {'smoke': True, 'seed': 3}
    """
    chosen = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r} is unknown; {suggest(name, defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            words = {"": True, "true": True, "1": True, "false": False, "0": False}
            if value.lower() not in words:
                raise ValueError(f"config argument {item!r}: {name} is true or false")
            chosen[name] = words[value.lower()]
            continue
        try:
            chosen[name] = kind(value)
        except ValueError:
            raise ValueError(f"config argument {item!r}: {name} is a {kind.__name__}") from None
    return chosen
