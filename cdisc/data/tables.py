"""Tables as people have them: by commas, semicolons, tabs, bars or blanks, of spreadsheets, pandas and R."""

import codecs
import csv
import io
import pathlib
import re
from typing import NamedTuple

from cdisc.errors import UserError, short

_MAX_BYTES = 2**28
_MAX_CELL = 1000
PICTURE = re.compile(r"\.(avif|bmp|gif|heic|jfif|jp2|jpe?g|pgm|png|ppm|tga|tiff?|webp)$", re.IGNORECASE)
"""How the name of a picture's file ends."""


class Row(NamedTuple):
    """A line of a table.

    Attributes:
      line: its number in the file, from 1 on.
      cells: without blanks around them.
    """

    line: int
    cells: list[str]


def read(path: pathlib.Path) -> list[Row]:
    """The lines of a table that are not empty, the first one's names of columns included.

    Columns at the end that are empty in all lines are left out, and so are row numbers: columns of whole numbers before
    that of the files' names.

    Raises:
      UserError: if the file cannot be read, or is no text in UTF-8 (or UTF-16 with a byte order mark).
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has zero bytes")
        rows = _split(text)
        if any(len(cell) > _MAX_CELL for row in rows for cell in row.cells):
            raise ValueError(f"it has a cell of more than {_MAX_CELL} characters")
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{short(path)} cannot be read ({error}): it must be a table as text in UTF-8, which spreadsheets save as "
            "'CSV UTF-8'."
        ) from error
    width = max((i + 1 for row in rows for i, cell in enumerate(row.cells) if cell), default=0)
    rows = [Row(row.line, row.cells[:width]) for row in rows]
    return _without_row_numbers(rows)


def _without_row_numbers(rows: list[Row]) -> list[Row]:
    # Lines of one cell may come before the names, such as a count; and over the row numbers there may be no name.
    head = next((i for i, row in enumerate(rows) if len(row.cells) > 1), len(rows))
    names, data = rows[head : head + 1], rows[head + 1 :]
    first = data[0].cells if data else []
    extra = next((i for i, cell in enumerate(first) if PICTURE.search(cell)), 0)
    if not extra or not all(_is_number(cell) for row in data for cell in row.cells[:extra]):
        return rows
    over = max(len(names[0].cells) - len(first) + extra, 0)
    names = [Row(row.line, row.cells[over:]) for row in names]
    return rows[:head] + names + [Row(row.line, row.cells[extra:]) for row in data]


def _is_number(cell: str) -> bool:
    return cell.isdecimal() and cell == str(int(cell))  # 000001 is a name


def _split(text: str) -> list[Row]:
    """The lines that are not empty, at the separator that splits the first of them that any does."""
    lines = [line for line in io.StringIO(text, newline="") if line.strip()]
    separator = ","
    if lines and lines[0].lower().startswith("sep="):  # Excel's own line
        separator, text = lines[0][4:5], text.replace(lines[0], "\n", 1)
    else:
        for line in lines:
            counts = {by: _columns(line, by) for by in (",", ";", "\t", "|")}
            if max(counts.values()) > 1 or len(line.split()) > 1:
                separator = max(counts, key=lambda by: counts[by]) if max(counts.values()) > 1 else " "
                break
    source = io.StringIO(text, newline="")
    # One blank or many, tabs or not, and none at a line's end.
    given = (" ".join(line.split()) + "\n" for line in source) if separator == " " else source
    reader = csv.reader(given, delimiter=separator, skipinitialspace=True, strict=True)
    rows = [Row(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    return [row for row in rows if any(row.cells)]


def _columns(line: str, separator: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=separator, strict=True)))
    except csv.Error:
        return 0
