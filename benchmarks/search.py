"""How good is coarse to fine? Regret of every sampler on six surrogate families and two scikit-learn trainings.

Run: ``python -m benchmarks.search`` (hours for everything; ``--tasks valley --samplers c2f random --seeds 5`` for a
look). Finished runs are kept in the ``--store`` file, one JSON line each, so that a stopped benchmark goes on where it
was; ``--report`` only prints the tables. CMA-ES needs the package ``cmaes``.
"""

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.search_tasks import REAL, SURROGATES, TASKS, Task
from lightning_tricks.tune import CoarseToFineSampler

BUDGETS = (16, 32, 64)
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore")  # Optuna calls half of its samplers experimental


def with_optuna(task: Task, sampler: optuna.samplers.BaseSampler, trials: int) -> list[tuple[float, float]]:
    """Return (value, score) of each trial."""
    results = []

    def objective(trial: optuna.Trial) -> float:
        results.append(task.run({name: dim.suggest(trial, name) for name, dim in task.space.items()}, trial.number))
        return results[-1][0]

    optuna.create_study(sampler=sampler).optimize(objective, n_trials=trials)
    return results


def c2f(task: Task, trials: int, seed: int) -> list[tuple[float, float]]:
    return with_optuna(task, CoarseToFineSampler(trials, seed=seed, windows=task.windows), trials)


def lecture(task: Task, trials: int, seed: int) -> list[tuple[float, float]]:
    """The rule to the letter: rounds of 8 random points; near an edge (10 %) centre on the best, else halve."""
    rng = np.random.default_rng([seed, 3])
    windows = {
        name: np.array([dim.unit(v) for v in task.windows[name]]) if name in task.windows else np.array([0.0, 1.0])
        for name, dim in task.space.items()
    }
    results, points = [], []
    for number in range(trials):
        points.append({name: low + rng.random() * (high - low) for name, (low, high) in windows.items()})
        results.append(task.run({name: task.space[name].at(u) for name, u in points[-1].items()}, number))
        if number % 8 == 7:
            best = points[int(np.argmin([value for value, _ in results]))]
            for name, (low, high) in windows.items():
                width, x = high - low, best[name]
                near = (x < low + 0.1 * width and low > 0) or (x > high - 0.1 * width and high < 1)
                width = width if near else width / 2
                low = min(max(x - width / 2, 0), 1 - width)
                windows[name] = np.array([low, low + width])
    return results


def grid(task: Task, trials: int, seed: int) -> list[tuple[float, float]]:
    """As many levels per axis as the budget allows, in the middle of equal parts."""
    levels = max(2, int(trials ** (1 / len(task.space)) + 1e-9))
    points = list(itertools.product([(i + 0.5) / levels for i in range(levels)], repeat=len(task.space)))
    order = np.random.default_rng([seed, 4]).permutation(len(points))[:trials]
    chosen = [dict(zip(task.space, points[i], strict=True)) for i in order]
    return [task.run({n: task.space[n].at(u) for n, u in point.items()}, k) for k, point in enumerate(chosen)]


def _optuna(make: Callable[[int], Any]) -> Callable[[Task, int, int], list[tuple[float, float]]]:
    return lambda task, trials, seed: with_optuna(task, make(seed), trials)


