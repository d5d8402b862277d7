"""Runs to one table and one plot, so that methods can be compared at a glance."""

from jaxlab.report.pareto import pareto_front, plot
from jaxlab.report.runs import Group, Row, Run, group_runs, load_runs
from jaxlab.report.tables import main, table, write_csv

__all__ = [
    "Group",
    "Row",
    "Run",
    "group_runs",
    "load_runs",
    "main",
    "pareto_front",
    "plot",
    "table",
    "write_csv",
]
