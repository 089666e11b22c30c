"""A table of which not all rows are known when the first one is printed."""

from collections.abc import Sequence
from typing import TextIO

from triobus._cli._output import columns_of, cut
from triobus._text import escaped

_NAMES = ("position", "recorded at", "type", "aggregate", "data")
_LONGEST = (19, 20, 40, 40, 500)
"""How wide each column is at most; the last one where no terminal sets a limit."""
_LEAST_DATA = 12


class RowPrinter:
    """Prints events in columns, whose widths are those of the first that come."""

    def __init__(self, stdout: TextIO, columns: int | None) -> None:
        self._stdout, self._columns = stdout, columns
        self._widths: list[int] | None = None

    def print(self, rows: Sequence[Sequence[str]]) -> None:
        """Print some rows, the first ones below the names of the columns."""
        shown = [[escaped(text) for text in row] for row in rows]
        if self._widths is None:
            self._widths = self._chosen([_NAMES, *shown])
            self._line(_NAMES)
            self._line(["-" * min(width, 40) for width in self._widths])
        for row in shown:
            self._line(row)

    def _chosen(self, rows: Sequence[Sequence[str]]) -> list[int]:
        widths = [
            min(max(map(columns_of, column)), longest)
            for column, longest in zip(zip(*rows, strict=True), _LONGEST, strict=True)
        ]
        if self._columns is None:
            widths[-1] = _LONGEST[-1]
            return widths
        room = self._columns - 2 * (len(widths) - 1)
        for column in (3, 2, 1):  # what is cut first if it is narrow
            excess = sum(widths[:-1]) + _LEAST_DATA - room
            widths[column] = max(min(widths[column], widths[column] - excess), 8)
        widths[-1] = max(room - sum(widths[:-1]), 1)
        return widths

    def _line(self, row: Sequence[str]) -> None:
        assert self._widths is not None
        cells = [cut(text, width) for text, width in zip(row, self._widths, strict=True)]
        padded = [
            text + " " * (width - columns_of(text))
            for text, width in zip(cells, self._widths, strict=True)
        ]
        padded[0] = cells[0].rjust(self._widths[0])
        print("  ".join(padded).rstrip(), file=self._stdout)
