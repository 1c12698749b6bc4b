"""What does Gaussian noise of each sample's own cost on the CPU? Milliseconds of CPU time for a batch of 256x3x32x32.

    python -m benchmarks.augment_noise [--rounds 15]

The two sources of ``GaussianNoise``, and what else could fill the batch: one stream for all (a bound, not keyed by
sample), NumPy's fast generators set to each sample's key, and a table of quantiles looked up by 16 random bits (no
longer exact). Candidates take turns; medians. The last line is JSON.
"""

import argparse
import json
import statistics

import numpy as np
import torch

from benchmarks.timing import interleaved
from lightning_tricks.data.augment.ops._noise import _exact, _from_bank

SAMPLES, NUMBERS = 256, 3 * 32 * 32


def candidates():
    words = torch.randint(2**62, (SAMPLES,), generator=torch.Generator().manual_seed(0))
    out, keys, stream = torch.empty(SAMPLES, NUMBERS), words.tolist(), torch.Generator()
    bits = torch.empty(SAMPLES, NUMBERS // 4, dtype=torch.int64)
    levels = torch.arange(65536, dtype=torch.float64)
    table = torch.special.ndtri((levels + 0.5) / 65536).float()
    philox, sfc = np.random.Philox(key=0), np.random.SFC64(0)
    philox_state, sfc_state = philox.state, sfc.state
    rows = out.numpy()

    def seeds():
        for key in keys:
            stream.manual_seed(key)

    def by_philox():
        generator = np.random.Generator(philox)
        for row, key in zip(rows, keys, strict=True):
            philox_state["state"]["key"][0] = key
            philox_state["state"]["counter"][:] = 0
            philox.state = philox_state | {"buffer_pos": 4, "has_uint32": 0}
            generator.standard_normal(dtype=np.float32, out=row)

    def by_sfc():
        generator = np.random.Generator(sfc)
        for row, key in zip(rows, keys, strict=True):
            sfc_state["state"]["state"][:] = (key, key, key, 1)
            sfc.state = sfc_state | {"has_uint32": 0}
            generator.standard_normal(dtype=np.float32, out=row)

    def by_table():
        for row, key in zip(bits, keys, strict=True):
            row.random_(generator=stream.manual_seed(key))
        return table.index_select(0, bits.view(torch.uint16).to(torch.int32).view(-1))

    return {
        "bank": lambda: _from_bank(words, NUMBERS),
        "seeding 256 streams": seeds,
        "table of 65,536 quantiles": by_table,
        "one normal_ for all": out.normal_,
        "exact": lambda: _exact(words, NUMBERS),
        "NumPy's SFC64": by_sfc,
        "NumPy's Philox": by_philox,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    torch.set_num_threads(1)
    times = interleaved(candidates(), rounds=parser.parse_args().rounds)
    report = {name: round(1e3 * statistics.median(seconds), 2) for name, seconds in times.items()}
    for name, value in report.items():
        print(f"{name:32}{value:8.2f} ms")
    print(json.dumps({"benchmark": "augment_noise", "milliseconds": report}))


if __name__ == "__main__":
    main()
