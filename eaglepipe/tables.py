"""Aligned text tables: plain text without colour, never wrapped or cut, so that a pipe or a file gets all of it."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from eaglepipe.errors import printable

Justify = Literal["left", "right"]

_UNLIMITED_WIDTH = 1_000_000


def text_table(columns: Mapping[str, Justify], rows: Iterable[Sequence[str]], *, indent: int = 0) -> str:
    """Return a table as lines of text, without a trailing newline.

    Args:
        columns: the titles in order, each with the side that its cells are aligned to. If all are empty or blank,
            the table has no title line.
        rows: one cell a column; line feeds and whatever else cannot be printed are written out.
        indent: spaces in front of each line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(map(str.strip, columns)))
    for title, justify in columns.items():
        table.add_column(title, justify=justify, no_wrap=True)
    for row in rows:
        assert len(row) == len(columns), "one cell a column"
        table.add_row(*(printable(cell).replace("\n", "\\n") for cell in row))
    output = io.StringIO()
    console = Console(file=output, width=_UNLIMITED_WIDTH, color_system=None, markup=False, emoji=False)
    console.print(Padding(table, (0, 0, 0, indent), expand=False))
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def field_table(fields: Mapping[str, str], *, indent: int = 0) -> str:
    """Return names and values as two aligned columns without titles."""
    return text_table({"": "left", " ": "left"}, fields.items(), indent=indent)
