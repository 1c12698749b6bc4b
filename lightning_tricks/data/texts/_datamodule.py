"""Texts with classes."""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from typing_extensions import Self, Unpack

from lightning_tricks._base import UserInputError, check_choice, check_range
from lightning_tricks.data._datamodule import SplitDataModule, SplitOptions
from lightning_tricks.data._loading import Part
from lightning_tricks.data.augment import TextAugment, WordDropout
from lightning_tricks.data.augment.text._text import TextOp
from lightning_tricks.data.images._arrays import check_labels
from lightning_tricks.data.texts._source import (
    ChangedTexts,
    DropWords,
    EncodedTexts,
    RawTexts,
    Tokenize,
    build_vocabulary,
    read_pairs,
    words,
)

LOOK_AHEAD = 3  # epochs of augmented texts, whose new words get codes of their own
_TOKENIZERS: dict[str, Tokenize] = {"words": words, "characters": list}


class TextOptions(SplitOptions, total=False):
    """What every constructor of :class:`TextDataModule` takes, see there."""

    classes: Sequence[str] | None
    tokenize: Literal["words", "characters"] | Tokenize
    vocabulary_size: int | None
    min_count: int
    max_length: int
    augment: Callable[..., str] | Sequence[TextOp] | None
    word_dropout: float


class TextDataModule(SplitDataModule[RawTexts]):
    """Texts with classes; the vocabulary is learnt from the training part only.

    Batches are tuples of ``int64 (B, L)`` token codes, padded with 0 to the longest text of the batch, and
    ``int64 (B,)`` classes. Code 1 is a token that the vocabulary does not have. In training, texts of similar length
    share a batch, so that there is little padding; batches still come in random order, other ones in every epoch.

    Args:
        texts: one string per sample.
        labels: one class per sample: 0..C-1, or names.
        batch_size: texts per batch and rank, at least 1.
        split: fractions of train, val and test, or row numbers by part name.
        split_by: ``"auto"`` (time or group if given, else class), ``"class"``, ``"group"``, ``"time"`` or ``"random"``.
        groups: one group per text, such as its author.
        time: one sortable value per text.
        classes: names of the classes in order of their codes; sorted if not given.
        tokenize: ``"words"`` (lower case, punctuation apart), ``"characters"``, or a function from text to tokens.
        vocabulary_size: at most so many codes, padding and unknown included, the most frequent first.
        min_count: tokens that are rarer in the training part are unknown.
        max_length: tokens kept of each text, at least 1.
        augment: what training texts go through: a :class:`~lightning_tricks.data.augment.TextAugment`, a list of its
            operations, or a function ``augment(text, index=row, epoch=epoch) -> str``. Words that it brings in within
            the first three epochs join the vocabulary; later ones are unknown.
        word_dropout: share of the training texts' tokens that become unknown, in [0, 1), others in every epoch.
        num_workers: processes that read.
        seed: of the split and the order of training.

    Attributes:
        classes: names of the classes.

        row_names: names of the texts of :meth:`new_data`, if they have some.

    Raises:
        UserInputError: for texts, labels or options that cannot be right.

    Example:
        >>> data = TextDataModule(["good film", "bad film", "so good", "so bad"] * 5, [1, 0, 1, 0] * 5, batch_size=3)
        >>> tokens, y = next(iter(data.train_dataloader()))
        >>> tokens.shape, sorted(data.vocabulary)
        (torch.Size([3, 2]), ['<pad>', '<unk>', 'bad', 'film', 'good', 'so'])
    """

    def __init__(
        self,
        texts: Sequence[str],
        labels: Any,
        *,
        classes: Sequence[str] | None = None,
        tokenize: Literal["words", "characters"] | Tokenize = "words",
        vocabulary_size: int | None = None,
        min_count: int = 1,
        max_length: int = 512,
        augment: Callable[..., str] | Sequence[TextOp] | None = None,
        word_dropout: float = 0.0,
        **options: Unpack[SplitOptions],
    ) -> None:
        super().__init__(**options)
        self._texts = _check_texts(texts)
        self._y, self.classes = check_labels(labels, len(self._texts), classes)
        self._tokenize = _tokenizer(tokenize)
        self._size = None if vocabulary_size is None else int(check_range("vocabulary_size", vocabulary_size, low=3))
        self._min_count = int(check_range("min_count", min_count, low=1))
        self._max_length = int(check_range("max_length", max_length, low=1))
        self._augment = _augmentation(augment, self.seed)
        check_range("word_dropout", word_dropout, low=0, high=1, open_high=True)
        self._drop_words = WordDropout(word_dropout, replace_with=1, seed=self.seed) if word_dropout else None
        self._vocabulary: list[str] = []
        self.row_names: list[str] = []

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, Any]], **options: Unpack[TextOptions]) -> Self:
        """Take pairs of a text and its class.

        Raises:
            UserInputError: if one is no pair.
        """
        kept = list(pairs)
        for i, pair in enumerate(kept):
            if isinstance(pair, str) or len(pair) != 2:
                raise UserInputError(f"samples must be pairs of text and label, but sample {i} is {pair!r}.")
        return cls([text for text, _ in kept], [label for _, label in kept], **options)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        text: str | int = "text",
        label: str | int = "label",
        header: bool = True,
        encoding: str = "utf-8",
        **options: Unpack[TextOptions],
    ) -> Self:
        """Read a CSV or TSV file.

        Args:
            path: file ending in .csv, .tsv or .txt (tabs).
            text: name or number of the column of texts.
            label: name or number of the column of classes; they are taken as names.
            header: whether the first line names the columns.
            encoding: of the file.
            **options: see the class.

        Raises:
            UserInputError: if the file or a column is missing, or the encoding is another.
        """
        texts, labels = read_pairs(path, text=text, label=label, header=header, encoding=encoding)
        return cls(texts, labels, **options)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def vocabulary(self) -> list[str]:
        """Tokens in order of their codes, padding and unknown first."""
        self._ready()
        return self._vocabulary

    def decode(self, codes: Tensor) -> list[str]:
        """Return the tokens of one text, without padding."""
        return [self.vocabulary[code] for code in codes.tolist() if code]

    def new_data(self, texts: Sequence[str]) -> Self:
        """Return a copy that predicts other texts, encoded with the vocabulary of the training part.

        Args:
            texts: one string per sample, at least one.

        Returns:
            A DataModule whose :meth:`predict_dataloader` gives ``(tokens,)``; ``row_names`` is the index of a
            ``pandas.Series``, unless that only counts, else empty.

        Raises:
            UserInputError: if one is no string, or empty.

        Example:
            >>> data = TextDataModule(["good film", "bad film", "so good", "so bad"] * 5, [1, 0, 1, 0] * 5)
            >>> (tokens,) = next(iter(data.new_data(["so so", "very good"]).predict_dataloader()))
            >>> [data.decode(row) for row in tokens]
            [['so', 'so'], ['<unk>', 'good']]
        """
        self._ready()
        checked = _check_texts(texts)
        new = RawTexts(checked, None, self._tokenize, self._max_length)
        new.code = self._raw.code
        other = copy.copy(self)
        other.trainer = None
        other._restored = {}
        index: Any = getattr(texts, "index", None)
        plain = index is None or callable(index) or type(index).__name__ == "RangeIndex"
        other.row_names = [] if plain else [str(name) for name in index]
        other.parts = {"predict": Part(EncodedTexts(new), range(len(checked)))}
        return other

    def _open(self) -> RawTexts:
        return RawTexts(self._texts, self._y, self._tokenize, self._max_length)

    def _labels(self) -> Tensor | None:
        return None if "predict" in self.parts else self._y

    def _class_names(self) -> list[str]:
        return self.classes

    def _fit(self, opened: RawTexts, train: Sequence[int]) -> EncodedTexts:
        self._raw = copy.copy(opened)  # a fold learns its own vocabulary
        tokens = [self._raw.tokens(self._texts[row]) for row in train]
        self._vocabulary = build_vocabulary(tokens, size=self._size, min_count=self._min_count)
        if len(self._vocabulary) == 2:
            raise UserInputError(
                f"no token is in the vocabulary: the training texts have none {self._min_count} times. Lower min_count."
            )
        self._vocabulary += self._brought_in(train, {token for text in tokens for token in text})
        self._raw.code = {token: i for i, token in enumerate(self._vocabulary)}
        self._encoded = EncodedTexts(self._raw)
        return self._encoded

    def _brought_in(self, train: Sequence[int], own: set[str]) -> list[str]:
        """Return the tokens that augmentation brings into the training texts, the most frequent first."""
        if self._augment is None:
            return []
        changed = (
            self._raw.tokens(self._augment(self._texts[row], index=row, epoch=epoch))
            for epoch in range(LOOK_AHEAD)
            for row in train
        )
        new = [token for token in build_vocabulary(changed)[2:] if token not in own]
        return new if self._size is None else new[: self._size - len(self._vocabulary)]

    def _part(self, name: str) -> Part:
        part = super()._part(name)
        if name == "train" and self._augment is not None:
            return Part(ChangedTexts(self._raw, self._augment), part.rows, part.finish)
        return part

    def _finish(self, part: str) -> DropWords | None:
        return None if self._drop_words is None or part != "train" else DropWords(self._drop_words)

    def _lengths(self, part: Part) -> list[int]:
        return [self._encoded.lengths[row] for row in part.rows]


