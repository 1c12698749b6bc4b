"""From runs to tables: shares with their 95 % intervals."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.faults._registry import FAULTS

RANK = {"info": 0, "warning": 1, "error": 2}
HARM = 0.03  # of the score, on average over the seeds: less does not count as sick
Record = dict[str, Any]


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share (Wilson 1927).

    Example:
        >>> [round(bound, 3) for bound in wilson(0, 100)]
        [0.0, 0.037]
    """
    if not count:
        return 0.0, 1.0
    share, extra = hits / count, z * z / count
    centre = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / count + extra / (4 * count)) / (1 + extra)
    return (0.0 if hits == 0 else max(0.0, centre - half)), (1.0 if hits == count else min(1.0, centre + half))


def rate(hits: int, count: int) -> str:
    """Return a share with its interval, in percent."""
    if not count:
        return "-"
    low, high = wilson(hits, count)
    return f"{hits / count:.1%} ({low:.1%} to {high:.1%})"


class Results:
    """What the runs say about one half of the programs.

    Args:
        records: one per run, as :func:`benchmarks.faults._run.run` returns them.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        self.healthy = {(r["program"], r["seed"]): r for r in records if r["fault"] == "healthy"}
        groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in records:
            if record["fault"] in FAULTS and (record["program"], record["seed"]) in self.healthy:
                groups[record["fault"], record["program"]].append(record)
        self.sick = {key: runs for key, runs in groups.items() if self._is_sick(runs)}
        self.harmless = sorted(set(groups) - set(self.sick))

    def _is_sick(self, runs: Sequence[Record]) -> bool:
        if FAULTS[runs[0]["fault"]].proof == "structure" or any(run["crash"] for run in runs):
            return True
        pairs = [(self.healthy[run["program"], run["seed"]]["score"], run["score"]) for run in runs]
        losses = [well - ill for well, ill in pairs if well is not None and ill is not None]
        return bool(losses) and statistics.mean(losses) >= HARM

    def new(self, run: Record) -> list[Record]:
        """Return the findings that the healthy twin of the same seed does not have, at their severity or above."""
        twin: dict[str, int] = {}
        for finding in self.healthy[run["program"], run["seed"]]["findings"]:
            twin[finding["rule"]] = max(twin.get(finding["rule"], 0), RANK[finding["severity"]])
        return [f for f in run["findings"] if RANK[f["severity"]] > twin.get(f["rule"], -1) and _ran(f)]

    def found(self, run: Record) -> list[Record]:
        """Return the new findings that count: warnings and errors, and notes where a note is the right answer."""
        named = FAULTS[run["fault"]]
        return [f for f in self.new(run) if f["severity"] != "info" or (named.note and f["rule"] in named.rules)]

    def right(self, run: Record) -> list[Record]:
        """Return the findings with one of the fault's own names."""
        return [f for f in self.found(run) if f["rule"] in FAULTS[run["fault"]].rules]

    def runs_of(self, fault: str) -> list[Record]:
        """Return the sick runs of one fault."""
        return [run for (name, _), runs in self.sick.items() if name == fault for run in runs]

    @property
    def sick_runs(self) -> list[Record]:
        """All sick runs."""
        return [run for runs in self.sick.values() for run in runs]

    def accused(self, severity: str, rule: str | None = None) -> int:
        """Return the number of healthy runs with a finding of at least this severity."""
        return sum(
            any(RANK[f["severity"]] >= RANK[severity] and rule in (None, f["rule"]) for f in run["findings"])
            for run in self.healthy.values()
        )

    def summary(self) -> dict[str, Any]:
        """Return the three figures, each with its counts."""
        runs = self.sick_runs
        return {
            "found": [sum(bool(self.found(run)) for run in runs), len(runs)],
            "named right": [sum(bool(self.right(run)) for run in runs), len(runs)],
            "healthy with an error": [self.accused("error"), len(self.healthy)],
            "healthy with a warning or error": [self.accused("warning"), len(self.healthy)],
        }

    def fault_rows(self) -> list[list[str]]:
        """Return one row per fault."""
        rows = []
        for name in FAULTS:
            runs = self.runs_of(name)
            if not runs:
                continue
            programs = len({run["program"] for run in runs})
            found, right = (sum(bool(f(run)) for run in runs) for f in (self.found, self.right))
            cells = [rate(found, len(runs)), rate(right, len(runs)), self.when(runs)]
            rows.append([name, f"{len(runs)} ({programs})", *cells])
        return rows

    def when(self, runs: Sequence[Record]) -> str:
        """Return where the first finding came from: the check, or the median step."""
        firsts = [self.found(run)[0]["when"] for run in runs if self.found(run)]
        steps = [when for when in firsts if when != "check"]
        parts = [f"check {len(firsts) - len(steps)}"] if len(firsts) > len(steps) else []
        return ", ".join(parts + ([f"step {statistics.median(steps):.0f} ({len(steps)})"] if steps else []))

    def rule_rows(self) -> list[list[str]]:
        """Return one row per rule: how often it fires where it should, and on the healthy."""
        rules = dict.fromkeys(rule for fault in FAULTS.values() for rule in fault.rules)
        rules |= dict.fromkeys(f["rule"] for run in self.healthy.values() for f in run["findings"] if _ran(f))
        rows = []
        for rule in rules:
            runs = [run for run in self.sick_runs if rule in FAULTS[run["fault"]].rules]
            hits = sum(any(f["rule"] == rule for f in self.found(run)) for run in runs)
            healthy = [self.accused(severity, rule) for severity in ("error", "warning")]
            rows.append([rule, rate(hits, len(runs)), *(rate(count, len(self.healthy)) for count in healthy)])
        return rows


def _ran(finding: Record) -> bool:
    return "could not run" not in finding["what"]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
