"""Runs to one table and one plot: what each configuration reaches, and in how many bytes.

    python -m jaxlab.report runs/* --out=report/

reads the `summary.json` of each run folder, prints the table, and writes `table.md`, `table.csv`
and `pareto.png`. Runs that differ only in their seed are one row.
"""

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxlab.report.pareto import plot
from jaxlab.report.runs import Group, Statistic, group_runs, load_runs


def table(groups: Sequence[Group]) -> str:
    """The report as Markdown: one aligned table per group.

    Quality is the mean over seeds, with ± its sample standard deviation where there are two seeds
    or more. Stored is the size of the saved file, ratio how often it fits into the dense size. A
    speed that was not measured is "-".
    """
    sections = []
    for group in groups:
        header = ["config", "methods", "seeds", f"{group.quality}, trained"]
        header += [f"{group.quality}, finalized", "dense", "stored", "ratio", "steps/s"]
        cells = [header]
        for row in group.rows:
            speed = row.steps_per_second
            cells.append(
                [
                    row.label,
                    ", ".join(row.runs[0].methods) or "dense",
                    str(len(row.runs)),
                    _show(row.trained),
                    _show(row.finalized),
                    _show_bytes(row.dense_bytes),
                    _show_bytes(row.stored_bytes),
                    f"{row.ratio:.2f}x",
                    _show_speed(speed),
                ]
            )
        heading = f"## {group.title}: {group.quality} ({group.direction} is better)"
        sections.append(f"{heading}\n\n{_markdown(cells, left=2)}\n")
    return "\n".join(sections)


def write_csv(groups: Sequence[Group], path: str | Path) -> None:
    """Writes every row of every group with full precision; no deviation is an empty cell."""
    records = []
    for group in groups:
        for row in group.rows:
            first = row.runs[0]
            record = {"task": group.task, "data": group.data, "quality": group.quality}
            record |= {"mode": group.mode, "label": row.label, "config": first.config}
            record |= {"config_hash": first.config_hash, "model": first.model}
            record |= {"methods": " ".join(first.methods), "seeds": len(row.runs)}
            record |= {"trained_mean": row.trained.mean, "trained_sd": row.trained.sd}
            record |= {"finalized_mean": row.finalized.mean, "finalized_sd": row.finalized.sd}
            record |= {"dense_bytes": row.dense_bytes, "stored_bytes": row.stored_bytes}
            record |= {"ratio": row.ratio, "steps_per_second": row.steps_per_second}
            records.append(record)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, 2 where the runs cannot be reported."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxlab.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", help="run folders")
    parser.add_argument("--out", default="report", help="folder for the results (%(default)s)")
    parser.add_argument(
        "--strict", action="store_true", help="fail on unfinished runs instead of leaving them out"
    )
    options = parser.parse_args(argv)
    try:
        _write_report(options.runs, Path(options.out), skip_unfinished=not options.strict)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


def _write_report(paths: Sequence[str], out: Path, *, skip_unfinished: bool) -> None:
    if not paths:
        raise ValueError("no runs given; name run folders, e.g. runs/*")

    def note(reason: str) -> None:
        print(f"note: left out: {reason}", file=sys.stderr)

    runs = load_runs(paths, on_unfinished=note if skip_unfinished else None)
    if not runs:
        raise ValueError("none of the runs given has finished")
    groups = group_runs(runs)
    text = table(groups)
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text, encoding="utf-8")
    write_csv(groups, out / "table.csv")
    plot(groups, out / "pareto.png")
    print(text)


def _show(value: Statistic) -> str:
    mean = f"{value.mean:#.4g}"
    if value.sd is None:
        return mean
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± {value.sd:.1e}" if "e" in mean else f"{mean} ± {value.sd:.{decimals}f}"


def _show_speed(speed: float) -> str:
    if not math.isfinite(speed):
        return "-"
    return f"{speed:.1f}" if speed >= 1 else f"{speed:.2g}"


def _show_bytes(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    power = min(len(str(size)) - 1, 9) // 3
    return f"{size / 1000**power:.2f} {('kB', 'MB', 'GB')[power - 1]}"


def _markdown(cells: Sequence[Sequence[str]], left: int) -> str:
    """An aligned Markdown table; its first `left` columns are text, the rest numbers."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rules = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = []
    for line in (cells[0], rules, *cells[1:]):
        text = [c.ljust(w) for c, w in zip(line[:left], widths[:left], strict=True)]
        numbers = [c.rjust(w) for c, w in zip(line[left:], widths[left:], strict=True)]
        lines.append(f"| {' | '.join(text + numbers)} |")
    return "\n".join(lines)
