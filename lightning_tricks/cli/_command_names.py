"""The commands that train, test or predict, and what each does."""

# Those that are run by LightningCLI; the parser here only names them.
TRAINER_COMMANDS = {
    "fit": "train, with the course's advice unless --tricks says otherwise",
    "validate": "measure on the validation set",
    "test": "measure on the test set",
    "predict": "predict with Monte-Carlo dropout into a file",
    "check": "look for what is wrong with a model and its data before training",
    "tune": "search hyperparameters",
}
