"""What every benchmark shares: interleaved CPU times in one process, a small table, one JSON line.

Ratios of medians of CPU time are what the documentation quotes; they hold on a busy machine where wall times do not.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int = 9, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return seconds of CPU time per call, measured round by round so that drift hits every candidate alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warm_up + rounds):
        for name, call in candidates.items():
            start = time.process_time()
            call()
            if number >= warm_up:
                times[name].append(time.process_time() - start)
    return times


def report(title: str, times: Mapping[str, list[float]], *, base: str, **facts: object) -> dict[str, float]:
    """Print each candidate's ratio to ``base`` (median over rounds of the ratio within a round) and one JSON line."""
    ratios = {}
    print(f"\n{title}")
    print(f"{'':40s} {'ratio':>8s}   quartiles")
    for name, seconds in times.items():
        each = [a / b for a, b in zip(seconds, times[base], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else (each[0],) * 3
        ratios[name] = middle
        print(f"{name:40s} {middle:8.3f}   {low:.3f} .. {high:.3f}")
    machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": title, "base": base, "ratios": ratios, **facts, **machine}))
    return ratios
