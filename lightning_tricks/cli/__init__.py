"""The command line: parse, call the library, print."""

from lightning_tricks.cli._main import main as main
