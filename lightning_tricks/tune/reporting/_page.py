"""The page of a search."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_tricks.diagnosis import Cell, Picture, Section, Table, Text, html_report, write_atomically
from lightning_tricks.tune.reporting._run_table import versions

if TYPE_CHECKING:
    from lightning_tricks.tune._result import SearchResult

_CAPTIONS = {
    "progress": "Every trial's value and the best so far; dotted lines begin a new round.",
    "points": "The value over each hyperparameter; the star is the best. Bars below: the windows of each round, the "
    "coarse one lowest.",
    "pairs": "All pairs of numbers, darker is better; frames are the fine rounds' windows, the last one thickest.",
    "parallel": "One line per trial; the best one is thick.",
    "importance": "Share of the values' variation that each hyperparameter explains (Optuna's estimate).",
}
# Beyond this a table hides what it shows; runs.csv has them all.
_MOST_ROWS = 200


def write_report(result: "SearchResult", path: Path) -> None:
    """Write the page, whole or not at all."""
    sections = [_found(result), *_rounds(result), _pictures(result), _runs(result), _made_with(result)]
    title = f"Search {result.study.study_name}"
    write_atomically(path, html_report(title, sections, subtitle=f"Method {result.method}: {result.reason}."))


def _found(result: "SearchResult") -> Section:
    chosen = "the best mean over seeds" if result.retrained else "the best trial; it was not trained again"
    blocks: list[Picture | Table | Text] = [
        Table(["hyperparameter", "value"], [[n, _cell(v)] for n, v in result.best_params.items()], "The winner"),
        Text(f"Its value is {result.best_value:.4g}, {chosen}."),
        *[Text(note) for note in result.notes],
    ]
    if result.retrained:
        rows: list[list[Cell]] = [[r.run, len(r.values), r.mean, r.sd, _words(r.params)] for r in result.retrained]
        columns = ["run", "seeds", "mean", "sd", "hyperparameters"]
        blocks.append(Table(columns, rows, "The best settings, trained again with other seeds"))
    if result.test:
        tested: list[list[Cell]] = [[name, mean, sd] for name, (mean, sd) in result.test.items()]
        blocks.append(Table(["metric", "mean", "sd"], tested, "Test set, seen by the winner's trainings only"))
    return Section("Result", blocks)


def _rounds(result: "SearchResult") -> list[Section]:
    """Return the windows of each round of a coarse-to-fine search."""
    from lightning_tricks.tune.reporting._explain import holds_rounds, window_in_words, windows_by_round

    if not holds_rounds(result.study):
        return []
    rounds = windows_by_round(result.study)
    names = list(rounds[0]) if rounds else []
    rows = [
        ["coarse" if number == 0 else str(number), *(window_in_words(windows[name]) for name in names)]
        for number, windows in enumerate(rounds)
    ]
    return [Section("Windows", [Table(["round", *names], rows)])]


def _pictures(result: "SearchResult") -> Section:
    return Section("Pictures", [Picture(figure, _CAPTIONS[name]) for name, figure in result.pictures().items()])


def _runs(result: "SearchResult") -> Section:
    runs = result.runs
    sign = 1 if result.study.direction.name == "MINIMIZE" else -1
    runs.sort(key=lambda row: (row["status"] != "complete", sign * float(row["value"] or 0)))
    columns = [name for name in runs[0] if any(row[name] for row in runs)]
    rows = [[_short(row[name]) for name in columns] for row in runs[:_MOST_ROWS]]
    more = f"; {len(runs) - _MOST_ROWS} more are in runs.csv" if len(runs) > _MOST_ROWS else ""
    return Section("Runs", [Table(columns, rows, f"The best first{more}")])


def _made_with(result: "SearchResult") -> Section:
    rows: list[list[Cell]] = [[name, number] for name, number in versions().items()]
    return Section("Made with", [Table(["package", "version"], rows), Text(f"Records: {result.folder.resolve()}")])


def _cell(value: Any) -> Cell:
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else str(value)


def _short(text: str) -> Cell:
    """Return a number with few digits; other text as it is."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _words(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={v:.4g}" if isinstance(v, float) else f"{name}={v}" for name, v in params.items())
