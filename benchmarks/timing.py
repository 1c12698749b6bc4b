"""What every benchmark shares: interleaved CPU times in one process, a small table, one JSON line.

Ratios of medians of CPU time are what the documentation quotes; they hold on a busy machine where wall times do not.
Whole fits are compared by `fits_in_turns`, a few steps at a time, since the speed of a shared core drifts within a fit.
"""

import gc
import json
import platform
import random
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch import Callback


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


class Turns:
    """Lets one of several threads run at a time, in a ring."""

    def __init__(self, count: int) -> None:
        self._alive, self._turn = list(range(count)), 0
        self._condition = threading.Condition()

    def wait_for(self, number: int) -> None:
        """Block until it is thread ``number``'s turn."""
        with self._condition:
            self._condition.wait_for(lambda: self._turn == number)

    def hand_on(self, number: int, *, leave: bool = False) -> None:
        """End thread ``number``'s turn; with ``leave``, for good."""
        with self._condition:
            following = self._alive[(self._alive.index(number) + 1) % len(self._alive)]
            if leave:
                self._alive.remove(number)
            self._turn = following
            self._condition.notify_all()


class TakeTurns(Callback):
    """A fit's part in the ring: hands on after every ``every`` training steps, and keeps the CPU time of each turn."""

    def __init__(self, turns: Turns, number: int, every: int) -> None:
        self.turns, self.number, self.every = turns, number, every
        self.times: list[float] = []
        self.total = float("nan")
        self._steps, self._started = 0, 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Wait here."""
        if self._steps == 0:
            self._started = time.thread_time()
        elif self._steps % self.every == 0:
            self.times.append(time.thread_time() - self._started)
            self.turns.hand_on(self.number)
            self.turns.wait_for(self.number)
            self._started = time.thread_time()
        self._steps += 1

    def on_train_end(self, trainer, pl_module):
        """Close the last turn."""
        self.times.append(time.thread_time() - self._started)


def fits_in_turns(cases: Mapping[str, Callable[[Callback], object]], *, every: int = 1) -> dict[str, TakeTurns]:
    """Run fits side by side in threads that take turns, so that all of them see the same machine.

    Each case gets a callback, which it passes to its Trainer as the first, and runs ``fit``. What comes back holds in
    ``times`` the CPU seconds of each turn of ``every`` steps, validation that falls into it included, and in ``total``
    those of the whole fit, setting up included.
    """
    turns = Turns(len(cases))
    members = {name: TakeTurns(turns, number, every) for number, name in enumerate(cases)}
    failures: list[BaseException] = []

    def work(name: str) -> None:
        member = members[name]
        torch.set_num_threads(1)
        turns.wait_for(member.number)
        started = time.thread_time()
        try:
            cases[name](member)
            member.total = time.thread_time() - started
        except BaseException as error:  # raised again by the caller's thread
            failures.append(error)
        finally:
            turns.hand_on(member.number, leave=True)

    threads = [threading.Thread(target=work, args=(name,)) for name in cases]
    gc.collect()
    gc.disable()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.enable()
    if failures:
        raise failures[0]
    return members


def report_turns(
    title: str, rounds: Sequence[Mapping[str, TakeTurns]], *, base: str, **facts: object
) -> dict[str, float]:
    """Print each fit's ratio to ``base`` for its training steps, and the CPU time around them; one JSON line.

    A fit's time is the sum over its turns of the median over the rounds: a turn disturbed in one round does not count,
    and one that is always dear (a validation, a measured step) does. Quartiles: rounds drawn again, 200 times.
    """
    draw = random.Random(0)
    drawn = [rounds, *([draw.choice(rounds) for _ in rounds] for _ in range(200))]

    def ratio(rounds: Sequence[Mapping[str, TakeTurns]], name: str) -> float:
        seconds = {
            case: sum(map(statistics.median, zip(*(members[case].times for members in rounds), strict=True)))
            for case in (name, base)
        }
        return seconds[name] / seconds[base]

    ratios, around = {}, {}
    print(f"\n{title}")
    print(f"{'':40s} {'ratio':>8s}   quartiles        before and after the steps")
    for name in rounds[0]:
        ratios[name], *again = (ratio(some, name) for some in drawn)
        low, _, high = statistics.quantiles(again, n=4)
        around[name] = statistics.median(one[name].total - sum(one[name].times) for one in rounds)
        print(f"{name:40s} {ratios[name]:8.3f}   {low:.3f} .. {high:.3f}   {around[name] * 1e3:6.0f} ms")
    machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": title, "base": base, "ratios": ratios, "around": around, **facts, **machine}))
    return ratios


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
