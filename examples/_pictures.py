"""What the picture scripts share: where the files go."""

import argparse
from pathlib import Path


def folder(description):
    """Return the folder that the command line names (``pictures`` by default), made if need be."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    path = parser.parse_args().out
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(figure, path):
    figure.savefig(path, dpi=110)
    print(path)
