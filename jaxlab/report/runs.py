"""Finished runs: their summaries read, and gathered into rows and groups that may be compared."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

Mode: TypeAlias = Literal["max", "min"]

_FORMAT = 1


class UnfinishedRun(ValueError):
    """A run folder that holds no summary of a finished run."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report needs of one run's `summary.json`.

    `trained` and `finalized` are the quality before and after the weights took their inference
    form; a quality that is not finite (a run that diverged) is nan. `dense_bytes` is the size of
    the same parameters as dense arrays, `stored_bytes` that of the saved file; a speed that was not
    measured is nan.
    """

    path: Path
    config: str
    config_hash: str
    seed: int
    task: str
    data: str
    model: str
    methods: tuple[str, ...]
    quality: str
    mode: Mode
    trained: float
    finalized: float
    dense_bytes: int
    stored_bytes: int
    steps_per_second: float


class Statistic(NamedTuple):
    """Mean and sample standard deviation; one value has no deviation."""

    mean: float
    sd: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs of one configuration that differ in their seed only, summed up over seeds.

    The label is unique in the report; sizes and the speed are means.
    """

    label: str
    runs: tuple[Run, ...]
    trained: Statistic
    finalized: Statistic
    dense_bytes: int
    stored_bytes: int
    steps_per_second: float

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the dense parameters."""
        return self.dense_bytes / self.stored_bytes


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows whose numbers may be compared, by rising stored size."""

    task: str
    data: str
    quality: str
    mode: Mode
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """The group's heading: `classify on digits`."""
        return f"{self.task} on {self.data}"

    @property
    def direction(self) -> Literal["higher", "lower"]:
        """Which quality is better."""
        return "higher" if self.mode == "max" else "lower"


def load_runs(
    paths: Iterable[str | Path], *, on_unfinished: Callable[[str], None] | None = None
) -> list[Run]:
    """Reads the summary of each run folder; a folder that is given twice counts once.

    Args:
      paths: run folders.
      on_unfinished: called with the reason for each run that has not finished, which is then left
        out; by default such a run is an error.

    Returns:
      The runs, in the order given.

    Raises:
      ValueError: a path does not exist, a run is unfinished (`UnfinishedRun`), or a summary is not
        JSON, is of an unknown format, or lacks an entry.
    """
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        try:
            runs.setdefault(path.resolve(), _load_run(path))
        except UnfinishedRun as reason:
            if on_unfinished is None:
                raise
            on_unfinished(str(reason))
    return list(runs.values())


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Runs to rows (same configuration, any seed), and rows to groups that may be compared.

    Args:
      runs: as `load_runs` returns them.

    Returns:
      One group per task, data and quality, sorted by these; rows sorted by stored size.

    Raises:
      ValueError: two runs of one configuration have the same seed, which would pass one result off
        as two.
    """
    rows: dict[tuple, list[Run]] = {}
    hashes: dict[str, set[str]] = {}
    for run in runs:
        key = (run.task, run.data, run.quality, run.mode)
        same = rows.setdefault((key, run.config, run.config_hash), [])
        twin = next((other for other in same if other.seed == run.seed), None)
        if twin is not None:
            raise ValueError(
                f"{twin.path} and {run.path} are the same configuration with the same "
                f"seed={run.seed}; give one of them"
            )
        same.append(run)
        hashes.setdefault(run.config, set()).add(run.config_hash)
    groups: dict[tuple, list[Row]] = {}
    for (key, config, config_hash), same in rows.items():
        row = _row(config + _suffix(config_hash, hashes[config]), same)
        groups.setdefault(key, []).append(row)
    by_size = {k: sorted(v, key=lambda r: (r.stored_bytes, r.label)) for k, v in groups.items()}
    return [Group(*key, rows=tuple(by_size[key])) for key in sorted(by_size)]


def _load_run(path: Path) -> Run:
    file = path / "summary.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not file.is_file():
        raise UnfinishedRun(f"{path} has no summary.json; the run may be unfinished")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    found = summary.get("format") if isinstance(summary, dict) else None
    if found != _FORMAT:
        raise ValueError(f"{file} has format={found!r}; this version reads format={_FORMAT}")
    if summary.get("finished") is False:
        raise UnfinishedRun(f"{file} says that the run has not finished")

    def entry(name: str, kind: Any) -> Any:
        value = summary
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{file} has no entry {name!r}")
            value = value[key]
        if not isinstance(value, kind):
            raise ValueError(f"{file}: {name}={value!r} is not of the right type")
        return value

    def measured(name: str) -> float:
        # Strict JSON has no nan, so null stands for it.
        value = entry(name, int | float | None)
        return math.nan if value is None or not math.isfinite(value) else float(value)

    def size(name: str) -> int:
        value = entry(name, int)
        if value <= 0:
            raise ValueError(f"{file}: {name}={value} is not a positive number of bytes")
        return value

    mode = entry("quality.mode", str)
    if mode not in ("max", "min"):
        raise ValueError(f"{file}: quality.mode={mode!r}; valid: max, min")
    return Run(
        path=path,
        config=entry("config", str),
        config_hash=entry("config_hash", str),
        seed=entry("seed", int),
        task=entry("task", str),
        data=entry("data.name", str),
        model=entry("model", str),
        methods=tuple(map(str, entry("methods", list))),
        quality=entry("quality.name", str),
        mode=mode,
        trained=measured("quality.trained"),
        finalized=measured("quality.finalized"),
        dense_bytes=size("bytes.dense"),
        stored_bytes=size("bytes.file"),
        # Summaries of before had 0 for a speed that was not measured.
        steps_per_second=measured("steps_per_second") or math.nan,
    )


def _row(label: str, runs: Sequence[Run]) -> Row:
    def over_seeds(field: str) -> Statistic:
        values = [getattr(run, field) for run in runs]
        mean = math.fsum(values) / len(values)
        if len(values) < 2:
            return Statistic(mean, None)
        variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
        return Statistic(mean, math.sqrt(variance))

    return Row(
        label=label,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        trained=over_seeds("trained"),
        finalized=over_seeds("finalized"),
        dense_bytes=round(over_seeds("dense_bytes").mean),
        stored_bytes=round(over_seeds("stored_bytes").mean),
        steps_per_second=over_seeds("steps_per_second").mean,
    )


def _suffix(config_hash: str, hashes: set[str]) -> str:
    """Nothing for a name with one hash, else the shortest prefix that tells its hashes apart."""
    if len(hashes) == 1:
        return ""
    length = next(n for n in range(1, 1000) if len({h[:n] for h in hashes}) == len(hashes))
    return f"@{config_hash[:length]}"
