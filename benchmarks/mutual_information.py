"""How much of the mutual information T passes see, with and without the correction, against a closed form.

python -m benchmarks.mutual_information
"""

import json
import time

import torch
from torch.distributions import Categorical, Dirichlet

from lightning_tricks import uncertainty as u


def truth(alpha: torch.Tensor) -> float:
    """Return H[mean] - E[H] of a Dirichlet, in nats (Malinin & Gales 2018, equation 14)."""
    mean, total = alpha / alpha.sum(), alpha.sum()
    expected = -(mean * (torch.digamma(alpha + 1) - torch.digamma(total + 1))).sum()
    return (Categorical(mean).entropy() - expected).item()


def cost(samples: int = 100) -> dict[str, float]:
    """Return CPU milliseconds for one batch of 32 rows and 10 classes."""
    probs = torch.rand(samples, 32, 10).softmax(2)

    def everything() -> dict[str, torch.Tensor]:
        stream = u.SampleStream("multiclass")
        stream.update(probs)
        return stream.compute()

    everything()
    start = time.process_time()
    for _ in range(100):
        everything()
    return {"ms_per_batch": (time.process_time() - start) * 10}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    alpha = torch.tensor([5.0, 3.0, 2.0], dtype=torch.float64)
    rows = []
    print("| T | plug-in | corrected |\n|---|---|---|")
    for samples in (2, 4, 8, 16, 32):
        drawn = Dirichlet(alpha).sample((samples, 2_000_000 // samples))
        plug_in, ours = (
            u.mutual_information(drawn, correct_bias=fix).mean().item() / truth(alpha) - 1 for fix in (False, True)
        )
        rows.append({"samples": samples, "plug_in": round(plug_in, 4), "corrected": round(ours, 4)})
        print(f"| {samples} | {plug_in:+.1%} | {ours:+.1%} |")
    print(json.dumps({"benchmark": "mutual_information", "rows": rows, **cost()}))


if __name__ == "__main__":
    main()
