"""The report of a run folder: ``report.json`` for programs, ``report.html`` for people."""

from paretune.report.write import Written, read_report, write_report

__all__ = ["Written", "read_report", "write_report"]
