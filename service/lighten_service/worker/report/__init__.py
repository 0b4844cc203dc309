"""The result of a job for a person: one HTML file that opens offline."""

from lighten_service.worker.report.page import render_report

__all__ = ["render_report"]
