"""One self-contained HTML page: pictures inline, nothing fetched, everything escaped."""

import base64
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = str | int | float | None


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        figure: drawn as PNG into the page.
        caption: what to see in it.
        alt: for those who cannot see it; the caption if not given.
    """

    figure: "Figure"
    caption: str
    alt: str = ""

    @property
    def data_uri(self) -> str:
        """Return the picture as an address that holds the picture itself."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=140)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Table:
    """A table; floats are shown with four significant digits.

    Attributes:
        columns: the head.
        rows: as long as the head each.
        caption: what it lists.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: plain text; a blank line starts a new paragraph.
    """

    text: str


@dataclass(frozen=True)
class Note:
    """Something to act on, in a box of its own: a table of sentences cannot be read on a phone.

    Attributes:
        kind: how grave it is: "error", "warning" or "info".
        title: what it is called.
        where: to what it applies.
        text: what is the matter, without the full stop.
        advice: what to do.
    """

    kind: str
    title: str
    where: str
    text: str
    advice: str

    @property
    def sentence(self) -> str:
        """The text with a capital letter, unless it begins with a name."""
        first = self.text.split(" ", 1)[0]
        return (self.text[:1].upper() + self.text[1:] if first.isalpha() else self.text) + "."


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        blocks: what it shows, in order.
    """

    title: str
    blocks: Sequence[Picture | Table | Text | Note]


def html_report(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """Render a page that needs nothing but itself and reads well on a phone.

    Args:
        title: heading of the page.
        sections: its parts, in order.
        subtitle: one line under the heading.

    Returns:
        The page as text; every string in it is escaped.

    Example:
        >>> page = html_report("A run", [Section("Results", [Table(["accuracy"], [[0.98]])])])
        >>> "<td>0.98</td>" in page
        True
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lightning_tricks.diagnosis", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    environment.tests["picture"] = lambda block: isinstance(block, Picture)
    environment.tests["table"] = lambda block: isinstance(block, Table)
    environment.tests["note"] = lambda block: isinstance(block, Note)
    page = environment.get_template("report.html.jinja")
    return page.render(title=title, subtitle=subtitle, sections=sections)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file whole or not at all: a full disk or a kill leaves the old one.

    Args:
        path: the file; its folder must exist.
        text: its content, written as UTF-8.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
