"""What the tests of the command line share: arguments for a small net on the digits, and a quiet trainer."""

DATA = ["--data", "DigitsDataModule"]
NET = ["--model.net=lightning_tricks.MLP", "--model.net.in_features=64", "--model.net.num_classes=10"]
MODEL = ["--model=Classifier", *NET, "--model.net.dropout=0.3", "--model.num_classes=10"]
QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
ONE_EPOCH = ["--trainer.max_epochs=1"]
CSV = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.name=run"]
EVERYTHING = [*MODEL, *DATA, *QUIET]
