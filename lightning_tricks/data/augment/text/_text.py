"""Augment texts: synonyms, insertion, swap and deletion of words, and dropout of token ids, keyed by sample."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from jaxtyping import Int64
from torch import Tensor

from lightning_tricks._base import UserInputError, check_range
from lightning_tricks.data.augment._keys import Draws, sample_keys, uniforms
from lightning_tricks.data.augment.text._synonyms import Synonyms
from lightning_tricks.data.augment.text._words import (
    NEGATIONS,
    Words,
    capitalised,
    checked_stop_words,
    like,
    uncapitalised,
)


class TextOp(ABC):
    """Changes the words of a text in place."""

    @abstractmethod
    def apply(self, words: Words, draws: Draws) -> None:
        """Change ``words``; random only through ``draws``."""


class TextAugment:
    """Augment one text by its own reproducible draw; the label stays what it was.

    The result depends on the seed, the epoch, the text's index in the dataset and the operations: not on workers, order
    or rank, and no global random stream is read or moved.

    Args:
        ops: operations, applied in order.
        seed: of all draws.
        p: probability that a text is changed at all in an epoch.

    Reference:
        Wei & Zou 2019, "EDA: Easy data augmentation techniques for boosting performance on text classification tasks".

    Example:
        >>> augment = TextAugment([SynonymReplacement({"film": ["movie"]})], p=1.0)
        >>> augment("Film of the year!", index=0, epoch=0)
        'Movie of the year!'
    """

    def __init__(self, ops: Sequence[TextOp], *, seed: int = 0, p: float = 0.5) -> None:
        for op in ops:
            if not isinstance(op, TextOp):
                raise UserInputError(f"TextAugment takes operations such as SynonymReplacement(...), but got {op!r}.")
        self.ops = tuple(ops)
        self.seed = int(seed)
        self.p = check_range("p", p, low=0, high=1)

    def __call__(self, text: str, *, index: int, epoch: int) -> str:
        """Return the text as this sample sees it in this epoch.

        Args:
            text: any string.
            index: the sample's position in its dataset.
            epoch: the number of the epoch.
        """
        if not isinstance(text, str):
            raise UserInputError(f"a text must be a str, but got {type(text).__name__}.")
        draws = Draws(self.seed, epoch, index)
        if draws.uniform() >= self.p:
            return text
        words = Words.of(text)
        for op in self.ops:
            op.apply(words, draws)
        return words.text()


class SynonymReplacement(TextOp):
    """Replace some words by synonyms, in the same case.

    Args:
        synonyms: a dictionary of lists, or :class:`Synonyms` from a file or from WordNet.
        alpha: share of the words to replace, rounded, but at least one.
        stop_words: words that stay; the usual English function words if not given.

    Example:
        >>> op = SynonymReplacement({"good": ["fine"]})
        >>> words = Words.of("Good, GOOD!")
        >>> op.apply(words, Draws(0, 0, 0)); op.apply(words, Draws(0, 0, 1))
        >>> words.text()
        'Fine, FINE!'
    """

    def __init__(
        self,
        synonyms: Synonyms | dict[str, list[str]],
        *,
        alpha: float = 0.1,
        stop_words: Iterable[str] | None = None,
    ) -> None:
        self.synonyms = synonyms if isinstance(synonyms, Synonyms) else Synonyms(synonyms)
        self.alpha = check_range("alpha", alpha, low=0, high=1)
        self.stop_words = checked_stop_words(stop_words)

    def apply(self, words: Words, draws: Draws) -> None:
        """Replace."""
        for place in draws.sample(self.places(words), share(self.alpha, words)):
            words.words[place] = self.drawn(words.words[place], draws)

    def places(self, words: Words) -> list[int]:
        """Return where words stand that may be replaced."""
        return [
            place
            for place, word in enumerate(words.words)
            if word.lower() not in self.stop_words and self.synonyms[word]
        ]

    def drawn(self, word: str, draws: Draws) -> str:
        """Return one of the word's synonyms, in the word's case."""
        found = self.synonyms[word]
        return like(found[draws.below(len(found))], word)


class RandomInsertion(TextOp):
    """Insert synonyms of some words at random places.

    Args:
        synonyms: a dictionary of lists, or :class:`Synonyms` from a file or from WordNet.
        alpha: how many are inserted, as a share of the words, rounded, but at least one.
        stop_words: words whose synonyms are not inserted.

    Example:
        >>> words = Words.of("film")
        >>> RandomInsertion({"film": ["movie"]}).apply(words, Draws(0, 0, 0))
        >>> sorted(words.text().split())
        ['film', 'movie']
    """

    def __init__(
        self,
        synonyms: Synonyms | dict[str, list[str]],
        *,
        alpha: float = 0.1,
        stop_words: Iterable[str] | None = None,
    ) -> None:
        self.replacement = SynonymReplacement(synonyms, alpha=alpha, stop_words=stop_words)

    def apply(self, words: Words, draws: Draws) -> None:
        """Insert."""
        places = self.replacement.places(words)
        sources = [words.words[place].lower() for place in draws.sample(places, share(self.replacement.alpha, words))]
        for source in sources:
            words.insert(draws.below(len(words.words) + 1), self.replacement.drawn(source, draws))


class RandomSwap(TextOp):
    """Exchange two words, some times over; gaps and punctuation stay where they are.

    If the text's first word moves, its capital goes to the word that comes first.

    Args:
        alpha: how many exchanges, as a share of the words, rounded, but at least one.

    Example:
        >>> words = Words.of("Yes, sir!")
        >>> RandomSwap().apply(words, Draws(0, 0, 0))
        >>> words.text()
        'Sir, yes!'
    """

    def __init__(self, *, alpha: float = 0.1) -> None:
        self.alpha = check_range("alpha", alpha, low=0, high=1)

    def apply(self, words: Words, draws: Draws) -> None:
        """Exchange."""
        old = words.words
        order = list(range(len(old)))
        for _ in range(share(self.alpha, words) if len(old) > 1 else 0):
            a, b = draws.sample(range(len(old)), 2)
            order[a], order[b] = order[b], order[a]
        words.words = [old[place] for place in order]
        if order and order[0] != 0 and capitalised(old[0]):
            words.words[order.index(0)] = uncapitalised(old[0])
            words.words[0] = words.words[0][:1].upper() + words.words[0][1:]


class RandomDeletion(TextOp):
    """Take out each word with a small probability; one word always stays.

    Args:
        p: probability for each word.
        keep: words that stay. By default the negations: without them a text means the opposite of its label.

    Example:
        >>> words = Words.of("Not a good film.")
        >>> RandomDeletion(p=1.0).apply(words, Draws(0, 0, 0))
        >>> words.text()
        'Not.'
    """

    def __init__(self, *, p: float = 0.1, keep: Iterable[str] = NEGATIONS) -> None:
        self.p = check_range("p", p, low=0, high=1)
        self.keep = frozenset(word.lower() for word in keep)

    def apply(self, words: Words, draws: Draws) -> None:
        """Delete."""
        doomed = [
            place
            for place, word in enumerate(words.words)
            if draws.uniform() < self.p and word.lower() not in self.keep
        ]
        if doomed and len(doomed) == len(words.words):
            doomed.pop(draws.below(len(doomed)))
        first = words.words[0] if words.words else ""
        for place in reversed(doomed):
            words.delete(place)
        if 0 in doomed and capitalised(first):
            words.words[0] = words.words[0][:1].upper() + words.words[0][1:]


class WordDropout:
    """Replace token ids by one id (unknown, mask), each with the same probability, keyed by sample and position.

    Args:
        p: probability for each token.
        replace_with: the id that stands for "unknown".
        keep: ids that stay: padding, start, end, separators.
        seed: of all draws.

    Reference:
        Iyyer et al. 2015, "Deep unordered composition rivals syntactic methods for text classification", section 3.1
        (who leave the words out); Bowman et al. 2016, "Generating sentences from a continuous space", section 3.1
        (who replace them).

    Example:
        >>> import torch
        >>> drop = WordDropout(p=0.5, replace_with=1, keep=[0])
        >>> ids = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
        >>> out = drop(ids, index=torch.tensor([0, 1]), epoch=0)
        >>> out.shape, bool((out[ids == 0] == 0).all())
        (torch.Size([2, 4]), True)
    """

    def __init__(self, p: float = 0.1, *, replace_with: int, keep: Iterable[int] = (0,), seed: int = 0) -> None:
        self.p = check_range("p", p, low=0, high=1)
        self.replace_with = int(replace_with)
        self.keep = tuple(int(token) for token in keep)
        self.seed = int(seed)

    def __call__(
        self, ids: Int64[Tensor, "B T"], *, index: Int64[Tensor, " B"], epoch: int | Int64[Tensor, " B"]
    ) -> Int64[Tensor, "B T"]:
        """Return new ids; padding to another length changes no token's fate."""
        u = uniforms(sample_keys(self.seed, epoch, index), range(ids.shape[1]))
        drop = u < self.p
        for token in self.keep:
            drop &= ids != token
        return ids.masked_fill(drop, self.replace_with)


def share(alpha: float, words: Words) -> int:
    """Return how many words a share stands for: none if ``alpha`` is 0, else at least one."""
    return max(1, round(alpha * len(words.words))) if alpha > 0 else 0
