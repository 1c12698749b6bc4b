"""Words and what lies between them, so that a changed text keeps its case and punctuation."""

import re
from collections.abc import Iterable, Sequence

# A word starts and ends with a letter or digit and may hold apostrophes and hyphens: "don't", "well-known".
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Function words that carry the grammar rather than the topic: replacing them breaks a sentence and adds nothing.
STOP_WORDS = _listed(
    """
    a about above after again against all am an and any are as at be because been before being below between both
    but by can cannot could did do does doing down during each few for from further had has have having he her here
    hers herself him himself his how i if in into is it its itself just me more most my myself no nor not now of off
    on once only or other our ours ourselves out over own same she should so some such than that the their theirs
    them themselves then there these they this those through to too under until up very was we were what when where
    which while who whom why will with would you your yours yourself yourselves
    """
)

# Without one of these a text may mean the opposite.
NEGATIONS = _listed(
    """
    aren't can't cannot couldn't didn't doesn't don't hadn't hardly hasn't haven't isn't neither never no nobody
    none nor not nothing nowhere shouldn't wasn't weren't without won't wouldn't
    """
)


class Words:
    """A text as words and the gaps around them: gap, word, gap, word, ..., gap.

    Example:
        >>> words = Words.of("Well, hello!")
        >>> words.words, words.gaps
        (['Well', 'hello'], ['', ', ', '!'])
        >>> words.words[1] = "goodbye"
        >>> words.text()
        'Well, goodbye!'
    """

    def __init__(self, words: Sequence[str], gaps: Sequence[str]) -> None:
        self.words = list(words)
        self.gaps = list(gaps)

    @classmethod
    def of(cls, text: str) -> "Words":
        """Take a text apart."""
        found = list(_WORD.finditer(text))
        ends = [0, *(match.end() for match in found)]
        starts = [*(match.start() for match in found), len(text)]
        gaps = [text[end:start] for end, start in zip(ends, starts, strict=True)]
        return cls([match.group() for match in found], gaps)

    def text(self) -> str:
        """Put the text together again."""
        pairs = zip(self.gaps, [*self.words, ""], strict=True)
        return "".join(gap + word for gap, word in pairs)

    def insert(self, at: int, word: str) -> None:
        """Put a word before the one at ``at``, with a space on the side where its neighbour is."""
        if at < len(self.words):  # "(old" becomes "(new old": what precedes the neighbour precedes the new word
            self.gaps[at : at + 1] = [self.gaps[at], " "]
        else:  # "old." becomes "old new."
            self.gaps[at : at + 1] = [" " if at else self.gaps[at], self.gaps[at] if at else ""]
        self.words.insert(at, word)

    def delete(self, at: int) -> None:
        """Take a word out, and one of the two spaces that would meet."""
        left, right = self.gaps[at], self.gaps[at + 1]
        if left.endswith(" ") and (right.startswith(" ") or not right.strip() or right[0] in ",.;:!?)"):
            left = left[:-1]
        elif at == 0 and not left:
            right = right.lstrip(" ")
        self.gaps[at : at + 2] = [left + right]
        del self.words[at]


def like(word: str, model: str) -> str:
    """Return ``word`` in the case of ``model``: lower, Capitalised or UPPER; otherwise as it is.

    Example:
        >>> like("automobile", "Car"), like("automobile", "CARS"), like("USA", "america")
        ('Automobile', 'AUTOMOBILE', 'USA')
    """
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def capitalised(word: str) -> bool:
    """Return whether only the first letter is a capital, as at the start of a sentence."""
    return word[:1].isupper() and (len(word) == 1 or word[1:].islower())


def uncapitalised(word: str) -> str:
    """Return a capitalised word in lower case; "I" and its kin stay."""
    return word if word == "I" or re.match("I['\u2019]", word) else word[:1].lower() + word[1:]


def checked_stop_words(words: Iterable[str] | None) -> frozenset[str]:
    """Return stop words in lower case, the usual English ones if none are given."""
    return STOP_WORDS if words is None else frozenset(word.lower() for word in words)
