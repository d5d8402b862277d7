"""The command line: killed and resumed, mistakes in one line, tables without training."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = [
    "--config.steps=24",
    "--config.checkpoint.every=3",
    "--config.log.every=1",
    "--config.eval.every=6",
]


def contents(folder):
    names = ("metrics.jsonl", "model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def test_killed_at_a_random_step_and_resumed_is_bitwise_the_same(tmp_path, start_training):
    whole = start_training(tmp_path / "whole", *SETTINGS)
    broken = start_training(tmp_path / "broken", *SETTINGS)
    kill_after = random.SystemRandom().randint(4, 16)
    metrics = tmp_path / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and broken.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= kill_after:
            broken.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    broken.communicate()
    assert broken.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = start_training(tmp_path / "broken", *SETTINGS)
    for process in (whole, resumed):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, (kill_after, out, err)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken"), kill_after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.stepz=3"], "the config has no setting 'stepz'; did you mean 'steps'?\n"),
        (["--config.optim.lr=fast"], "could not convert string to float"),
        (["--config=configs/digits_vit.py:smoek"], "did you mean 'smoke'"),
        (
            ["--config=configs/nothing.py"],
            "nothing.py: no such file; of configs/*.py valid: digits_vit, ",
        ),
        (["--config=configs/digits_vti.py"], "of configs/*.py did you mean 'digits_vit'?"),
        (["--config.compress.mlp.path=mlp"], "matches no path"),
        (["seed=3"], "unexpected arguments"),
    ],
)
def test_command_line_mistakes_are_one_line(arguments, message, tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", *arguments, f"--config.workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rate", "shown"), [(None, "not measured"), (0.012, "0.012 steps/s"), (31.24, "31.2 steps/s")]
)
def test_a_speed_that_was_not_measured_is_no_number(rate, shown):
    summary = {
        "quality": {"name": "accuracy", "trained": 0.9, "finalized": 0.9},
        "bytes": {"file": 10, "finalized": 10, "dense": 20},
        "steps_per_second": rate,
        "wall_seconds": 75.31,
    }
    code = f"import train; print(train.report({summary!r}, 'runs/a'))"
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert f"speed: {shown}, 75.3 s in all" in printed.splitlines()


def test_zero_steps_print_the_tables_and_stop(tmp_path):
    done = subprocess.run(
        [sys.executable, "train.py", "--config.steps=0", f"--config.workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for word in ("blocks/0/mlp/up/kernel", "NMPacked", "LowRank", "ratio", "total"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()
