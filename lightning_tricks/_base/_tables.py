"""Tables whose cells may be pictures, in the form that each logger can show."""

import csv
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from lightning_tricks._base._messages import UserInputError

if TYPE_CHECKING:
    from PIL.Image import Image

# A number, a text, nothing, or a picture (H, W), (1, H, W) or (3, H, W) of any scale.
Cell = str | int | float | None | Tensor

# Tiny pictures, such as 8x8 digits, are enlarged by a whole factor up to about this many pixels.
_LEGIBLE = 64
_STYLE = (
    "body{font-family:sans-serif}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:4px 8px;"
    "text-align:left}img{image-rendering:pixelated}"
)


def picture(cell: Tensor) -> "Image":
    """Return a picture stretched to its own range, what is not finite black, and tiny ones enlarged.

    Raises:
        UserInputError: if the tensor is no picture.
    """
    from PIL import Image

    pixels = cell.detach().float().cpu().numpy()
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or 0 in pixels.shape:
        raise UserInputError(
            f"a picture in a table must be (H, W), (1, H, W) or (3, H, W), but got shape {tuple(cell.shape)}."
        )
    finite = pixels[np.isfinite(pixels)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    scaled = np.nan_to_num((pixels - low) / (high - low if high > low else 1), nan=0, posinf=0, neginf=0)
    image = Image.fromarray((scaled * 255).round().astype(np.uint8))
    factor = max(1, _LEGIBLE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return the table as Markdown; a picture is named by its number, counted row by row from 1."""
    count = 0

    def text(cell: Cell) -> str:
        nonlocal count
        if isinstance(cell, Tensor):
            count += 1
            return f"picture {count}"
        return str(cell).replace("|", "\\|")

    def line(cells: Iterable[Cell]) -> str:
        return "| " + " | ".join(map(text, cells)) + " |"

    return "\n".join([line(columns), line("---" for _ in columns), *map(line, rows)])


def wandb_rows(rows: Sequence[Sequence[Cell]]) -> list[list[Any]]:
    """Return the rows with W&B's own pictures in them; its columns hold one type, so a text makes all of them texts."""
    import wandb

    mixed = [
        len({isinstance(cell, str) for cell in column if cell is not None}) > 1 for column in zip(*rows, strict=True)
    ]

    def shown(cell: Cell, as_text: bool) -> Any:
        if isinstance(cell, Tensor):
            return wandb.Image(picture(cell))
        return str(cell) if as_text and cell is not None else cell

    return [[shown(cell, as_text) for cell, as_text in zip(row, mixed, strict=True)] for row in rows]


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Write a CSV file; with pictures in it also a folder of PNG files, which its cells name, and a page to look at."""
    folder = path.with_suffix("")
    if any(isinstance(cell, Tensor) for row in rows for cell in row):
        folder.mkdir(exist_ok=True)
        rows = [[_saved(cell, folder, at, column) for cell, column in zip(row, columns, strict=True)]
                for at, row in enumerate(rows)]  # fmt: skip
        path.with_suffix(".html").write_text(_page(path.stem, columns, rows), encoding="utf-8")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


class _Saved(str):
    """A cell that names a file."""

    __slots__ = ()


def _saved(cell: Cell, folder: Path, row: int, column: str) -> Cell:
    if not isinstance(cell, Tensor):
        return cell
    name = "".join(c if c.isalnum() else "_" for c in column)
    path = folder / f"{row:04d}-{name}.png"
    picture(cell).save(path)
    return _Saved(f"{folder.name}/{path.name}")


def _page(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    def cell(value: Cell) -> str:
        text = escape(str(value))
        return f'<td><img src="{text}" alt=""></td>' if isinstance(value, _Saved) else f"<td>{text}</td>"

    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>\n'
        f"<table><tr>{head}</tr>\n{body}\n</table></html>\n"
    )
