"""Texts: a vocabulary without leaks, little padding, and every bad input."""

import random

import pytest
import torch
from helpers import quiet_trainer
from lightning.pytorch import LightningModule

from lightning_tricks import TextDataModule
from lightning_tricks._base import UserInputError
from lightning_tricks.data.augment import RandomSwap, SynonymReplacement, TextAugment, WordDropout
from lightning_tricks.data.texts._source import ChangedTexts, EncodedTexts, RawTexts, build_vocabulary, words

TEXTS = [f"{word} film number {i}" for i, word in enumerate(["good", "bad"] * 20)]
LABELS = ["pos", "neg"] * 20


def test_batches_are_codes_and_classes():
    data = TextDataModule(TEXTS, LABELS, batch_size=8)
    tokens, y = next(iter(data.train_dataloader()))
    assert (tokens.shape, tokens.dtype, y.dtype) == ((8, 4), torch.int64, torch.int64)
    assert data.classes == ["neg", "pos"]
    said = data.decode(tokens[0])
    assert said[1:3] == ["film", "number"]
    assert said[0] == ("good" if y[0] == 1 else "bad")


def test_the_vocabulary_is_learnt_from_the_training_part():
    split = {"train": range(20), "val": range(20, 40)}
    data = TextDataModule(TEXTS, LABELS, split=split)
    tokens, _ = next(iter(data.val_dataloader()))
    assert data.vocabulary[:4] == ["<pad>", "<unk>", "film", "number"]
    assert "19" in data.vocabulary
    assert "20" not in data.vocabulary
    assert (tokens[:, 3] == 1).all(), "numbers from 20 on were never seen"


def test_vocabulary_is_ranked_cut_and_deterministic():
    texts = [["c", "b"], ["a", "b"], ["<unk>", "c", "b"]]
    assert build_vocabulary(texts) == ["<pad>", "<unk>", "b", "c", "a"]
    assert build_vocabulary(texts, size=3) == ["<pad>", "<unk>", "b"]
    assert build_vocabulary(texts, min_count=2) == ["<pad>", "<unk>", "b", "c"]


def test_words_and_characters():
    assert words("Größe: 3.5 Meter") == ["größe", ":", "3", ".", "5", "meter"]
    data = TextDataModule(["ab", "ba"] * 10, [0, 1] * 10, tokenize="characters")
    data.setup()
    assert set(data.vocabulary[2:]) == {"a", "b"}
    data = TextDataModule(["a_b", "b_a"] * 10, [0, 1] * 10, tokenize=lambda text: text.split("_"))
    data.setup()
    assert set(data.vocabulary[2:]) == {"a", "b"}


def test_batches_are_padded_by_bucket():
    generator = random.Random(0)
    texts = ["w " * generator.randint(1, 80) for _ in range(400)]
    data = TextDataModule(texts, [0, 1] * 200, batch_size=10, split=(0.8, 0.2))
    loader = data.train_dataloader()

    def waste(batches):
        return sum(int((tokens == 0).sum()) for tokens in batches) / sum(tokens.numel() for tokens in batches)

    first = [tokens for tokens, _ in loader]
    second = [tokens for tokens, _ in loader]
    assert waste(first) < 0.05
    assert waste([tokens for tokens, _ in data.val_dataloader()]) > 0.3, "evaluation stays in order"
    widths = [[tokens.shape[1] for tokens in batches] for batches in (first, second)]
    assert widths[0] != widths[1]
    assert widths[0] != sorted(widths[0])
    assert sum(len(tokens) for tokens in first) == 320


def test_long_texts_are_cut():
    data = TextDataModule(["a b c d"] * 20, [0, 1] * 10, max_length=2)
    assert next(iter(data.train_dataloader()))[0].shape[1] == 2


def test_a_text_of_no_known_kind_is_unknown():
    data = TextDataModule(
        ["a"] * 10 + ["¿"] * 10, [0, 1] * 10, tokenize=str.split, split={"train": range(10), "val": [15]}
    )
    assert next(iter(data.val_dataloader()))[0].tolist() == [[1]]


def shout(text, *, index, epoch):
    return f"{text} row{index} epoch{epoch}"


def test_only_training_texts_are_augmented():
    data = TextDataModule(["a"] * 30, [0, 1, 2] * 10, augment=shout, batch_size=4)
    data.setup()
    data._raw.code |= {f"row{row}": 100 + row for row in range(30)} | {f"epoch{e}": 200 + e for e in range(2)}
    loader = data.train_dataloader()
    for epoch in range(2):
        rows = torch.cat([tokens for tokens, _ in loader])
        assert sorted(rows[:, 1].tolist()) == sorted(100 + row for row in data.parts["train"].rows)
        assert (rows[:, 2] == 200 + epoch).all()
    assert next(iter(data.val_dataloader()))[0].shape[1] == 1


