"""Texts: case, punctuation, labels' meaning and reproducibility are kept; the words change as said."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_tricks._base import UserInputError, rng_state
from lightning_tricks.data.augment import (
    RandomDeletion,
    RandomInsertion,
    RandomSwap,
    SynonymReplacement,
    Synonyms,
    TextAugment,
    WordDropout,
)
from lightning_tricks.data.augment._keys import Draws, sample_keys, slot_words
from lightning_tricks.data.augment.text._words import STOP_WORDS, Words, like

TABLE = {"good": ["fine", "great"], "film": ["movie", "picture"], "plot": ["story"], "the": ["that"]}
TEXT = "The film wasn't good: a GOOD plot, (good) actors - but no film!"


def tokens(text):
    return [word.lower() for word in Words.of(text).words]


@given(st.text(alphabet=st.sampled_from("abZé '-.,!?()\n\t1_"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_text_survives_being_taken_apart(text):
    words = Words.of(text)
    assert words.text() == text
    assert len(words.gaps) == len(words.words) + 1
    assert all(word[0].isalnum() and word[-1].isalnum() for word in words.words)


def test_synonyms_keep_case_gaps_and_stop_words():
    augment = TextAugment([SynonymReplacement(TABLE, alpha=1.0)], p=1.0)
    seen = [augment(TEXT, index=i, epoch=0) for i in range(50)]
    before = Words.of(TEXT)
    for text in seen:
        after = Words.of(text)
        assert after.gaps == before.gaps
        for old, new in zip(before.words, after.words, strict=True):
            expected = [like(other, old) for other in TABLE.get(old.lower(), [])]
            assert new in expected if expected and old.lower() not in STOP_WORDS else new == old
    assert len(set(seen)) > 10
    assert "GREAT" in " ".join(seen)


@pytest.mark.parametrize(("alpha", "count"), [(0.0, 0), (0.01, 1), (0.25, 2), (1.0, 8)])
def test_alpha_is_the_share_of_words(alpha, count):
    text = " ".join(f"w{i}" for i in range(8))
    op = SynonymReplacement({f"w{i}": [f"x{i}"] for i in range(8)}, alpha=alpha)
    out = TextAugment([op], p=1.0)(text, index=3, epoch=0)
    assert out.count("x") == count


def test_insertion_adds_synonyms_and_loses_nothing():
    augment = TextAugment([RandomInsertion(TABLE, alpha=0.2)], p=1.0)
    allowed = {other for word, others in TABLE.items() if word != "the" for other in others}
    for i in range(50):
        found = tokens(augment(TEXT, index=i, epoch=0))
        left = iter(found)
        assert all(word in left for word in tokens(TEXT)), "the old words in their old order"
        extra = list(found)
        for word in tokens(TEXT):
            extra.remove(word)
        assert len(extra) == 2
        assert set(extra) <= allowed


def test_inserted_words_are_set_off_by_spaces():
    for at, expected in ((0, "(new old, end)."), (1, "(old, new end)."), (2, "(old, end new).")):
        words = Words.of("(old, end).")
        words.insert(at, "new")
        assert words.text() == expected
    empty = Words.of("...")
    empty.insert(0, "new")
    assert empty.text() == "...new"


def test_swap_permutes_words_between_the_same_gaps():
    augment = TextAugment([RandomSwap(alpha=0.3)], p=1.0)
    seen = {augment(TEXT, index=i, epoch=0) for i in range(50)}
    for text in seen:
        assert sorted(tokens(text)) == sorted(tokens(TEXT))
        assert Words.of(text).gaps == Words.of(TEXT).gaps
        assert text[0].isupper()
    assert len(seen) > 30


def test_swap_needs_two_words():
    augment = TextAugment([RandomSwap()], p=1.0)
    assert [augment(text, index=0, epoch=0) for text in ("", "!", "One.")] == ["", "!", "One."]


def test_deletion_has_its_rate_and_spares_negations():
    text = " ".join(["word"] * 99 + ["not"])
    out = [TextAugment([RandomDeletion(p=0.2)], p=1.0)(text, index=i, epoch=0) for i in range(100)]
    assert all(line.endswith("not") for line in out)
    rate = 1 - sum(line.count("word") for line in out) / 9900
    assert rate == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / 9900) ** 0.5)


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [
        ("One two three.", 1, "One three."),
        ("One two three.", 2, "One two."),
        ("One, two!", 0, ", two!"),
        ("(one) two", 0, "() two"),
        ("One two", 0, "two"),
        ("a b, c", 1, "a, c"),
    ],
)
def test_a_deleted_word_takes_one_space_along(text, at, expected):
    words = Words.of(text)
    words.delete(at)
    assert words.text() == expected


def test_deletion_leaves_one_word_and_the_capital():
    augment = TextAugment([RandomDeletion(p=1.0, keep=())], p=1.0)
    for i in range(20):
        out = tokens(augment("One two three", index=i, epoch=0))
        assert len(out) == 1
    texts = {TextAugment([RandomDeletion(p=0.5)], p=1.0)("Some words here", index=i, epoch=0) for i in range(40)}
    assert all(text[0].isupper() for text in texts)
    assert augment("", index=0, epoch=0) == ""


ALL = [SynonymReplacement(TABLE), RandomInsertion(TABLE), RandomSwap(), RandomDeletion()]


def test_a_text_depends_on_seed_epoch_and_index_only():
    augment = TextAugment(ALL, seed=4, p=1.0)
    expected = [augment(TEXT, index=i, epoch=e) for i in range(20) for e in range(2)]
    streams = rng_state()
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(TextAugment(ALL, seed=4, p=1.0), TEXT, index=i, epoch=e) for i in range(20) for e in (0, 1)]
    assert [job.result() for job in jobs] == expected
    assert streams["python"] == rng_state()["python"]
    assert len(set(expected)) > 20
    assert augment(TEXT, index=0, epoch=0) != TextAugment(ALL, seed=5, p=1.0)(TEXT, index=0, epoch=0)


def test_p_is_the_share_of_texts_that_change():
    augment = TextAugment([RandomSwap()], p=0.3)
    changed = sum(augment("one two three four", index=i, epoch=0) != "one two three four" for i in range(2000))
    assert changed / 2000 == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 2000) ** 0.5)


@given(st.integers(0, 2**31), st.integers(0, 10**4), st.integers(0, 10**9))
@settings(max_examples=50, deadline=None)
def test_plain_draws_are_the_tensors_draws(seed, epoch, index):
    words = slot_words(sample_keys(seed, epoch, torch.tensor([index])), range(3))[0].tolist()
    draws = Draws(seed, epoch, index)
    assert [draws.word() for _ in range(3)] == [word % (1 << 64) for word in words]


def test_word_dropout_has_its_rate_keeps_ids_and_ignores_padding_and_batch():
    ids = torch.randint(3, 1000, (300, 40))
    ids[:, 30:] = 0
    ids[:, 0] = 2
    index = torch.arange(300)
    drop = WordDropout(p=0.25, replace_with=1, keep=(0, 2))
    before = ids.clone()
    out = drop(ids, index=index, epoch=1)
    assert torch.equal(ids, before)
    assert (out[:, 30:] == 0).all()
    assert (out[:, 0] == 2).all()
    middle = out[:, 1:30]
    assert ((middle == 1) | (middle == ids[:, 1:30])).all()
    assert (middle == 1).float().mean().item() == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 8700) ** 0.5)
    order = torch.randperm(300)
    assert torch.equal(drop(ids[order], index=index[order], epoch=1), out[order])
    assert torch.equal(drop(ids[:, :35], index=index, epoch=1), out[:, :35])
    assert not torch.equal(drop(ids, index=index, epoch=2), out)


def test_tsv_and_json(tmp_path):
    (tmp_path / "a.tsv").write_text("film\tmovie\tpicture\n\ngood\tfine\nfilm\tflick\n", encoding="utf-8")
    synonyms = Synonyms.from_tsv(tmp_path / "a.tsv")
    assert synonyms["FILM"] == ("movie", "picture", "flick")
    assert synonyms["bad"] == ()
    (tmp_path / "a.json").write_text(json.dumps({"Film": ["movie", "film"]}), encoding="utf-8-sig")
    assert Synonyms.from_json(tmp_path / "a.json")["film"] == ("movie",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"film\n", r"a.tsv, line 1: expected a word, a tab and its synonyms"),
        ("a.tsv", "caf\u00e9\tbar\n".encode("latin-1"), "is not UTF-8: byte 0xe9 at position 3"),
        ("a.json", b"{", "is not JSON: .* Expected an object of lists"),
        ("a.json", b'{"film": "movie"}', "must hold an object of lists"),
        ("a.json", b'{"film": [1]}', "synonyms must be lists of words"),
    ],
)
def test_bad_files_get_a_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    read = Synonyms.from_tsv if name.endswith("tsv") else Synonyms.from_json
    with pytest.raises(UserInputError, match=message):
        read(tmp_path / name)


def test_bad_arguments_get_a_sentence(tmp_path):
    with pytest.raises(UserInputError, match=r"cannot read the synonyms in .*none.tsv: No such file"):
        Synonyms.from_tsv(tmp_path / "none.tsv")
    with pytest.raises(UserInputError, match=r"index.noun, data.noun, .* are missing"):
        Synonyms.from_wordnet(tmp_path)
    with pytest.raises(UserInputError, match="takes operations such as"):
        TextAugment(["swap"])
    with pytest.raises(UserInputError, match="a text must be a str, but got bytes"):
        TextAugment([])(b"x", index=0, epoch=0)
    with pytest.raises(UserInputError, match=r"alpha must be in \[0, 1\]"):
        RandomSwap(alpha=2)


def write_wordnet(folder):
    """Write a tiny database: "film" as a noun (attested twice) and a verb (attested once), and an adjective."""
    data = {
        "noun": ["06 n 03 movie 0 film 0 moving_picture 0 000 | a story\n", "06 n 01 film 1 000 | a coating\n"],
        "verb": ["36 v 02 film 0 shoot 2 000 01 + 08 00 | record\n"],
        "adj": ["00 s 02 abundant 0 galore(ip) 0 000 | plenty\n"],
        "adv": [],
    }
    index = {"noun": [("film", 2, 2), ("movie", 1, 1)], "verb": [("film", 1, 1)], "adj": [("galore", 1, 0)], "adv": []}
    for part, lines in data.items():
        text = "  1 licence\n"
        offsets = []
        for line in lines:
            offsets.append(len(text))
            text += f"{len(text):08d} {line}"
        (folder / f"data.{part}").write_text(text)
        rows = ["  1 licence\n"]
        for lemma, senses, attested in index[part]:
            places = " ".join(f"{offset:08d}" for offset in offsets[:senses])
            rows.append(f"{lemma} {part[0]} {senses} 2 @ ~ {senses} {attested} {places}  \n")
        (folder / f"index.{part}").write_text("".join(rows))


def test_wordnet_files_are_read(tmp_path):
    write_wordnet(tmp_path)
    synonyms = Synonyms.from_wordnet(tmp_path)
    assert synonyms["Film"] == ("movie", "moving picture")
    assert synonyms["galore"] == ("abundant",)
    assert synonyms["nothing"] == ()
    augment = TextAugment([SynonymReplacement(synonyms)], p=1.0)
    assert augment("Film!", index=0, epoch=0) in ("Movie!", "Moving picture!")


@pytest.mark.skipif(not Path("/usr/share/wordnet/index.noun").is_file(), reason="WordNet's files are not installed")
def test_the_real_wordnet():
    synonyms = Synonyms.from_wordnet()
    assert "automobile" in synonyms["car"]
    assert "movie" in synonyms["film"]
    assert all("(" not in word and "_" not in word for word in synonyms["good"])
