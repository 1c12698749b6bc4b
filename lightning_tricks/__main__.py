"""``python -m lightning_tricks``: the same as the console script."""

import sys

from lightning_tricks.cli import main

if __name__ == "__main__":
    sys.exit(main())
