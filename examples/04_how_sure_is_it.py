"""How sure is it? Leave dropout on, sample, and look at where the net doubts.

Run: python examples/04_how_sure_is_it.py [--out pictures] [--quick]

A net learns upright digits and is then shown digits turned by 60 degrees, which it has never seen.
"""

import lightning as L
import torch
from _pictures import options, save
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import rotate

import lightning_tricks as lt
from lightning_tricks import plots
from lightning_tricks.uncertainty import calibration_bins, uncertainty_auroc


def main(out, quick=False):
    L.seed_everything(0, verbose=False)
    data = lt.DigitsDataModule()
    net = lt.MLP(64, 10, hidden_features=(256, 256), norm="none", dropout=0.5)
    model = lt.Classifier(net, num_classes=10, lr=1e-3)
    trainer = L.Trainer(
        max_epochs=2 if quick else 30,
        callbacks=lt.recipe("val_loss"),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, data)

    upright, labels = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
    predictor = lt.MCDropoutPredictor(model, samples=10 if quick else 100, seed=0)
    known = predict(trainer, predictor, upright)
    foreign = predict(trainer, predictor, rotate(upright, 60, fill=float(upright.min())))

    plain = model.eval()(upright).softmax(-1).detach()
    groups = [bins(plain, labels), bins(known["mean"], labels)]
    save(plots.reliability_diagram(*groups, labels=["dropout off", "dropout on"]), out / "reliability.png")
    doubt = {"upright": known["mutual_info"], "turned by 60°": foreign["mutual_info"]}
    save(plots.uncertainty_histogram(doubt, name="mutual information (nats)"), out / "doubt.png")
    figure = plots.most_uncertain_pictures(
        upright,
        known["entropy"],
        labels=labels.tolist(),
        predictions=known["label"].tolist(),
        name="entropy (nats)",
    )
    save(figure, out / "most_uncertain.png")

    is_foreign = torch.cat([torch.zeros(len(upright)), torch.ones(len(upright))]).bool()
    auroc = float(uncertainty_auroc(torch.cat([*doubt.values()]), is_foreign))
    accuracy = float((known["label"] == labels).float().mean())
    print(f"accuracy {accuracy:.3f}; its doubt tells turned digits from upright ones with AUROC {auroc:.3f}")
    return accuracy, auroc


def predict(trainer, predictor, pictures):
    batches = trainer.predict(predictor, DataLoader(TensorDataset(pictures), batch_size=128))
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def bins(probabilities, labels):
    confidence, answer = probabilities.max(-1)
    return calibration_bins(confidence, answer == labels)


if __name__ == "__main__":
    main(**options(__doc__))
