"""What the examples share: their command line, and where the pictures go."""

import argparse
from pathlib import Path


def options(description):
    """Return ``out`` and ``quick`` as the command line names them."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs; not for its numbers")
    return vars(parser.parse_args())


def save(figure, path):
    """Write the figure, make its folder if need be, and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)
