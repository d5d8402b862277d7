"""A published claim, the stored results that it is judged by, and the words for both."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU = "cpu"


class Claim(NamedTuple):
    """A row of docs/claims.md.

    Attributes:
      text: what is claimed.
      source: who claims it.
      command: how it was run here.
      benchmark: name of the stored results.
      figures: the results in words.
      verdict: whether they bear the claim out.
      needs: keys of the cells of a sweep that must be there.
      where: what the stored results do not say of the machine.
    """

    text: str
    source: str
    command: str
    benchmark: str
    figures: Callable[[Any], str]
    verdict: Callable[[Any], str]
    needs: Sequence[str] = ()
    where: str = ""

    def records(self) -> list[dict[str, Any]]:
        """The stored results that have all that the claim needs."""
        return [
            record
            for record in stored(self.benchmark)
            if all(key in record["result"]["cells"] for key in self.needs)
        ]


def stored(benchmark: str) -> list[dict[str, Any]]:
    """All results of a benchmark, the CPU's first."""
    records = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{benchmark}-*.json"))]
    records = [r for r in records if r["benchmark"] == benchmark]
    return sorted(records, key=lambda r: r["device"] != CPU)


def machine(record: dict[str, Any]) -> str:
    """Device, processors and versions."""
    versions = record["versions"]
    device = f"{record['processors']} CPU cores" if record["device"] == CPU else record["device"]
    if record["device"] != CPU and record["devices"] > 1:
        device = f"{record['devices']} x {device}"
    settings = record["result"].get("settings", [])
    parts = [device, f"jax {versions['jax']}", f"flax {versions['flax']}", *settings]
    return ", ".join(parts)


def spread(values: Iterable[float]) -> str:
    """Mean +- sample standard deviation, which one value does not have."""
    values = list(values)
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def verdict(holds: bool) -> str:
    """The word for a claim that needs no statistics."""
    return "reproduced" if holds else "**not reproduced**"


def table(claims: Iterable[Claim]) -> str:
    """The table of docs/claims.md."""
    lines = ["| claim | source | run here | result | verdict |", "| --- | --- | --- | --- | --- |"]
    for claim in claims:
        records = claim.records()
        for record in records:
            result = record["result"]
            where = "; ".join(x for x in (f"`{claim.command}`", machine(record), claim.where) if x)
            judged = f"{claim.figures(result)} | {claim.verdict(result)}"
            lines.append(f"| {claim.text} | {claim.source} | {where} | {judged} |")
        if not records:
            lines.append(f"| {claim.text} | {claim.source} | `{claim.command}` | not run | open |")
    return "\n".join(lines)
