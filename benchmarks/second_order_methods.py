"""The optimizers and the models of benchmarks/second_order.py."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Of the rate that each optimizer is tried around.
RATES = (1.0, 1 / 3, 3.0)


class Method(NamedTuple):
    """An optimizer.

    Attributes:
      optim: its config section, but for the learning rate.
      rate: by model, the middle of the rates that are tried.
      on: by model, what differs in the section.
      model: by model, what differs in the model.
    """

    optim: Mapping[str, Any]
    rate: Mapping[str, float]
    on: Mapping[str, Mapping[str, Any]] = {}
    model: Mapping[str, Mapping[str, Any]] = {}


class Trial(NamedTuple):
    """A learning rate, and what else of the optimizer's section is tried with it."""

    rate: float
    optim: Mapping[str, float] = {}


class Size(NamedTuple):
    """What is run.

    Attributes:
      models: their sections by name.
      trials: (model, optimizer) -> what is tried on the first seed.
      seeds: of the best trial.
      further: whether rates beyond the trials are tried while the best is the last one.
      optim: by optimizer, what differs in its section.
      options: of the compiler.
    """

    models: Mapping[str, Mapping[str, Any]]
    trials: Callable[[str, str], Sequence[Trial]]
    seeds: int
    further: bool = False
    optim: Mapping[str, Mapping[str, Any]] = {}
    options: Mapping[str, Any] = {}


# As in the paper: momentum for images, LAMB for language.
_INNER = {"cnn": {"inner": "sgd"}, "decoder": {"inner": "lamb"}}
_MKOR_RATE = {"cnn": 0.1, "decoder": 1e-2}


def _mkor(**settings: Any) -> Method:
    return Method({"name": "mkor", **settings}, _MKOR_RATE, _INNER)


def _mfac(m: int, **on: Any) -> Method:
    optim = {"name": "mfac", "m": m, "damp": 1e-2, "momentum": 0.9}
    return Method(optim, {"cnn": 3e-2, "decoder": 3e-2}, on)


METHODS = {
    "AdamW": Method({"name": "adamw"}, {"cnn": 3e-3, "decoder": 1e-3}),
    "SGD-momentum": Method({"name": "sgd", "momentum": 0.9}, {"cnn": 0.1, "decoder": 0.3}),
    "LAMB": Method({"name": "lamb"}, {"cnn": 1e-2, "decoder": 1e-2}),
    # Its orthogonalisation is for arrays of two axes: a stack of layers would fall to Adam.
    "Muon": Method(
        {"name": "muon"},
        {"cnn": 1e-2, "decoder": 1e-2},
        model={"decoder": {"scan_layers": False}},
    ),
    "Eva": Method({"name": "eva"}, {"cnn": 0.1, "decoder": 0.1}),
    "MKOR every step": _mkor(update_every=1),
    "MKOR every 10": _mkor(update_every=10),
    # It waits for 20 updates of the factors: with every tenth step there would be no time left.
    "MKOR-H": _mkor(update_every=1, hybrid=True),
    "M-FAC m=128": _mfac(128),
    # A window of 512 gradients of the decoder in float32 would be 41 GB.
    "M-FAC m=512": _mfac(512, decoder={"buffer_dtype": "bfloat16"}),
}


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def _around(model: str, label: str) -> list[Trial]:
    return [Trial(_rounded(METHODS[label].rate[model] * factor)) for factor in RATES]


# What the race on one H100 found best, without and with the damping it had; the longer one tries
# three settings around it. Damping goes with the rate: on digits a tenth of it wants a third of the
# rate, within the grid there.
_FOUND = {
    "cnn": {
        "AdamW": 3e-3, "SGD-momentum": 0.0333, "LAMB": 1e-2, "Muon": 3e-2, "Eva": 0.1,
        "MKOR every step": 0.0333, "MKOR every 10": 0.0333, "MKOR-H": 0.0333,
        "M-FAC m=128": 3e-2, "M-FAC m=512": 1e-2,
    },
    "decoder": {
        "AdamW": 3.33e-4, "SGD-momentum": 0.1, "LAMB": 3.33e-3, "Muon": 1e-2, "Eva": 0.1,
        "MKOR every step": 1e-2, "MKOR every 10": 1e-2, "MKOR-H": 1e-2,
        "M-FAC m=128": 3e-2, "M-FAC m=512": 1e-2,
    },
}  # fmt: skip
_WINDOWED = ("M-FAC m=128", "M-FAC m=512")
_DAMPINGS = {label: (1e-2, 1e-3, 1e-1) for label in _WINDOWED}