FILMS = [f"The film number {i} has a good story, but the end was bad." for i in range(30)]
AUGMENT = TextAugment(
    [SynonymReplacement({"film": ["movie", "picture"], "good": ["fine"], "bad": ["poor"]}, alpha=0.3), RandomSwap()],
    seed=5,
    p=0.8,
)


class Reader(LightningModule):
    """Reads the texts of batches out of their codes."""

    def __init__(self, data):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.data, self.trained, self.validated = data, [], []

    def read(self, batch):
        return [(tuple(self.data.decode(codes)), int(label)) for codes, label in zip(*batch, strict=True)]

    def training_step(self, batch):
        self.trained.append((self.trainer.current_epoch, self.read(batch)))
        return self.weight**2

    def validation_step(self, batch):
        self.validated += self.read(batch)

    def predict_step(self, batch):
        return self.read(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_text_augmentation_changes_training_texts_by_row_and_epoch(workers):
    labels = [i % 3 for i in range(30)]
    data = TextDataModule(FILMS, labels, augment=AUGMENT, batch_size=4, num_workers=workers)
    model, trainer = Reader(data), quiet_trainer(max_epochs=2)
    trainer.fit(model, data)
    for epoch in (0, 1):
        read = sorted(pair for e, batch in model.trained if e == epoch for pair in batch)
        rows = data.parts["train"].rows
        assert read == sorted((tuple(words(AUGMENT(FILMS[i], index=i, epoch=epoch))), labels[i]) for i in rows)
        assert read != sorted((tuple(words(FILMS[i])), labels[i]) for i in rows)
    assert {"movie", "picture", "fine", "poor"} <= set(data.vocabulary)
    plain = {part: [(tuple(words(FILMS[i])), labels[i]) for i in data.parts[part].rows] for part in ("val", "test")}
    unknown = [tuple(word if word in data.vocabulary else "<unk>" for word in text) for text, _ in plain["val"]]
    assert [text for text, _ in model.validated[-6:]] == unknown
    predicted = [pair for batch in trainer.predict(model, data) for pair in batch]
    assert [label for _, label in predicted] == [label for _, label in plain["test"]]


def test_a_list_of_operations_is_an_augmentation_with_the_seed_of_the_data():
    options = {"batch_size": 30, "split": {"train": range(24), "val": range(24, 30)}, "seed": 7}
    listed = TextDataModule(FILMS, [0, 1, 2] * 10, augment=AUGMENT.ops, **options)
    spelt = TextDataModule(FILMS, [0, 1, 2] * 10, augment=TextAugment(AUGMENT.ops, seed=7), **options)
    for one, two in zip(listed.train_dataloader(), spelt.train_dataloader(), strict=True):
        assert torch.equal(one[0], two[0])


def test_a_full_vocabulary_takes_no_more_words():
    plain = TextDataModule(FILMS, [0, 1, 2] * 10, vocabulary_size=12)
    plain.setup()
    full = TextDataModule(FILMS, [0, 1, 2] * 10, vocabulary_size=12, augment=AUGMENT)
    full.setup()
    assert full.vocabulary == plain.vocabulary
    roomy = TextDataModule(FILMS, [0, 1, 2] * 10, vocabulary_size=40, augment=AUGMENT)
    roomy.setup()
    assert len(roomy.vocabulary) <= 40
    rare = TextDataModule(FILMS, [0, 1, 2] * 10, min_count=2, augment=AUGMENT)
    rare.setup()
    assert not any(word.isdigit() for word in rare.vocabulary), "what is too rare stays unknown"
    assert "movie" in rare.vocabulary


def test_dropped_words_are_unknown_in_training_only():
    data = TextDataModule(FILMS, [0, 1, 2] * 10, word_dropout=0.3, batch_size=6)
    loader = data.train_dataloader()
    first, second = (torch.cat([codes for codes, _ in loader]) for _ in range(2))
    for codes in (first, second):
        share = (codes == 1).float().mean()
        assert abs(share - 0.3) < 4 * (0.3 * 0.7 / codes.numel()) ** 0.5
    assert (torch.cat([codes for codes, _ in data.val_dataloader()]) == 1).sum(1).tolist() == [1] * 6  # its number
    key = WordDropout(0.3, replace_with=1, seed=0)
    rows = data.parts["train"].rows
    whole, _ = data.parts["train"].source.read(rows, 0)
    expected = key(whole, index=torch.tensor(rows), epoch=0)
    assert sorted(first.tolist()) == sorted(expected.tolist())


def test_sources_of_texts_agree():
    """Encoded once, read afresh, or changed by nothing: the same codes."""
    raw = RawTexts(["a b", "", "b c b a"], torch.tensor([0, 1, 0]), words, max_length=3)
    raw.code = {"a": 2, "b": 3}
    expected = [[2, 3, 0], [1, 0, 0], [3, 1, 3]]
    for source in (EncodedTexts(raw), ChangedTexts(raw, lambda text, **_: text)):
        assert len(source) == 3
        codes, classes = source.read([0, 1, 2], epoch=0)
        assert codes.tolist() == expected
        assert classes.tolist() == [0, 1, 0]


def test_a_fold_learns_its_own_vocabulary():
    data = TextDataModule(TEXTS, LABELS)
    data.setup()
    before = list(data.vocabulary)
    fold = data.with_split(train=[0, 1], val=[2, 3])
    fold.setup()
    assert set(fold.vocabulary[2:]) == {"good", "bad", "film", "number", "0", "1"}
    assert data.vocabulary == before
    tokens = next(iter(data.train_dataloader()))[0]
    assert data.decode(tokens[0])[1:3] == ["film", "number"]


# Files.


def test_files(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"so, good",pos\nbad,neg\n' * 1 + '"so, good",pos\nbad,neg\n' * 9)
    data = TextDataModule.from_file(tmp_path / "a.csv")
    assert data._texts[:2] == ["so, good", "bad"]
    assert data.num_classes == 2
    (tmp_path / "b.tsv").write_bytes('\ufeffpos\tso "good\nneg\tbad\n'.encode())
    data = TextDataModule.from_file(tmp_path / "b.tsv", text=1, label=0, header=False)
    assert (data._texts, data.classes) == (['so "good', "bad"], ["neg", "pos"])
    (tmp_path / "c.tsv").write_bytes("text\tlabel\nGröße\tx\nb\ty\n".encode("latin-1"))
    assert TextDataModule.from_file(tmp_path / "c.tsv", encoding="latin-1")._texts[0] == "Größe"
    assert TextDataModule.from_pairs([("a", 0), ("b", 1)])._texts == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text\tlabel\nGröße\tx\n".encode("latin-1"), {}, r"a.tsv is not utf-8 text: byte 0xf6 .*encoding='latin-1'"),
        ("text\tlabel\nGröße\tx\n".encode("utf-16"), {}, r"not utf-8 text: byte 0xff at 0"),
        (b"text\tclass\na\tb\n", {}, "no column 'label' .*columns are: text, class"),
        (b"text\tlabel\na\n", {}, "every line needs 2 columns, but line 2 of .* has 1: 'a'"),
        (b"text\tlabel\n", {}, "has no line of text"),
        (b"text\tlabel\na\tb\n", {"encoding": "utf-9"}, "no encoding 'utf-9'"),
    ],
)
def test_bad_files_get_a_sentence(tmp_path, content, options, message):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(UserInputError, match=message):
        TextDataModule.from_file(tmp_path / "a.tsv", **options)


