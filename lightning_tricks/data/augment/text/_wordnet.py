"""A small reader of WordNet's database files, as described in the manual page wndb(5)."""

from pathlib import Path

from lightning_tricks._base import UserInputError

_PARTS = ("noun", "verb", "adj", "adv")


class WordNet:
    """Synonyms out of the files ``index.POS`` and ``data.POS``: words that share a word's commonest sense.

    A word's part of speech is not known, so it is taken to be the one with the most senses that occur in WordNet's own
    annotated texts. Only base forms are found: an inflected word has no entry and so stays as it is.

    Args:
        folder: where the files are.

    Raises:
        UserInputError: if files are missing.

    Reference:
        Fellbaum (ed.) 1998, "WordNet: An electronic lexical database".
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        names = [f"{kind}.{part}" for part in _PARTS for kind in ("index", "data")]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise UserInputError(
                f"{self.folder} must hold WordNet's database files, but {', '.join(missing)} are missing. Install them "
                "(Debian: wordnet-base) or give the folder that they are in."
            )
        self._index: dict[str, list[tuple[int, str, int]]] | None = None
        self._found: dict[str, tuple[str, ...]] = {}  # a text's words come again and again

    def get(self, word: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the other words of the commonest sense, without those that the files do not know."""
        key = word.lower().replace(" ", "_")
        if key not in self._found:
            self._found[key] = self._look_up(key)
        return self._found[key] or default

    def _look_up(self, key: str) -> tuple[str, ...]:
        if self._index is None:
            self._index = self._read_index()
        senses = self._index.get(key)
        if not senses:
            return ()
        _, part, offset = max(senses, key=lambda sense: sense[0])  # the first of equals, in the order of _PARTS
        members = dict.fromkeys(self._members(part, offset))
        return tuple(member for member in members if member.lower().replace(" ", "_") != key)

    def _read_index(self) -> dict[str, list[tuple[int, str, int]]]:
        """Return for each word and part of speech how many senses are attested, and where the commonest stands."""
        index: dict[str, list[tuple[int, str, int]]] = {}
        for part in _PARTS:
            with (self.folder / f"index.{part}").open(encoding="utf-8") as lines:
                for line in lines:
                    if line.startswith("  "):  # the licence
                        continue
                    # lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt offset [offset...]
                    fields = line.split()
                    after = 4 + int(fields[3])
                    index.setdefault(fields[0], []).append((int(fields[after + 1]), part, int(fields[after + 2])))
        return index

    def _members(self, part: str, offset: int) -> list[str]:
        """Return the words of the sense whose line starts at a byte of a data file."""
        with (self.folder / f"data.{part}").open("rb") as file:
            file.seek(offset)
            fields = file.readline().decode("utf-8").split()
        # offset lex_filenum ss_type w_cnt(hexadecimal) word lex_id [word lex_id...] ...
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        # An adjective may end in a syntactic marker: "galore(ip)".
        return [word.partition("(")[0].replace("_", " ") for word in words]
