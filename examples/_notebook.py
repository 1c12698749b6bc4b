"""Write 01_train_a_classifier.ipynb, with its outputs: the first example, cell by cell.

Run: python examples/_notebook.py

Needs no Jupyter. The cells run here in order, as they would there; what they print, and the value of a cell's last
line, become the outputs.
"""

import ast
import base64
import io
import json
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from matplotlib.figure import Figure

TARGET = Path(__file__).with_name("01_train_a_classifier.ipynb")
CELLS = [
    (
        "markdown",
        """# Train a classifier with the course's advice

1,797 real handwritten digits that scikit-learn ships; no download. As a script:
[01_train_a_classifier.py](01_train_a_classifier.py).""",
    ),
    (
        "code",
        """%matplotlib inline
import lightning as L
import torch

import lightning_tricks as lt""",
    ),
    (
        "markdown",
        """## The data

60 % for training, 20 % for validation, 20 % for the test, by class; standardised by the training part.""",
    ),
    (
        "code",
        """L.seed_everything(0, verbose=False)
data = lt.DigitsDataModule(batch_size=64, seed=0)
data.setup("fit")
x, y = next(iter(data.val_dataloader()))
x.shape, y.shape, data.num_classes""",
    ),
    (
        "markdown",
        """## The model, and a look before training

`lt.check` tries copies of the model out on a few samples.""",
    ),
    (
        "code",
        """net = lt.MLP(64, 10, hidden_features=(128, 128), dropout=0.5)
model = lt.Classifier(net, num_classes=10, optimizer="adam", lr=3e-3, weight_decay=1e-4)
print(lt.check(model, data))""",
    ),
    (
        "markdown",
        """## Train

The recipe initialises by what follows each layer, lowers the learning rate when the loss stagnates, stops early and
puts the best weights back, watches the norms, and makes resuming exact.""",
    ),
    (
        "code",
        """class History(L.Callback):
    def __init__(self):
        self.curves = {"train_loss": [], "val_loss": []}

    def on_train_epoch_end(self, trainer, pl_module):
        for name, curve in self.curves.items():
            curve.append((trainer.current_epoch, float(trainer.callback_metrics[name])))


history = History()
callbacks = lt.recipe("val_loss", patience=12)
trainer = L.Trainer(
    max_epochs=60,
    callbacks=[*callbacks, history],
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, data)
init, plateau, stopping, norms, resume = callbacks
print(stopping.message)""",
    ),
    (
        "code",
        """from lightning_tricks.plots import learning_curves

learning_curves(
    history.curves,
    best_epoch=stopping.best_epoch,
    lr_drops=[(drop.epoch, drop.new_lr) for drop in plateau.reductions],
    ylabel="loss (nats)",
)""",
    ),
    ("markdown", "How large were the updates, compared with the weights? Around a thousandth is usual."),
    ("code", """norms.plot("updates")"""),
    ("markdown", "## Test, and ask how sure it is\n\nDropout stays on, and 100 passes are summarised."),
    (
        "code",
        """(scores,) = trainer.test(model, data, verbose=False)
batches = trainer.predict(lt.MCDropoutPredictor(model, samples=100, seed=0), data)
entropy = torch.cat([batch["entropy"] for batch in batches])
answer = torch.cat([batch["label"] for batch in batches])
pictures, labels = (torch.cat(part) for part in zip(*data.test_dataloader(), strict=True))
print(f"accuracy {scores['test_acc']:.3f} without, {(answer == labels).float().mean():.3f} with dropout on")
right, wrong = (entropy[where].mean() for where in (answer == labels, answer != labels))
print(f"entropy where it is right {right:.2f}, wrong {wrong:.2f}")""",
    ),
    (
        "code",
        """from lightning_tricks.plots import most_uncertain_pictures

most_uncertain_pictures(
    pictures, entropy, labels=labels.tolist(), predictions=answer.tolist(), name="entropy (nats)"
)""",
    ),
]


def run(cells):
    """Run the code cells in one namespace and return the notebook."""
    namespace, out = {"__name__": "__main__"}, []
    for number, (kind, source) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(source)}
        if kind == "code":
            cell |= {"execution_count": len([c for c in out if c["cell_type"] == "code"]) + 1}
            cell |= {"outputs": _execute(source, namespace, cell["execution_count"])}
        out.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": out, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _execute(source, namespace, count):
    code = "\n".join(line for line in source.split("\n") if not line.startswith("%"))
    *statements, last = ast.parse(code).body
    printed, value = io.StringIO(), None
    with redirect_stdout(printed), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not isinstance(last, ast.Expr):
            statements, last = [*statements, last], None
        exec(compile(ast.Module(statements, []), "cell", "exec"), namespace)  # noqa: S102
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)  # noqa: S307
    text, outputs = _lines(printed.getvalue()), []
    if text:
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": _data(value)}
        )
    return outputs


def _data(value):
    if not isinstance(value, Figure):
        return {"text/plain": _lines(repr(value))}
    png = io.BytesIO()
    value.savefig(png, format="png", dpi=80)
    return {"image/png": base64.b64encode(png.getvalue()).decode(), "text/plain": ["<Figure>"]}


def _lines(text):
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    TARGET.write_text(json.dumps(run(CELLS), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
