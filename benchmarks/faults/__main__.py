"""Run the fault benchmark and print its tables.

    python -m benchmarks.faults [--programs ...] [--faults ...] [--seeds 5] [--jobs 1] [--out faults.jsonl]
                                [--module my_programs.py] [--half report] [--table-only]

Each finished run is one JSON line in the file of ``--out``; runs that are in it already are skipped. ``my_programs.py``
registers further programs and faults:

    from benchmarks.faults import Case, Learner, fault, program

    @program("mine")
    def mine():
        return Case(Learner(net, loss, optimizer), train=(x, y), val=(x_val, y_val), task="multiclass")

    @fault("learning rate of mine too high", "lr-too-high", "diverging", proof="score")
    def too_high(case):
        ...  # change case.model, case.train, case.trainer, ... or raise DoesNotFit("why")
"""

import argparse
import json
import multiprocessing
from functools import partial
from pathlib import Path

from tqdm import tqdm

from benchmarks.faults._registry import FAULTS, PROGRAMS, Run, load_module, plan
from benchmarks.faults._run import DIAGNOSIS, run_with
from benchmarks.faults._table import Results, markdown, rate


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    for path in args.module:
        load_module(path)
    programs = [name for name in chosen(args.programs, PROGRAMS) if args.half in ("both", PROGRAMS[name].half)]
    faults = chosen(args.faults, FAULTS)
    records = read(args.out)
    if not args.table_only:
        cells = plan(programs, faults, seeds=args.seeds, healthy_seeds=args.healthy_seeds, per_fault=args.per_fault)
        done = {Run(r["program"], r["fault"], r["seed"]) for r in records}
        cells = [cell for cell in cells if cell not in done]
        for record in results_of(cells, args):
            records.append(record)
            with args.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
    show([r for r in records if r["program"] in programs and r["fault"] in ("healthy", *faults)], missing=args.missing)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", nargs="*", help="names, or parts of names (all by default)")
    parser.add_argument("--faults", nargs="*", help="names, or parts of names (all by default)")
    parser.add_argument("--half", choices=("both", "thresholds", "report"), default="both")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--healthy-seeds", type=int, default=10, help="the healthy run at least as often as the sick")
    parser.add_argument("--per-fault", type=int, default=3, help="programs of either half that a fault is tried on")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--budget", choices=("quick", "full"), default="full")
    parser.add_argument("--out", type=Path, default=Path("faults.jsonl"))
    parser.add_argument(
        "--module", type=Path, action="append", default=[], help="file with further programs and faults"
    )
    parser.add_argument("--table-only", action="store_true", help="of the runs that are there")
    parser.add_argument("--missing", action="store_true", help="list every run that was not found or not named right")
    return parser.parse_args(arguments)


def chosen(parts: list[str] | None, table: dict) -> list[str]:
    names = [name for name in table if not parts or any(part in name for part in parts)]
    return [name for name in names if name in parts] if parts and set(parts) <= set(table) else names


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results_of(cells: list[Run], args: argparse.Namespace):
    work = partial(run_with, args.module, args.budget)
    if args.jobs == 1:
        yield from tqdm(map(work, cells), total=len(cells), desc="runs")
        return
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        yield from tqdm(pool.imap_unordered(work, cells), total=len(cells), desc="runs")


def show(records: list[dict], *, missing: bool) -> None:
    """Print the tables of both halves and of both together, and one JSON line."""
    line = {"benchmark": "faults", "runs": len(records), "diagnosis": DIAGNOSIS is not None}
    for half in ("thresholds", "report"):
        results = Results(record for record in records if record["half"] == half)
        print(f"\n## Half: {half}\n")
        fault_head = ["fault", "runs (programs)", "found", "named right", "first found at"]
        print(markdown(fault_head, results.fault_rows()) + "\n")
        rule_head = ["rule", "fires where it should", "healthy: error", "healthy: warning or error"]
        print(markdown(rule_head, results.rule_rows()) + "\n")
        line[half] = results.summary()
        print(markdown(["", "share"], [[name, rate(*counts)] for name, counts in results.summary().items()]))
        if results.harmless:
            print("\nHarmless, and left out: " + "; ".join(f"{f} on {p}" for f, p in results.harmless))
        if missing:
            show_missing(results)
    print("\n" + json.dumps(line))


def show_missing(results: Results) -> None:
    for key, record in results.healthy.items():
        for f in record["findings"]:
            if f["severity"] != "info" or "could not run" in f["what"]:
                print(f"FALSE {key}: {f['severity']} {f['rule']} at {f['when']}: {f['what']}")
    for run_ in results.sick_runs:
        if not results.right(run_):
            head = "WRONG NAME" if results.found(run_) else "MISSED"
            said = "; ".join(f"{f['severity']} {f['rule']}: {f['what']}" for f in results.new(run_))
            well = results.healthy[run_["program"], run_["seed"]]["score"]
            key = f"{run_['fault']} | {run_['program']} | {run_['seed']}"
            print(f"{head} {key} | {well} -> {run_['score']} {run_['crash'] or ''} | {said}")


if __name__ == "__main__":
    main()
