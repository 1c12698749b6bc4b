"""Claim: ``import lightning_tricks`` costs at most 50 ms over ``import lightning``, and under 50 ms by itself.

Run: python -m benchmarks.import_time
"""

import json
import statistics
import subprocess
import sys

ROUNDS = 7
# What comes before the clock starts, and what is timed. The interpreter's own start is left out.
CASES = {
    "import lightning_tricks": ("pass", "import lightning_tricks"),
    "import lightning": ("pass", "import lightning"),
    "import lightning_tricks, after lightning": ("import lightning", "import lightning_tricks"),
}
CODE = "import time\n{}\nstart = time.process_time()\n{}\nprint(time.process_time() - start)"


def main():
    times = {name: [] for name in CASES}
    for _ in range(ROUNDS):
        for name, case in CASES.items():
            command = [sys.executable, "-W", "ignore", "-c", CODE.format(*case)]
            times[name].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    for name, milliseconds in medians.items():
        print(f"{name:42s} {milliseconds:8.1f} ms of CPU time")
    print(json.dumps({"benchmark": "import", "median_ms": medians, "rounds": ROUNDS}))


if __name__ == "__main__":
    main()
