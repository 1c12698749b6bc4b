"""Write docs/peers_stopping.md: every known fault, run with the usual class and with ours.

Run: python -m benchmarks.stopping_peers [--check]

The runs are those of tests/fault_scenarios.py. ``--check`` only compares with the page as it is.
"""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "peers_stopping.md"
HEAD = """# Early stopping and plateaus: ours and the usual classes

Each row is a small run that both classes go through. The page is written by
[`python -m benchmarks.stopping_peers`](benchmarks.md#stopping_peers), and the same runs are tests
(`tests/callbacks/test_stopping_faults.py`), which fail when a peer is mended.
Run with lightning {lightning} and torch {torch}.

| what happens | whose class | theirs | ours |
|---|---|---|---|
"""
FOOT = """
"Keras' rule" is the comparison of Keras 3's `EarlyStopping`, which takes the first value as it comes; it is retold in
three lines here rather than run. "Any plain `Callback`" is one that reads `trainer.callback_metrics` in
`on_train_epoch_end`: Lightning lets only its own early stopping and checkpoint classes see values that a module logs in
its own `on_train_epoch_end`. Ours acts on them before the next epoch's first step. The "plain restore-best callback"
copies `state_dict()` in `on_validation_end` and loads it in `on_train_end`.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    sys.path.insert(0, str(ROOT / "tests"))
    import lightning
    import torch
    from fault_scenarios import FAULTS

    rows = []
    for fault in FAULTS:
        theirs, ours, right = fault.run()
        rows.append({"what": fault.what, "peer": fault.peer, "theirs": theirs, "ours": ours, "right": ours == right})
    lines = [f"| {r['what']} | {r['peer']} | {r['theirs']} | {r['ours']} |" for r in rows]
    page = HEAD.format(lightning=lightning.__version__, torch=torch.__version__.split("+")[0])
    page += "\n".join(lines) + "\n" + FOOT
    if arguments.check:
        print("the page is as it should be" if PAGE.read_text() == page else "the page is out of date")
    else:
        PAGE.write_text(page)
    print(json.dumps({"benchmark": "stopping faults", "rows": len(rows), "ours right": sum(r["right"] for r in rows)}))


if __name__ == "__main__":
    main()
