"""Trains, compresses, packs, measures and reports the model that a config describes.

    python train.py
    python train.py --config=configs/python_source.py:smoke,seed=3 --config.optim.lr=3e-4
    python train.py --config=configs/digits_vit.py --config.steps=0   # the parameter table only

The same command again continues an interrupted run.
"""

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxlab.config import Config
from jaxlab.core.registry import suggest
from jaxlab.training.experiment import Experiment
from jaxlab.training.run import Run

# Sections of a config are checked by the constructors they are bound to and so take new keys;
# the config locks the others itself.
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/digits_vit.py",
    "Experiment file, with an argument string after a colon.",
    lock_config=False,
    accept_new_attributes=True,
)


def main(config: Config) -> dict[str, Any] | None:
    """Runs one experiment; returns its summary, or None if there was nothing to train.

    Raises:
      SystemExit: the config is wrong; what is wrong has been printed.
    """
    try:
        if config.mesh.distributed:
            given = config.mesh.coordinator, config.mesh.processes, config.mesh.process
            jax.distributed.initialize(*(given if config.mesh.coordinator else ()))
        experiment = Experiment(config.to_dict())
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        fail(error)
    shows = jax.process_index() == 0
    if shows:
        print(f"{config.name}: {jax.device_count()} x {jax.devices()[0].device_kind}")
        print(f"\nParameters of the model\n{experiment.table_before}")
        print(f"\nParameters after compression, finalized\n{experiment.table_after}\n", flush=True)
    if not experiment.steps and not config.init:
        return None
    try:
        run = Run(experiment)
    except (ValueError, OSError) as error:
        fail(error)
    summary = run.train()
    if shows:
        print(report(summary, str(run.folder)))
    return summary


def report(summary: dict[str, Any], folder: str) -> str:
    """The last lines of a run: quality with and without `finalize`, bytes, where it all is."""
    quality, size = summary["quality"], summary["bytes"]
    return "\n".join(
        [
            f"\nheld-out {quality['name']}: {quality['trained']:.4g} trained, "
            f"{quality['finalized']:.4g} finalized",
            *_choice(summary),
            f"bytes: {size['file']:,} on disk, {size['finalized']:,} in memory, "
            f"{size['dense']:,} dense ({size['dense'] / size['file']:.2f}x smaller on disk)",
            f"speed: {_measured(summary['steps_per_second'], 'steps/s')}, "
            f"{_measured(summary['wall_seconds'], 's')} in all",
            f"run folder: {folder}",
        ]
    )


def _measured(value: float | None, unit: str) -> str:
    # Summaries of before had 0 for what was not measured.
    if not value:
        return "not measured"
    return f"{value:.1f} {unit}" if value >= 1 else f"{value:.2g} {unit}"


def _choice(summary: dict[str, Any]) -> list[str]:
    if "chosen" not in summary:
        return []
    chosen, name = summary["chosen"], summary["quality"]["name"]
    return [f"at step {chosen['step']}, chosen by {chosen['by']}: {chosen[name]:.4g}"]


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in them or in the config file is one line and exit status 2."""
    _check_config_file(argv)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        fail(error)


def _check_config_file(argv: list[str]) -> None:
    """Fails, with the nearest file, where --config names one that does not exist."""
    named = [a.removeprefix("--config=").split(":")[0] for a in argv if a.startswith("--config=")]
    for name in named:
        if not Path(name).is_file():
            # By their stems: the folder, which is the same, would make all of them near.
            hint = suggest(Path(name).stem, [path.stem for path in Path("configs").glob("*.py")])
            fail(FileNotFoundError(f"--config={name}: no such file; of configs/*.py {hint}"))


def fail(error: Exception) -> NoReturn:
    """Prints an error of the user's input and exits with status 2."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, KeyError) and len(text.split()) == 1:
        text = f"the config has no section {text}; only the config file can add one"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # A locked config prints all of itself before its hint.
    found = re.search(r'Key "(.+?)" does not exist.*Did you mean "(.+?)" instead', text, re.DOTALL)
    if found:
        lines = [f"the config has no setting {found[1]!r}; did you mean {found[2]!r}?"]
    # The config flags put a whole traceback into their message; its last line says what is wrong.
    shown = lines[-1] if "Traceback" in text else " ".join(lines)
    print(f"train.py: {shown}", file=sys.stderr)
    sys.exit(2)


def _main(argv: list[str]) -> None:
    if argv[1:]:
        fail(ValueError(f"unexpected arguments {argv[1:]}; settings are --config.name=value"))
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax reports every file it touches
    try:
        config = _CONFIG.value
        config.name  # noqa: B018  a config file that could not be read fails at its first use
    except OSError as error:
        fail(error)
    main(config)


if __name__ == "__main__":
    app.run(_main, flags_parser=parse_flags)
