"""HTML as strings in which everything is escaped that isn't markup already."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from lmcleaner.reporting.values import shown


class Html(str):
    """Markup, which isn't escaped again."""

    __slots__ = ()


NOTHING = Html("")
MAX_ROWS = 1000  # of a table; the document has the rest


def escaped(content: object) -> Html:
    """Anything as markup: markup as it is, all else as text."""
    return content if isinstance(content, Html) else Html(html.escape(shown(content)))


def joined(parts: Iterable[object]) -> Html:
    """One behind the other."""
    return Html("".join(map(escaped, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        *content: text, which is escaped, and markup, which isn't.
        **attributes: `class_` is "class", other underscores are hyphens; None leaves one out.

    Returns:
        The element with its end tag.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    spelled = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{spelled}>{joined(content)}</{name}>")


def slug(text: str) -> str:
    """A text as an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def paragraph(*content: object) -> Html:
    """A paragraph."""
    return tag("p", *content)


def bullets(items: Iterable[object]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items))


def code(text: object) -> Html:
    """A name, digest or value that breaks wherever a line ends."""
    return tag("code", text)


def command(line: str) -> Html:
    """A line to type."""
    return tag("pre", tag("code", line))


def folded(summary: object, *content: object) -> Html:
    """What opens on demand, without a script; printed it is open."""
    return tag("details", tag("summary", summary), *content)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table whose first column names the rows; it scrolls by itself where it is too wide.

    Args:
        caption: what it shows.
        columns: heads, the first one that of the names.
        rows: their cells; a column that has none but None is left out, and so are rows beyond `MAX_ROWS`.

    Returns:
        The table; nothing without a row.
    """
    cells = [*rows]
    if not cells:
        return NOTHING
    used = [place for place in range(len(columns)) if any(row[place] is not None for row in cells)]
    body = (_table_row([row[place] for place in used]) for row in cells[:MAX_ROWS])
    told = caption if len(cells) <= MAX_ROWS else f"{caption}; the first {MAX_ROWS:,} of {len(cells):,}"
    head = tag("thead", tag("tr", *(tag("th", columns[place], scope="col") for place in used)))
    whole = tag("table", tag("caption", told), head, tag("tbody", *body))
    return tag("div", whole, class_="scroll", role="region", aria_label=told, tabindex=0)


def _table_row(cells: Sequence[object]) -> Html:
    name, *values = cells
    return tag("tr", tag("th", name, scope="row"), *(tag("td", value) for value in values))


def pairs(caption: str, values: Mapping[str, object]) -> Html:
    """A table of names and values; those that are None are left out."""
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in values.items() if value is not None
    ]
    return tag("table", tag("caption", caption), tag("tbody", *rows), class_="pairs") if rows else NOTHING
