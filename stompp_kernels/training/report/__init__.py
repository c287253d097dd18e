"""The report on runs of `stompp train`: an HTML page with tables and figures, the figures as PNG, the numbers as JSON.

It reads nothing but the log.jsonl of each run. Runs of one recipe that differ in seed, name and output only are a
group: one line in a figure, one row in a table.
"""

from stompp_kernels.training.report.logs import Group, Run, group_runs, read_run
from stompp_kernels.training.report.summary import summary
from stompp_kernels.training.report.write import write_report

__all__ = ["Group", "Run", "group_runs", "read_run", "summary", "write_report"]