def _around_found(model: str, label: str) -> list[Trial]:
    rates = [_rounded(_FOUND[model][label] * factor) for factor in RATES]
    optims = [{"damp": damp} for damp in _DAMPINGS.get(label, ())] or [{}] * len(rates)
    return [Trial(*each) for each in zip(rates, optims, strict=True)]


_CONSTANT: dict[str, Any] = {"name": "constant", "warmup": 0.05}
_CNN = {"task": {"name": "classify"}, "optim": {"schedule": _CONSTANT}}
_DECODER = {
    "task": {"name": "language_model"},
    "optim": {"schedule": _CONSTANT, "clip": 1.0},
}
_BYTES = {"name": "python_source"}
SIZES: dict[str, Size] = {
    "large": Size(
        {
            "cnn": {
                **_CNN,
                "data": {"name": "fashion_mnist", "path": "/usr/share/datasets/fashion-mnist"},
                "model": {"name": "resnet", "depth": 8, "width": 32},
                "batch_size": 1024,
                "steps": 290,
                "every": 10,
                # Of float32 products what the device finds fast.
                "matmul_precision": "default",
            },
            "decoder": {
                **_DECODER,
                "data": {**_BYTES, "seq_len": 256, "eval_bytes": 65_536},
                "model": {
                    "name": "decoder",
                    "d_model": 512,
                    "depth": 6,
                    "heads": 8,
                    "dtype": "bfloat16",
                    "scan_layers": True,
                    "attention": "cudnn",
                },
                "batch_size": 64,
                "steps": 250,
                "every": 10,
                "matmul_precision": "default",
            },
        },
        _around,
        seeds=3,
        further=True,
    ),
    "small": Size(
        {
            "cnn": {
                **_CNN,
                "data": {"name": "digits"},
                # A residual network takes a CPU a quarter of a minute to compile, ten times.
                "model": {"name": "mlp", "hidden": (32, 32)},
                "batch_size": 64,
                "steps": 8,
                "every": 4,
            },
            "decoder": {
                **_DECODER,
                "data": {**_BYTES, "seq_len": 32, "eval_bytes": 1024},
                "model": {
                    "name": "decoder",
                    "d_model": 32,
                    "depth": 2,
                    "heads": 2,
                    "d_mlp": 64,
                    "scan_layers": True,
                },
                "batch_size": 8,
                "steps": 8,
                "every": 4,
            },
        },
        lambda model, label: _around(model, label)[:1],
        seeds=1,
        # A few steps are soon made, however badly they are compiled.
        options={
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        },
    ),
}


def _longer(size: str, steps: Mapping[str, int], targets: Mapping[str, float], seeds: int) -> Size:
    """The same models for more steps, to a given loss, with the same steps of warm-up."""
    base, models = SIZES[size], {}
    for model, section in base.models.items():
        short = section["steps"]
        warmup = _CONSTANT["warmup"] * short / steps[model]
        models[model] = {
            **section,
            "optim": {**section["optim"], "schedule": {**_CONSTANT, "warmup": warmup}},
            "steps": steps[model],
            "short": short,
            "target": targets[model],
        }
    # The sum over a window that is not yet full is divided by what it holds.
    optim = {label: {"normaliser": "count"} for label in _WINDOWED}
    return Size(models, _around_found, seeds, optim=optim, options=base.options)


# The targets are the largest loss that a seed of the tuned AdamW ended with on one H100.
SIZES["long"] = _longer(
    "large", {"cnn": 870, "decoder": 770}, {"cnn": 0.4203, "decoder": 1.1044}, 3
)
SIZES["small_long"] = _longer("small", {"cnn": 16, "decoder": 16}, {"cnn": 2.2, "decoder": 4.0}, 2)
