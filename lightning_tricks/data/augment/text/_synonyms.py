"""Where synonyms come from: a dictionary, a TSV or JSON file, or WordNet's own database files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment.text._wordnet import WordNet


class Synonyms:
    """Synonyms of words, looked up in lower case.

    Args:
        table: each word with the words that may stand for it.

    Example:
        >>> synonyms = Synonyms({"film": ["movie", "picture"], "good": ["fine"]})
        >>> synonyms["Film"], synonyms["unknown"]
        (('movie', 'picture'), ())
    """

    def __init__(self, table: Mapping[str, Iterable[str]]) -> None:
        clean: dict[str, tuple[str, ...]] = {}
        for word, others in table.items():
            if isinstance(others, str) or not all(isinstance(other, str) for other in others):
                raise UserInputError(
                    f"synonyms must be lists of words, but {word!r} has {others!r}. Write {{'film': ['movie']}}."
                )
            kept = tuple(dict.fromkeys(other for other in others if other and other.lower() != word.lower()))
            clean[word.lower()] = kept
        self._table: Mapping[str, tuple[str, ...]] | WordNet = clean

    def __getitem__(self, word: str) -> tuple[str, ...]:
        return self._table.get(word.lower(), ())

    @classmethod
    def from_tsv(cls, path: str | Path) -> "Synonyms":
        """Read one word per line, its synonyms behind it, separated by tabs (UTF-8).

        Raises:
            UserInputError: if the file is not UTF-8, or a line holds no synonym.
        """
        table: dict[str, list[str]] = {}
        for number, line in enumerate(_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            word, *others = (part.strip() for part in line.split("\t"))
            if not word or not any(others):
                raise UserInputError(
                    f"{path}, line {number}: expected a word, a tab and its synonyms separated by tabs, "
                    f"but got {line!r}."
                )
            table.setdefault(word, []).extend(others)
        return cls(table)

    @classmethod
    def from_json(cls, path: str | Path) -> "Synonyms":
        """Read an object of lists: ``{"film": ["movie", "picture"]}`` (UTF-8).

        Raises:
            UserInputError: if the file is not UTF-8, not JSON, or something else than such an object.
        """
        try:
            table = json.loads(_text(path))
        except json.JSONDecodeError as error:
            raise UserInputError(f"{path} is not JSON: {error}. Expected an object of lists of words.") from None
        if not isinstance(table, dict) or not all(isinstance(others, list) for others in table.values()):
            raise UserInputError(f'{path} must hold an object of lists, such as {{"film": ["movie"]}}.')
        return cls(table)

    @classmethod
    def from_wordnet(cls, folder: str | Path = "/usr/share/wordnet") -> "Synonyms":
        """Look words up in WordNet's database files (``index.noun``, ``data.noun``, ...); nothing is downloaded.

        Debian and Ubuntu bring them in the package ``wordnet-base``.

        Raises:
            UserInputError: if the files are not there.
        """
        synonyms = cls({})
        synonyms._table = WordNet(folder)
        return synonyms


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserInputError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#x} at position {error.start}. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise UserInputError(f"cannot read the synonyms in {path}: {error.strerror}.") from None
