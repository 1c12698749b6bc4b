"""Watch gradients, updates and activations layer by layer, in a net that cannot learn and in one that can.

Run: python examples/02_watch_the_norms.py [--out pictures] [--quick]

Both nets have ten hidden layers. The first is what people wrote before they knew better: sigmoids, weights from
N(0, 0.1²), plain SGD. The second has ReLUs and is initialised by what follows each layer.
"""

import lightning as L
from _pictures import options, save

import lightning_tricks as lt


def main(out, quick=False):
    vanishing, _ = train("sigmoid", lt.WeightInit("normal", only_new=False, std=0.1), quick)
    healthy, activations = train("relu", lt.WeightInit("auto"), quick)
    save(vanishing.plot(), out / "gradients_sigmoid.png")
    save(healthy.plot(), out / "gradients_relu.png")
    save(healthy.plot("updates"), out / "updates_relu.png")
    save(activations.plot(), out / "activations_relu.png")
    for name, monitor in (("sigmoid", vanishing), ("ReLU", healthy)):
        rows = [*zip(*(monitor.table()[column] for column in ("step", "layer", "gradient_norm")), strict=True)]
        last = [norm for step, layer, norm in rows if step == rows[-1][0] and layer != "(total)"]
        print(f"{name}: gradient norms at the end, first layer to last:", " ".join(f"{norm:.1e}" for norm in last))
    return vanishing, healthy


def train(activation, init, quick):
    L.seed_everything(0, verbose=False)
    net = lt.MLP(64, 10, hidden_features=(64,) * 10, activation=activation, norm="none")
    model = lt.Classifier(net, num_classes=10, optimizer="sgd", lr=0.05)
    norms, activations = lt.NormMonitor(every_n_steps=10), lt.ActivationMonitor(every_n_steps=10)
    trainer = L.Trainer(
        max_epochs=1 if quick else 15,
        callbacks=[init, norms, activations],
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(model, lt.DigitsDataModule())
    return norms, activations


if __name__ == "__main__":
    main(**options(__doc__))
