"""Reads the HTML page of a report as the tests want it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """A page's tables as rows of cells' texts, the items of its lists, its tags, and what attributes refer to."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.items, self.references, self.tags, self.into = [], [], [], set(), None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th", "li"):
            self.into = self.items if tag == "li" else self.tables[-1][-1]
            self.into.append("")

    def handle_endtag(self, tag):
        self.into = None if tag in ("td", "th", "li") else self.into

    def handle_data(self, data):
        if self.into is not None:
            self.into[-1] = f"{self.into[-1]} {data}".strip()

    def rows(self, header):
        """The rows of the one table with such a column, each as {header: text}."""
        ((head, *body),) = (table for table in self.tables if header in table[0])
        return [dict(zip(head, row, strict=True)) for row in body]
