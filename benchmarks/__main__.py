"""Run the benchmarks, each in a process of its own; keep what they found, and write docs/benchmarks.md.

    python -m benchmarks                  all of them, except those that take hours or need data that do not ship
    python -m benchmarks penalty init     some of them, those included; the others' last results stay
    python -m benchmarks uci_dropout -- FOLDER --samples 1000
    python -m benchmarks --quick          a short form of each, to see that it runs; keeps nothing
    python -m benchmarks --list
    python -m benchmarks --page           write the page again from the results that are there

Every line of ``benchmarks/results.jsonl`` is one run: its command, machine, versions, date and CPU time, what was
printed and the JSON lines. The last run of each benchmark is what the page shows.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import _page, _results
from benchmarks._catalogue import plan_of, plans


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, write; exits with 1 if a benchmark failed."""
    given = sys.argv[1:] if arguments is None else arguments
    options, extra = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="modules in benchmarks/")
    parser.add_argument("--quick", action="store_true", help="a short form of each; keeps nothing")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--page", action="store_true", help="write the page only")
    parser.add_argument("--results", type=Path, default=_results.FILE)
    parser.add_argument("--docs", type=Path, default=_page.PAGE, help="the page to write")
    chosen = parser.parse_args(options)
    if extra and len(chosen.names) != 1:
        parser.error("what follows -- goes to one benchmark; name just one")
    if chosen.list:
        print("\n".join(f"{plan.name:20s} {plan.claim}" for plan in plans()))
        return
    failed = [] if chosen.page else run_all(chosen, extra)
    if not chosen.quick:
        chosen.docs.write_text(_page.render(_results.read(chosen.results)), encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run_all(chosen: argparse.Namespace, extra: list[str]) -> list[str]:
    """Run what was chosen and return the names of those that failed."""
    wanted = [plan_of(name) for name in chosen.names] or [plan for plan in plans() if not plan.only_if_named]
    failed = []
    for plan in wanted:
        arguments = extra or (plan.quick if chosen.quick else plan.arguments)
        if arguments is None:
            print(f"== {plan.name}: has no short form")
            continue
        print(f"== {plan.name}", flush=True)
        result = _results.run(plan.name, arguments)
        if result["code"]:
            failed.append(plan.name)
        elif not chosen.quick:
            _results.append(chosen.results, result)
    return failed


if __name__ == "__main__":
    main()