def test_missing_files_get_a_sentence(tmp_path):
    with pytest.raises(UserInputError, match="there is no file"):
        TextDataModule.from_file(tmp_path / "a.tsv")
    (tmp_path / "a.doc").write_text("a")
    with pytest.raises(UserInputError, match=r"must end in .csv, .tsv, .txt"):
        TextDataModule.from_file(tmp_path / "a.doc")


@pytest.mark.parametrize(
    ("texts", "labels", "options", "message"),
    [
        (["a", " "], [0, 1], {}, "1 are empty .first: number 1"),
        (["a", None], [0, 1], {}, r"text 1 is None \(NoneType\)"),
        ("abc", [0, 1, 2], {}, "got one string"),
        ([], [], {}, "there are no texts"),
        (["a", "b"], [0, 2], {}, "without gaps"),
        (["a", "b"], [0], {}, "2 samples, but got labels of shape"),
        (["a", "b"], [0, 1], {"tokenize": "wordz"}, "Did you mean 'words'"),
        (["a", "b"], [0, 1], {"tokenize": 3}, "must be 'words', 'characters' or a function, but got 3"),
        (["a", "b"], [0, 1], {"max_length": 0}, "max_length"),
        (["a", "b"], [0, 1], {"vocabulary_size": 2}, "vocabulary_size"),
        (["a", "b"], [0, 1], {"word_dropout": 1.0}, r"word_dropout must be in \[0, 1\), but got 1.0"),
        (["a", "b"], [0, 1], {"augment": ["eda"]}, "operations such as SynonymReplacement"),
        (["a", "b"], [0, 1], {"augment": "eda"}, "augment must be a TextAugment, a list"),
        (["a", "b"] * 5, [0, 1] * 5, {"min_count": 9}, "have none 9 times. Lower min_count"),
        ([("a", 0), "bc"], None, {}, "text 0 is"),
    ],
)
def test_bad_texts_get_a_sentence(texts, labels, options, message):
    with pytest.raises(UserInputError, match=message):
        TextDataModule(texts, labels, **options).setup()


def test_bad_pairs_get_a_sentence():
    with pytest.raises(UserInputError, match="pairs of text and label, but sample 1 is 'bc'"):
        TextDataModule.from_pairs([("a", 0), "bc"])
