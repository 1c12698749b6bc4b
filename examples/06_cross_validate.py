"""Cross-validate a regression on few data: every row is predicted by a model that has not seen it.

Run: python examples/06_cross_validate.py [--out pictures] [--quick]

442 patients, ten measurements each, and how far their diabetes went within a year (scikit-learn ships them). Scales are
learnt from each fold's training rows only; the test part stays out of all folds.
"""

import torch
from _pictures import options, save
from sklearn.datasets import load_diabetes

import lightning_tricks as lt
from lightning_tricks.plots import COLORS, new_figure


def main(out, quick=False):
    x, y = load_diabetes(return_X_y=True, scaled=False)
    data = lt.TabularDataModule(x, y, batch_size=32, seed=0)
    result = lt.cross_validate(
        make_model,
        data,
        k=2 if quick else 5,
        trainer_kwargs={"max_epochs": 1 if quick else 30, "accelerator": "cpu"},
    )
    print(result)
    predicted = data.inverse_target(result.predictions).squeeze(-1)
    truth = torch.from_numpy(y)[result.rows].float()
    save(picture(truth, predicted, result), out / "out_of_fold.png")
    return result


def make_model():
    return lt.Regressor(lt.MLP(10, 1, hidden_features=(32,), dropout=0.2), lr=3e-3, weight_decay=1e-2)


def picture(truth, predicted, result):
    figure, axes = new_figure(columns=2, width=9, height=3.8, width_ratios=(1.2, 1))
    axes[0].plot(truth, predicted, "o", color=COLORS[0], markersize=3, alpha=0.6)
    axes[0].plot([25, 350], [25, 350], color="0.5", linewidth=1, linestyle="--", label="exact")
    axes[0].set(xlabel="progression after a year", ylabel="predicted by a model that did not see the row")
    axes[0].legend(fontsize=8, frameon=False)
    scores = result.scores("val_rmse")
    axes[1].bar(range(1, len(scores) + 1), scores, color=COLORS[4])
    mean, error = result.mean("val_rmse"), result.standard_error("val_rmse")
    axes[1].axhline(mean, color=COLORS[0], label=f"mean {mean:.3f} ± {error:.3f}")
    axes[1].set(xlabel="fold", ylabel="val_rmse (standard deviations)", xticks=range(1, len(scores) + 1))
    axes[1].set_ylim(0, 1.2 * max(scores))
    axes[1].legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    main(**options(__doc__))
