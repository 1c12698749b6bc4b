"""Train on several devices with DDP: on all GPUs if there are two or more, else in two processes on the CPU.

Run: python examples/08_multi_gpu.py [--out pictures] [--quick]

Nothing changes but the Trainer's arguments. The processes agree on the best value, on each reduction of the learning
rate and on the end; no test sample is counted twice.
"""

import lightning as L
import torch
from _pictures import options, save
from lightning.pytorch.utilities import rank_zero_only

import lightning_tricks as lt


def main(out, quick=False):
    L.seed_everything(0, verbose=False)
    gpus = torch.cuda.device_count()
    model = lt.Classifier(lt.MLP(64, 10, hidden_features=(128,), dropout=0.3), num_classes=10, lr=1e-2)
    callbacks = lt.recipe("val_loss", patience=4)
    trainer = L.Trainer(
        accelerator="gpu" if gpus > 1 else "cpu",
        devices=gpus if gpus > 1 else 2,
        strategy="ddp",  # gloo on the CPU, NCCL on GPUs
        max_epochs=1 if quick else 15,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, data := lt.DigitsDataModule(batch_size=32))
    (scores,) = trainer.test(model, data)
    stopping = next(callback for callback in callbacks if isinstance(callback, lt.EarlyStopping))
    norms = next(callback for callback in callbacks if isinstance(callback, lt.NormMonitor))
    print(f"process {trainer.global_rank} of {trainer.world_size}: best val_loss {stopping.best_score:.6f}")
    rank_zero_only(save)(norms.plot("updates"), out / "updates.png")
    return float(stopping.best_score), scores["test_acc"]


if __name__ == "__main__":
    main(**options(__doc__))
