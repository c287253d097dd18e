"""What the pages of reports are made of: plain HTML that holds its pictures and loads nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 0.3rem; }
p { margin: 0.3rem 0 0.8rem; max-width: 54rem; color: #444; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem 0.3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; color: #555; border-bottom-color: #999; }
th.number, td.number { text-align: right; white-space: nowrap; }
small { display: block; color: #777; white-space: normal; }
td small { max-width: 12em; min-width: 8em; }
td.number small { margin-left: auto; }
img { display: block; max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page; ``parts`` are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(title: str, text: str, content: str) -> str:
    """A heading, a paragraph of plain text, and HTML."""
    return f"<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n{content}"


def image(png: bytes, title: str) -> str:
    """A picture within the page."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return f'<img src="{source}" alt="{escape(title)}">'


def table(texts: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells that are HTML already: first those of the columns of text, then the right-aligned ones."""
    kinds = [""] * len(texts) + [' class="number"'] * len(numbers)
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, (*texts, *numbers), strict=True))
    lines = ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'
