"""Two processes of one device each train what one process with one device trains."""

import json
import socket

import jax
import numpy as np

import jaxlab

SETTINGS = [
    "--config.steps=6",
    "--config.checkpoint.every=3",
    "--config.log.every=1",
    "--config.eval.every=0",
    # Adam would make steps of one size of gradients that are 0 but for rounding, and that differs.
    "--config.optim.name=sgd",
    "--config.optim.lr=0.1",
]


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, (out, err[-3000:])


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_equal_one(tmp_path, start_training):
    alone = start_training(tmp_path / "one", *SETTINGS)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = [
        "--config.mesh.distributed=True",
        f"--config.mesh.coordinator=localhost:{port}",
        "--config.mesh.processes=2",
        "--config.mesh.model=2",
        "--config.mesh.rules=((r'.*/up/kernel', (None, 'model')),)",
    ]
    pair = [
        start_training(tmp_path / "two", *SETTINGS, *shared, f"--config.mesh.process={i}")
        for i in range(2)
    ]
    for process in (alone, *pair):
        finish(process)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    one, two = (jaxlab.load(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        if a.dtype == np.float32:
            np.testing.assert_allclose(a, b, atol=1e-6)
