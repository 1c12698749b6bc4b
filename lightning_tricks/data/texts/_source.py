"""Texts: tokens, a vocabulary, and reading them from files in a known encoding."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment import WordDropout
from lightning_tricks.data.tables._files import SEPARATORS, find_separator, wrong_encoding

PADDING, UNKNOWN = "<pad>", "<unk>"  # codes 0 and 1
Tokenize = Callable[[str], list[str]]


def words(text: str) -> list[str]:
    """Return lower-case words and single punctuation marks.

    Example:
        >>> words("Don't panic!")
        ['don', "'", 't', 'panic', '!']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def build_vocabulary(texts: Iterable[Sequence[str]], *, size: int | None = None, min_count: int = 1) -> list[str]:
    """Return the tokens by code: padding, unknown, then the most frequent first, ties in alphabetical order.

    Example:
        >>> build_vocabulary([["b", "a"], ["b"]])
        ['<pad>', '<unk>', 'b', 'a']
    """
    counts = Counter(token for text in texts for token in text)
    ranked = sorted((token for token, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))
    ranked = [token for token in ranked if token not in (PADDING, UNKNOWN)]
    return [PADDING, UNKNOWN, *(ranked if size is None else ranked[: max(0, size - 2)])]


class RawTexts:
    """Texts before a vocabulary is learnt from them.

    Args:
        texts: the texts.
        labels: ``int64 (N,)``, or None if they are not known.
        tokenize: from text to tokens.
        max_length: tokens kept of each text.
    """

    def __init__(self, texts: Sequence[str], labels: Tensor | None, tokenize: Tokenize, max_length: int) -> None:
        self.texts = texts
        self.labels = labels
        self.tokenize = tokenize
        self.max_length = max_length
        self.code: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text that are kept."""
        return self.tokenize(text)[: self.max_length]

    def codes(self, text: str) -> Tensor:
        """Return the codes of a text, at least one."""
        return torch.tensor([self.code.get(token, 1) for token in self.tokens(text)] or [1])


class ChangedTexts(RawTexts):
    """Texts that are changed (augmented) whenever they are read.

    Args:
        texts: the texts, with a vocabulary.
        change: ``change(text, index=row, epoch=epoch) -> str``.
    """

    def __init__(self, texts: RawTexts, change: Callable[..., str]) -> None:
        super().__init__(texts.texts, texts.labels, texts.tokenize, texts.max_length)
        self.code = texts.code
        self.change = change

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return codes ``int64 (B, L)``, padded with 0 to the longest text, and classes ``int64 (B,)`` if known."""
        codes = [self.codes(self.change(self.texts[row], index=row, epoch=epoch)) for row in rows]
        return _with_labels(codes, self.labels, rows)


class EncodedTexts:
    """All texts as codes, one behind the other in a single tensor: small, and shared with forked workers.

    Args:
        texts: the texts, with a vocabulary.
    """

    def __init__(self, texts: RawTexts) -> None:
        codes = [texts.codes(text).to(torch.int32) for text in texts.texts]
        self.lengths = [len(code) for code in codes]
        self.ends = torch.tensor(self.lengths).cumsum(0).tolist()
        self.flat = torch.cat(codes)
        self.labels = texts.labels

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return codes ``int64 (B, L)``, padded with 0 to the longest text, and classes ``int64 (B,)`` if known."""
        codes = [self.flat[self.ends[row] - self.lengths[row] : self.ends[row]].long() for row in rows]
        return _with_labels(codes, self.labels, rows)


class DropWords:
    """Make some tokens of a batch unknown, where it is read.

    Args:
        drop: which ones, by row and epoch.
    """

    def __init__(self, drop: WordDropout) -> None:
        self.drop = drop

    def __call__(self, batch: tuple[Tensor, Tensor], rows: list[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return the batch with new codes."""
        codes, labels = batch
        return self.drop(codes, index=torch.as_tensor(rows), epoch=epoch), labels


def _with_labels(codes: list[Tensor], labels: Tensor | None, rows: Sequence[int]) -> tuple[Tensor, ...]:
    padded = pad_sequence(codes, batch_first=True)
    return (padded,) if labels is None else (padded, labels[torch.as_tensor(rows)])


def read_pairs(
    path: str | Path, *, text: str | int, label: str | int, header: bool, encoding: str
) -> tuple[list[str], list[str]]:
    """Return texts and labels of a CSV or TSV file.

    Raises:
        UserInputError: if the file is missing, in another encoding, or a line lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise UserInputError(f"there is no file {path}. Check the path (the working folder is {Path.cwd()}).")
    separator = SEPARATORS.get(path.suffix.lower())
    if separator is None:
        raise UserInputError(f"a text file must end in {', '.join(SEPARATORS)}, but got {path.name}.")
    try:  # a byte order mark is no part of the first column's name
        content = path.read_bytes().decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        raise wrong_encoding(path, encoding, error) from None
    except LookupError:
        raise UserInputError(f"there is no encoding {encoding!r}. Try 'utf-8' or 'latin-1'.") from None
    rows = content.splitlines(keepends=True)
    if rows and separator not in rows[0]:
        separator = find_separator("".join(rows[:50]), separator)
    # In tab-separated files quotation marks are usually part of the text.
    reader = csv.reader(rows, delimiter=separator, quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL)
    lines = [line for line in reader if line]
    if len(lines) <= header:
        raise UserInputError(f"{path} has no line of text.")
    names = lines[0] if header else [str(i) for i in range(len(lines[0]))]
    columns = [_column(name, names, path) for name in (text, label)]
    pairs = []
    for number, line in enumerate(lines[header:], start=1 + header):
        if len(line) <= max(columns):
            raise UserInputError(
                f"every line needs {max(columns) + 1} columns, but line {number} of {path} has {len(line)}: "
                f"{line[0][:40]!r}. Check the separator ({separator!r}) and the quotation marks."
            )
        pairs.append((line[columns[0]], line[columns[1]]))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _column(name: str | int, names: Sequence[str], path: Path) -> int:
    if isinstance(name, int) and 0 <= name < len(names):
        return name
    if name in names:
        return names.index(str(name))
    raise UserInputError(f"there is no column {name!r} in {path}. Its columns are: {', '.join(names)}.")
