"""All findings of one check."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightning_tricks.diagnosis._finding import Finding, Severity
from lightning_tricks.diagnosis._html import Note, Section, Table, Text, html_report, write_atomically

_ORDER: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Report:
    """What a check found, the gravest first.

    Args:
        findings: in any order.
        facts: what the check was done with (versions, sizes, seed).
        title: heading of the page.

    Example:
        >>> report = Report([Finding("zero-init", "error", "net.0", "all 20 weights are 0", "Draw them at random.")])
        >>> report.ok, [finding.rule for finding in report]
        (False, ['zero-init'])
        >>> print(report)
        1 error, 0 warnings, 0 notes
        error zero-init in net.0: all 20 weights are 0. Draw them at random.
    """

    findings: Sequence[Finding]
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    title: str = "Preflight"

    def __post_init__(self) -> None:
        ranked = sorted(self.findings, key=lambda finding: _ORDER.index(finding.severity))
        object.__setattr__(self, "findings", tuple(ranked))

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __str__(self) -> str:
        counts = [(len(self.of(s)), word) for s, word in zip(_ORDER, ("error", "warning", "note"), strict=True)]
        head = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
        return "\n".join([head, *map(str, self.findings)])

    def to_html(self, path: str | Path | None = None, *, sections: Sequence[Section] = ()) -> str:
        """Return the report as one self-contained page, and write it to ``path`` if that is given.

        Args:
            path: the file.
            sections: further parts, between the findings and the facts.
        """
        notes = [Note(f.severity, f.rule, _where(f), f.what, f.cure) for f in self.findings]
        found = Section("Findings", notes or [Text("Nothing was found.")])
        facts = Table(["what", "value"], [list(item) for item in self.facts.items()])
        head = str(self).splitlines()[0]
        page = html_report(self.title, [found, *sections, Section("Settings", [facts])], subtitle=head)
        if path is not None:
            write_atomically(Path(path), page)
        return page


def _where(finding: Finding) -> str:
    return finding.where if finding.step is None else f"{finding.where}, step {finding.step}"
