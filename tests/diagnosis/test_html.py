"""The HTML page: escaped, self-contained, whole or not at all."""

import os
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_tricks.diagnosis import Picture, Section, Table, Text, html_report, write_atomically
from lightning_tricks.plots import new_figure


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def page_of(text):
    figure, _ = new_figure()
    blocks = [Text(text), Table([text], [[text]], caption=text), Picture(figure, caption=text)]
    return Page(html_report(text, [Section(text, blocks)], subtitle=text))


def test_markup_in_strings_is_shown_not_run():
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    page = page_of(evil)
    assert "script" not in page.tags
    assert page.tags.count("img") == 1, "only the picture"
    assert evil in page.texts


def test_nothing_is_fetched():
    (source,) = page_of("plain").sources
    assert source.startswith("data:image/png;base64,")


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_survives(text):
    page = Page(html_report("t", [Section("s", [Table(["c"], [[text]])])]))
    assert "".join(page.texts).count(text) >= 1


@pytest.mark.parametrize(("value", "shown"), [(0.98765432, "0.9877"), (3, "3"), (None, "-"), (float("nan"), "nan")])
def test_cells(value, shown):
    assert f"<td>{shown}</td>" in html_report("t", [Section("s", [Table(["c"], [[value]])])])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_atomically(path, "old")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"
