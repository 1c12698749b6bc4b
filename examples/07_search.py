"""Search learning rate, width and dropout from coarse to fine; train the best again; test the winner only.

Run: python examples/07_search.py [--out pictures] [--quick]

Each training is a process of its own. Killed and called again, the search goes on where it was, so an old folder is
removed first.
"""

import shutil

from _pictures import options, save

import lightning_tricks as lt


def make_model(lr, width, dropout):
    net = lt.MLP(64, 10, hidden_features=(width,), dropout=dropout)
    return lt.Classifier(net, num_classes=10, optimizer="sgd", lr=lr)


def main(out, quick=False):
    folder = out / "search"
    shutil.rmtree(folder, ignore_errors=True)
    result = lt.search(
        make_model,
        lt.DigitsDataModule(batch_size=64),
        {
            "lr": lt.Float(1e-5, 10, log=True, window=(1e-3, 1e-1)),
            "width": lt.Int(8, 128, log=True),
            "dropout": lt.Float(0, 0.8),
        },
        trials=2 if quick else 20,
        method="coarse_to_fine",
        monitor="val_loss",
        trainer_kwargs={"max_epochs": 1 if quick else 5, "accelerator": "cpu"},
        folder=folder,
        retrain=0 if quick else 2,
        retrain_seeds=2,
    )
    print(result.explain())
    for name, figure in result.pictures().items():
        save(figure, out / f"{name}.png")
    return result


if __name__ == "__main__":
    main(**options(__doc__))
