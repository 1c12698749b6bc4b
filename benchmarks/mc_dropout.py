"""What Monte-Carlo dropout costs: 100 samples against one plain forward, and against the plain loop.

Run: ``python -m benchmarks.mc_dropout``; with torch-uncertainty, lightning-uq-box or baal installed, they are
measured beside.
Single thread, CPU time, interleaved rounds. ``--rounds`` for ours, ``--peer-rounds`` for what takes 100 forwards.
"""

import argparse
import os
import resource

import torch
import torchvision
from torch import nn

from benchmarks.timing import interleaved, report
from lightning_tricks.uncertainty import MCEngine

SAMPLES = 100


def resnet():
    net = torchvision.models.resnet18(num_classes=10)
    net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, 10))
    return net.eval(), torch.randn(32, 3, 64, 64)


class Recurrent(nn.Module):
    """Embedding, two LSTM layers with dropout between, dropout, a linear layer on the last step."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        self.lstm = nn.LSTM(128, 128, 2, dropout=0.3, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128, 10))

    def forward(self, x):
        """Return logits (B, 10)."""
        return self.head(self.lstm(self.embed(x))[0][:, -1])


def transformer():
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval(), torch.randn(16, 64, 128)


def plain(net, x, chunk=None):
    with torch.no_grad():
        for part in x.split(chunk or len(x)):
            net(part)


def plain_loop(net, x, samples):
    """The usual recipe: dropout layers in training mode, the net run once per sample."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    with torch.no_grad():
        out = torch.stack([net(x) for _ in range(samples)])
    net.eval()
    return out


def engine(net, x, samples=SAMPLES, **options):
    run = MCEngine(net, samples=samples, seed=0, **options)
    run(x)  # finds, chooses and checks, once
    return lambda: run(x)


def peers(net, x, samples):
    """Return what is installed, with its own default and its own loop."""
    found = {}
    try:
        from torch_uncertainty.methods import mc_dropout

        for on_batch, name in ((True, "repeat"), (False, "loop")):
            wrapped = mc_dropout(net, num_estimators=samples, on_batch=on_batch).eval()
            found[f"torch-uncertainty, {name}"] = lambda wrapped=wrapped: no_grad(wrapped, x)
    except ImportError:
        pass
    try:
        from lightning_uq_box.uq_methods import MCDropoutClassification

        boxed = MCDropoutClassification(resnet()[0], num_mc_samples=samples, loss_fn=nn.CrossEntropyLoss())
        found["lightning-uq-box"] = lambda: boxed.predict_step(x)
    except ImportError:
        pass
    try:
        from baal.bayesian.dropout import MCDropoutModule

        patched = MCDropoutModule(resnet()[0]).eval()
        found["baal, loop"] = lambda: [no_grad(patched, x) for _ in range(samples)]
    except ImportError:
        pass
    return found


def no_grad(call, x):
    with torch.no_grad():
        return call(x)


def extra_memory(call, before):
    """Return by how many MB the peak of the resident memory grows, measured in a child process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        before()
        start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        call()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
        os.write(write, str(grown / 1024).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    with os.fdopen(read) as answer:
        os.close(write)
        return round(float(answer.read()), 1)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--peer-rounds", type=int, default=1)
    options.add_argument("--peer-samples", type=int, default=SAMPLES)
    options.add_argument("--only", choices=["head", "chunks", "peers", "deep", "many"])
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = resnet()
    if given.only in (None, "head"):
        independent, shared = engine(net, x), engine(net, x, masks="shared")
        memory = extra_memory(independent, lambda: [plain(net, x) for _ in range(3)])
        candidates = {"plain forward": lambda: plain(net, x), "independent masks": independent, "shared masks": shared}
        candidates["mc_forward, first call"] = lambda: MCEngine(net, samples=SAMPLES, seed=0)(x)
        times = interleaved(candidates, rounds=given.rounds)
        report("resnet18 with a dropout head, 100 samples", times, base="plain forward", extra_megabytes=memory)
    if given.only in (None, "chunks"):
        candidates = {
            "plain, chunks of 8": lambda: plain(net, x, 8),
            "independent, chunks of 8": engine(net, x, chunk_size=8),
        }
        times = interleaved(candidates, rounds=given.rounds)
        report("resnet18 in chunks of 8 rows, 100 samples", times, base="plain, chunks of 8")
    if given.only in (None, "peers"):
        n = given.peer_samples
        candidates = {"plain forward": lambda: plain(net, x), "plain loop": lambda: plain_loop(net, x, n)}
        candidates["independent masks"] = engine(net, x, n)
        times = interleaved({**candidates, **peers(net, x, n)}, rounds=given.peer_rounds, warm_up=0)
        report(f"resnet18 with a dropout head, other packages, {n} samples", times, base="plain forward")
    if given.only in (None, "deep"):
        deep = {"transformer": transformer(), "LSTM": (Recurrent().eval(), torch.randint(1000, (16, 64)))}
        for name, (model, batch) in deep.items():
            candidates = {
                "plain loop": lambda model=model, batch=batch: plain_loop(model, batch, 32),
                "independent masks": engine(model, batch, 32),
                "shared masks": engine(model, batch, 32, masks="shared"),
            }
            times = interleaved(candidates, rounds=given.rounds)
            report(f"{name} with dropout everywhere, 32 samples", times, base="plain loop")
    if given.only in (None, "many"):
        layers = nn.Dropout(0.05), nn.Linear(13, 50), nn.ReLU(), nn.Dropout(0.05), nn.Linear(50, 1)
        small, rows, n = nn.Sequential(*layers).eval(), torch.randn(81, 13), 10_000
        candidates = {
            "blocks of samples": engine(small, rows, n),
            "plain loop": lambda: plain_loop(small, rows, n),
            "engine='loop'": engine(small, rows, n, engine="loop"),
        }
        times = interleaved(candidates, rounds=given.peer_rounds)
        report("MLP 13-50-1 with dropout before both layers, 81 rows, 10,000 samples", times, base="blocks of samples")


if __name__ == "__main__":
    main()