def _tokenizer(tokenize: Literal["words", "characters"] | Tokenize) -> Tokenize:
    if isinstance(tokenize, str):
        return _TOKENIZERS[check_choice("tokenize", tokenize, _TOKENIZERS)]
    if not callable(tokenize):
        raise UserInputError(f"tokenize must be 'words', 'characters' or a function, but got {tokenize!r}.")
    return tokenize


def _augmentation(augment: Callable[..., str] | Sequence[TextOp] | None, seed: int) -> Callable[..., str] | None:
    if isinstance(augment, list | tuple):
        return TextAugment(augment, seed=seed)
    if augment is not None and not callable(augment):
        raise UserInputError(
            "augment must be a TextAugment, a list of its operations, or a function of a text, index and epoch, but "
            f"got {augment!r}."
        )
    return augment


def _check_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise UserInputError("texts must be a sequence of strings, but got one string. Wrap it in a list.")
    kept = list(texts)
    for i, text in enumerate(kept):
        if not isinstance(text, str):
            raise UserInputError(f"texts must be strings, but text {i} is {text!r} ({type(text).__name__}).")
    empty = [i for i, text in enumerate(kept) if not text.strip()]
    if empty:
        raise UserInputError(
            f"every text needs a word, but {len(empty)} are empty (first: number {empty[0]}). Remove them."
        )
    if not kept:
        raise UserInputError("there are no texts.")
    return kept
