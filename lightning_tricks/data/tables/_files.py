"""Tables from files: separator and decimal comma are found, the encoding is said."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from lightning_tricks._base import UserInputError, require_extra

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
PARQUET = (".parquet", ".pq")
HEAD = 2**16  # bytes from which the separator is told


def read_file(path: Path, encoding: str) -> tuple[Any, str | None]:
    """Return the data frame in a file, and ``"decimal"`` if its commas most likely come before decimals.

    Only empty fields are missing values: whether ``NA`` is one or a name is told from the rest of its column.

    Raises:
        UserInputError: if there is no such file, or it is no table or in another encoding.
    """
    suffix = path.suffix.lower()
    if suffix not in (*SEPARATORS, *PARQUET):
        raise UserInputError(f"a table must be a file ending in .csv, .tsv, .txt or .parquet, but got {path.name}.")
    if not path.is_file():
        raise UserInputError(f"there is no file {path}. Check the path (the working folder is {Path.cwd()}).")
    pandas = require_extra("pandas", "all", f"reading {path.name}")
    if suffix in PARQUET:
        require_extra("pyarrow", "all", f"reading {path.name}")
        return pandas.read_parquet(path), None
    try:
        separator = _separator(path, encoding, SEPARATORS[suffix])
        frame = pandas.read_csv(
            path, sep=separator, encoding=encoding, keep_default_na=False, na_values=[""], low_memory=False
        )
    except LookupError:
        raise UserInputError(f"there is no encoding {encoding!r}. Try 'utf-8' or 'latin-1'.") from None
    except UnicodeDecodeError as error:
        raise wrong_encoding(path, encoding, error) from None
    except pandas.errors.ParserError as error:
        raise UserInputError(f"{path} is not a table with a header and equally long rows: {error}.") from None
    except pandas.errors.EmptyDataError:
        raise UserInputError(f"{path} is empty.") from None
    return frame, "decimal" if separator == ";" else None


def wrong_encoding(path: Path, encoding: str, error: UnicodeDecodeError) -> UserInputError:
    """Return the sentence for a text file in another encoding."""
    return UserInputError(
        f"{path} is not {encoding} text: byte {error.object[error.start]:#04x} at {error.start} does not fit. "
        "Say its encoding, often encoding='latin-1' or 'cp1252', or save it as UTF-8."
    )


def find_separator(text: str, usual: str) -> str:
    r"""Return the separator that makes columns of the text: the usual one, or else ``;``, ``,``, tab or ``|``.

    Example:
        >>> find_separator("a;b\n1,5;2\n", ","), find_separator("a,b\n1,2\n", ",")
        (';', ',')
    """
    lines = [line for line in text.splitlines()[:50] if line.strip()]
    for separator in (usual, ";", ",", "\t", "|"):
        widths = {len(row) for row in csv.reader(lines, delimiter=separator)}
        if len(widths) == 1 and widths != {1}:
            return separator
    return usual


def _separator(path: Path, encoding: str, usual: str) -> str:
    with path.open("rb") as file:
        head = file.read(HEAD)
    text = head.decode(encoding, errors="replace")
    if len(head) == HEAD:
        text = text.rpartition("\n")[0]  # the last line may be cut off
    found = find_separator(text, usual)
    if found != usual:
        rank_zero_info(f"{path.name} is read with the separator {found!r}.")
    return found
