"""The example of the documentation: five folds of the digits, and what the driver adds to five plain trainings.

Run: ``python -m benchmarks.cross_validation``
"""

import gc
import json
import logging
import time
import warnings

import torch

import lightning_tricks as lt

OPTIONS = {"max_epochs": 20, "accelerator": "cpu", "devices": 1, "enable_model_summary": False}


def main() -> None:
    """Print the result and the CPU seconds."""
    start = time.process_time()
    data = lt.DigitsDataModule()
    result = lt.cross_validate(
        lambda: lt.Classifier(lt.MLP(64, 10, hidden_features=(64,)), num_classes=10),
        data,
        k=5,
        trainer=OPTIONS,
        progress=False,
    )
    total = time.process_time() - start
    start = time.process_time()
    gc.collect()
    collection = time.process_time() - start
    print(result)
    print(f"{total:.1f} s of CPU time; one garbage collection {collection:.2f} s")
    scores = {name: [result.mean(name), result.standard_error(name)] for name in result.metrics}
    print(json.dumps({"benchmark": "cross-validation of digits", "scores": scores, "cpu_s": total, "gc_s": collection}))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main()
