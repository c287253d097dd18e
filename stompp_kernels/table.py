"""Plain text tables for reports."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Pads columns to their widest cell; columns that hold only numbers are set to the right."""
    body = [tuple(row) for row in rows]
    cells = [tuple(header), *(tuple(str(cell) for cell in row) for row in body)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    numeric = [bool(body) and all(isinstance(row[i], (int, float)) for row in body) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(cells[0]), rule, *(line(row) for row in cells[1:])])
