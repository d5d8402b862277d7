"""The optimizers and the models of benchmarks/second_order.py."""

from collections.abc import Mapping
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


class Size(NamedTuple):
    """What is run: the models' sections, the number of rates and of seeds, compiler options."""

    models: Mapping[str, Mapping[str, Any]]
    rates: int
    seeds: int
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

_CONSTANT = {"name": "constant", "warmup": 0.05}
_CNN = {"task": {"name": "classify"}, "optim": {"schedule": _CONSTANT}}
_DECODER = {
    "task": {"name": "language_model"},
    "optim": {"schedule": _CONSTANT, "clip": 1.0},
}
_BYTES = {"name": "python_source"}
SIZES = {
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
        rates=3,
        seeds=3,
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
        rates=1,
        seeds=1,
        # A few steps are soon made, however badly they are compiled.
        options={
            "xla_backend_optimization_level": 0,
            "xla_llvm_disable_expensive_passes": True,
        },
    ),
}
