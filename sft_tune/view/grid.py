"""A table of very many lines: laid out once, a line a row, where rich's takes a minute."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

HEAD = Style(dim=True)
CUT = "…"


class Column(NamedTuple):
    """A column: its title (lines of it by newlines), its cells, and how they stand.

    Attributes:
        title: above the cells.
        cells: one a row.
        right: whether they stand to the right.
        most: cells wider than this are cut; None: none is.
        styles: of each cell; empty: plain.
    """

    title: str
    cells: Sequence[str]
    right: bool = True
    most: int | None = None
    styles: Sequence[Style] = ()

    @property
    def width(self) -> int:
        """How many columns of a terminal it takes."""
        widest = max(map(cell_len, self.cells), default=0)
        wanted = max(widest, *map(cell_len, self.title.split("\n")))
        return wanted if self.most is None else min(wanted, self.most)


class Grid:
    """Columns beside each other, ``gap`` spaces apart, their titles dim, marked rows bold.

    On a screen that is too narrow the cells of ``gives_way``, a column's place, go on over
    further lines.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        *,
        gap: int = 2,
        bold: int | None = None,
        gives_way: int | None = None,
    ) -> None:
        self.columns = columns
        self.gap = gap
        self.bold = bold
        self.gives_way = gives_way
        self.widths = [column.width for column in columns]

    @property
    def width(self) -> int:
        """How many columns of a terminal it takes whole."""
        return sum(self.widths) + self.gap * (len(self.columns) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it line by line."""
        widths = list(self.widths)
        place = self.gives_way
        if place is not None:
            lacks = max(0, self.width - options.max_width)
            widths[place] = max(1, widths[place] - lacks)
        heads = [column.title.split("\n") for column in self.columns]
        plain = [HEAD] * len(widths)
        most = max(map(len, heads))
        heads = [[""] * (most - len(head)) + head for head in heads]
        for cells in zip(*heads, strict=True):
            yield from self._line(cells, widths, plain)
        nothing = Style.null()
        for row, cells in enumerate(zip(*(column.cells for column in self.columns), strict=True)):
            base = Style(bold=True) if row == self.bold else nothing
            styles = [base + c.styles[row] if c.styles else base for c in self.columns]
            for part in _over_lines(cells, place, widths):
                yield from self._line(part, widths, styles)

    def _line(
        self, cells: Sequence[str], widths: Sequence[int], styles: Sequence[Style]
    ) -> Iterator[Segment]:
        gap = " " * self.gap
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            wide = cell_len(cell)
            if wide > width:
                cell, wide = set_cell_size(cell, width - 1) + CUT, width
            blank = " " * (width - wide)
            text = blank + cell if self.columns[place].right else cell + blank
            yield Segment(text if place == 0 else gap + text, styles[place])
        yield Segment.line()


def _over_lines(
    cells: Sequence[str], place: int | None, widths: Sequence[int]
) -> Iterator[Sequence[str]]:
    """Yield the row ``cells`` with what is too wide at ``place`` on further lines."""
    if place is None or cell_len(cells[place]) <= widths[place]:
        yield cells
        return
    first, *more = textwrap.wrap(cells[place], widths[place])
    yield [*cells[:place], first, *cells[place + 1 :]]
    for part in more:
        yield ["" if other != place else part for other in range(len(cells))]