SAMPLERS: dict[str, Callable[[Task, int, int], list[tuple[float, float]]]] = {
    "c2f": c2f,
    "lecture": lecture,
    "random": _optuna(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "tpe": _optuna(lambda seed: optuna.samplers.TPESampler(seed=seed)),
    "sobol": _optuna(lambda seed: optuna.samplers.QMCSampler(seed=seed, scramble=True)),
    "grid": grid,
    "cmaes": _optuna(lambda seed: optuna.samplers.CmaEsSampler(seed=seed)),
    "gp": _optuna(lambda seed: optuna.samplers.GPSampler(seed=seed)),
}
# Their points depend on the budget, so that each budget is a run of its own.
PLANNED = {"c2f", "grid"}


def chosen_scores(results: list[tuple[float, float]], budgets: tuple[int, ...]) -> dict[str, float]:
    """Return the score of the trial that a search of each budget would choose."""
    values = np.array([value for value, _ in results])
    return {str(b): results[int(values[:b].argmin())][1] for b in budgets}


def run(store: Path, tasks: list[str], samplers: list[str], seeds: int) -> None:
    done = {(r["task"], r["sampler"], r["seed"]) for r in read(store)}
    for seed, task, sampler in itertools.product(range(seeds), tasks, samplers):
        if (task, sampler, seed) in done:
            continue
        start, scores = time.process_time(), {}
        for budgets in [(b,) for b in BUDGETS] if sampler in PLANNED else [BUDGETS]:
            scores |= chosen_scores(SAMPLERS[sampler](TASKS[task](seed), budgets[-1], seed), budgets)
        record = {"task": task, "sampler": sampler, "seed": seed, "scores": scores}
        with store.open("a") as file:
            file.write(json.dumps({**record, "cpu_s": round(time.process_time() - start, 2)}) + "\n")


def read(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read_text().splitlines()] if store.exists() else []


def report(store: Path) -> dict[str, Any]:
    table: dict[tuple[str, str, str], dict[int, float]] = {}
    for r in read(store):
        for budget, score in r["scores"].items():
            table.setdefault((r["task"], r["sampler"], budget), {})[r["seed"]] = score
    samplers = [s for s in SAMPLERS if any(key[1] == s for key in table)]
    for task in TASKS:
        for budget in map(str, BUDGETS):
            cells = [list(table.get((task, s, budget), {}).values()) for s in samplers]
            if any(cells):
                row = "".join(f"{np.mean(c):8.3f}/{np.median(c):5.3f}" if c else f"{'-':>14}" for c in cells)
                most = max(map(len, cells))
                fewer = "".join(f", {s} {len(c)}" for s, c in zip(samplers, cells, strict=True) if 0 < len(c) < most)
                print(f"{task:10}{budget:>4}{row}   n={most}{fewer}")
    print(f"{'mean/median':14}" + "".join(f"{s:>14}" for s in samplers))
    return {"geometric_mean_of_mean_regret": _relative(table, samplers), "wins_of_c2f": _wins(table, samplers)}


def _relative(table: dict[tuple[str, str, str], dict[int, float]], samplers: list[str]) -> dict[str, Any]:
    """Return, over the surrogates, c2f's mean regret divided by that of each other sampler, as a geometric mean."""
    out = {}
    for other in samplers:
        ratios = {}
        for budget in map(str, BUDGETS):
            logs = []
            for task in SURROGATES:
                mine, its = table.get((task, "c2f", budget), {}), table.get((task, other, budget), {})
                both = sorted(set(mine) & set(its))
                if both:
                    logs.append(np.log(np.mean([mine[s] for s in both]) / np.mean([its[s] for s in both])))
            ratios[budget] = round(float(np.exp(np.mean(logs))), 3) if len(logs) == len(SURROGATES) else None
        out[f"c2f/{other}"] = ratios
        known = [r for r in ratios.values() if r]
        ratios["all"] = round(float(np.exp(np.mean(np.log(known)))), 3) if known else None
    return out


def _wins(table: dict[tuple[str, str, str], dict[int, float]], samplers: list[str]) -> dict[str, Any]:
    """Return the share of paired runs in which c2f was better, and Wilcoxon's p, over surrogates and real tasks."""
    from scipy.stats import wilcoxon

    out = {}
    for kind, tasks in (("surrogates", SURROGATES), ("real", REAL)):
        for other, budget in itertools.product([s for s in samplers if s != "c2f"], map(str, BUDGETS)):
            differences = [
                table[task, other, budget][seed] - mine
                for task in tasks
                for seed, mine in table.get((task, "c2f", budget), {}).items()
                if seed in table.get((task, other, budget), {})
            ]
            if len(differences) > 5:
                share = (np.mean(np.greater(differences, 0)) + np.mean(np.greater_equal(differences, 0))) / 2
                p = float(wilcoxon(differences).pvalue)
                out[f"{kind} {budget} vs {other}"] = [round(float(share), 2), float(f"{p:.1g}")]
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("search.jsonl"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        run(args.store, args.tasks, args.samplers, args.seeds)
    print(json.dumps(report(args.store)))
