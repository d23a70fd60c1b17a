"""Reads a page as a browser would, and notes what a page must not have."""

from html.parser import HTMLParser
from itertools import pairwise

_VOID = {"meta"}
_SHAPES = {"svg", "path", "rect", "title", "desc"}
_ALLOWED = {
    "a", "body", "caption", "code", "details", "div", "figcaption", "figure", "h1", "h2", "head", "header", "html",
    "li", "main", "nav", "p", "pre", "section", "span", "strong", "style", "summary", "table", "tbody", "td", "th",
    "thead", "tr", "ul", *_VOID, *_SHAPES,
}  # fmt: skip

Attributes = list[tuple[str, str | None]]


class PageChecker(HTMLParser):
    """A page's structure.

    Attributes:
        problems: what is wrong with it.
        headings: their levels in order.
        text: all text, in pieces.
    """

    def __init__(self, page: str) -> None:
        """Reads the page."""
        super().__init__()
        self.problems: list[str] = []
        self.headings: list[int] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self._ids: list[str] = []
        self._named: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"never closed: {name}" for name in self._open]
        self.problems += [f"an id twice: {name}" for name in set(self._ids) if self._ids.count(name) > 1]
        self.problems += [f"a name that leads nowhere: {name}" for name in set(self._named) - set(self._ids)]
        steps = pairwise([0, *self.headings])
        self.problems += [f"a heading of level {below} below {above}" for above, below in steps if below > above + 1]

    def handle_starttag(self, tag: str, attributes: Attributes) -> None:
        """Notes an element."""
        given = dict(attributes)
        if tag not in _ALLOWED:
            self.problems.append(f"an element that no page has: {tag}")
        if tag not in _VOID:
            self._open.append(tag)
        if tag in {"h1", "h2", "h3"}:
            self.headings.append(int(tag[1]))
        if tag == "svg" and (given.get("role") != "img" or "aria-labelledby" not in given):
            self.problems.append("a picture without a name")
        if tag == "th" and given.get("scope") not in {"row", "col"}:
            self.problems.append("a head of a table that doesn't say of what")
        self._ids += [str(value) for name, value in attributes if name == "id"]
        self._named += str(given.get("aria-labelledby") or "").split()
        self._named += [str(value)[1:] for name, value in attributes if name == "href"]
        for name, value in attributes:
            if name.startswith("on") or name == "src" or (name == "href" and not str(value).startswith("#")):
                self.problems.append(f"{tag} {name}: {value}")

    def handle_endtag(self, tag: str) -> None:
        """Closes an element."""
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"closed in the wrong place: {tag}")

    def handle_data(self, text: str) -> None:
        """Notes text."""
        if "style" not in self._open:
            self.text.append(text)
        elif "url(" in text or "@import" in text:
            self.problems.append("a style that loads something")
