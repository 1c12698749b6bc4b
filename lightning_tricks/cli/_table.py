"""A report as a table at the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightning_tricks.diagnosis import Report

_COLOURS = {"error": "bold red", "warning": "yellow", "info": "dim"}


def print_report(report: Report) -> None:
    """Print the findings, the gravest first, or that there are none."""
    console = Console()
    if not len(report):
        console.print("Nothing was found.")
        return
    table = Table("severity", "rule", "where", "what, and what to do", title=str(report).splitlines()[0])
    for finding in report:
        severity = Text(finding.severity, style=_COLOURS[finding.severity])
        # Text, not str: brackets in the names of layers are no markup.
        cells = (finding.rule, finding.where, f"{finding.what}. {finding.cure}")
        table.add_row(severity, *map(Text, cells))
    console.print(table)
